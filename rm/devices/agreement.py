"""Agreement of all processes of a run, by messages over the store of JAX's coordination service.

The messages go over the network of the hosts, never through the devices: they arrive whatever the devices are doing,
and processes can disagree on what to compute before any of them waits for another's computation.
"""

import itertools
import json
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import jax

from ..errors import ConfigError, RmError
from .meeting import Wait, difference, shown_processes
from .processes import OVER, leads, store

_LONGEST_WAIT = 86400  # seconds; a process that has ended is noticed long before
_POLL_SECONDS = 0.5  # between two looks for a process that asks all to stop

_ROUNDS = itertools.count()  # every process counts the same ones
_BALLOTS = itertools.count()

T = TypeVar("T")


def prepare_together(prepare: Callable[[], T], facts: Callable[[T], Mapping[str, Any]] = lambda _: {}) -> T:
    """Returns the result of `prepare` after checking that all processes have prepared the same.

    **Arguments:** `prepare`, computes nothing that other processes take part in; `facts`, returns the values of its
    result that must be equal on all processes.

    **Raises:** the same error on every process: that of the first process that failed, or `ConfigError` for the first
    value that differs from process 0's.
    """
    if jax.process_count() == 1:
        return prepare()
    prepared, message = None, {}
    try:
        prepared = prepare()
        message = {"facts": json.loads(json.dumps(dict(facts(prepared)), default=str))}
    except (RmError, OSError) as error:
        message = {"error": str(error)}
    if fault := _decide(message, _first_fault):
        raise ConfigError(fault)
    return prepared  # pyright: ignore[reportReturnType]


def _first_fault(messages: list[dict[str, Any]]) -> str | None:
    for number, message in enumerate(messages):
        if "error" in message:
            return f"process {number}: {message['error']}"
    faults = (difference(number, message["facts"], messages[0]["facts"]) for number, message in enumerate(messages))
    return next(filter(None, faults), None)


def agree(yes: bool) -> bool:
    """True if `yes` is true on all processes; every process waits for the others."""
    return yes if jax.process_count() == 1 else _decide(yes, all)


def from_first(value: T) -> T:
    """The value (JSON) of process 0, on all processes."""
    return value if jax.process_count() == 1 else _decide(value, lambda messages: messages[0])


def _decide(message: Any, judge: Callable[[list[Any]], T]) -> T:
    """The verdict (JSON) of process 0 on the messages (JSON) of all processes, in their order.

    A process that takes part in a round has read the verdict of the one before, so that one is deleted.
    """
    number, count, keys = next(_ROUNDS), jax.process_count(), store()
    said, found = f"rm/said/{number}", f"rm/found/{number}"
    keys.key_value_set(f"{said}/{jax.process_index()}", json.dumps(message))
    wait = Wait(_LONGEST_WAIT)
    if not leads():
        while not (verdict := _read(keys, found)):
            wait.pause(_who_is_missing(said))
        return verdict[0]
    while len(messages := _read(keys, said)) < count:
        wait.pause(_who_is_missing(said))
    verdict = judge([messages[other] for other in range(count)])
    keys.key_value_set(f"{found}/0", json.dumps(verdict))
    keys.key_value_delete(said)
    keys.key_value_delete(f"rm/found/{number - 1}")
    return verdict


def _who_is_missing(directory: str) -> str:
    said, count = _read(store(), directory), jax.process_count()
    return shown_processes([other for other in range(count) if other not in said] or [0], count)


def _read(keys: Any, directory: str) -> dict[int, Any]:
    """The messages in a directory of the store by their process."""
    return {int(key.rpartition("/")[2]): json.loads(value) for key, value in keys.key_value_dir_get(directory)}


def ballot() -> Callable[[bool], bool]:
    """A function that all processes call after every update, with true where this one wants to stop.

    It returns true in all of them after the same update, soon after one has asked for it, and no update waits for the
    network. All processes run the same updates, but one may be some updates ahead of another, because devices work
    behind the programs that feed them. So nobody can say "stop now". Instead:

    1. The first process that wants to stop writes the number of its next update into the store: it promises not to go
       beyond that one before it knows the verdict.
    2. In every other process a thread looks into the store twice a second, and answers with such a promise of its own.
       A thread answers even where the program waits for an update that needs the devices of all processes.
    3. The verdict is the largest of the promised numbers. Nobody has gone beyond it, and all can reach it.

    Only here, at the end, a process waits for answers, which no update can hold up. Before that nothing is written.

    **Source:** the preemption sync point of JAX's coordination service is found in the same way.
    """
    return (lambda yes: yes) if jax.process_count() == 1 else _Ballot().vote


class _Ballot:
    """The state of a ballot in one process; `vote` is called by the program, `_look` by its thread too."""

    def __init__(self):
        self._directory, self._lock = f"rm/ballot/{next(_BALLOTS)}", threading.Lock()
        self._store, self._key = store(), f"{self._directory}/{jax.process_index()}"
        self._updates, self._promise, self._verdict = 0, None, None
        threading.Thread(target=self._listen, daemon=True, name="ballot").start()

    def vote(self, yes: bool) -> bool:
        with self._lock:
            self._updates += 1
            waits = self._promise is not None and self._updates >= self._promise
        if yes:
            self._make_promise()
        wait = Wait(_LONGEST_WAIT, longest_pause=_POLL_SECONDS)
        while waits and self._verdict is None:
            self._look()
            wait.pause("the other processes, which were asked to stop")
        return self._verdict is not None and self._updates >= self._verdict

    def _listen(self) -> None:
        while self._verdict is None and not OVER.wait(_POLL_SECONDS):
            with suppress(jax.errors.JaxRuntimeError):  # process 0, which keeps the store, is gone: the watch says so
                self._look()

    def _look(self) -> None:
        promises = _read(self._store, self._directory)
        if promises:
            self._make_promise()
        if len(promises) == jax.process_count():
            self._verdict = max(promises.values())

    def _make_promise(self) -> None:
        with self._lock:
            if self._promise is None:
                self._promise = self._updates + 1
                self._store.key_value_set(self._key, str(self._promise))
