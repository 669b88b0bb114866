"""Rewards over HTTP: POST /score and /get_reward, GET /health and /metrics."""

import asyncio
import queue
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from ..errors import DataError, RmError
from ..evaluation.scoring import Input, encode_inputs
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

Encode = Callable[[Any], list[list[int]]]
Answer = Callable[[list[float]], dict[str, Any]]


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

    def scoring(encode: Encode, answer: Answer) -> Callable:
        async def endpoint(request: "Request") -> Response:
            _check_token(request, token)
            if not batcher.is_ready:
                raise busy("the model is not ready")
            async with hold_body(request) as body:  # the thread that computes has better things to do
                sequences = await asyncio.to_thread(_encode, body, encode)
            rewards = await _score(sequences, batcher, metrics)
            scaled = rewards if calibration is None else normalize(rewards, calibration)
            return JSONResponse(answer(scaled.tolist()))

        return endpoint

    scored = (tokenizer, config, limits, metrics)
    routes = [
        Route("/score", scoring(score_encoder(*scored), score_answer), methods=["POST"]),
        Route("/get_reward", scoring(openrlhf_encoder(*scored), openrlhf_answer), methods=["POST"]),
        Route("/health", health),
        Route("/metrics", show_metrics),
    ]
    handlers: dict[Any, Any] = {HTTPException: _refuse, Exception: _refuse}
    return counted(Starlette(routes=routes, exception_handlers=handlers), metrics)


def score_encoder(tokenizer: Tokenizer, config: LlamaConfig, limits: Limits, metrics: Metrics) -> Encode:
    """`{"inputs": […]}`, each in one of the forms of `rm.score`."""

    def encode(body: Any) -> list[list[int]]:
        inputs = list_of(body, "inputs", {str: "a text", dict: "an object"}, limits.max_inputs, alone=True)
        return _encode_within(inputs, "inputs", tokenizer, config, limits, metrics)

    return encode


def score_answer(rewards: list[float]) -> dict[str, Any]:
    """What the client of /score reads."""
    return {"rewards": rewards}


def openrlhf_encoder(tokenizer: Tokenizer, config: LlamaConfig, limits: Limits, metrics: Metrics) -> Encode:
    """`{"query": texts, "prompts": …, "labels": …}`, each text a prompt with its response: only `query` is read.

    This is what OpenRLHF 0.11.2 sends (openrlhf/utils/agent.py, SingleTurnAgentExecutor._fetch_rewards_via_http), and
    what versions before it sent (openrlhf/utils/remote_rm_utils.py). It decodes token ids with their special tokens,
    so a text may begin with a beginning-of-sequence token, and does not get a second one.
    """

    def encode(body: Any) -> list[list[int]]:
        texts = list_of(body, "query", {str: "a text"}, limits.max_inputs)
        return _encode_within(texts, "query", tokenizer, config, limits, metrics)

    return encode


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


def _encode_within(
    inputs: Sequence[Input], field: str, tokenizer: Tokenizer, config: LlamaConfig, limits: Limits, metrics: Metrics
) -> list[list[int]]:
    """The token ids of inputs, those over `limits.max_length` tokens cut off or refused."""
    names, most = [f"{field}[{i}]" for i in range(len(inputs))], limits.max_length
    sequences = encode_inputs(inputs, tokenizer, config, names=names)
    for name, ids in zip(names, sequences, strict=True):
        if len(ids) > most and limits.truncation == "refuse":
            raise DataError(f"{name}: expected at most {most} tokens (--max-length, --truncation), found {len(ids)}")
        metrics.truncated.inc(len(ids) > most)
    return [ids[:most] for ids in sequences]


def _encode(body: bytes, encode: Encode) -> list[list[int]]:
    """The token ids that a request asks to score."""
    from starlette.exceptions import HTTPException

    parsed = parse_body(body)
    try:
        return encode(parsed)
    except RmError as error:
        raise HTTPException(422, str(error)) from None


async def _score(sequences: Sequence[Sequence[int]], batcher: Batcher, metrics: Metrics) -> Float[np.ndarray, "n"]:
    if not sequences:
        return np.zeros(0, np.float32)
    try:
        rewards = await asyncio.wrap_future(batcher.submit(sequences))
    except queue.Full:
        raise busy(f"the queue is full ({batcher.max_queue} sequences, --max-queue)") from None
    if not np.isfinite(rewards).all():
        raise RuntimeError(f"{int((~np.isfinite(rewards)).sum())} of {len(rewards)} rewards are not finite")
    metrics.sequences.inc(len(sequences))
    metrics.tokens.inc(sum(map(len, sequences)))
    return rewards


async def _refuse(_: "Request", error: Exception) -> "Response":
    from starlette.responses import JSONResponse

    status, headers = getattr(error, "status_code", 500), getattr(error, "headers", None)
    detail = getattr(error, "detail", "the server failed; its log says why")
    return JSONResponse({"error": detail}, status_code=status, headers=headers)
