"""Multi-process runs: connecting the processes, and ending them together."""

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ..errors import ConfigError, RmError, first_line
from ..version import __version__
from .meeting import meet, shown_seconds

JOIN_SECONDS = 600.0  # the longest wait for processes that have not come yet
OVER = threading.Event()  # set where this process ends

_CONNECT_SECONDS = 60  # JAX needs about one to connect processes that have met
_HEARTBEAT_SECONDS = 20  # a process silent for this long counts as gone
_WATCH_SECONDS = 4  # between two checks that all processes are alive
_EXPORT_SECONDS = 86400  # the longest wait for the process that writes the export


def connect(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    join_timeout: float = JOIN_SECONDS,
) -> None:
    """Connects this process to the others; call it before any other use of JAX.

    Without arguments, JAX finds the other processes itself on SLURM, Open MPI, GKE and TPU pods. While processes are
    missing, a line every 30 s says which.

    **Arguments:** `coordinator`, `host:port` of process 0; `num_processes`; `process_id`, counted from 0;
    `join_timeout`, the longest wait for the others in seconds.

    **Raises:** `ConfigError` if the address cannot be used, if a process does not come in time, if two have the same
    number, or if they are told different numbers of processes or have different versions.

    Example: `rm.connect("10.0.0.1:1234", num_processes=2, process_id=0)`.
    """
    address, count, number, local_devices = _find(coordinator, num_processes, process_id, join_timeout)
    versions = {"jax version": jax.__version__, "rm version": __version__}
    meet(address, count, number, join_timeout, {"--num-processes": count, **versions})
    jax.config.update("jax_enable_recoverability", True)  # else JAX aborts silently if a process is missing
    jax.config.update("jax_enable_preemption_service", False)  # it would catch SIGTERM and do nothing
    with _aborting_in_words(address):
        jax.distributed.initialize(
            address,
            count,
            number,
            local_devices,
            initialization_timeout=2 * _CONNECT_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    threading.Thread(target=_watch, daemon=True, name="watch").start()
    atexit.register(_leave)


def _find(
    coordinator: str | None, num_processes: int | None, process_id: int | None, limit: float
) -> tuple[str, int, int, Sequence[int] | None]:
    """The address of process 0, the number of processes, this one's, and its devices: as given, or by JAX's search."""
    from jax._src.clusters import ClusterEnv
    from jax._src.xla_bridge import backends_are_initialized

    if jax.distributed.is_initialized() or backends_are_initialized():
        raise ConfigError("connect() must be the first use of JAX in a process; start a new one")
    given = (coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"), num_processes, process_id)
    try:
        found, reason = (
            ClusterEnv.auto_detect_unset_distributed_params(*given, None, None, int(limit)),
            "no cluster here",
        )
    except Exception as error:  # each kind of cluster has its own
        found, reason = (None, None, None, None), first_line(error)
    if None in found[:3]:
        advice = "give --coordinator HOST:PORT --num-processes N --process-id I"
        raise ConfigError(f"the processes cannot be connected ({reason}); {advice}")
    return found  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def _aborting_in_words(address: str) -> Iterator[None]:
    """Ends this process in one line where another ends just after the meeting; JAX would abort this one."""

    def abort() -> None:
        text = f"rm: the processes have met, but JAX does not connect them at {address}"
        print(f"{text} within {shown_seconds(_CONNECT_SECONDS)}; start all of them again", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(_CONNECT_SECONDS, abort)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the processes cannot be connected ({first_line(error)}); start all of them again") from None
    finally:
        timer.cancel()


def store() -> Any:
    """The client of JAX's coordination service, for which JAX has no public name."""
    from jax._src.distributed import global_state

    return global_state.client


def _watch() -> None:
    """Ends this process if another has ended."""
    while not OVER.is_set():
        try:
            live = store().get_live_nodes(list(range(jax.process_count())))  # waits until all of them ask
        except jax.errors.JaxRuntimeError:  # process 0, which keeps the list, is gone
            live = range(1, jax.process_count())
        gone = [f"process {number}" for number in range(jax.process_count()) if number not in live]
        if gone and not OVER.wait(1):
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
        OVER.set()
        raise
    except (jax.errors.JaxRuntimeError, ValueError, OSError) as error:  # JAX's small computations raise ValueError
        reason = " ".join(str(error).split())[:200]
        print(f"rm: {reason}; looking whether another process has ended", file=sys.stderr, flush=True)
        time.sleep(2 * _HEARTBEAT_SECONDS)  # meanwhile `_watch` ends this process
        raise


def _leave() -> None:
    """Runs at exit: waits for the other processes, briefly after a failure, and lets process 0 leave last."""
    failed = OVER.is_set() or hasattr(sys, "last_value")
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        store().wait_at_barrier("rm/over", 1000 * (_WATCH_SECONDS if failed else _EXPORT_SECONDS))
    OVER.set()
    if not leads():
        jax.distributed.shutdown()
        return
    end = time.monotonic() + _HEARTBEAT_SECONDS  # processes that outlive process 0 abort
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        while time.monotonic() < end and len(store().get_live_nodes(list(range(jax.process_count())))) > 1:
            time.sleep(0.1)


def leads() -> bool:
    """True on process 0, which writes logs and exports."""
    return jax.process_index() == 0


def fetch(x: Any) -> np.ndarray:
    """Copies an array to the host, also if it is sharded over processes; all of them must call this."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
        from jax.experimental.multihost_utils import process_allgather

        return np.asarray(process_allgather(x, tiled=True))
    return np.asarray(x)
