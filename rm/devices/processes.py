"""Multi-process runs: connecting the processes, checking that they agree, and ending them together."""

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

_HEARTBEAT_SECONDS = 20  # a process silent for this long counts as gone
_WATCH_SECONDS = 4  # between two checks that all processes are alive
_EXPORT_SECONDS = 86400  # the longest wait for the process that writes the export

_OVER = threading.Event()

Prepared = TypeVar("Prepared")


def connect(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Connects this process to the others; call it before any other use of JAX.

    Without arguments, JAX finds the other processes itself on SLURM, Open MPI, GKE and TPU pods.

    **Arguments:** `coordinator`, `host:port` of process 0; `num_processes`; `process_id`, counted from 0.

    **Raises:** `ConfigError` if the other processes cannot be found or do not answer.

    Example: `rm.connect("10.0.0.1:1234", num_processes=2, process_id=0)`.
    """
    jax.config.update("jax_enable_recoverability", True)  # else JAX aborts silently if a process is missing
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        reason = first_line(error)
        advice = "give --coordinator HOST:PORT --num-processes N --process-id I"
        raise ConfigError(f"the processes cannot be connected ({reason}); {advice}") from None
    threading.Thread(target=_watch, daemon=True, name="watch").start()
    atexit.register(_leave)


def _store() -> Any:
    """The client of JAX's coordination service, for which JAX has no public name."""
    from jax._src.distributed import global_state

    return global_state.client


def _watch() -> None:
    """Ends this process if another has ended."""
    while not _OVER.is_set():
        try:
            live = _store().get_live_nodes(list(range(jax.process_count())))  # waits until all of them ask
        except jax.errors.JaxRuntimeError:  # process 0, which keeps the list, is gone
            live = range(1, jax.process_count())
        gone = [f"process {number}" for number in range(jax.process_count()) if number not in live]
        if gone and not _OVER.wait(1):
            text = f"rm: {' and '.join(gone)} of {jax.process_count()} ended; see its log, and go on with --resume auto"
            print(text, file=sys.stderr, flush=True)
            if leads():
                time.sleep(_WATCH_SECONDS + 2)  # the others ask this one
            os._exit(1)  # a normal exit would wait for the process that is gone
        time.sleep(_WATCH_SECONDS)


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Ends all processes if one of them ends inside the block; the others name it in one line and exit with code 1."""
    if jax.process_count() == 1:
        yield
        return
    try:
        yield
    except RmError:  # raised by all processes, or by this one alone, and then the others notice its end
        _OVER.set()
        raise
    except (jax.errors.JaxRuntimeError, ValueError, OSError) as error:  # JAX's small computations raise ValueError
        reason = " ".join(str(error).split())[:200]
        print(f"rm: {reason}; looking whether another process has ended", file=sys.stderr, flush=True)
        time.sleep(2 * _HEARTBEAT_SECONDS)  # meanwhile `_watch` ends this process
        raise


def _leave() -> None:
    """Runs at exit: waits for the other processes, briefly after a failure, and lets process 0 leave last."""
    failed = _OVER.is_set() or hasattr(sys, "last_value")
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _store().wait_at_barrier("rm/over", 1000 * (_WATCH_SECONDS if failed else _EXPORT_SECONDS))
    _OVER.set()
    if not leads():
        jax.distributed.shutdown()
        return
    end = time.monotonic() + _HEARTBEAT_SECONDS  # processes that outlive process 0 abort
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        while time.monotonic() < end and len(_store().get_live_nodes(list(range(jax.process_count())))) > 1:
            time.sleep(0.1)


def leads() -> bool:
    """True on process 0, which writes logs and exports."""
    return jax.process_index() == 0


def prepare_together(prepare: Callable[[], Prepared], facts: Callable[[Prepared], Mapping[str, Any]]) -> Prepared:
    """Returns the result of `prepare` after checking that all processes have prepared the same.

    **Arguments:** `facts`, returns the values of a result that must be equal on all processes.

    **Raises:** the same error on every process: that of the first process that failed, or `ConfigError` for the first
    value that differs from process 0's.
    """
    if jax.process_count() == 1:
        return prepare()
    prepared, message = None, {}
    try:
        prepared = prepare()
        message = {name: json.loads(json.dumps(value, default=str)) for name, value in facts(prepared).items()}
    except RmError as error:
        message = {"error": str(error)}
    messages = _exchange(message)
    for number, message in enumerate(messages):
        if "error" in message:
            raise RmError(f"process {number}: {message['error']}")
    for number, message in enumerate(messages):
        for name, value in messages[0].items():
            if message.get(name) != value:
                found = f"process {number} has {name} {message.get(name)}, process 0 has {value}"
                raise ConfigError(f"{found}; start all of them with the same")
    return prepared  # pyright: ignore[reportReturnType]


def agree(yes: bool) -> bool:
    """True if `yes` is true on all processes; every process waits for the others."""
    return yes if jax.process_count() == 1 else all(message["yes"] for message in _exchange({"yes": yes}))


def ballot() -> Callable[[bool], bool]:
    """A function that all processes call at every update; it returns whether any voted yes one update earlier.

    No process waits: the devices count the votes after the updates that are already queued.
    """
    if jax.process_count() == 1:
        return lambda yes: yes
    devices = [next(d for d in jax.devices() if d.process_index == i) for i in range(jax.process_count())]
    mesh = jax.sharding.Mesh(np.array(devices), ("process",))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    by_process = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("process"))
    count, last = (
        jax.jit(jnp.any, out_shardings=replicated),
        [jax.make_array_from_process_local_data(by_process, np.zeros(1, bool))],
    )

    def vote(yes: bool) -> bool:
        before = last.pop()
        last.append(count(jax.make_array_from_process_local_data(by_process, np.array([yes]))))
        return bool(np.asarray(before.addressable_data(0)).any())

    return vote


def _exchange(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of all processes, in their order."""
    from jax.experimental.multihost_utils import process_allgather

    text = json.dumps(message).encode()
    longest = int(np.max(process_allgather(np.int32(len(text)))))
    padded = np.frombuffer(text.ljust(longest), np.uint8)
    return [json.loads(row.tobytes()) for row in np.asarray(process_allgather(padded))]


def fetch(x: Any) -> np.ndarray:
    """Copies an array to the host, also if it is sharded over processes; all of them must call this."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
        from jax.experimental.multihost_utils import process_allgather

        return np.asarray(process_allgather(x, tiled=True))
    return np.asarray(x)
