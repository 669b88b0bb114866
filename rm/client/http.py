"""Rewards from a server of `python -m rm serve`, asked over HTTP; imports neither JAX nor PyTorch."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError, RmError, first_line

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

_AT_ONCE = 4  # requests under way, so that the server has the next texts when it is done with some
_LATER = (429, 502, 503, 504)  # answers of servers and proxies that are busy, or not ready yet
_LONGEST_WAIT = 60  # seconds before another try, also where a server asks for more


def score(
    url: str,
    rows: Sequence[str | Mapping[str, Any]] | str | Mapping[str, Any],
    *,
    model: str | None = None,
    token: str | None = None,
    batch_size: int = 64,
    retries: int = 8,
    timeout: float = 120.0,
) -> list[float]:
    """The rewards of rows, in their order, from the server at `url`; those of `rm.score` for the same rows.

    A server that cannot be reached, is not ready or has no room is asked again: after as many seconds as it says, else
    at once, then after 1, 2, 4, … of them, up to 60. With the default of `retries` that is about two minutes.

    **Arguments:** `url`, such as `http://127.0.0.1:8000`; `rows`, one or a list, each a text or a mapping, as
    `rm.score` takes them; `model`, one of a server's several models, by default their weighted sum; `token`, by
    default that of the environment (`RM_SERVE_TOKEN`); `batch_size`, rows of a request; `retries`, of a request;
    `timeout`, seconds for an answer.

    **Raises:** `DataError` where a row is refused, with its number, `ConfigError` for a URL or an option that cannot
    work, `RmError` where no answer comes.

    Example: `rm.client.score("http://127.0.0.1:8000", [{"prompt": "2 + 2 = ", "response": "4"}])`.
    """
    if batch_size < 1 or retries < 0 or timeout <= 0:
        found = f"found {batch_size}, {retries} and {timeout}"
        raise ConfigError(f"batch_size must be at least 1, retries 0 and timeout above 0; {found}")
    rows = [rows] if isinstance(rows, str | Mapping) else list(rows)
    starts = range(0, len(rows), batch_size)
    bodies = [_body(rows[start : start + batch_size], start, model) for start in starts]
    with _connections(url, token, retries, timeout) as pool, ThreadPoolExecutor(_AT_ONCE) as threads:
        answers = threads.map(partial(_ask, pool, f"{url.rstrip('/')}/score"), bodies, starts)
        rewards = [reward for answer in answers for reward in answer]
    if len(rewards) != len(rows):
        raise RmError(f"{url}: expected {len(rows)} rewards, found {len(rewards)}; is this a server of rm?")
    return rewards


def _body(rows: Sequence[Any], start: int, model: str | None) -> bytes:
    """The JSON of a request."""
    for number, row in enumerate(rows, start):
        if not isinstance(row, str | Mapping):
            raise DataError(f"row {number}: expected a text or a mapping, found {type(row).__name__}")
        try:
            json.dumps(row)
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"row {number}: cannot be written as JSON ({first_line(error)})") from None
    named = {} if model is None else {"model": model}
    return json.dumps({"inputs": rows, **named}).encode()


def _connections(url: str, token: str | None, retries: int, timeout: float) -> "PoolManager":
    import urllib3

    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{url}: expected the URL of a server, such as http://127.0.0.1:8000")
    token = os.environ.get("RM_SERVE_TOKEN") if token is None else token
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    again = urllib3.Retry(
        retries,
        redirect=0,
        allowed_methods=None,  # a reward may be asked for twice
        status_forcelist=_LATER,
        backoff_factor=0.5,
        backoff_max=_LONGEST_WAIT,
        retry_after_max=_LONGEST_WAIT,
        raise_on_status=False,
        raise_on_redirect=False,
    )
    return urllib3.PoolManager(headers=headers, retries=again, timeout=timeout, maxsize=_AT_ONCE)


def _ask(pool: "PoolManager", address: str, body: bytes, start: int) -> list[float]:
    """The rewards of a request, whose first row has the number `start`."""
    import urllib3

    try:
        answer = pool.request("POST", address, body=body)
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        advice = "is the server running, and this its URL?"
        raise RmError(f"{address}: no answer ({first_line(reason)}); {advice}") from None
    if answer.status == 200:
        try:
            return [float(reward) for reward in answer.json()["rewards"]]
        except (ValueError, TypeError, KeyError):
            raise RmError(f"{address}: expected JSON with rewards; is this a server of rm?") from None
    reason = _reason(answer)
    if found := re.match(r"inputs\[(\d+)\](.*)", reason, re.DOTALL):
        raise DataError(f"row {start + int(found[1])}{found[2]}")
    raise RmError(f"{address}: {answer.status} ({reason})")


def _reason(answer: "BaseHTTPResponse") -> str:
    """What the server says of an error."""
    try:
        return str(answer.json()["error"])
    except (ValueError, TypeError, KeyError):
        return answer.reason or "no reason"
