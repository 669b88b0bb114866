"""The server: rewards as offline, whoever asks beside; what it refuses; what happens when it is told to stop."""

import contextlib
import gc
import importlib
import itertools
import json
import random
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import rm
from rm.commands import serve as command
from rm.commands.serve import ServeArguments, read_token
from rm.data.inputs import encode_inputs
from rm.errors import ConfigError
from rm.evaluation import scoring
from rm.packing import sequences
from rm.saving.calibration import Calibration, load_calibration, require_calibration
from rm.serving import batching, requests, scorer
from rm.serving.batching import Batcher
from rm.serving.models import ServedModel, encode_within
from rm.serving.protocols import ADDRESSES, understand
from rm.serving.requests import Limits
from rm.serving.scorer import Scorer
from rm.serving.server import run_server
from rm.serving.traffic import make_metrics

from .servers import LIMITS, SIZES, TEXT, ask, constant, numbers, running, wait_until
from .tiny import CONFIG, make_tokenizer


def ragged(count, seed=0):
    rng, words = random.Random(seed), ("the", "old", "red", "tree", "house", "of", "rome", "oz")
    return [" ".join(rng.choices(words, k=rng.randint(1, 60))) for _ in range(count)]


@contextlib.contextmanager
def compilations():
    """Gives a list of what is compiled for scoring inside the block."""
    found = []

    def listen(event, _, fun_name="", **__):
        if event == "/jax/core/compile/backend_compile_duration" and "_jit_rewards" in fun_name:
            found.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def small(loaded, monkeypatch):
    """A model, and rows, that compile in no time."""
    for module in (scorer, sequences):
        monkeypatch.setattr(module, "ROW_TOKENS", 256)
    size = dict.fromkeys(("hidden_size", "intermediate_size"), 8)
    config = rm.LlamaConfig(vocab_size=loaded[0].config.vocab_size, num_hidden_layers=1, num_attention_heads=2, **size)
    return rm.match_tokenizer(rm.init_reward_model(config, key=jax.random.key(0), head_std=1.0), loaded[1])


def test_many_clients_get_what_score_gives_and_nothing_more_is_compiled(small):
    """A reward would depend on who asks at the same time, land with another client, or cost a compilation."""
    model, tokenizer = small
    inputs = ragged(240)
    inputs[::5] = [{"prompt": text[:9], "response": text[9:]} for text in inputs[::5]]
    inputs[::7] = [{"messages": [{"role": "user", "content": "tree?"}, {"role": "assistant", "content": "house"}]}] * 35
    offline = rm.score(model, tokenizer, inputs)
    rng, cuts = random.Random(1), [0]
    while cuts[-1] < len(inputs):
        cuts.append(cuts[-1] + rng.randint(1, 4))
    parts = [slice(*cut) for cut in itertools.pairwise(cuts)]
    usual = Scorer(model, rm.Compute(), **SIZES)
    with running(small, usual, warm_up=usual.compile()) as (_, batcher, post):
        batcher.compiled.result(timeout=300)
        with compilations() as compiled, ThreadPoolExecutor(32) as clients:
            answers = list(clients.map(lambda part: post("/score", {"inputs": inputs[part]}), parts))
        assert not compiled
        sizes = numbers(post("/metrics")[2])
    assert {status for status, _, _ in answers} == {200}
    served = np.concatenate([answer["rewards"] for _, _, answer in answers])
    np.testing.assert_allclose(served, offline, atol=1e-5)
    assert sizes["rm_batch_sequences_count"] < len(parts)  # requests went together
    assert sizes["rm_batch_sequences_sum"] == len(inputs)


def test_where_rows_have_regions_no_more_than_the_announced_shapes_compile(small, monkeypatch):
    """On an accelerator every number of sequences would compile a program of its own."""
    for module in (scorer, scoring):
        monkeypatch.setattr(module, "default_layout", lambda: "regions")
    model, tokenizer = small
    score = Scorer(model, rm.Compute(), max_batch_size=4, max_length=48)
    assert (score.lengths, score.counts) == ([48, 32], [1, 4])
    with compilations() as compiled:
        assert list(score.compile()) == [48, 48]
    assert len(compiled) == 4
    cut = [ids[:48] for ids in encode_inputs(ragged(9), tokenizer, model.config, names=["x"] * 9)]
    with compilations() as compiled:
        alone = np.concatenate([score([ids]) for ids in cut])
        for count in range(2, 10):
            np.testing.assert_allclose(score(cut[:count]), alone[:count], atol=1e-5)
    assert not compiled


def openrlhf_client(port, queries, prompts, labels):
    """As openrlhf/utils/agent.py of 0.11.2 posts, and takes the answer apart."""
    payload = {"query": queries, "prompts": prompts, "labels": labels}
    status, _, info = ask(port, "/get_reward", payload)
    assert status < 400  # response.raise_for_status()
    scores = info.get("scores")
    if scores is None:
        scores = info.get("rewards")
    return {"reward": info.get("rewards"), "scores": scores, "extra_logs": info.get("extra_logs") or {}}


def test_openrlhf_gets_rewards_of_whole_texts(loaded):
    """A reinforcement learning run would stop, or learn from the reward of something else."""
    model, tokenizer = loaded
    queries = ["The red house.<|end|>", TEXT]
    with running(loaded) as (port, _, _):
        output = openrlhf_client(port, queries, ["The red ", None], ["", None])
        assert openrlhf_client(port, [], [], [])["reward"] == []  # few queries, many servers
    np.testing.assert_allclose(output["reward"], rm.score(model, tokenizer, queries), atol=1e-5)
    assert output["scores"] == output["reward"]
    assert output["extra_logs"] == {}


def encoded(tmp_path, inputs, limits=LIMITS, metrics=None):
    """The token ids of inputs, as lists."""
    tokenizer = make_tokenizer(tmp_path)
    batcher: Any = None
    model = ServedModel(name="x", tokenizer=tokenizer, config=CONFIG, batcher=batcher)
    named = inputs if isinstance(inputs, dict) else {f"inputs[{i}]": each for i, each in enumerate(inputs)}
    return [ids.tolist() for ids in encode_within(named, model, limits, metrics or make_metrics())]


def inputs_of(path, body):
    """The inputs of a body at an address, by their names."""
    return understand(body, ADDRESSES[path], 8).inputs


def test_openrlhf_texts_do_not_begin_twice(tmp_path):
    """It decodes with special tokens: the model would see a beginning that training never has."""
    assert encoded(tmp_path, inputs_of("/get_reward", {"query": ["<s> a b </s>", "a b"]})) == [[1, 3, 4, 2], [1, 3, 4]]


def test_a_text_is_the_same_tokens_at_both_addresses(tmp_path):
    """The same text would have two rewards, by the address that was asked."""
    texts = ["<s> a b </s>", "a b"]
    expected = encoded(tmp_path, inputs_of("/get_reward", {"query": texts}))
    for inputs in (texts, [{"text": text} for text in texts]):
        assert encoded(tmp_path, inputs_of("/score", {"inputs": inputs})) == expected


def test_openrlhf_queries_over_the_limit_are_cut_where_its_own_server_cuts(tmp_path):
    """Its client would send a refused query five times, then go on without its reward.

    openrlhf/cli/serve_rm.py of 0.11.2 gives `truncation=True` and `max_length` to a tokenizer whose `truncation_side`
    is "right" unless tokenizer_config.json says otherwise; it puts no end-of-sequence token in place of the last one.
    """
    limits, metrics = Limits(max_length=4, truncation="truncate-right"), make_metrics()
    texts = ["<s> a b c </s>", "<s> a b </s>", "<s> a b c d </s>"]
    assert encoded(tmp_path, texts, limits, metrics) == [[1, 3, 4, 5], [1, 3, 4, 2], [1, 3, 4, 5]]
    assert metrics.registry.get_sample_value("rm_truncated_sequences_total") == 2


def test_a_cut_input_has_the_reward_that_score_gives_with_a_limit(loaded):
    """Rewards of the server and of `rm.score` could not be compared."""
    model, tokenizer = loaded
    inputs = [TEXT * 3, {"prompt": TEXT, "response": TEXT}, "tree"]
    limits = Limits(max_length=8, truncation="truncate-right")
    with running(loaded, limits=limits) as (_, _, post):
        status, _, answer = post("/score", {"inputs": inputs})
        counted = numbers(post("/metrics")[2])
    assert status == 200
    np.testing.assert_allclose(answer["rewards"], rm.score(model, tokenizer, inputs, max_length=8), atol=1e-5)
    assert counted["rm_truncated_sequences_total"] == 2


REFUSED = [
    ("/score", b"{", 400, "body: expected JSON (Expecting property name"),
    ("/score", b"", 400, "body: expected JSON ("),
    ("/score", b"[" * 3000, 400, "body: expected JSON ("),
    ("/score", b"\xff\xfe\xfa", 400, "body: expected JSON ("),
    ("/score", [1], 422, "body: expected an object with the field 'inputs', found a list"),
    ("/score", {}, 422, "inputs: missing; expected this field, found an empty object"),
    ("/score", {"input": []}, 422, "input: unknown field; expected inputs, model"),
    ("/score", {"inputs": ["a"], "max_length": 5}, 422, "max_length: unknown field; expected inputs, model"),
    ("/score", {"inputs": "a"}, 422, "inputs: expected a list, found a text"),
    ("/score", {"inputs": ["a", None]}, 422, "inputs[1]: expected a text or an object, found null"),
    ("/score", {"inputs": ["a", {"txt": "a"}]}, 422, "inputs[1]: expected text, prompt and response, or messages;"),
    ("/score", {"inputs": [{"messages": [{"role": 5}]}]}, 422, "inputs[0]: a message needs a role and a content"),
    ("/score", b'{"inputs": ["\\ud800"]}', 422, "inputs[0]: the text holds half a character"),
    ("/score", {"inputs": ["a"] * 9}, 422, "inputs: expected at most 8 items (--max-inputs), found 9"),
    ("/score", {"inputs": ["a", "tree " * 300]}, 422, "inputs[1]: expected at most 256 tokens (--max-length, --"),
    ("/get_reward", {"prompts": ["a"]}, 422, "query: missing; expected this field, found prompts"),
    ("/get_reward", {"query": [{"text": "a"}]}, 422, "query[0]: expected a text, found an object"),
    ("/score", {"inputs": ["a" * 4000]}, 413, "body: expected at most 4000 bytes (--max-request-bytes)"),
    ("/score", None, 405, "Method Not Allowed"),
    ("/rewards", {"inputs": []}, 404, "Not Found"),
]


def test_what_cannot_be_answered_is_refused_in_one_line_and_the_server_goes_on(loaded):
    """A client would search in the dark, or bring the server down."""
    with running(loaded, constant) as (_, _, post):
        for path, body, status, expected in REFUSED:
            found, _, answer = post(path, body)
            assert (found, list(answer)) == (status, ["error"]), (path, body)
            assert answer["error"].startswith(expected), answer
            assert "\n" not in answer["error"]
        assert post("/score", {"inputs": [TEXT]})[0] == 200
        counted = numbers(post("/metrics")[2])
    assert counted['rm_requests_total{path="/score",status="422"}'] == 11
    assert counted['rm_requests_total{path="other",status="404"}'] == 1


def chunked(port, chunks, pause=0.0):
    """The answer to a body without a declared length, sent piece by piece."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):  # the server may have had enough
            for chunk in chunks:
                client.sendall(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
                time.sleep(pause)
            client.sendall(b"0\r\n\r\n")
        with client.makefile("rb") as answer:
            return answer.read().decode()


def test_a_body_without_a_length_is_measured_as_it_comes(loaded):
    """It would fill the memory."""
    with running(loaded, constant) as (port, _, post):
        assert chunked(port, [b" " * 1000] * 5).startswith("HTTP/1.1 413 ")
        assert chunked(port, [b" " * 1000] * 1000)[:12] in ("HTTP/1.1 413", "")  # cut off while it sends
        assert chunked(port, [b'{"inputs": ', b'["a"]}']).startswith("HTTP/1.1 200 ")
        assert post("/health")[0] == 200


def test_a_body_over_the_limit_is_not_asked_for(loaded):
    """A client that asks first would send gigabytes in vain."""
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n"
    with running(loaded, constant) as (port, _, _), socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(head)
        with client.makefile("rb") as answer:
            assert answer.readline().startswith(b"HTTP/1.1 413 ")


def test_bodies_have_a_limit_together_and_are_let_go(loaded, monkeypatch):
    """Many requests, each within its limit, would fill the memory; or it would be given out once and never again."""
    monkeypatch.setattr(requests, "_HELD", 1)
    with running(loaded, constant) as (port, _, post):
        head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 3999\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(head + b" " * 3900)
            time.sleep(0.2)  # until it has been read
            status, headers, _ = post("/score", {"inputs": ["a" * 200]})
        assert (status, headers["retry-after"]) == (503, "1")
        wait_until(lambda: post("/score", {"inputs": ["a" * 3900]})[0] != 503)
        assert [post("/score", {"inputs": ["a " * 1900]})[0] for _ in range(3)] == [422] * 3


def test_slow_bodies_are_cut_off_and_slow_clients_hold_nobody(loaded):
    """A few connections that send a byte a second would hold the server, or keep it from ending."""
    silent = socket.socket()
    with silent, running(loaded, constant) as (port, _, post), ThreadPoolExecutor() as clients:
        silent.connect(("127.0.0.1", port))
        silent.sendall(b"POST /score HTTP/1.1\r\nHos")  # is still there when the server is told to stop
        dribbled = clients.submit(chunked, port, [b" "] * 50, 0.05)
        for _ in range(5):
            assert post("/score", {"inputs": [TEXT]})[0] == 200
        assert not dribbled.done()
        status, *_, body = dribbled.result().splitlines()
        assert status.startswith("HTTP/1.1 408 ")
        assert json.loads(body)["error"].startswith("body: expected within 1 seconds, ")


def test_only_who_has_the_token_is_answered(loaded, capfd):
    """Anybody could use the server; and the token does not belong into a log."""
    body, token = {"inputs": [TEXT]}, "s3cret-token"
    with running(loaded, constant, token=token) as (_, _, post):
        for path, content in (("/score", body), ("/get_reward", {"query": [TEXT]}), ("/metrics", None)):
            for given in (
                {},
                {"Authorization": "Bearer other"},
                {"Authorization": token},
                {"Authorization": "Bearer é"},
            ):
                headers = {name: value.encode() for name, value in given.items()}
                status, answered, answer = post(path, content, headers)
                assert (status, answered["www-authenticate"]) == (401, "Bearer")
                assert answer["error"].startswith("header Authorization: ")
            assert post(path, content, {"Authorization": f"Bearer {token}"})[0] == 200
        assert post("/health")[0] == 200
    assert token not in "".join(capfd.readouterr())


def test_a_full_queue_refuses_for_the_time_being_and_loses_nothing(loaded):
    """Requests would pile up without end, or be dropped that had been accepted."""
    go, taken = threading.Event(), []

    def score(sequences):
        taken.append(len(sequences))
        go.wait(30)
        return constant(sequences)

    with running(loaded, score, max_batch_size=4, max_queue=8) as (_, batcher, post), ThreadPoolExecutor() as clients:
        first = clients.submit(post, "/score", {"inputs": [TEXT] * 4})
        wait_until(lambda: taken)
        waiting = [clients.submit(post, "/score", {"inputs": [TEXT] * 3}) for _ in range(2)]
        wait_until(lambda: batcher.waiting == 6)
        status, headers, answer = post("/score", {"inputs": [TEXT] * 3})
        assert (status, headers["retry-after"]) == (503, "1")
        assert answer["error"].startswith("the queue is full (8 sequences, --max-queue)")
        assert numbers(post("/metrics")[2])["rm_queue_sequences"] == 6
        go.set()
        assert [one.result()[0] for one in (first, *waiting)] == [200] * 3
    assert taken == [4, 3, 3]  # whole requests, at most four sequences together


def test_room_in_the_queue_comes_before_tokens(loaded, monkeypatch):
    """A burst of large requests would be tokenized for minutes, and a word wait for its refusal behind them."""
    application, go, tokenized = importlib.import_module("rm.serving.service"), threading.Event(), []
    usual = application.encode_within

    def encode(inputs, *arguments, **options):
        tokenized.append(len(inputs))
        go.wait(30)
        return usual(inputs, *arguments, **options)

    monkeypatch.setattr(application, "encode_within", encode)
    monkeypatch.setattr(application, "_FEW", 0)  # by threads, as long texts are
    with running(loaded, constant, max_queue=8) as (_, batcher, post), ThreadPoolExecutor() as clients:
        accepted = [clients.submit(post, "/score", {"inputs": [TEXT] * 4}) for _ in range(2)]
        wait_until(lambda: batcher.reserved == 8)
        assert post("/score", {"inputs": [TEXT] * 8})[0] == 503
        assert post("/score", {"inputs": ["a"]})[2]["error"].startswith("the queue is full (8 sequences")
        go.set()
        assert [one.result()[0] for one in accepted] == [200, 200]
        assert batcher.reserved == 0
        assert post("/score", {"inputs": [TEXT] * 8})[0] == 200
        assert post("/score", {"inputs": ["tree " * 300] * 2})[0] == 422
        assert batcher.reserved == 0
    assert tokenized == [4, 4, 8, 2]


def test_a_long_text_is_refused_before_all_of_it_is_tokenized(tmp_path, monkeypatch):
    """One body would take a hundred times its memory."""
    taken, usual = [], rm.Tokenizer.encode_batch

    def encode_batch(self, texts, **options):
        taken.extend(map(len, texts))
        return usual(self, texts, **options)

    monkeypatch.setattr(rm.Tokenizer, "encode_batch", encode_batch)
    with pytest.raises(rm.RmError, match=r"^inputs\[1\]: expected at most 256 tokens .*, found \d+ or more$"):
        encoded(tmp_path, ["a b", "a b " * 100_000, *["a b " * 1000] * 9])
    assert sum(taken) < 100_000
    with pytest.raises(rm.RmError, match=r"found 301$"):
        encoded(tmp_path, ["a " * 300])


def test_requests_that_have_waited_for_a_batch_do_not_wait_for_company(monkeypatch):
    """Under load the model would stand still before every batch."""
    clock, go, taken = [0.0], threading.Event(), []
    monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def score(sequences):
        taken.append(len(sequences))
        assert go.wait(30)
        return constant(sequences)

    with contextlib.closing(Batcher(score, max_batch_size=2, max_wait=3600)) as batcher:
        batcher.submit([[1]] * 2)
        wait_until(lambda: taken == [2])
        rewards = batcher.submit([[1]])
        clock[0] += 3600
        go.set()
        assert rewards.result(30).shape == (1,)
    assert taken == [2, 1]


def test_who_needs_what_is_not_compiled_waits_and_is_passed(loaded):
    """A server would be ready after minutes, or a short text wait for the rows of long ones."""
    go = threading.Event()

    def compiling():
        yield 16
        assert go.wait(30)
        yield 64

    with running(loaded, constant, warm_up=compiling()) as (_, batcher, post), ThreadPoolExecutor() as clients:
        batcher.ready.result(30)
        long = clients.submit(post, "/score", {"inputs": ["tree " * 30]})
        wait_until(lambda: batcher.waiting == 1)
        assert post("/score", {"inputs": ["tree"]})[0] == 200
        assert (long.done(), batcher.waiting) == (False, 1)
        go.set()
        assert long.result()[0] == 200


def test_where_the_rest_cannot_be_compiled_requests_are_answered_all_the_same(loaded):
    """They would wait for ever."""

    def compiling():
        yield 16
        raise MemoryError

    with running(loaded, constant, warm_up=compiling()) as (_, _, post):
        assert post("/score", {"inputs": ["tree " * 30]})[0] == 200


def test_a_batch_that_fails_is_told_to_those_in_it_alone(loaded):
    """Whoever asks next would wait for ever."""

    def score(sequences):
        if len(sequences) > 1:
            raise MemoryError
        return np.full(1, np.nan if len(sequences[0]) == 1 else 5.0, np.float32)

    with running(loaded, score) as (_, _, post):
        assert post("/score", {"inputs": [TEXT] * 2})[::2] == (500, {"error": "the server failed; its log says why"})
        assert post("/score", {"inputs": ["x"]})[0] == 500  # JSON has no NaN
        assert post("/score", {"inputs": [TEXT]})[2] == {"rewards": [5.0]}


def test_metrics_count_what_was_done(loaded):
    """Dashboards and alarms would be wrong."""
    _, tokenizer = loaded
    texts = ragged(5)
    with running(loaded, constant) as (_, _, post):
        post("/score", {"inputs": texts[:3]})
        post("/get_reward", {"query": texts[3:]})
        status, headers, text = post("/metrics")
    found, tokens = numbers(text), sum(len(tokenizer.encode(one)) for one in texts)
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/plain")
    assert (found["rm_sequences_total"], found["rm_tokens_total"], found["rm_queue_sequences"]) == (5, tokens, 0)
    assert found['rm_requests_total{path="/score",status="200"}'] == 1
    assert found['rm_request_seconds_count{path="/get_reward"}'] == 1
    assert found['rm_batch_sequences_bucket{le="2.0"}'] == 1


def test_health_says_when_the_model_is_ready(loaded):
    """A load balancer would send requests that have to wait for compilations."""

    def state(status):
        return {"status": status, "parameter_bytes": 0}

    go = threading.Event()
    compiled = (16 for _ in range(1) if go.wait(30))
    with running(loaded, constant, warm_up=compiled) as (_, batcher, post):
        assert post("/health")[::2] == (503, {"status": "not ready", "models": {"the-model": state("not ready")}})
        status, headers, _ = post("/score", {"inputs": [TEXT]})
        assert (status, headers["retry-after"]) == (503, "1")
        go.set()
        batcher.ready.result(30)
        assert post("/health")[::2] == (200, {"status": "ready", "models": {"the-model": state("ready")}})


def test_a_signal_lets_what_is_queued_finish(loaded, tmp_path):
    """A deployment would lose the requests under way; the real command, in a process of its own."""
    model, tokenizer = loaded
    rm.save_reward_model(tmp_path / "model", model, tokenizer)
    script = textwrap.dedent(f"""
        import time
        import numpy as np
        from rm.commands import serve as command

        def slow(_, sequences):
            time.sleep(0.2)
            return np.array([len(ids) for ids in sequences], np.float32)

        class Slow(command.Scorer):
            compile, __call__ = lambda _: iter([8, 4096]), slow

        command.Scorer = Slow
        command.serve(command.ServeArguments(model=({str(tmp_path / "model")!r},), port=0, max_batch_size=1))
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process, ThreadPoolExecutor(8) as clients:
        line = process.stdout.readline()
        assert re.fullmatch(rf"serving {re.escape(str(tmp_path))}/model on http://127\.0\.0\.1:\d+\n", line)
        port = int(line.rsplit(":", 1)[1])
        asked = [clients.submit(ask, port, "/score", {"inputs": ["tree " * n]}) for n in range(1, 9)]
        wait_until(lambda: numbers(ask(port, "/metrics")[2])["rm_queue_sequences"] >= 5)
        process.send_signal(signal.SIGTERM)
        answers = [one.result() for one in asked]
        assert (process.wait(30), process.stderr.read()) == (0, "")
    with pytest.raises(ConnectionRefusedError):
        ask(port, "/health")
    lengths = [len(tokenizer.encode("tree " * n)) for n in range(1, 9)]
    assert [(status, answer) for status, _, answer in answers] == [(200, {"rewards": [n]}) for n in lengths]


def test_normalized_rewards_are_of_the_scale_that_training_recorded(loaded, tmp_path):
    """Rewards of two models could not be compared."""
    model, tokenizer = loaded
    rm.save_reward_model(tmp_path / "model", model, tokenizer, provenance={"reward": {"mean": 0.5, "std": 2}})
    calibration = load_calibration(tmp_path / "model")
    assert calibration == Calibration(mean=0.5, std=2.0)
    with running(loaded, lambda sequences: np.float32([4.5, 0.5][: len(sequences)]), calibration=calibration) as (
        *_,
        post,
    ):
        assert post("/score", {"inputs": [TEXT] * 2})[2] == {"rewards": [2.0, 0.0]}


@pytest.mark.parametrize(
    "found", [{"mean": 0.5}, {"mean": 0.5, "std": 0}, {"mean": float("nan"), "std": 1}, [1, 2], "1"]
)
def test_a_scale_that_is_none_is_refused(tmp_path, found):
    (tmp_path / "rm.json").write_text(json.dumps({"reward": found}))
    with pytest.raises(ConfigError, match=r"rm\.json: field 'reward': expected an object with a finite mean and a"):
        load_calibration(tmp_path)


def test_who_normalizes_without_a_scale_is_told_how_to_get_one(tmp_path):
    assert load_calibration(tmp_path) is None
    with pytest.raises(ConfigError, match=r"rm\.json has no field 'reward'.*; train with --eval-dataset"):
        require_calibration(tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"port": 70000}, "--port must be between 0 and 65535, found 70000"),
        ({"max_wait": -1}, "--max-wait must not be negative, found -1"),
        ({"request_timeout": 0}, "--request-timeout must be greater than 0, found 0"),
        ({"max_inputs": 10, "max_queue": 9}, "--max-queue must be at least --max-inputs, .* found 9 and 10"),
    ],
)
def test_flags_that_cannot_work_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        ServeArguments(model=("x",), **flags)


def test_a_place_that_is_taken_is_named_before_the_model_is_read():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}: cannot be listened at \(.+\); choose another"):
            command.serve(ServeArguments(model=("no-such-model",), port=port))


def test_the_token_comes_from_a_file_or_the_environment_and_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.delenv("RM_SERVE_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("RM_SERVE_TOKEN", "abc")
    assert read_token(None) == "abc"
    path = Path(tmp_path / "token")
    path.write_text("from-file\n")
    assert read_token(path) == "from-file"
    for content in ("", "two words", "two\nlines", "é"):
        path.write_text(content)
        with pytest.raises(ConfigError) as error:
            read_token(path)
        assert not content or content not in str(error.value)
    with pytest.raises(ConfigError, match="missing: cannot be read \\(No such file"):
        read_token(tmp_path / "missing")


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda package: None if package == "uvicorn" else package)
    with pytest.raises(ConfigError, match=r"needs uvicorn.*python -m pip install 'rm-jax\[serve\]'"):
        command.serve(ServeArguments(model=("x",)))


def test_the_collector_passes_over_what_a_server_begins_with():
    """One request in a hundred would wait a fifth of a second, while Python's collector goes through all of JAX."""

    class Once:
        should_exit = False

        def run(self, sockets):
            batcher.compiled.result(timeout=60)

    batcher = Batcher(lambda sequences: np.zeros(len(sequences)))
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            run_server(Once(), [batcher], listener, "ready")
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
