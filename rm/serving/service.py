"""What happens to a request, from its body to its answer."""

import asyncio
import queue
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..errors import RmError
from .batching import Batcher
from .bodies import Answering, Scored
from .models import Chosen, Ids, ServedModel, choose, encode_within
from .protocols import ADDRESSES, Asked, understand
from .requests import Limits, body_holder, busy, parse_body
from .traffic import Metrics

if TYPE_CHECKING:
    from starlette.requests import Request

_SMALL = 2**16  # bytes of a body that is parsed at once, rather than by a thread that may have to wait for its turn
_FEW = 2**12  # characters of texts that are tokenized at once, in a millisecond at most
_TOKENIZING = 2  # requests that are tokenized at the same time by threads


class Submitted(NamedTuple):
    """A request whose rewards are under way: the token ids for each of its models, and the rewards to come."""

    answering: Answering
    chosen: Chosen
    sequences: list[list[Ids]]
    rewards: list[Future]


class Service:
    """Answers requests by the rewards of one model or several."""

    def __init__(self, models: Sequence[ServedModel], metrics: Metrics, limits: Limits):
        self._models, self._metrics, self._limits = models, metrics, limits
        self._hold_body, self._tokenizing = body_holder(limits), asyncio.Semaphore(_TOKENIZING)

    async def answer(self, request: "Request", path: str) -> Any:
        """The answer to a request at one of `ADDRESSES`; raises `HTTPException`."""
        if not any(model.batcher.is_ready for model in self._models):
            raise busy("the model is not ready")
        answering, chosen, sequences, rewards = await self._submit(request, path)
        found = [await self._finished(*each) for each in zip(rewards, sequences, strict=True)]
        lengths = list(map(len, sequences[0]))
        scored = Scored(chosen.add(found).tolist(), lengths, chosen.name, uuid.uuid4().hex, int(time.time()))
        return answering(scored)

    async def _submit(self, request: "Request", path: str) -> Submitted:
        """Reads a request and has it scored; what it took to understand it is let go."""
        emptiest = min((model.batcher for model in self._models), key=lambda each: each.waiting + each.reserved)
        async with self._hold_body(request) as body:
            with _room([emptiest], 1):  # before anything is parsed
                asked = await _elsewhere(partial(self._understand, body, path), len(body))
            chosen = self._choose(asked)
            batchers = [model.batcher for model in chosen.models]
            for field in asked.unread:
                self._metrics.unread.labels(path, field).inc()
            with _room(batchers, len(asked.inputs)):  # before anything is tokenized
                sequences = await self._tokenize(asked, partial(self._encode, asked, chosen, path))
            with _room(batchers, 0):  # nothing has come between
                rewards = [batcher.submit(ids) for batcher, ids in zip(batchers, sequences, strict=True)]
                return Submitted(asked.answering, chosen, sequences, rewards)

    async def _tokenize(self, asked: Asked, encode: Callable[[], list[list[Ids]]]) -> list[list[Ids]]:
        """What `encode` gives, from a thread unless there is little to do; chat templates may take any time."""
        texts = [each for each in asked.inputs.values() if isinstance(each, str)]
        if len(texts) == len(asked.inputs) and sum(map(len, texts)) <= _FEW:
            return encode()
        async with self._tokenizing:
            return await asyncio.to_thread(encode)

    def _understand(self, body: bytearray, path: str) -> Asked:
        """What a body asks for; it is cleared."""
        parsed = parse_body(body)
        return _refusing(partial(understand, parsed, ADDRESSES[path], self._limits.max_inputs), path)

    def _choose(self, asked: Asked) -> Chosen:
        """The models that a request asks; one that is not there is 404."""
        from starlette.exceptions import HTTPException

        try:
            chosen = choose(self._models, asked.model)
        except RmError as error:
            raise HTTPException(404, str(error)) from None
        for model in chosen.models:
            if not model.batcher.is_ready:
                raise busy(f"the model {model.name!r} is not ready")
        return chosen

    def _encode(self, asked: Asked, chosen: Chosen, path: str) -> list[list[Ids]]:
        """The token ids of a request's inputs, for each model by its own tokenizer."""
        limits = self._limits
        if asked.truncate is not None:
            limits = replace(limits, truncation="truncate-right" if asked.truncate else "refuse")
        encode = partial(encode_within, asked.inputs, special_tokens=asked.special_tokens)
        return [_refusing(partial(encode, model, limits, self._metrics), path) for model in chosen.models]

    async def _finished(self, rewards: Future, sequences: Sequence[Ids]) -> Float[np.ndarray, "n"]:
        """The rewards when they are there, counted."""
        found = await asyncio.wrap_future(rewards)
        if not np.isfinite(found).all():
            raise RuntimeError(f"{int((~np.isfinite(found)).sum())} of {len(found)} rewards are not finite")
        self._metrics.sequences.inc(len(sequences))
        self._metrics.tokens.inc(sum(map(len, sequences)))
        return found


async def _elsewhere(call: Callable[[], Any], size: int) -> Any:
    """The result of a call, from another thread unless it takes no time."""
    return await asyncio.to_thread(call) if size >= _SMALL else call()


@contextmanager
def _room(batchers: Sequence[Batcher], count: int) -> Iterator[None]:
    """Room in the queues, or an answer of 503."""
    with ExitStack() as kept:
        for batcher in batchers:
            try:
                kept.enter_context(batcher.room(count))
            except queue.Full:
                raise busy(f"the queue is full ({batcher.max_queue} sequences, --max-queue)") from None
        yield


def _refusing(call: Callable[[], Any], path: str) -> Any:
    """The result of a call; an error of the request's gets the status that the clients of the address expect."""
    from starlette.exceptions import HTTPException

    try:
        return call()
    except RmError as error:
        raise HTTPException(ADDRESSES[path].invalid, str(error)) from None
