"""`rm.client`: rewards of rows from a server, in order, whatever happens on the way."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import rm
from rm.client import score
from rm.errors import ConfigError, DataError, RmError

from .servers import LIMITS, TEXT, constant, running

ROWS = [
    TEXT,
    {"text": "tree"},
    {"prompt": "The old ", "response": "house."},
    {"messages": [{"role": "user", "content": "tree?"}, {"role": "assistant", "content": "house"}]},
]


@contextlib.contextmanager
def stubborn(*answers):
    """A server that gives these answers, one for each request, then that of a server of rm; gives its URL and times.

    An answer is a status with headers, or `None` for a connection that is closed without one.
    """
    left, times = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            times.append(time.monotonic())
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answer = left.pop(0) if left else (200, {})
            if answer is None:
                self.close_connection = True
                return
            status, headers = answer
            found = (
                {"rewards": [float(len(text)) for text in body["inputs"]]} if status == 200 else {"error": "no\nway"}
            )
            text = json.dumps(found).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": len(text)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", times
        finally:
            server.shutdown()
            thread.join()


def test_rewards_are_those_of_score_in_the_order_of_the_rows(loaded):
    """Rewards would be of other rows, or of other texts."""
    model, tokenizer = loaded
    rows = ROWS * 5
    with running(loaded) as (port, _, _):
        url = f"http://127.0.0.1:{port}"
        for size in (1, 3, 8):
            found = score(url, rows, batch_size=size)
            assert {type(reward) for reward in found} == {float}
            np.testing.assert_allclose(found, rm.score(model, tokenizer, rows), atol=1e-5)
        assert score(f"{url}/", ROWS[2]) == score(url, [ROWS[2]], model="the-model")
        assert score(url, []) == []


def test_it_waits_for_a_server_that_has_no_room_or_breaks_off(loaded):
    """A run of days would end with a restart of the server."""
    busy = (503, {"Retry-After": "1"})
    with stubborn(busy, None, (502, {})) as (url, times):
        assert score(url, ["a", "bb"]) == [1.0, 2.0]
    assert len(times) == 4
    assert times[1] - times[0] >= 1.0  # as it was told
    with stubborn(busy, busy) as (url, times), pytest.raises(RmError, match=r"/score: 503 \(no way\)"):
        score(url, ["a"], retries=1)
    assert len(times) == 2


def test_it_waits_for_the_model(loaded):
    """It would have to be started after the server is ready."""
    go = threading.Event()
    warm_up = (256 for _ in range(1) if go.wait(30))
    with running(loaded, constant, warm_up=warm_up) as (port, _, _):
        threading.Timer(0.3, go.set).start()
        assert score(f"http://127.0.0.1:{port}", [TEXT]) == [0.0]


def test_a_server_that_asks_for_hours_is_not_waited_for_that_long(monkeypatch):
    monkeypatch.setattr("rm.client.http._LONGEST_WAIT", 0.1)
    with stubborn((503, {"Retry-After": "7200"})) as (url, times):
        assert score(url, ["a"]) == [1.0]
    assert times[1] - times[0] < 10


def test_a_row_that_is_refused_is_named_by_its_number(loaded):
    """The number in a batch is not that of the row."""
    rows = [TEXT] * 7
    with running(loaded, constant) as (port, _, _):
        url = f"http://127.0.0.1:{port}"
        with pytest.raises(DataError, match=r"^row 6: expected text, prompt and response, or messages; found txt$"):
            score(url, [*rows[:6], {"txt": "a"}, TEXT], batch_size=4)
        with pytest.raises(DataError, match=r"^row 5: expected at most 256 tokens"):
            score(url, [*rows[:5], "tree " * 300], batch_size=2)
        with pytest.raises(
            RmError, match=r"/score: 422 \(inputs: expected at most 8 items \(--max-inputs\), found 9\)$"
        ):
            score(url, [TEXT] * 9)
        with pytest.raises(RmError, match=r"/score: 404 \(model: expected one of the-model, found 'x'\)$"):
            score(url, TEXT, model="x")


@pytest.mark.parametrize(
    ("rows", "options", "error", "message"),
    [
        (["a", 5], {}, DataError, r"^row 1: expected a text or a mapping, found int$"),
        (["a", {"x": b"a"}], {}, DataError, r"^row 1: cannot be written as JSON \(Object of type bytes is not JSON"),
        (
            ["a"],
            {"batch_size": 0},
            ConfigError,
            "batch_size must be at least 1, .*; found 0, 8 and",
        ),
        (["a"], {"retries": -1}, ConfigError, "batch_size must be at least 1, retries 0"),
        (
            ["a"],
            {"retries": 1, "timeout": 2},
            RmError,
            r"127\.0\.0\.1:9/score: no answer \(.*refused.*\); is the",
        ),
    ],
)
def test_what_cannot_work_is_one_line(rows, options, error, message):
    with pytest.raises(error, match=message):
        score("http://127.0.0.1:9", rows, **options)  # nobody listens at the port for what is discarded


def test_an_address_that_is_none_and_a_server_of_another_kind_are_named():
    with pytest.raises(ConfigError, match=r"^127\.0\.0\.1:8000: expected the URL of a server, such as http://127"):
        score("127.0.0.1:8000", ["a"])
    with (
        stubborn((301, {"Location": "/elsewhere"})) as (url, _),
        pytest.raises(RmError, match=r"/score: 301 \(no way\)"),
    ):
        score(url, ["a"])
    with stubborn((404, {})) as (url, _), pytest.raises(RmError, match=r"/score: 404 \(no way\)"):
        score(url, ["a"])


def test_the_token_is_brought(loaded, monkeypatch):
    monkeypatch.delenv("RM_SERVE_TOKEN", raising=False)
    with running(loaded, constant, token="abc", limits=LIMITS) as (port, _, _):
        url = f"http://127.0.0.1:{port}"
        with pytest.raises(
            RmError, match=r"/score: 401 \(header Authorization: expected 'Bearer' and the server's token"
        ):
            score(url, TEXT)
        assert score(url, TEXT, token="abc") == [0.0]
        monkeypatch.setenv("RM_SERVE_TOKEN", "abc")
        assert score(url, TEXT) == [0.0]


def test_the_client_imports_nothing_heavy():
    """Every process of a reinforcement learning run would load JAX, which takes seconds and its GPU's memory."""
    heavy = ["jax", "torch", "numpy", "equinox", "datasets", "transformers"]
    code = f"import sys, rm.client, urllib3; print([name for name in {heavy} if name in sys.modules])"
    root = Path(rm.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=root)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
