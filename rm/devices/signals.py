"""Handling of SIGTERM and SIGINT: the first signal stops a run after its update, the second at once."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], int | None]]:
    """Catches SIGTERM and SIGINT inside the block; yields a function that returns the signal received, if any.

    A second signal ends the process at once. Outside of the main thread, where Python has no signals, nothing changes.
    """
    received: list[int] = []

    def handle(number: int, _: object) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        name = signal.Signals(number).name
        print(f"rm: {name}: saving a checkpoint after this update; once more ends at once", file=sys.stderr, flush=True)

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)} if main else {}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
