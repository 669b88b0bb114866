"""A request's body: read within limits of size and time, parsed, and its inputs found."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from starlette.requests import Request

_HELD = 32  # times `max_request_bytes` that all bodies together may take of the memory
_DISCARDED = 4  # times `max_request_bytes` that are read and thrown away: who still sends does not see an answer
_CLOSE = {"Connection": "close"}  # what is left of the body is not the next request


Truncation = Literal["refuse", "truncate-right"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may ask for; `request_timeout` in seconds, `truncation` of inputs over `max_length` tokens."""

    max_request_bytes: int = 8 * 2**20
    max_inputs: int = 1024
    max_length: int = 4096
    truncation: Truncation = "refuse"
    request_timeout: float = 30.0


def body_holder(limits: Limits) -> "Callable[[Request], AbstractAsyncContextManager[bytearray]]":
    """A context that reads a request's body and counts it as held, also when it has been cleared, to its end.

    It raises `HTTPException`: 413 where the body is too large, 408 where it is too slow, 503 where the bodies of all
    requests together are too large.
    """
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

    held, most = 0, limits.max_request_bytes
    too_large = f"body: expected at most {most} bytes (--max-request-bytes)"

    @asynccontextmanager
    async def hold(request: "Request") -> AsyncIterator[bytearray]:
        nonlocal held
        body, size, kept = bytearray(), 0, 0
        if int(request.headers.get("content-length", 0)) > _DISCARDED * most:
            raise HTTPException(413, too_large, _CLOSE)
        try:
            async with asyncio.timeout(limits.request_timeout):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > _DISCARDED * most:
                        break
                    if size <= most:
                        body += chunk
                        kept += len(chunk)
                        held += len(chunk)
                    if held > _HELD * most:
                        raise busy("the bodies of all requests together are too large")
            if size > most:
                raise HTTPException(413, too_large, _CLOSE)
            yield body
        except TimeoutError:
            late = f"body: expected within {limits.request_timeout:g} seconds, {size} bytes came"
            raise HTTPException(408, late, _CLOSE) from None
        except ClientDisconnect:
            raise HTTPException(400, "body: the connection was closed before its end") from None
        finally:
            held -= kept

    return hold


def busy(why: str) -> Exception:
    """An answer of 503, which says when to try again."""
    from starlette.exceptions import HTTPException

    return HTTPException(503, f"{why}; try again later", {"Retry-After": "1"})


def parse_body(body: bytearray) -> Any:
    """The JSON of a body, which is cleared; raises `HTTPException` (400) where it is none."""
    from starlette.exceptions import HTTPException

    try:
        text = body.decode(json.detect_encoding(body), "surrogatepass")  # as `json.loads` does, which keeps the bytes
        body.clear()
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # thousands of nested lists
        raise HTTPException(400, f"body: expected JSON ({error})") from None
