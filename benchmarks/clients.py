"""Many clients of a server, in one thread that takes little of the processor; each has a connection of its own."""

import asyncio
import json
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def ask_all(port: int, requests: Sequence[list[str]], clients: int) -> dict[str, Any]:
    """The answers to requests for rewards of texts, in order, and how long they took.

    Returns `seconds` in all, `latencies` and the quantiles `p50` and `p99`, `errors`, and `rewards` of every request.
    """
    return asyncio.run(_ask_all(port, requests, clients))


async def _ask_all(port: int, requests: Sequence[list[str]], clients: int) -> dict[str, Any]:
    work = iter(list(enumerate(_message(texts) for texts in requests)))  # encoded before the clock starts
    found: dict[str, Any] = {"latencies": [], "errors": [], "rewards": [None] * len(requests)}
    begin = time.perf_counter()
    await asyncio.gather(*(_client(port, work, found) for _ in range(clients)))
    found["seconds"] = time.perf_counter() - begin
    latencies = found["latencies"]
    return found | {"p50": statistics.median(latencies), "p99": statistics.quantiles(latencies, n=100)[98]}


def _message(texts: list[str]) -> bytes:
    body = json.dumps({"inputs": texts}).encode()
    head = f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def _client(port: int, work: Iterator[tuple[int, bytes]], found: dict[str, Any]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for number, message in work:
        begin = time.perf_counter()
        writer.write(message)
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        found["latencies"].append(time.perf_counter() - begin)
        if head.startswith(b"HTTP/1.1 200"):
            found["rewards"][number] = json.loads(body)["rewards"]
        else:
            found["errors"].append(f"{head.splitlines()[0].decode()} {body.decode()}")
    writer.close()
