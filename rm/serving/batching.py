"""Sequences of many requests scored together, by one thread that has the model to itself."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..evaluation.scoring import score_sequences
from ..model.attention_choice import default_layout
from ..model.compute import Compute
from ..model.llama import RewardModel
from ..packing.sequences import ROW_TOKENS, TOKENS_OF_SLOT, round_up

Sequences = Sequence[Sequence[int]]


def score_batch(
    model: RewardModel, sequences: Sequences, *, compute: Compute, max_batch_size: int, max_length: int
) -> Float[np.ndarray, "n"]:
    """`score_sequences`, called so that traffic of all kinds compiles no more than the shapes of `shapes`.

    **Arguments:** `sequences`, at least one, each of at most `max_length` tokens.
    """
    if default_layout() == "whole":  # rows of a few lengths, with the same number of slots where that is the largest
        slots = round_up(max(max_length, ROW_TOKENS)) // TOKENS_OF_SLOT
        return score_sequences(model, sequences, compute=compute, batch_size=slots)
    fitting = (count for count in _counts(max_batch_size) if count >= len(sequences))
    dummies = [[0]] * (next(fitting, len(sequences)) - len(sequences))
    rewards = score_sequences(model, [*sequences, *dummies], compute=compute, batch_size=max_batch_size)
    return rewards[: len(sequences)]


def shapes(max_batch_size: int, max_length: int) -> list[tuple[int, int]]:
    """Number and length of the sequences that compile all of what `score_batch` can need.

    >>> shapes(64, 100)[:4], len(shapes(64, 100)), len(shapes(64, 8192))
    ([(1, 32), (1, 48), (1, 64), (1, 96)], 15, 17)
    """
    if default_layout() == "whole":
        return [(1, length) for length in _lengths(max(max_length, ROW_TOKENS))]
    return [(count, length) for length in _lengths(max_length) for count in _counts(max_batch_size)]


def _lengths(longest: int) -> list[int]:
    lengths = [round_up(1)]
    while lengths[-1] < longest:
        lengths.append(round_up(lengths[-1] + 1))
    return lengths


def _counts(most: int) -> list[int]:
    """1, 4, 16, … and the most: up to three quarters of a batch are dummies, which accelerators hardly feel.

    >>> _counts(64), _counts(20)
    ([1, 4, 16, 64], [1, 4, 16, 20])
    """
    return [*(4**power for power in range(most.bit_length()) if 4**power < most), most]


class Job(NamedTuple):
    """The sequences of a request, and where their rewards go."""

    sequences: Sequences
    rewards: Future


class Batcher:
    """A queue of requests and the thread that scores them: whatever waits goes through the model together.

    **Arguments:** `score`, rewards of sequences; `warm_up`, sequences to score before the first request, so that
    nothing is left to compile; `max_batch_size`, sequences that are taken together, unless one request has more;
    `max_wait`, seconds for which a batch that is not full waits for company; `max_queue`, sequences that may wait;
    `observe`, is told how many sequences each batch has.
    """

    def __init__(
        self,
        score: Callable[[Sequences], Float[np.ndarray, "n"]],
        *,
        warm_up: Iterable[Sequences] = (),
        max_batch_size: int = 64,
        max_wait: float = 0.005,
        max_queue: int = 4096,
        observe: Callable[[int], Any] = lambda _: None,
    ):
        self.score, self.warm_up, self.observe = score, warm_up, observe
        self.max_batch_size, self.max_wait, self.max_queue = max_batch_size, max_wait, max_queue
        self.waiting = 0  # sequences
        self.ready: Future[None] = Future()  # done after the warm-up, cancelled where that was cut short
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether a request would be scored at once."""
        warm = self.ready.done() and not self.ready.cancelled() and self.ready.exception() is None
        return warm and not self._closed

    def submit(self, sequences: Sequences) -> Future:
        """The rewards of the sequences, once they are there.

        **Raises:** `queue.Full`.
        """
        job = Job(sequences, Future())
        with self._changed:
            if self._closed or self.waiting + len(sequences) > self.max_queue:
                raise queue.Full
            self._jobs.append(job)
            self.waiting += len(sequences)
            self._changed.notify()
        return job.rewards

    def close(self) -> None:
        """Takes no more requests, and returns when those that wait have been scored."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            for sequences in self.warm_up:
                if self._closed:
                    self.ready.cancel()
                    return
                self.score(sequences)
        except Exception as error:
            self.ready.set_exception(error)
            return
        self.ready.set_result(None)
        while (jobs := self._take()) is not None:
            self._answer([job for job in jobs if job.rewards.set_running_or_notify_cancel()])

    def _take(self) -> list[Job] | None:
        """The next batch; `None` after the last one."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            self._changed.wait_for(lambda: self._closed or self.waiting >= self.max_batch_size, self.max_wait)
            jobs, size = [], 0
            while self._jobs and (not jobs or size + len(self._jobs[0].sequences) <= self.max_batch_size):
                jobs.append(self._jobs.popleft())
                size += len(jobs[-1].sequences)
            self.waiting -= size
            return jobs or None

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
