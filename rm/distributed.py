"""Several processes that run one program: how they find each other and agree before they begin."""

import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np

from .errors import ConfigError, RmError

_HEARTBEAT_SECONDS = 50  # without a sign of life from a process, after which JAX ends the others
_PULSE_SECONDS = 4  # between the signs of life by which `_missing` tells which process it was
_LONGEST_MESSAGE = 16384  # bytes that a process says of itself

_ENDING = threading.Lock()

Prepared = TypeVar("Prepared")


def connect(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Has this process join the others, before JAX is used for anything else.

    Without arguments JAX finds them itself on SLURM, Open MPI, GKE and TPU pods.

    **Arguments:** `coordinator`, `host:port` of process 0; `num_processes`; `process_id`, counted from 0.

    **Raises:** `ConfigError` where they cannot be found or do not answer.

    Example: `rm.connect("10.0.0.1:1234", num_processes=2, process_id=0)`.
    """
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        advice = "give --coordinator HOST:PORT --num-processes N --process-id I"
        raise ConfigError(f"the processes cannot be connected ({reason}); {advice}") from None

    threading.Thread(target=_pulse, daemon=True, name="pulse").start()


def _store() -> Any:
    """The strings that process 0 keeps for all; JAX has no public name for it."""
    from jax._src.distributed import global_state

    return global_state.client


def _pulse() -> None:
    """Counts in the store for as long as this process lives, and ends it where another has found one missing."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # the store is gone: the run is over
        for count in itertools.count():
            _store().key_value_set(f"rm/pulse/{jax.process_index()}", str(count), allow_overwrite=True)
            found = dict(_store().key_value_dir_get("rm/gone"))
            if found:
                _end(json.loads(next(iter(found.values()))), "as another process found")
            time.sleep(_PULSE_SECONDS)


def _missing() -> list[int]:
    """The processes that do not count any more; process 0 where the store does not answer."""
    try:
        before = dict(_store().key_value_dir_get("rm/pulse/"))
        time.sleep(2 * _PULSE_SECONDS)
        after = dict(_store().key_value_dir_get("rm/pulse/"))
        counts = ((number, f"rm/pulse/{number}") for number in range(jax.process_count()))
        gone = [number for number, key in counts if before.get(key) == after.get(key)]
        if gone:
            _store().key_value_set("rm/gone/found", json.dumps(gone))
    except jax.errors.JaxRuntimeError:
        return [0]
    return gone


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Where another process has gone, says in one line which it was and ends this one with code 1."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, OSError) as error:
        gone = _missing() if jax.process_count() > 1 else []
        if not gone:
            raise
        _end(gone, " ".join(str(error).split())[:200])


def _end(gone: list[int], reason: str) -> NoReturn:
    with _ENDING:  # one line, whichever thread comes first
        names = " and ".join(f"process {number}" for number in gone)
        advice = "see its log, and go on with --resume"
        print(f"rm: {names} of {jax.process_count()} ended ({reason}); {advice}", file=sys.stderr, flush=True)
        if leads():
            time.sleep(3 * _PULSE_SECONDS)  # the others ask this one
        os._exit(1)  # else JAX waits for the one that is gone


def leads() -> bool:
    """Whether this is the process that writes logs and exports."""
    return jax.process_index() == 0


def prepare_together(prepare: Callable[[], Prepared], facts: Callable[[Prepared], Mapping[str, Any]]) -> Prepared:
    """What `prepare` returns, once all processes are known to have prepared the same.

    **Arguments:** `facts`, of what was prepared, those in which the processes must agree.

    **Raises:** in every process the same: the error of the first that failed, or `ConfigError` for the first fact in
    which one differs from process 0.
    """
    if jax.process_count() == 1:
        return prepare()
    prepared, said = None, {}
    try:
        prepared = prepare()
        said = {name: json.loads(json.dumps(value, default=str)) for name, value in facts(prepared).items()}
    except RmError as error:
        said = {"error": str(error)}
    everyone = _exchange(said)
    for number, other in enumerate(everyone):
        if "error" in other:
            raise RmError(f"process {number}: {other['error']}")
    for number, other in enumerate(everyone):
        for name, value in everyone[0].items():
            if other.get(name) != value:
                found = f"process {number} has {name} {other.get(name)}, process 0 has {value}"
                raise ConfigError(f"{found}; start all of them with the same")
    return prepared  # pyright: ignore[reportReturnType]


def _exchange(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What every process said, in their order."""
    from jax.experimental.multihost_utils import process_allgather

    text = json.dumps(said).encode()[:_LONGEST_MESSAGE]
    padded = np.frombuffer(text.ljust(_LONGEST_MESSAGE), np.uint8)
    return [json.loads(row.tobytes()) for row in np.asarray(process_allgather(padded))]


def fetch(x: Any) -> np.ndarray:
    """An array on the host, whichever processes have its parts; all of them must take part."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
        from jax.experimental.multihost_utils import process_allgather

        return np.asarray(process_allgather(x, tiled=True))
    return np.asarray(x)
