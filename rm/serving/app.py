"""Rewards over HTTP: the routes, and who may ask them."""

import dataclasses
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from .models import ServedModel
from .openapi import describe_server
from .protocols import ADDRESSES, error_at
from .requests import Limits
from .service import Service
from .state import health_of, list_models, watch
from .traffic import Metrics, counted

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Receive, Scope, Send


def make_app(models: Sequence[ServedModel], metrics: Metrics, *, limits: Limits, token: str | None = None) -> "ASGIApp":
    """The ASGI application of one reward model or several, at every address of `ADDRESSES`.

    **Arguments:** `token`, which every request but those for /health must bring.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException

    routes = make_routes(models, metrics, limits, token)
    watch(models, metrics)
    handlers: dict[Any, Any] = {HTTPException: _refuse, Exception: _refuse}
    app = Starlette(routes=routes, exception_handlers=handlers)
    return counted(app, metrics, [route.path for route in routes])


def make_routes(
    models: Sequence[ServedModel], metrics: Metrics, limits: Limits, token: str | None = None
) -> "list[Route]":
    """What is answered at which path."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
    from starlette.responses import Response
    from starlette.routing import Route

    service, started = Service(models, metrics, limits), int(time.time())

    async def score(request: "Request") -> Response:
        return _json(await service.answer(request, request.scope["path"]))

    async def say_models(_: "Request") -> Response:
        return _json(list_models(models, started, limits.max_length))

    async def say_metrics(_: "Request") -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def describe(_: "Request") -> Response:
        return _json(describe_server(needs_token=token is not None))

    async def say_health(_: "Request") -> Response:
        found = health_of(models)
        return _json(found, 200 if found.status == "ready" else 503)

    said = {"/v1/models": say_models, "/metrics": say_metrics, "/openapi.json": describe}
    return [
        *(Route(path, Endpoint(score, token), methods=["POST"]) for path in ADDRESSES),
        *(Route(path, Endpoint(answer, token), methods=["GET"]) for path, answer in said.items()),
        Route("/health", say_health),
    ]


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """An answer for those who bring the token; an application of its own, which Starlette wraps less often."""

    answer: "Callable[[Request], Awaitable[Response]]"
    token: str | None

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answers one request."""
        from starlette.requests import Request

        request = Request(scope, receive)
        if self.token is not None:
            _check_token(request, self.token)
        response = await self.answer(request)
        await response(scope, receive, send)


def _check_token(request: "Request", token: str) -> None:
    from starlette.exceptions import HTTPException

    given = request.headers.get("authorization", "")
    if not secrets.compare_digest(given.encode(), f"Bearer {token}".encode()):
        challenge = {"WWW-Authenticate": "Bearer"}
        raise HTTPException(401, "header Authorization: expected 'Bearer' and the server's token", challenge)


def _json(answer: Any, status: int = 200, headers: Any = None) -> "Response":
    from starlette.responses import Response

    return Response(msgspec.json.encode(answer), status, headers, "application/json")


async def _refuse(request: "Request", error: Exception) -> "Response":
    status, headers = getattr(error, "status_code", 500), getattr(error, "headers", None)
    line = getattr(error, "detail", "the server failed; its log says why")
    return _json(error_at(request.scope["path"]).of(status, line), status, headers)
