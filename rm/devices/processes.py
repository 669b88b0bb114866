"""Several processes that run one program: how they find each other and agree before they begin."""

import atexit
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import ConfigError, RmError, first_line

_HEARTBEAT_SECONDS = 20  # without a sign of life, after which a process counts as gone
_WATCH_SECONDS = 4  # between looks whether all are there
_EXPORT_SECONDS = 86400  # that the others wait for the one that writes the export

_OVER = threading.Event()

Prepared = TypeVar("Prepared")


def connect(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Has this process join the others, before JAX is used for anything else.

    Without arguments JAX finds them itself on SLURM, Open MPI, GKE and TPU pods.

    **Arguments:** `coordinator`, `host:port` of process 0; `num_processes`; `process_id`, counted from 0.

    **Raises:** `ConfigError` where they cannot be found or do not answer.

    Example: `rm.connect("10.0.0.1:1234", num_processes=2, process_id=0)`.
    """
    jax.config.update("jax_enable_recoverability", True)  # else JAX aborts where a process is missing, without a word
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        reason = first_line(error)
        advice = "give --coordinator HOST:PORT --num-processes N --process-id I"
        raise ConfigError(f"the processes cannot be connected ({reason}); {advice}") from None
    threading.Thread(target=_watch, daemon=True, name="watch").start()
    atexit.register(_leave)


def _store() -> Any:
    """The strings that process 0 keeps for all; JAX has no public name for it."""
    from jax._src.distributed import global_state

    return global_state.client


def _watch() -> None:
    """Ends this process where another has gone."""
    while not _OVER.is_set():
        try:
            live = _store().get_live_nodes(list(range(jax.process_count())))  # once all have asked that still can
        except jax.errors.JaxRuntimeError:  # process 0 keeps the list
            live = range(1, jax.process_count())
        gone = [f"process {number}" for number in range(jax.process_count()) if number not in live]
        if gone and not _OVER.wait(1):
            text = f"rm: {' and '.join(gone)} of {jax.process_count()} ended; see its log, and go on with --resume auto"
            print(text, file=sys.stderr, flush=True)
            if leads():
                time.sleep(_WATCH_SECONDS + 2)  # the others ask this one
            os._exit(1)  # else JAX waits for the one that is gone
        time.sleep(_WATCH_SECONDS)


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """A block that all processes leave; where one has gone, the others say in one line which, and end with code 1."""
    if jax.process_count() == 1:
        yield
        return
    try:
        yield
    except RmError:  # of all, or of this one, whose end the others will notice
        _OVER.set()
        raise
    except (jax.errors.JaxRuntimeError, ValueError, OSError) as error:  # JAX's short computations fail by ValueError
        reason = " ".join(str(error).split())[:200]
        print(f"rm: {reason}; looking whether another process has ended", file=sys.stderr, flush=True)
        time.sleep(2 * _HEARTBEAT_SECONDS)  # `_watch` ends this one meanwhile
        raise


def _leave() -> None:
    """At the end of the program: waits for the others where it ended well, and process 0 goes last."""
    failed = _OVER.is_set() or hasattr(sys, "last_value")
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _store().wait_at_barrier("rm/over", 1000 * (_WATCH_SECONDS if failed else _EXPORT_SECONDS))
    _OVER.set()
    if not leads():
        jax.distributed.shutdown()
        return
    end = time.monotonic() + _HEARTBEAT_SECONDS  # the others abort where they are still there when this one goes
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        while time.monotonic() < end and len(_store().get_live_nodes(list(range(jax.process_count())))) > 1:
            time.sleep(0.1)


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


def agree(yes: bool) -> bool:
    """Whether all processes say so; each waits for the others."""
    return yes if jax.process_count() == 1 else all(said["yes"] for said in _exchange({"yes": yes}))


def ballot() -> Callable[[bool], bool]:
    """A function in which all processes vote at every update; it says whether any voted yes one update before.

    Nobody waits: the votes are counted by devices, after the updates that they have been given.
    """
    if jax.process_count() == 1:
        return lambda yes: yes
    devices = [next(d for d in jax.devices() if d.process_index == i) for i in range(jax.process_count())]
    mesh = jax.sharding.Mesh(np.array(devices), ("process",))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    own = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("process"))
    count, last = (
        jax.jit(jnp.any, out_shardings=whole),
        [jax.make_array_from_process_local_data(own, np.zeros(1, bool))],
    )

    def vote(yes: bool) -> bool:
        before = last.pop()
        last.append(count(jax.make_array_from_process_local_data(own, np.array([yes]))))
        return bool(np.asarray(before.addressable_data(0)).any())

    return vote


def _exchange(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What every process said, in their order."""
    from jax.experimental.multihost_utils import process_allgather

    text = json.dumps(said).encode()
    longest = int(np.max(process_allgather(np.int32(len(text)))))
    padded = np.frombuffer(text.ljust(longest), np.uint8)
    return [json.loads(row.tobytes()) for row in np.asarray(process_allgather(padded))]


def fetch(x: Any) -> np.ndarray:
    """An array on the host, whichever processes have its parts; all of them must take part."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
        from jax.experimental.multihost_utils import process_allgather

        return np.asarray(process_allgather(x, tiled=True))
    return np.asarray(x)
