"""Output whose reader has gone, as that of `… | head -1` has: what is made to be read ends, and a run goes on."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO


class ReaderGone(Exception):
    """Nobody reads the output any more."""


class _Pipe:
    """A stream that says nothing more once its reader has gone, and raises `ReaderGone` then where `ends`."""

    def __init__(self, stream: TextIO, *, ends: bool):
        self._stream, self._ends = stream, ends

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, function: Any, *arguments: Any) -> None:
        try:
            function(*arguments)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # also for what the stream holds back still, and for children
            os.close(nowhere)
            if self._ends:
                raise ReaderGone from None


@contextmanager
def outliving_readers(*, ends: bool) -> Iterator[None]:
    """Standard output and errors may lose their readers.

    **Raises:** `ReaderGone` then, for standard output, where `ends`.
    """
    if sys.stdout is None or sys.stderr is None:  # closed from the beginning
        yield
        return
    output: Any = _Pipe(sys.stdout, ends=ends)
    errors: Any = _Pipe(sys.stderr, ends=False)
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            yield
        finally:
            output.flush()
