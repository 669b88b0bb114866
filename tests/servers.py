"""Servers for tests: real ones, on loopback, which end with the block that asks them."""

import contextlib
import http.client
import json
import re
import socket
import threading
import time
from functools import partial

import numpy as np
import pytest

import rm
from rm.serving.app import make_app
from rm.serving.batching import Batcher
from rm.serving.models import ServedModel
from rm.serving.requests import Limits
from rm.serving.scorer import Scorer
from rm.serving.server import make_server
from rm.serving.traffic import make_metrics

pytest.importorskip("starlette", reason="needs the extra `serve`")
pytest.importorskip("uvicorn", reason="needs the extra `serve`")
pytest.importorskip("prometheus_client", reason="needs the extra `serve`")

SIZES = {"max_batch_size": 16, "max_length": 256}
LIMITS = Limits(max_request_bytes=4000, max_inputs=8, max_length=256, request_timeout=1.0)
TEXT = "The old tree of rome."


@contextlib.contextmanager
def running(loaded, score=None, *, limits=LIMITS, warm_up=(), token=None, calibration=None, **queue):
    """A real server on loopback; gives its port, its batcher and a function that asks it."""
    model, tokenizer = loaded
    metrics = make_metrics()
    score = score or Scorer(model, rm.Compute(), **SIZES)
    batcher = Batcher(score, warm_up=warm_up, observe=metrics.batch.observe, **queue)
    served = ServedModel(
        name="the-model", tokenizer=tokenizer, config=model.config, batcher=batcher, calibration=calibration
    )
    with serving([served], metrics, limits, token) as port:
        if not warm_up:
            batcher.ready.result(timeout=60)
        yield port, batcher, partial(ask, port)


@contextlib.contextmanager
def serving(models, metrics, limits=LIMITS, token=None):
    """A real server of models on loopback; gives its port."""
    app = make_app(models, metrics, limits=limits, token=token)
    server, listener = make_server(app, limits.request_timeout), socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join()
        for model in models:
            model.batcher.close()
        listener.close()


def ask(port, path, body=None, headers=None, method=None):
    """Status, headers and the JSON, or the text, of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method or ("GET" if body is None else "POST"), path, raw, headers or {})
        answer = connection.getresponse()
        text = answer.read().decode()
        json_type = answer.headers["content-type"] == "application/json"
        return answer.status, answer.headers, json.loads(text) if json_type else text


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def numbers(text):
    """The samples of Prometheus' text."""
    return {name: float(value) for name, value in re.findall(r"^(rm_\S+(?:\{.*\})?) (\S+)$", text, re.MULTILINE)}


def constant(sequences):
    return np.zeros(len(sequences), np.float32)
