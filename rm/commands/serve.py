"""`python -m rm serve`: rewards over HTTP."""

import dataclasses
import os
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from ..data.sources import parse_source
from ..errors import ConfigError
from ..saving.calibration import require_calibration
from ..serving.app import make_app
from ..serving.batching import Batcher
from ..serving.requests import Limits, Truncation
from ..serving.scorer import Scorer
from ..serving.server import listen, make_server, run_server
from ..serving.traffic import make_metrics
from .options import ForwardOptions, HeadOptions, check_not_negative, check_positive, on_this_device
from .read import load

_TOKEN = "RM_SERVE_TOKEN"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeArguments(HeadOptions, ForwardOptions):
    """Give rewards over HTTP, to OpenRLHF (POST /get_reward) and others (POST /score)."""

    common: ClassVar = (
        "model",
        "host",
        "port",
        "normalize",
        "max_batch_size",
        "max_length",
        "truncation",
        "token_file",
        "dtype",
        "mesh",
    )

    model: str
    """Reward model: a directory that train exported (RUN/model), any sequence classifier of one label, a hub id, or
    RUN/checkpoints/STEP."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all of this machine's."""
    port: int = 8000
    """Port to listen at; 0 chooses a free one."""
    normalize: bool = False
    """Give (reward - mean) / std, with mean and std over the evaluation sets of the training (rm.json)."""
    max_batch_size: int = 64
    """Sequences, of whatever requests wait, that go through the model together."""
    max_wait: float = 5.0
    """Milliseconds for which a batch that is not full waits for more."""
    max_length: int = 4096
    """Tokens of an input; a longer one is treated as --truncation says."""
    truncation: Truncation = "refuse"
    """An input over --max-length is refused (422), or its end is cut off, as OpenRLHF's own server does."""
    max_inputs: int = 1024
    """Inputs of a request; one with more is refused (422)."""
    max_queue: int = 4096
    """Sequences that may wait; what does not fit is refused for the time being (503)."""
    max_request_bytes: int = 8 * 2**20
    """Size of a request's body; a larger one is refused (413)."""
    request_timeout: float = 30.0
    """Seconds in which a client must have sent a request's body (408), and that a connection may be idle between two
    requests. For headers that never end, put a reverse proxy before the server."""
    token_file: Path | None = None
    """File with a token that requests must bring (Authorization: Bearer TOKEN); or set RM_SERVE_TOKEN."""

    def __post_init__(self):
        check_positive(self, "max_batch_size", "max_length", "max_inputs", "max_queue")
        check_positive(self, "max_request_bytes", "request_timeout")
        check_not_negative(self, "max_wait")
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"--port must be between 0 and 65535, found {self.port}")
        if self.max_queue < self.max_inputs:
            found = f"found {self.max_queue} and {self.max_inputs}"
            raise ConfigError(f"--max-queue must be at least --max-inputs, or such a request never fits; {found}")


def serve(args: ServeArguments) -> None:
    """Answers requests until SIGTERM or SIGINT, then finishes those under way."""
    for package in ("starlette", "uvicorn", "prometheus_client"):
        if find_spec(package) is None:
            raise ConfigError(f"serve needs {package}, which is not installed; python -m pip install 'rm-jax[serve]'")
    token, source, args = read_token(args.token_file), parse_source(args.model), on_this_device(args)
    calibration = require_calibration(source.path, revision=source.revision) if args.normalize else None
    with listen(args.host, args.port) as listener:  # before the model is read, which may take minutes
        compute = args.compute()
        model, tokenizer = load(args.model, compute.mesh, args)
        scorer = Scorer(model, compute, max_batch_size=args.max_batch_size, max_length=args.max_length)
        metrics = make_metrics()
        batcher = Batcher(
            scorer,
            warm_up=scorer.compile(),
            max_batch_size=args.max_batch_size,
            max_wait=args.max_wait / 1000,
            max_queue=args.max_queue,
            observe=metrics.batch.observe,
        )
        limits = Limits(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Limits)})
        app = make_app(tokenizer, model.config, batcher, metrics, limits=limits, token=token, calibration=calibration)
        host, port = listener.getsockname()[:2]
        name = f"[{host}]" if ":" in host else host
        server = make_server(app, args.request_timeout)
        run_server(server, batcher, listener, f"serving {args.model} on http://{name}:{port}")


def read_token(path: Path | None) -> str | None:
    """The token of the file, or of the environment, `None` without either.

    **Raises:** `ConfigError`, which does not repeat what was found.
    """
    where, found = (_TOKEN, os.environ.get(_TOKEN)) if path is None else (f"{path}", "")
    try:
        token = found if path is None else path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: cannot be read ({getattr(error, 'strerror', 'not ASCII')})") from None
    if token is not None and not (token.isascii() and token.isprintable() and token and " " not in token):
        raise ConfigError(f"{where}: expected a token, one line of printable ASCII without spaces")
    return token
