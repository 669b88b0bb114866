"""Rewards over HTTP: POST /score and /get_reward, GET /health and /metrics."""

import asyncio
import queue
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int32

from ..data.comparisons import cut_off
from ..data.inputs import Input, encode_inputs
from ..errors import DataError, RmError
from ..model.config import LlamaConfig
from ..saving.calibration import Calibration, normalize
from ..text.tokenizer import Tokenizer
from .batching import Batcher
from .requests import Limits, body_holder, busy, list_of, parse_body
from .traffic import Metrics, counted

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

Ids = Int32[np.ndarray, "_"]
Find = Callable[[Any, Limits], list[Input]]  # the inputs in the JSON of a body
Answer = Callable[[list[float]], dict[str, Any]]

_SMALL = 2**16  # bytes of a body that is parsed at once, rather than by a thread that may have to wait for its turn
_TOKENIZING = 2  # requests that are tokenized at the same time


def make_app(
    tokenizer: Tokenizer,
    config: LlamaConfig,
    batcher: Batcher,
    metrics: Metrics,
    *,
    limits: Limits,
    token: str | None = None,
    calibration: Calibration | None = None,
) -> "ASGIApp":
    """The ASGI application.

    **Arguments:** `token`, which every request but those for /health must bring; `calibration`, to normalize with.
    """
    from prometheus_client import CONTENT_TYPE_LATEST, Gauge, generate_latest
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    hold_body = body_holder(limits)
    Gauge("rm_queue_sequences", "Sequences that wait", registry=metrics.registry).set_function(lambda: batcher.waiting)

    async def health(_: "Request") -> Response:
        ready = batcher.is_ready
        return JSONResponse({"status": "ready" if ready else "not ready"}, status_code=200 if ready else 503)

    async def show_metrics(request: "Request") -> Response:
        _check_token(request, token)
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    tokenizing = asyncio.Semaphore(_TOKENIZING)

    async def submit(request: "Request", field: str, find: Find) -> tuple[list[Ids], Future | None]:
        """The sequences of a request and their rewards to come; what it took to find them is let go."""
        async with hold_body(request) as body:
            with _room(batcher, 1):  # before anything is parsed
                inputs = await _elsewhere(partial(_parse, body, find, limits), len(body))
            with _room(batcher, len(inputs)):  # before anything is tokenized
                async with tokenizing:
                    encode = partial(encode_within, inputs, field, tokenizer, config, limits, metrics)
                    sequences = await _elsewhere(partial(_refusing, encode), _SMALL)
            with _room(batcher, 0):  # nothing has come between
                return sequences, batcher.submit(sequences) if sequences else None

    def scoring(field: str, find: Find, answer: Answer) -> Callable:
        async def endpoint(request: "Request") -> Response:
            _check_token(request, token)
            if not batcher.is_ready:
                raise busy("the model is not ready")
            sequences, rewards = await submit(request, field, find)
            found = await _finished(rewards, sequences, metrics) if rewards else np.zeros(0, np.float32)
            scaled = found if calibration is None else normalize(found, calibration)
            return JSONResponse(answer(scaled.tolist()))

        return endpoint

    routes = [
        Route("/score", scoring("inputs", score_inputs, score_answer), methods=["POST"]),
        Route("/get_reward", scoring("query", openrlhf_inputs, openrlhf_answer), methods=["POST"]),
        Route("/health", health),
        Route("/metrics", show_metrics),
    ]
    handlers: dict[Any, Any] = {HTTPException: _refuse, Exception: _refuse}
    return counted(Starlette(routes=routes, exception_handlers=handlers), metrics)


def score_inputs(body: Any, limits: Limits) -> list[Input]:
    """The inputs of `{"inputs": […]}`, each in one of the forms of `rm.score`."""
    return list_of(body, "inputs", {str: "a text", dict: "an object"}, limits.max_inputs, alone=True)


def score_answer(rewards: list[float]) -> dict[str, Any]:
    """What the client of /score reads."""
    return {"rewards": rewards}


def openrlhf_inputs(body: Any, limits: Limits) -> list[Input]:
    """The texts of `{"query": texts, "prompts": …, "labels": …}`, each a prompt with its response: only these are read.

    This is what OpenRLHF 0.11.2 sends (openrlhf/utils/agent.py, SingleTurnAgentExecutor._fetch_rewards_via_http), and
    what versions before it sent (openrlhf/utils/remote_rm_utils.py). It decodes token ids with their special tokens,
    so a text may begin with a beginning-of-sequence token, and does not get a second one.
    """
    return list_of(body, "query", {str: "a text"}, limits.max_inputs)


def openrlhf_answer(rewards: list[float]) -> dict[str, Any]:
    """What OpenRLHF's client reads, and openrlhf/cli/serve_rm.py answers: `scores` are for its dynamic filtering.

    >>> openrlhf_answer([0.5])
    {'rewards': [0.5], 'scores': [0.5], 'extra_logs': {}}
    """
    return {"rewards": rewards, "scores": rewards, "extra_logs": {}}


def _check_token(request: "Request", token: str | None) -> None:
    from starlette.exceptions import HTTPException

    given = request.headers.get("authorization", "")
    if token is not None and not secrets.compare_digest(given.encode(), f"Bearer {token}".encode()):
        challenge = {"WWW-Authenticate": "Bearer"}
        raise HTTPException(401, "header Authorization: expected 'Bearer' and the server's token", challenge)


def encode_within(
    inputs: Sequence[Input], field: str, tokenizer: Tokenizer, config: LlamaConfig, limits: Limits, metrics: Metrics
) -> list[Ids]:
    """The token ids of inputs; one over `limits.max_length` tokens is cut off, or ends it.

    **Raises:** `DataError`, naming the input.
    """
    names, most = [f"{field}[{i}]" for i in range(len(inputs))], limits.max_length
    sequences = []
    for name, ids in zip(names, encode_inputs(inputs, tokenizer, config, names=names, max_length=most), strict=True):
        if len(ids) > most and limits.truncation == "refuse":
            found = f"found {len(ids)}{' or more' if len(ids) > 2 * most else ''}"
            raise DataError(f"{name}: expected at most {most} tokens (--max-length, --truncation), {found}")
        metrics.truncated.inc(len(ids) > most)
        sequences.append(np.array(cut_off(ids, most, config), np.int32))  # no view, which would keep the rest
    return sequences


async def _elsewhere(call: Callable[[], Any], size: int) -> Any:
    """The result of a call, from another thread unless it takes no time."""
    return await asyncio.to_thread(call) if size >= _SMALL else call()


@contextmanager
def _room(batcher: Batcher, count: int) -> Iterator[None]:
    """Room in the queue, or an answer of 503."""
    try:
        with batcher.room(count):
            yield
    except queue.Full:
        raise busy(f"the queue is full ({batcher.max_queue} sequences, --max-queue)") from None


def _parse(body: bytearray, find: Find, limits: Limits) -> list[Input]:
    """The inputs of a request's body, which is cleared."""
    parsed = parse_body(body)
    return _refusing(partial(find, parsed, limits))


def _refusing(call: Callable[[], Any]) -> Any:
    """The result of a call; an error of the request's becomes an answer of 422."""
    from starlette.exceptions import HTTPException

    try:
        return call()
    except RmError as error:
        raise HTTPException(422, str(error)) from None


async def _finished(rewards: Future, sequences: Sequence[Ids], metrics: Metrics) -> Float[np.ndarray, "n"]:
    """The rewards when they are there, counted."""
    found = await asyncio.wrap_future(rewards)
    if not np.isfinite(found).all():
        raise RuntimeError(f"{int((~np.isfinite(found)).sum())} of {len(found)} rewards are not finite")
    metrics.sequences.inc(len(sequences))
    metrics.tokens.inc(sum(map(len, sequences)))
    return found


async def _refuse(_: "Request", error: Exception) -> "Response":
    from starlette.responses import JSONResponse

    status, headers = getattr(error, "status_code", 500), getattr(error, "headers", None)
    detail = getattr(error, "detail", "the server failed; its log says why")
    return JSONResponse({"error": detail}, status_code=status, headers=headers)
