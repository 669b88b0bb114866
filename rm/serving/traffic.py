"""What a server counts: requests, sequences, tokens, sizes of batches, times."""

import dataclasses
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Histogram
    from starlette.types import ASGIApp

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = tuple(2**power for power in range(11))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metrics:
    """What Prometheus reads."""

    registry: "CollectorRegistry"
    requests: "Counter"
    seconds: "Histogram"
    sequences: "Counter"
    tokens: "Counter"
    truncated: "Counter"
    unread: "Counter"
    batch: "Histogram"


def make_metrics() -> Metrics:
    """Counters and histograms of a server, all at 0."""
    from prometheus_client import CollectorRegistry, Counter, Histogram

    own = CollectorRegistry()
    return Metrics(
        registry=own,
        requests=Counter("rm_requests", "Requests answered", ("path", "status"), registry=own),
        seconds=Histogram("rm_request_seconds", "To the answer", ("path",), registry=own, buckets=_SECONDS),
        sequences=Counter("rm_sequences", "Sequences scored", registry=own),
        tokens=Counter("rm_tokens", "Tokens scored", registry=own),
        truncated=Counter("rm_truncated_sequences", "Sequences cut off at --max-length", registry=own),
        unread=Counter("rm_unread_fields", "Fields sent that no reward depends on", ("path", "field"), registry=own),
        batch=Histogram("rm_batch_sequences", "Sequences scored together", registry=own, buckets=_SIZES),
    )


def counted(app: "ASGIApp", metrics: Metrics, paths: Collection[str]) -> "ASGIApp":
    """The application, with its requests counted and timed by path, for those of `paths`."""

    async def call(scope: Any, receive: Any, send: Any) -> None:
        status, begin = 500, time.perf_counter()
        path = scope["path"] if scope["path"] in paths else "other"

        async def watch(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            if message["type"] == "http.response.body" and not message.get("more_body"):  # before the client knows
                metrics.requests.labels(path, status).inc()
                metrics.seconds.labels(path).observe(time.perf_counter() - begin)
            await send(message)

        await app(scope, receive, watch)

    return call
