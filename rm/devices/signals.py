"""Signals that ask a run to stop: the first time when it suits, the second time at once."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], int | None]]:
    """While the block runs, SIGTERM and SIGINT are kept; gives a function that says which has come, if any.

    A second one ends the process at once. Outside of the main thread, where Python has no signals, nothing changes.
    """
    found: list[int] = []

    def ask(number: int, _: object) -> None:
        if found:
            os._exit(128 + number)
        found.append(number)
        name = signal.Signals(number).name
        print(f"rm: {name}: saving a checkpoint after this update; once more ends at once", file=sys.stderr, flush=True)

    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)} if here else {}
    try:
        yield lambda: found[0] if found else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
