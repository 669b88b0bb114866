"""Sequences of many requests scored together, by one thread that has the model to itself."""

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from .scorer import Sequences


class Job(NamedTuple):
    """The sequences of a request, and where their rewards go."""

    sequences: Sequences
    rewards: Future
    longest: int  # tokens
    came: float  # when, in seconds of a clock that only goes on


class Batcher:
    """A queue of requests and the thread that scores them: whatever waits goes through the model together.

    **Arguments:** `score`, rewards of sequences; `warm_up`, compiles in a thread of its own, and gives the tokens of
    the longest sequence that can be scored from then on: longer ones wait, and the first makes the batcher ready;
    `max_batch_size`, sequences that are taken together, unless one request has more; `max_wait`, seconds for which the
    first request of a batch that is not full waits for company; `max_queue`, sequences that may wait; `observe`, told
    how many sequences each batch has.
    """

    def __init__(
        self,
        score: Callable[[Sequences], Float[np.ndarray, "n"]],
        *,
        warm_up: Iterable[int] = (),
        max_batch_size: int = 64,
        max_wait: float = 0.005,
        max_queue: int = 4096,
        observe: Callable[[int], Any] = lambda _: None,
    ):
        self.score, self.warm_up, self.observe = score, warm_up, observe
        self.max_batch_size, self.max_wait, self.max_queue = max_batch_size, max_wait, max_queue
        self.waiting = self.reserved = 0  # sequences that wait to be scored, and to be tokenized
        self.ready: Future[None] = Future()  # done when the first rows are compiled, cancelled where that was cut short
        self.compiled: Future[None] = Future()  # done when the last ones are
        self._longest: float = 0  # tokens of a sequence that can be scored
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._warm_up, self._run)]
        for thread in self._threads:
            thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether a request would be scored at once."""
        warm = self.ready.done() and not self.ready.cancelled() and self.ready.exception() is None
        return warm and not self._closed

    @contextmanager
    def room(self, count: int) -> Iterator[None]:
        """Keeps room for sequences that are not tokenized yet.

        **Raises:** `queue.Full`.
        """
        with self._changed:
            self._check_room(count)
            self.reserved += count
        try:
            yield
        finally:
            with self._changed:
                self.reserved -= count

    def submit(self, sequences: Sequences) -> Future:
        """The rewards of the sequences, once they are there.

        **Raises:** `queue.Full`.
        """
        job = Job(sequences, Future(), max(map(len, sequences), default=0), time.monotonic())
        with self._changed:
            self._check_room(len(sequences))
            if not sequences:
                job.rewards.set_result(np.zeros(0, np.float32))
                return job.rewards
            self._jobs.append(job)
            self.waiting += len(sequences)
            self._changed.notify_all()
        return job.rewards

    def _check_room(self, count: int) -> None:
        if self._closed or self.waiting + self.reserved + count > self.max_queue:
            raise queue.Full

    def close(self) -> None:
        """Takes no more requests, and returns when those that wait have been scored."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _warm_up(self) -> None:
        try:
            for longest in self.warm_up:
                if self._closed:
                    break
                self._allow(longest)
        except Exception as error:
            if not self.ready.done():
                self.ready.set_exception(error)
        if self._closed and not self.ready.done():
            self.ready.cancel()
        self.compiled.set_result(None)
        self._allow(math.inf)  # what is not compiled yet is compiled when it is asked for, or tells why it cannot be

    def _allow(self, longest: float) -> None:
        with self._changed:
            self._longest = max(self._longest, longest)
            self._changed.notify_all()
        if not self.ready.done():
            self.ready.set_result(None)

    def _run(self) -> None:
        while (jobs := self._take()) is not None:
            self._answer([job for job in jobs if job.rewards.set_running_or_notify_cancel()])

    def _take(self) -> list[Job] | None:
        """The next batch, of jobs that need nothing that is not compiled; `None` after the last one."""
        with self._changed:
            self._changed.wait_for(lambda: self._allowed() or (self._closed and not self._jobs))
            first = next(iter(self._allowed()), None)
            left = 0 if first is None else first.came + self.max_wait - time.monotonic()
            self._changed.wait_for(lambda: self._closed or self.waiting >= self.max_batch_size, max(0, left))
            jobs, size = [], 0
            for job in self._allowed():
                if jobs and size + len(job.sequences) > self.max_batch_size:
                    break
                jobs.append(job)
                size += len(job.sequences)
            taken = set(map(id, jobs))
            self._jobs = deque(job for job in self._jobs if id(job) not in taken)
            self.waiting -= size
            return jobs or None

    def _allowed(self) -> list[Job]:
        return [job for job in self._jobs if job.longest <= self._longest]

    def _answer(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        sizes = [len(job.sequences) for job in jobs]
        self.observe(sum(sizes))
        try:
            rewards = self.score([ids for job in jobs for ids in job.sequences])
        except Exception as error:  # such as a lack of memory: those who wait are told, and the next batch has its turn
            for job in jobs:
                job.rewards.set_exception(error)
            return
        for job, part in zip(jobs, np.split(rewards, np.cumsum(sizes)[:-1]), strict=True):
            job.rewards.set_result(part)
