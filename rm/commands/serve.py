"""`python -m rm serve`: rewards over HTTP."""

import dataclasses
import math
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import jax

from ..data.sources import parse_source
from ..errors import ConfigError, check_list
from ..model.compute import Compute
from ..model.llama import RewardModel
from ..saving.calibration import Calibration, require_calibration
from ..serving.app import make_app
from ..serving.batching import Batcher
from ..serving.models import SUM, ServedModel
from ..serving.requests import Limits, Truncation
from ..serving.scorer import Scorer
from ..serving.server import listen, make_server, run_server
from ..serving.traffic import Metrics, make_metrics
from ..text.tokenizer import Tokenizer
from .options import ForwardOptions, HeadOptions, check_not_negative, check_positive, on_this_device
from .read import load

_TOKEN = "RM_SERVE_TOKEN"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeArguments(HeadOptions, ForwardOptions):
    """Give rewards over HTTP, to clients of OpenRLHF, vLLM, SGLang, text-embeddings-inference and to rm.client."""

    common: ClassVar = (
        "model",
        "weights",
        "names",
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

    model: tuple[str, ...]
    """Reward models, one or several: directories that train exported (RUN/model), any sequence classifiers of one
    label, hub ids, or RUN/checkpoints/STEP."""
    weights: tuple[float, ...] = ()
    """Weights of several models: a request that names none gets their weighted sum; by default all are 1."""
    names: tuple[str, ...] = ()
    """Names by which requests ask for the models; by default as given to --model."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all of this machine's."""
    port: int = 8000
    """Port to listen at; 0 chooses a free one."""
    normalize: bool = False
    """Give (reward - mean) / std, with mean and std over the evaluation sets of the training (rm.json)."""
    max_batch_size: int = 64
    """Sequences, of whatever requests wait, that go through the model together."""
    max_wait: float = 5.0
    """Milliseconds for which the first request of a batch that is not full waits for more."""
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
        self._check_models()
        if self.max_queue < self.max_inputs:
            found = f"found {self.max_queue} and {self.max_inputs}"
            raise ConfigError(f"--max-queue must be at least --max-inputs, or such a request never fits; {found}")

    def _check_models(self):
        check_list("model", self.model)
        if not self.model:
            raise ConfigError("--model: expected at least one reward model, found none")
        count, names = len(self.model), self.names or self.model
        for flag, found in (("--weights", self.weights), ("--names", self.names)):
            if found and len(found) != count:
                raise ConfigError(f"{flag}: expected one for each model of --model, {count}, found {len(found)}")
        if self.weights and (count == 1 or not all(map(math.isfinite, self.weights))):
            raise ConfigError(f"--weights: expected finite numbers for several models, found {self.weights}")
        if len(set(names)) < count or (SUM in names and count > 1) or not all(names):
            advice = f"different ones, none of them empty or {SUM!r}, which is that of the weighted sum"
            raise ConfigError(f"--names: expected {advice}; found {', '.join(map(repr, names))}")


def serve(args: ServeArguments) -> None:
    """Answers requests until SIGTERM or SIGINT, then finishes those under way."""
    for package in ("starlette", "uvicorn", "prometheus_client"):
        if find_spec(package) is None:
            raise ConfigError(f"serve needs {package}, which is not installed; python -m pip install 'rm-jax[serve]'")
    token, args = read_token(args.token_file), on_this_device(args)
    calibrations = [_calibration(name) if args.normalize else None for name in args.model]
    with listen(args.host, args.port) as listener:  # before the models are read, which may take minutes
        metrics, compute = make_metrics(), args.compute()
        loaded = [load(name, compute.mesh, args) for name in args.model]
        batchers = [_make_batcher(args, model, compute, metrics) for model, _ in loaded]
        models = _served(args, loaded, batchers, calibrations)
        limits = Limits(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Limits)})
        server = make_server(make_app(models, metrics, limits=limits, token=token), args.request_timeout)
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        run_server(server, [each.batcher for each in models], listener, f"serving {describe(models)} on {address}")


def _make_batcher(args: ServeArguments, model: RewardModel, compute: Compute, metrics: Metrics) -> Batcher:
    """The queue of a model, which begins to compile."""
    scorer = Scorer(model, compute, max_batch_size=args.max_batch_size, max_length=args.max_length)
    return Batcher(
        scorer,
        warm_up=scorer.compile(),
        max_batch_size=args.max_batch_size,
        max_wait=args.max_wait / 1000,
        max_queue=args.max_queue,
        observe=metrics.batch.observe,
    )


def _served(
    args: ServeArguments,
    loaded: Sequence[tuple[RewardModel, Tokenizer]],
    batchers: Sequence[Batcher],
    calibrations: Sequence[Calibration | None],
) -> list[ServedModel]:
    names, weights = args.names or args.model, args.weights or [1.0] * len(args.model)
    return [
        ServedModel(
            name=name,
            tokenizer=tokenizer,
            config=model.config,
            batcher=batcher,
            calibration=calibration,
            weight=weight,
            parameter_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(model)),
        )
        for name, weight, (model, tokenizer), batcher, calibration in zip(
            names, weights, loaded, batchers, calibrations, strict=True
        )
    ]


def _calibration(name: str) -> Calibration:
    source = parse_source(name)
    return require_calibration(source.path, revision=source.revision)


def describe(models: Sequence[ServedModel]) -> str:
    """The names of the models, several with their weights and the memory of their parameters."""
    if len(models) == 1:
        return models[0].name
    return " + ".join(f"{each.weight:g} · {each.name} ({each.parameter_bytes / 2**20:.0f} MiB)" for each in models)


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
