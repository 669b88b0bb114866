"""Processes meet, agree and stop together. Here they are threads, on loopback, and the store is a dictionary."""

import itertools
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import pytest

from rm.devices import agreement, meeting
from rm.devices.meeting import meet
from rm.errors import ConfigError, RmError


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def in_threads(count: int, run) -> list:
    """What `run(number)` returns or raises, for every number, each in a thread; a minute at most."""

    def caught(number: int):
        try:
            return run(number)
        except RmError as error:
            return str(error)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(caught, range(count), timeout=60))


# The meeting.


def test_processes_that_all_come_meet_and_leave_the_port_free():
    port, facts = free_port(), {"version": [1, 2]}
    came = []

    def come(number: int) -> None:
        time.sleep(0.3 * (number == 0))  # the others call before anyone listens
        meet(f"127.0.0.1:{port}", 4, number, 20, facts)
        came.append(number)

    assert in_threads(4, come) == [None] * 4
    assert sorted(came) == [0, 1, 2, 3]
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_process_that_never_comes_is_named_by_all_within_the_limit(monkeypatch, capsys):
    monkeypatch.setattr(meeting, "_SAY_SECONDS", 0.5)
    monkeypatch.setattr(meeting, "_GONE_SECONDS", 2)
    address, started = f"127.0.0.1:{free_port()}", time.monotonic()
    ended = in_threads(3, lambda number: meet(address, 4, number, 1.5, {}) if number != 2 else None)
    assert time.monotonic() - started < 10
    expected = f"no word from process 2 of 4 at {address} within 1.5 s; start it, or give a longer --join-timeout"
    assert ended[0] == expected.replace("process 2", "processes 2, 3")
    assert ended[1] == expected.replace("process 2", "processes 2, 3")
    assert f"rm: waiting for processes 2, 3 of 4 at {address}, for 1" in capsys.readouterr().err


def test_a_process_without_process_0_says_what_it_found():
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match=r"no word from process 0 of 2 at 127.* \(Connection refused\) within"):
        meet(address, 2, 1, -2, {})
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            with other.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(ConfigError, match=r"\(something else answers there\)"):
            meet(f"127.0.0.1:{other.getsockname()[1]}", 2, 1, -3, {})


@pytest.mark.parametrize(
    ("numbers", "facts", "message"),
    [
        ([0, 1, 1], [{}, {}, {}], "two processes have --process-id 1; give each its own"),
        (
            [0, 1, 2],
            [{"n": 3}, {"n": 3}, {"n": 2}],
            "process 2 has n 2, process 0 has 3; start all of them with the same",
        ),
    ],
)
def test_processes_that_cannot_run_together_all_say_why(monkeypatch, numbers, facts, message):
    monkeypatch.setattr(meeting, "_LATE_SECONDS", 2)
    address = f"127.0.0.1:{free_port()}"
    ended = in_threads(3, lambda i: meet(address, 3, numbers[i], 20, facts[i]))
    assert ended == [message] * 3


def test_strangers_at_the_port_change_nothing():
    """Whoever scans ports, or leaves a connection open, is not one of the processes."""
    port = free_port()

    def come(number: int) -> None:
        if number < 2:
            return meet(f"127.0.0.1:{port}", 2, number, 20, {})
        for text in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"process": "x"}\n', b""):
            for _ in range(200):  # until process 0 listens
                try:
                    with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                        connection.sendall(text)
                    break
                except OSError:
                    time.sleep(0.01)
        return None

    assert in_threads(3, come) == [None] * 3


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("localhost", "expected HOST:PORT, with a port between 1 and 65535"),
        ("localhost:x", "expected HOST:PORT"),
        ("localhost:70000", "expected HOST:PORT"),
        (":80", "expected HOST:PORT"),
        ("nowhere.invalid:80", r"the host nowhere.invalid cannot be found \("),
        ("a" * 70 + ":80", "cannot be found"),
    ],
)
@pytest.mark.parametrize("number", [0, 1])
def test_an_address_that_cannot_be_used_is_refused_at_once(address, message, number):
    with pytest.raises(ConfigError, match=message):
        meet(address, 2, number, 600, {})


def test_a_port_that_another_program_holds_is_refused_at_once():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"process 0 cannot listen at port {port} \(Address already in use\)"):
            meet(f"127.0.0.1:{port}", 2, 0, 600, {})


# Messages over the store.


class Store(dict):
    """A store of messages, with the methods of JAX's client that are used."""

    key_value_set = dict.__setitem__

    def key_value_dir_get(self, directory: str):
        return [(key, value) for key, value in list(self.items()) if key.startswith(f"{directory}/")]

    def key_value_delete(self, directory: str):
        for key, _ in self.key_value_dir_get(directory):
            del self[key]


class PerThread(threading.local):
    """A counter of the rounds of each thread, as every process has its own."""

    def __init__(self):
        self.count = itertools.count()

    def __next__(self) -> int:
        return next(self.count)


@pytest.fixture
def processes(monkeypatch):
    """Runs a function of the process's number in as many threads; each of them is a process for the module."""
    here, found, over = threading.local(), Store(), threading.Event()
    monkeypatch.setattr(agreement, "OVER", over)
    monkeypatch.setattr(agreement, "store", lambda: found)
    monkeypatch.setattr(agreement, "leads", lambda: here.number == 0)
    monkeypatch.setattr(agreement, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(agreement, "_ROUNDS", PerThread())
    monkeypatch.setattr(agreement, "_BALLOTS", PerThread())
    monkeypatch.setattr(jax, "process_index", lambda: here.number)

    def run(count: int, function) -> list:
        def numbered(number: int):
            here.number = number
            return function(number)

        found.clear()
        monkeypatch.setattr(jax, "process_count", lambda: count)
        return in_threads(count, numbered)

    run.store = found
    yield run
    over.set()


def test_many_rounds_leave_no_messages_behind(processes):
    def rounds(number: int) -> list:
        chance = random.Random(number)
        found = []
        for i in range(30):
            time.sleep(chance.random() / 200)
            found.append((agreement.agree(i % (number + 3) != 0), agreement.from_first(10 * number + i)))
        return found

    expected = [(i % 3 != 0 and i % 4 != 0 and i % 5 != 0, i) for i in range(30)]
    assert processes(3, rounds) == [expected] * 3
    assert len(processes.store) == 1, "the last verdict"


def test_what_one_process_cannot_prepare_all_say(processes):
    def prepare(number: int) -> int:
        if number == 2:
            raise FileNotFoundError(2, "No such file", "model.safetensors")
        return number

    together = partial(agreement.prepare_together, facts=lambda made: {"data (a hash)": made // 2})
    found = processes(3, lambda number: together(partial(prepare, number)))
    assert found == ["process 2: [Errno 2] No such file: 'model.safetensors'"] * 3
    assert processes(2, lambda number: together(lambda: number)) == [0, 1]
    found = processes(4, lambda number: together(lambda: number))
    assert found == ["process 2 has data (a hash) 1, process 0 has 0; start all of them with the same"] * 4


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("who", [[0], [1], [0, 1, 2]])
def test_all_stop_after_the_same_update_however_far_one_is_ahead(processes, ahead, who):
    """A program waits for the update `ahead` before its own, which needs the devices of all: no wait may hold it up."""
    count, updates, asks = 3, 60, {number: 7 + 2 * number for number in who}
    begun = [0] * count
    changed = threading.Condition()

    def train(number: int) -> int:
        vote, chance = agreement.ballot(), random.Random(number)
        for step in range(1, updates + 1):
            time.sleep(chance.random() / 100 * (number == 2))  # one is slower
            with changed:
                begun[number] = step
                changed.notify_all()
                assert changed.wait_for(lambda step=step: min(begun) >= step - ahead, timeout=30), "a deadlock"
            if vote(number in asks and step >= asks[number]):
                return step
        return updates

    stopped = processes(count, train)
    assert len(set(stopped)) == 1, stopped
    assert min(asks.values()) < stopped[0] < updates
    assert len(processes.store) == count, "a promise of each"


def test_a_vote_that_comes_too_late_changes_nothing(processes):
    def train(number: int) -> list[bool]:
        vote = agreement.ballot()
        return [vote(number == 1 and step == 5) for step in range(1, 6)]

    assert processes(2, train) == [[False] * 5] * 2
