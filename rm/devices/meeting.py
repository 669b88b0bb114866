"""The meeting of the processes of a run before JAX connects them: it says who is missing, and it never aborts."""

import contextlib
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import ConfigError, first_line

_SAY_SECONDS = 30  # between two lines that say for whom this process waits
_CALL_SECONDS = 0.5  # between two calls of a process to process 0
_GONE_SECONDS = 5  # a process that has not called for so long has ended, or cannot reach process 0
_LATE_SECONDS = 30  # in which processes started at the same time come, to hear that the run does not begin
_ADVICE = "start it, or give a longer --join-timeout"
_LONGEST_LINE = 10_000  # characters; a stranger may have found the port


class Wait:
    """A wait with a limit in seconds, which says every 30 s for whom."""

    def __init__(self, limit: float, longest_pause: float = 1.0):
        self._limit, self._longest_pause = limit, longest_pause
        self._started = self._said = time.monotonic()

    def pause(self, waiting_for: str, advice: str = "see its log") -> None:
        """Sleeps for a moment, longer after a longer wait.

        **Raises:** `ConfigError` after the limit.
        """
        now = time.monotonic()
        if now - self._started > self._limit:
            raise ConfigError(f"no word from {waiting_for} within {shown_seconds(self._limit)}; {advice}")
        if now - self._said > _SAY_SECONDS:
            self._said = now
            left = shown_seconds(self._limit - now + self._started)
            print(f"rm: waiting for {waiting_for}, for {left} at most", file=sys.stderr, flush=True)
        time.sleep(min(self._longest_pause, max(0.01, (now - self._started) / 10)))


def shown_seconds(seconds: float) -> str:
    """A length of time in words.

    >>> shown_seconds(600), shown_seconds(2.5)
    ('10 min', '2.5 s')
    """
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.3g} s"


def shown_processes(numbers: Sequence[int], count: int) -> str:
    """Some of the processes of a run in words.

    >>> shown_processes([1, 3], 4)
    'processes 1, 3 of 4'
    """
    return f"process{'es' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))} of {count}"


def difference(number: int, own: Mapping[str, Any], of_0: Mapping[str, Any]) -> str | None:
    """A line on the first value of process `number` that is not that of process 0.

    >>> difference(1, {"--seed": 2}, {"--seed": 3})
    'process 1 has --seed 2, process 0 has 3; start all of them with the same'
    """
    for name, value in of_0.items():
        if own.get(name) != value:
            return (
                f"process {number} has {name} {own.get(name)}, process 0 has {value}; start all of them with the same"
            )
    return None


def meet(address: str, count: int, number: int, limit: float, facts: Mapping[str, Any]) -> None:
    """Returns when all processes have come to the address of process 0.

    Process 0 listens there; the others call it again and again until it says that all have called. So nothing needs to
    be remembered of a process that ends meanwhile, and JAX finds the port free.

    **Arguments:** `address`, `HOST:PORT`; `count`, the number of processes; `number`, this one's; `limit`, seconds;
    `facts`, values that must be equal in all processes (JSON).

    **Raises:** `ConfigError` on all processes for a process that does not come, a number that two have, or other facts;
    on this one for an address that cannot be used.
    """
    if not 0 <= number < count:
        raise ConfigError(f"--process-id must be less than --num-processes {count}, and not negative; found {number}")
    where = _check_address(address)
    hello = {"process": number, "token": uuid.uuid4().hex, "facts": json.loads(json.dumps(facts))}
    if number:
        _call(address, where, count, hello, limit)
    else:
        with _listen(address, where) as server:
            _receive(server, address, count, hello, limit)


def _check_address(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"--coordinator {address}: expected HOST:PORT, with a port between 1 and 65535")
    where = host.strip("[]"), int(port)
    try:
        socket.getaddrinfo(*where)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise ConfigError(f"--coordinator {address}: the host {where[0]} cannot be found ({reason})") from None
    return where


def _listen(address: str, where: tuple[str, int]) -> socket.socket:
    """The port of the address, on all of this machine's addresses, as JAX will listen."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", where[1]), family=family, dualstack_ipv6=both, backlog=1024)
    except OSError as error:
        found = f"process 0 cannot listen at port {where[1]} ({os.strerror(error.errno or 0)})"
        raise ConfigError(f"--coordinator {address}: {found}; choose a free one") from None
    try:
        socket.create_connection(where, timeout=_GONE_SECONDS).close()
    except OSError as error:
        server.close()
        reason = error.strerror or first_line(error)
        raise ConfigError(f"--coordinator {address}: does not lead to this machine, process 0 ({reason})") from None
    return server


def _receive(server: socket.socket, address: str, count: int, own: dict[str, Any], limit: float) -> None:
    """Answers the processes that call until all of them know that all have called, or why the run does not begin."""
    calls: dict[str, tuple[int, float]] = {}  # number and time of the last call of each, by its token
    word: dict[str, Any] = {}  # the last one, for all of them
    told: dict[str, int] = {}
    listeners = set(range(1, count))

    def present() -> dict[str, int]:
        since = time.monotonic() - _GONE_SECONDS
        return {token: number for token, (number, at) in calls.items() if at > since}

    def missing() -> list[int]:
        return sorted(set(range(1, count)) - set(present().values()))

    def reply(hello: dict[str, Any]) -> dict[str, Any]:
        number, token = hello["process"], hello["token"]
        if differs := difference(number, hello["facts"], own["facts"]):
            word.setdefault("error", differs)
        calls[token] = number, time.monotonic()
        if list(present().values()).count(number) > 1:
            word.setdefault("error", f"two processes have --process-id {number}; give each its own")
        told.update({token: number} if word else {})
        return word or {"missing": missing()}

    wait = Wait(limit, longest_pause=0)
    while (absent := missing()) and not word:
        try:
            wait.pause(f"{shown_processes(absent, count)} at {address}", _ADVICE)
            _answer(server, reply)
        except ConfigError as error:
            word["error"] = str(error)
            listeners -= set(absent)
    word = word or {"go": True}
    end = time.monotonic() + _LATE_SECONDS
    while (listeners - set(told.values()) or present().keys() - told.keys()) and time.monotonic() < end:
        _answer(server, reply)
    if "error" in word:
        raise ConfigError(word["error"])


def _answer(server: socket.socket, reply: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answers the next process that calls, if one does; strangers get no answer."""
    server.settimeout(_CALL_SECONDS)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        connection, _ = server.accept()
        with connection, connection.makefile("rw", encoding="utf-8") as stream:
            connection.settimeout(1)
            answer = reply(json.loads(stream.readline(_LONGEST_LINE)))
            stream.write(json.dumps(answer) + "\n")


def _call(address: str, where: tuple[str, int], count: int, hello: dict[str, Any], limit: float) -> None:
    """Calls process 0 until it says that all have called."""
    wait = Wait(limit + _GONE_SECONDS / 2, longest_pause=_CALL_SECONDS)  # where process 0 has the same limit, it speaks
    while True:
        try:
            with socket.create_connection(where, timeout=_GONE_SECONDS) as connection:
                connection.sendall((json.dumps(hello) + "\n").encode())
                answer = json.loads(connection.makefile(encoding="utf-8").readline(_LONGEST_LINE))
        except ValueError:
            whom = f"process 0 of {count} at {address} (something else answers there)"
        except OSError as error:
            whom = f"process 0 of {count} at {address} ({error.strerror or first_line(error)})"
        else:
            if "error" in answer:
                raise ConfigError(answer["error"])
            if "go" in answer:
                return
            whom = f"{shown_processes(answer['missing'], count)} at {address}"
        wait.pause(whom, _ADVICE)
