"""The HTTP server under `serve`: uvicorn, which ends once it has answered the requests under way."""

import gc
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import ConfigError
from .batching import Batcher


def listen(host: str, port: int) -> socket.socket:
    """A socket at the address.

    **Raises:** `ConfigError` where it is taken or not this machine's.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        advice = "choose another --host or --port"
        raise ConfigError(f"{host}:{port}: cannot be listened at ({error.strerror or error}); {advice}") from None


def make_server(app: Any, request_timeout: float) -> Any:
    """uvicorn's server of an application; it says nothing unless something is wrong.

    **Arguments:** `request_timeout`, seconds after which a connection without a request is closed.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
        http="auto",
        loop="auto",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=max(1, round(request_timeout)),
    )
    return uvicorn.Server(config)


def run_server(server: Any, batchers: Sequence[Batcher], listener: socket.socket, greeting: str) -> None:
    """Serves until a signal comes; prints the greeting when the first request would be scored by every model."""
    waiting = threading.Semaphore(len(batchers) - 1)

    def begin(ready: Any) -> None:
        if ready.cancelled() or ready.exception():
            server.should_exit = True
        elif not waiting.acquire(blocking=False):  # the last of them
            print(greeting, flush=True)

    for batcher in batchers:
        batcher.ready.add_done_callback(begin)
        batcher.compiled.add_done_callback(_freeze)
    with _kept_signals():
        server.run(sockets=[listener])
        for batcher in batchers:
            batcher.close()
    for batcher in batchers:
        if not batcher.ready.cancelled():
            batcher.ready.result()


def _freeze(_: Any) -> None:
    """Python's collector passes over what there is by now: going through all of it takes a fifth of a second."""
    gc.collect()
    gc.freeze()


@contextmanager
def _kept_signals() -> Iterator[None]:
    """uvicorn ends well at SIGTERM and SIGINT, then raises them again: here that must not end the process."""
    here = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT) if here else ()
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
