"""Clients of other servers, as they send and read; several models; the description of the server."""

import base64
import contextlib
import inspect
import json
import threading
from functools import partial

import huggingface_hub
import jax
import jsonschema
import msgspec
import numpy as np
import pytest

import rm
from rm.commands.serve import ServeArguments, describe
from rm.errors import ConfigError
from rm.saving.calibration import Calibration
from rm.serving.app import make_routes
from rm.serving.batching import Batcher
from rm.serving.models import ServedModel
from rm.serving.openapi import describe_server
from rm.serving.protocols import ADDRESSES, understand
from rm.serving.scorer import Scorer
from rm.serving.traffic import make_metrics

from .servers import LIMITS, SIZES, ask, constant, numbers, running, serving
from .tiny import CONFIG, TEMPLATE, make_tokenizer

TEXTS = ["a b c </s>", "b a", "ab"]
CHAT = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d"}]
NAME = "the-model"


@pytest.fixture
def words(tmp_path):
    """A small model whose tokenizer begins texts with a token, as Llama's does, and so does its chat template."""
    return make_model(tmp_path)


def make_model(directory, seed=0, **options):
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": TEMPLATE}
    model = rm.init_reward_model(CONFIG, key=jax.random.key(seed), head_std=1.0)
    return rm.match_tokenizer(model, make_tokenizer(directory, config, **options))


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5)


# Clients, as they are written.


def verl_prompt(tokenizer, chat):
    """As RewardLoopWorker._preprocess_reward_inputs of verl 0.9.1 makes it: rendered, without the first token."""
    prompt = tokenizer.apply_chat_template(chat)
    return prompt.removeprefix(tokenizer.bos_token)


def test_verl_gets_the_reward_of_its_conversation(words):
    """A policy would be trained on other rewards; compute_score_disrm of verl/experimental/reward_loop/reward_loop.py
    posts these fields to a reward model's server, and reads these."""
    model, tokenizer = words
    (expected,) = rm.score(model, tokenizer, [{"messages": CHAT}])
    payload = {"model": NAME, "input": verl_prompt(tokenizer, CHAT)}
    with running(words) as (_, _, post):
        status, _, output = post("/classify", payload | {"use_activation": False})
        assert status == 200
        close(output["data"][-1]["probs"][-1], expected)
        status, _, output = post("/v1/embeddings", payload)
        assert status == 200
        close(output["data"][-1]["embedding"][-1], expected)


def test_vllm_clients_get_rewards_of_texts_and_conversations(words):
    """With or without an activation, which vLLM has none of for a head of regression."""
    model, tokenizer = words
    expected, (chat,) = rm.score(model, tokenizer, TEXTS), rm.score(model, tokenizer, [{"messages": CHAT}])
    with running(words) as (_, _, post):
        for use_activation in (None, True, False):
            _, _, answer = post("/classify", {"input": TEXTS, "use_activation": use_activation})
            close([each["probs"] for each in answer["data"]], expected[:, None])
        assert [each["index"] for each in answer["data"]] == [0, 1, 2]
        assert {each["num_classes"] for each in answer["data"]} == {1}
        assert answer["usage"]["prompt_tokens"] == 5 + 3 + 2
        assert (answer["model"], answer["object"]) == (NAME, "list")
        close(post("/classify", {"messages": CHAT})[2]["data"][0]["probs"], [chat])
        _, _, answer = post("/pooling", {"input": TEXTS, "task": "classify"})
        close([each["data"] for each in answer["data"]], expected[:, None])
        _, _, answer = post("/pooling", {"messages": CHAT, "encoding_format": "base64"})
        close(np.frombuffer(base64.b64decode(answer["data"][0]["data"]), "<f4"), [chat])


def test_texts_that_hold_their_special_tokens_get_no_more(words):
    """`add_special_tokens: false` would be ignored, and the reward be that of another text."""
    model, tokenizer = words
    (without,) = rm.serving.Scorer(model, rm.Compute(), **SIZES)([[3, 4]])
    with running(words) as (_, _, post):
        _, _, answer = post("/classify", {"input": "a b", "add_special_tokens": False})
        close(answer["data"][0]["probs"], [without])
        _, _, answer = post("/classify", {"input": "a b"})
        close(answer["data"][0]["probs"], rm.score(model, tokenizer, ["a b"]))


def test_sglang_clients_get_an_object_for_a_text_and_a_list_for_a_list(words):
    expected = rm.score(*words, TEXTS)
    with running(words) as (_, _, post):
        _, _, answer = post("/classify", {"text": TEXTS[0]})
        close(answer["embedding"], expected[:1])
        assert answer["meta_info"]["prompt_tokens"] == 5
        _, _, answer = post("/classify", {"text": TEXTS, "rid": ["x", "y", "z"]})
        close([each["embedding"] for each in answer], expected[:, None])


def test_text_embeddings_inference_clients_get_rewards_or_their_sigmoid(words):
    """Without `raw_scores` the original server answers with a sigmoid, whatever config.json says."""
    expected = rm.score(*words, TEXTS).astype(np.float64)
    with running(words) as (port, _, post):
        _, _, answer = post("/predict", {"inputs": TEXTS[0], "raw_scores": True})
        close([each["score"] for each in answer], expected[:1])
        _, _, batch = post("/predict", {"inputs": [[text] for text in TEXTS], "raw_scores": True})
        close([each["score"] for (each,) in batch], expected)
        _, _, answer = post("/predict", {"inputs": [TEXTS[0]]})
        close(answer[0]["score"], 1 / (1 + np.exp(-expected[0])))
        client = huggingface_hub.InferenceClient(model=f"http://127.0.0.1:{port}/predict")
        close(client.text_classification(TEXTS[1]).score, 1 / (1 + np.exp(-expected[1])))
        close(client.text_classification(TEXTS[1], function_to_apply="none", top_k=1).score, expected[1])


def test_truncation_is_what_a_client_of_text_embeddings_inference_asks_for(words):
    model, tokenizer = words
    text = "a " * 300
    (cut,) = rm.score(model, tokenizer, [text], max_length=256)
    with running(words) as (_, _, post):
        close(post("/predict", {"inputs": text, "raw_scores": True, "truncate": True})[2][0]["score"], cut)
        assert numbers(post("/metrics")[2])["rm_truncated_sequences_total"] == 1
        assert post("/predict", {"inputs": text, "truncate": False})[0] == 422


def test_the_library_of_openai_reads_rewards_and_names(words):
    """It asks for base64, and tells errors by their fields."""
    openai = pytest.importorskip("openai", reason="needs the extra `dev`")
    expected = rm.score(*words, TEXTS)
    with running(words, token="abc") as (port, _, _):
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="abc", max_retries=0)
        with client:
            assert [model.id for model in client.models.list()] == [NAME]
            for options in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}, {"user": "me"}):
                answer = client.embeddings.create(model=NAME, input=TEXTS, **options)
                vectors = [each.embedding for each in answer.data]
                if options == {"encoding_format": "base64"}:  # which it hands on
                    vectors = [np.frombuffer(base64.b64decode(each), "<f4") for each in vectors]
                close(vectors, expected[:, None])
            with pytest.raises(openai.NotFoundError, match="model: expected one of the-model, found 'other'"):
                client.embeddings.create(model="other", input="a")
            with pytest.raises(openai.BadRequestError, match="dimensions: unknown field") as error:
                client.embeddings.create(model=NAME, input="a", dimensions=3)
            assert error.value.type == "BadRequestError"
        other = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0)
        with other, pytest.raises(openai.AuthenticationError, match="header Authorization"):
            other.models.list()


# What is not done is said.

REFUSED = [
    ("/classify", {"inputs": "a"}, 400, "inputs: unknown field; expected input, messages, model, use_activation"),
    ("/classify", {}, 400, "input: expected this field or 'messages', found neither"),
    ("/classify", {"input": "a", "messages": CHAT}, 400, "input: expected this field or 'messages', found both"),
    ("/classify", {"input": [1, 2]}, 400, "input[0]: expected a text, found a number"),
    ("/classify", {"text": 5}, 400, "text: expected a text or a list, found a number"),
    ("/classify", {"text": "a", "input": "a"}, 400, "text: unknown field; expected input, messages, model, use_ac"),
    ("/classify", {"text": "a", "raw": 1}, 400, "raw: unknown field; expected text, model, rid, priority"),
    ("/classify", {"input": "a", "truncate_prompt_tokens": 5}, 400, "truncate_prompt_tokens: unknown field"),
    ("/classify", {"messages": CHAT, "add_generation_prompt": True}, 400, "add_generation_prompt: unknown field"),
    (
        "/classify",
        {"messages": CHAT, "add_special_tokens": True},
        400,
        "add_special_tokens: expected false for",
    ),
    (
        "/classify",
        {"input": "a", "use_activation": "no"},
        400,
        "use_activation: expected true or false or null,",
    ),
    ("/classify", {"input": ["a"] * 9}, 400, "input: expected at most 8 items (--max-inputs), found 9"),
    (
        "/classify",
        {"input": ["a", "a " * 300]},
        400,
        "input[1]: expected at most 256 tokens (--max-length,",
    ),
    ("/classify", {"input": "a", "model": "b"}, 404, "model: expected one of the-model, found 'b'"),
    ("/classify", b"{", 400, "body: expected JSON ("),
    ("/classify", b'{"\\ud800": 1}', 400, "body: holds half a character (a lone surrogate)"),
    ("/classify", b'{"input": "\\ud800"}', 400, "input: the text holds half a character"),
    ("/classify", [1], 400, "body: expected an object with the field 'input', found a list"),
    ("/pooling", {"input": "a", "task": "embed"}, 400, "task: invalid enum value 'embed'"),
    ("/pooling", {"input": "a", "dimensions": 5}, 400, "dimensions: unknown field; expected "),
    ("/v1/embeddings", {"input": "a", "encoding_format": "bytes"}, 400, "encoding_format: invalid enum value 'bytes'"),
    ("/v1/embeddings", {}, 400, "input: missing; expected this field, found an empty object"),
    ("/predict", {"inputs": ["a", "b"]}, 422, "inputs[0]: expected a list of one text; join prompt and"),
    (
        "/predict",
        {"inputs": [["a", "b"]]},
        422,
        "inputs[0]: expected a list of one text; join prompt and",
    ),
    ("/predict", {"inputs": []}, 422, "inputs: expected a text or a batch of them, found an empty list"),
    ("/predict", {"inputs": "a", "parameters": {"x": 1}}, 422, "parameters.x: unknown field"),
    (
        "/predict",
        {"inputs": "a", "parameters": {"function_to_apply": "softmax"}},
        422,
        "parameters.func",
    ),
    ("/predict", {"inputs": "a", "parameters": {"top_k": 0}}, 422, "parameters.top_k: expected a number >= 1"),
    ("/get_reward", {"query": ["a"], "model": "b"}, 422, "model: unknown field; expected query, prompts, labels"),
    ("/score", {"inputs": ["a"], "model": "b"}, 404, "model: expected one of the-model, found 'b'"),
]


def test_what_a_client_asks_for_in_vain_is_refused_in_the_form_that_it_reads(words):
    """It would take the answer for one to its question, or not find the reason."""
    with running(words, constant) as (_, _, post):
        for path, body, status, expected in REFUSED:
            found, _, answer = post(path, body)
            assert found == status, (path, body, answer)
            line = answer["error"] if status == 422 or path == "/score" else answer["error"]["message"]
            assert line.startswith(expected), line
            if path == "/predict":
                assert answer["error_type"] == "Validation"
        assert post("/classify", {"input": "a", "model": "b"})[2]["error"] == {
            "message": "model: expected one of the-model, found 'b'",
            "type": "NotFoundError",
            "code": 404,
            "param": None,
        }


def test_fields_without_an_effect_are_counted(words):
    """Someone would rely on a priority that there is not."""
    with running(words, constant) as (_, _, post):
        assert post("/classify", {"input": "a", "priority": 3, "user": None})[0] == 200
        assert post("/get_reward", {"query": ["a"], "prompts": ["a"], "labels": [""]})[0] == 200
        counted = numbers(post("/metrics")[2])
    unread = {name: value for name, value in counted.items() if name.startswith("rm_unread_fields_total")}
    assert unread == {
        'rm_unread_fields_total{field="priority",path="/classify"}': 1,
        'rm_unread_fields_total{field="prompts",path="/get_reward"}': 1,
        'rm_unread_fields_total{field="labels",path="/get_reward"}': 1,
    }


# Several models.


@contextlib.contextmanager
def two_models(tmp_path, *, warm_up=(), calibration=None):
    """A server of two models with different tokenizers, and the models."""
    pairs = [make_model(tmp_path / "a"), make_model(tmp_path / "b", seed=1, adds_bos=False)]
    metrics, served = make_metrics(), []
    for name, weight, (model, tokenizer), warm in zip("ab", (0.7, -0.3), pairs, ((), warm_up), strict=True):
        batcher = Batcher(Scorer(model, rm.Compute(), **SIZES), warm_up=warm)
        options = {"tokenizer": tokenizer, "config": model.config, "batcher": batcher, "calibration": calibration}
        served.append(ServedModel(name=name, weight=weight, parameter_bytes=10, **options))
    with serving(served, metrics) as port:
        served[0].batcher.ready.result(60)
        yield partial(ask, port), pairs, served


def test_a_client_names_a_model_or_gets_the_weighted_sum(tmp_path):
    """Each would be read by another's tokenizer, or weighed twice."""
    with two_models(tmp_path) as (post, pairs, _):
        first, second = (rm.score(*pair, TEXTS) for pair in pairs)
        total = 0.7 * first - 0.3 * second
        assert abs(first - second).max() > 0.01
        for name, expected in (("a", first), ("b", second), ("sum", total), (None, total)):
            close(post("/score", {"inputs": TEXTS, "model": name})[2]["rewards"], expected)
        close(post("/get_reward", {"query": TEXTS})[2]["rewards"], total)
        answer = post("/v1/embeddings", {"input": TEXTS, "model": "b"})[2]
        close([each["embedding"] for each in answer["data"]], second[:, None])
        assert answer["model"] == "b"
        assert post("/classify", {"input": TEXTS})[2]["model"] == "sum"
        assert [each["id"] for each in post("/v1/models")[2]["data"]] == ["a", "b", "sum"]
        assert post("/score", {"inputs": [], "model": None})[2] == {"rewards": []}
        status, _, answer = post("/score", {"inputs": ["a"], "model": "c"})
        assert (status, answer["error"]) == (404, "model: expected one of a, b, sum, found 'c'")


def test_every_model_is_on_its_own_scale_before_they_are_added(tmp_path):
    with two_models(tmp_path, calibration=Calibration(mean=0.5, std=2.0)) as (post, pairs, _):
        first, second = ((rm.score(*pair, TEXTS) - 0.5) / 2 for pair in pairs)
        close(post("/score", {"inputs": TEXTS})[2]["rewards"], 0.7 * first - 0.3 * second)


def test_readiness_and_memory_are_said_for_each_model(tmp_path):
    """A model that still compiles would hold the others, or answer for them."""

    go = threading.Event()
    warm_up = (256 for _ in range(1) if go.wait(60))
    with two_models(tmp_path, warm_up=warm_up) as (post, _, served):
        state = {"a": {"status": "ready", "parameter_bytes": 10}, "b": {"status": "not ready", "parameter_bytes": 10}}
        assert post("/health")[::2] == (503, {"status": "not ready", "models": state})
        assert numbers(post("/metrics")[2])['rm_model_ready{model="b"}'] == 0
        assert post("/score", {"inputs": TEXTS, "model": "a"})[0] == 200
        for name in ("b", "sum"):
            status, _, answer = post("/score", {"inputs": TEXTS, "model": name})
            assert (status, answer["error"]) == (503, "the model 'b' is not ready; try again later")
        go.set()
        served[1].batcher.ready.result(60)
        assert post("/health")[2]["status"] == "ready"
        assert post("/score", {"inputs": TEXTS})[0] == 200
        counted = numbers(post("/metrics")[2])
    assert counted['rm_model_ready{model="b"}'] == 1
    assert counted['rm_model_parameter_bytes{model="a"}'] == 10
    assert describe(served) == "0.7 · a (0 MiB) + -0.3 · b (0 MiB)"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"weights": (1.0,)}, "--weights: expected one for each model of --model, 2, found 1"),
        (
            {"weights": (1.0, float("nan"))},
            r"--weights: expected finite numbers for several models, found \(1",
        ),
        ({"names": ("x", "x")}, "--names: expected different ones, none of them empty or 'sum', .*; found 'x', 'x'"),
        ({"names": ("x", "sum")}, "--names: expected different ones"),
        ({"model": "x"}, "model: expected a list, found a single text"),
        ({"model": ()}, "--model: expected at least one reward model, found none"),
        ({"model": ("a",), "weights": (2.0,)}, "--weights: expected finite numbers for several models"),
    ],
)
def test_models_that_cannot_be_told_apart_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        ServeArguments(**{"model": ("a", "b")} | flags)


# The description, and the requests that it is tried with.

REQUESTS = [
    ("/score", {"inputs": ["a", {"prompt": "a ", "response": "b"}, {"messages": CHAT}], "model": NAME}),
    ("/get_reward", {"query": TEXTS, "prompts": ["a"], "labels": [None]}),
    ("/classify", {"input": "a", "model": NAME, "use_activation": False, "priority": 1}),
    ("/classify", {"messages": CHAT, "add_special_tokens": False}),
    ("/classify", {"text": ["a", "b"], "rid": "x"}),
    ("/classify", {"text": "a"}),
    ("/pooling", {"input": TEXTS, "task": "classify", "encoding_format": "base64"}),
    ("/v1/embeddings", {"input": TEXTS, "model": NAME, "encoding_format": "float", "user": "x"}),
    ("/predict", {"inputs": "a", "raw_scores": True, "truncate": True, "parameters": {"top_k": 1}}),
    ("/predict", {"inputs": [["a"], ["b"]]}),
]


def schema(document, part):
    """A schema of the description, with what it refers to."""
    return {"components": document["components"], **part["content"]["application/json"]["schema"]}


def test_the_description_is_that_of_the_server(words):
    """A client made of it would be refused, or miss what there is."""
    with running(words) as (_, _, post):
        status, _, document = post("/openapi.json")
        assert (status, document) == (200, json.loads(json.dumps(describe_server(needs_token=False))))
        for path, body in REQUESTS:
            described = document["paths"][path]["post"]
            jsonschema.validate(body, schema(document, described["requestBody"]))
            status, _, answer = post(path, body)
            assert status == 200, answer
            jsonschema.validate(answer, schema(document, described["responses"]["200"]))
        for path in ("/health", "/v1/models"):
            described = document["paths"][path]["get"]["responses"]
            jsonschema.validate(post(path)[2], schema(document, described["200"]))
        for path, body, _, _ in REFUSED:
            described, (_, _, answer) = document["paths"][path]["post"], post(path, body)
            jsonschema.validate(answer, schema(document, described["responses"]["default"]))
            if isinstance(body, dict) and "unknown field" in json.dumps(answer):
                with pytest.raises(jsonschema.ValidationError):
                    jsonschema.validate(body, schema(document, described["requestBody"]))


def test_every_route_and_every_field_is_described(words):
    model, tokenizer = words
    with contextlib.closing(Batcher(constant)) as batcher:
        served = ServedModel(name="x", tokenizer=tokenizer, config=model.config, batcher=batcher)
        routes = make_routes([served], make_metrics(), LIMITS)
    document = describe_server(needs_token=True)
    found = {(route.path, method.lower()) for route in routes for method in route.methods - {"HEAD"}}
    assert found == {(path, method) for path, methods in document["paths"].items() for method in methods}
    for address in ADDRESSES.values():
        for kind in address.answers:
            described = document["components"]["schemas"][kind.__name__]["properties"]
            assert set(described) == {field.name for field in msgspec.structs.fields(kind)}
    assert document["security"] == [{"token": []}]
    assert document["paths"]["/health"]["get"]["security"] == []


def test_the_description_is_openapi():
    validator = pytest.importorskip("openapi_spec_validator", reason="needs the extra `dev`")
    for needs_token in (False, True):
        validator.validate(describe_server(needs_token=needs_token))


@pytest.mark.parametrize(("path", "body"), REQUESTS)
def test_what_waits_for_rewards_holds_no_texts(path, body):
    """The queue is limited in sequences: their texts, of any length, would fill the memory."""
    answering = understand(body, ADDRESSES[path], 8).answering
    kept = getattr(answering, "keywords", {}), inspect.getclosurevars(getattr(answering, "func", answering)).nonlocals
    assert all(isinstance(value, bool) or value in ("float", "base64") for each in kept for value in each.values())
