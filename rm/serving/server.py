"""The HTTP server under `serve`: uvicorn, that waits for no one for ever, and ends well."""

import signal
import socket
import threading
from collections.abc import Iterator
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
    """uvicorn's server of an application; it says nothing unless something is wrong."""
    import uvicorn

    config = uvicorn.Config(
        app,
        http=_patient(request_timeout),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=max(1, round(request_timeout)),
    )
    return uvicorn.Server(config)


def run_server(server: Any, batcher: Batcher, listener: socket.socket, greeting: str) -> None:
    """Serves until a signal comes; prints the greeting when the first request would be scored."""

    def begin(ready: Any) -> None:
        if ready.cancelled() or ready.exception():
            server.should_exit = True
        else:
            print(greeting, flush=True)

    batcher.ready.add_done_callback(begin)
    with _kept_signals():
        server.run(sockets=[listener])
        batcher.close()
    if not batcher.ready.cancelled():
        batcher.ready.result()


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


def _patient(seconds: float) -> type:
    """uvicorn's protocol, which by itself waits for the headers of a request for ever."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Patient(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.expect_request(self.cycle)

        def on_response_complete(self) -> None:
            cycle = self.cycle
            super().on_response_complete()
            self.expect_request(cycle)

        def expect_request(self, last: Any) -> None:
            self.loop.call_later(seconds, lambda: self.transport.close() if self.cycle is last else None)

    return Patient
