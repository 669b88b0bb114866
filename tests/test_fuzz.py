"""Files and templates from strangers: refused in one line, within seconds, without much memory, links not followed."""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rm
from rm.files.hub import own_file
from rm.text.chat import render_chat

from .mutations import CHAT, TARGETS, write_base
from .tiny import CONFIG

CASES = {"weights": 300, "index": 200, "config": 400, "record": 300, "tokenizer": 400, "tokenizer_config": 400}
CASES |= {"chat_template": 200, "rows": 300}
SLOWEST = 10.0  # seconds of a case, on a busy machine


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("fuzz")
    write_base(directory)
    return directory


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_changed_files_are_read_or_refused_by_an_error_of_ours(base, target):
    """Anything else would be a traceback, a hang or a crash that a downloaded file can cause."""
    assert sum(CASES.values()) >= 2000

    @settings(max_examples=CASES[target], deadline=None, database=None, derandomize=True)
    @given(st.integers(0, 2**32 - 1))
    def run(seed: int):
        start, message = time.monotonic(), "read"
        try:
            TARGETS[target](base, random.Random(seed))
        except rm.RmError as error:
            message = str(error)
        assert len(message.splitlines()) == 1
        assert time.monotonic() - start < SLOWEST

    run()


NASTY = """
import json, resource, sys
import jax
import rm
jax.device_count()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    rm.load_reward_model(sys.argv[1])
except rm.RmError as error:
    print(json.dumps([str(error), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


def _refusal(directory: Path) -> tuple[str, int]:
    """The error of loading in a process of its own, and the bytes that the attempt took."""
    done = subprocess.run(
        [sys.executable, "-c", NASTY, str(directory)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=Path(rm.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    message, peak = json.loads(done.stdout)
    return message, peak * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.parametrize("name", ["sizes", "header"])
def test_what_promises_terabytes_is_refused_before_there_is_memory_for_it(base, tmp_path, name):
    directory = shutil.copytree(base / "single", tmp_path / "model")
    if name == "sizes":
        sizes = {"vocab_size": 2**24, "hidden_size": 2**24, "intermediate_size": 2**24, "head_dim": 2**20}
        config = json.loads((directory / "config.json").read_bytes())
        (directory / "config.json").write_text(json.dumps(config | sizes))
    else:
        data = (directory / "model.safetensors").read_bytes()
        (directory / "model.safetensors").write_bytes((10**13).to_bytes(8, "little") + data[8:])
    message, peak = _refusal(directory)
    assert "model.safetensors" in message
    assert peak < 10**9


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be from 1 to 1000, found 1000000000"),
        ({"num_hidden_layers": 1000}, "config.json says 1000 layers, the weights have "),
        ({"hidden_size": 10**12}, "hidden_size must be a whole number from 0 to 2147483647, found 1000000000000"),
        ({"vocab_size": 10**9}, "vocab_size must be from 1 to 16777216, found 1000000000"),
        ({"vocab_size": 0}, "vocab_size must be from 1 to 16777216, found 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number that is finite and not negative, found nan"),
        ({"rope_theta": float("inf")}, "rope_theta must be a number greater than 0, found inf"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "'factor', greater than 0; found 0"),
        ({"eos_token_id": [[1]]}, "eos_token_id must be a whole number or a list of such, found ([1],)"),
    ],
)
def test_sizes_and_numbers_that_no_model_has_are_named(base, tmp_path, changes, expected):
    directory = shutil.copytree(base / "single", tmp_path / "model")
    config = json.loads((directory / "config.json").read_bytes())
    (directory / "config.json").write_text(json.dumps(config | changes))
    start = time.monotonic()
    with pytest.raises(rm.RmError) as caught:
        rm.load_reward_model(directory)
    assert expected in str(caught.value)
    assert time.monotonic() - start < 5


def test_a_tensor_named_twice_is_refused(base, tmp_path):
    """The library may have checked one entry, and we read by the other."""
    directory = shutil.copytree(base / "single", tmp_path / "model")
    data = (directory / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].rstrip()
    twice = header[:-1] + b"," + header[1:]
    (directory / "model.safetensors").write_bytes(len(twice).to_bytes(8, "little") + twice + data[8 + size :])
    with pytest.raises(rm.WeightsError, match=r"model\.safetensors: .*(twice|[Dd]uplicate)"):
        rm.load_reward_model(directory)


# Chat templates: what each limit is, with small limits.


def render(text: str) -> str:
    return render_chat(text, {"messages": CHAT, "tools": None}, date(2024, 7, 26))


def refusal(text: str) -> str:
    with pytest.raises(rm.TokenizerError) as caught:
        render(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% if %}", "the chat template is not valid jinja (line 1: "),
        (
            "{{ raise_exception('roles') }}",
            "the chat template refused the conversation: roles",
        ),
        ("{{ messages[7].content }}", "the chat template refused the conversation: "),
        ("{{ 'a' + 1 }}", "the chat template failed on the conversation: TypeError("),
        ("{% set _ = messages.append(1) %}", "the chat template refused the conversation: "),
        (
            "{% set ns = namespace(_x=1) %}",
            "the chat template refused the conversation: a name in a namespace",
        ),
    ],
)
def test_a_template_that_fails_is_refused_in_one_line(template, expected):
    assert refusal(template).startswith(expected)
    assert len(refusal(template).splitlines()) == 1


def test_a_template_that_writes_too_much_is_stopped(monkeypatch):
    monkeypatch.setattr("rm.text.chat.CHARACTERS", 100)
    assert render("{% for i in range(10) %}{{ 'ten chars.' }}{% endfor %}") == "ten chars." * 10
    message = refusal("{% for i in range(11) %}{{ 'ten chars.' }}{% endfor %}")
    assert message == "the chat template wrote more than 100 characters for the conversation"


def test_a_template_that_takes_too_long_is_stopped(monkeypatch):
    monkeypatch.setattr("rm.text.chat.SECONDS", 0.0)
    message = refusal("{% for i in range(10) %}{{ i }}{% endfor %}")
    assert message == "the chat template ran longer than 0 s on the conversation"


def test_the_limits_hold_in_other_threads_for_each_conversation_alone(monkeypatch):
    """Were the characters counted over a whole data set, a long one would be refused."""
    monkeypatch.setattr("rm.text.chat.CHARACTERS", 100)
    before = threading.active_count()
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(render, ["{{ 'ten chars.' * 9 }}"] * 20)) == ["ten chars." * 9] * 20
        assert len(set(threads.map(refusal, ["{{ 'ten chars.' * 11 }}"] * 4))) == 1
    assert threading.active_count() == before


# Links.


@pytest.fixture
def model(base, tmp_path) -> Path:
    return shutil.copytree(base / "shards", tmp_path / "model")


FILES = ["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "tokenizer.json"]
FILES += ["tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "rm.json"]
FILES += ["additional_chat_templates/tool_use.jinja"]


@pytest.mark.parametrize("name", FILES)
def test_a_link_out_of_the_directory_is_refused(model, tmp_path, name):
    """It could put any file of the machine into an export."""
    shards = sorted(path.name for path in model.glob("*.safetensors"))
    name = shards[0] if name.endswith(".safetensors") else name
    (tmp_path / "secret").write_text("{}")
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(tmp_path / "secret")
    load = rm.load_reward_model if name.startswith(("config", "model")) else rm.load_tokenizer
    with pytest.raises(rm.RmError) as caught:
        load(model)
    assert str(caught.value) == (
        f"{model / name}: is a link to {tmp_path / 'secret'}, outside of its directory; put a copy there"
    )


def test_a_folder_that_is_a_link_out_of_the_directory_is_refused(model, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "tool_use.jinja").write_text("secret")
    (model / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(rm.RmError, match=r"tool_use\.jinja: is a link to .*, outside of its directory"):
        rm.load_tokenizer(model)


def test_a_pipe_is_not_waited_for(model):
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")
    with pytest.raises(rm.RmError, match=r"config\.json: expected an ordinary file"):
        rm.load_reward_model(model)


def test_links_within_the_directory_and_to_the_directory_are_followed(model, tmp_path):
    (model / "config.json").rename(model / "a.json")
    (model / "config.json").symlink_to("a.json")
    (tmp_path / "link").symlink_to(model)
    assert rm.model.load_config(tmp_path / "link").hidden_size == CONFIG.hidden_size


def test_links_of_the_hub_s_cache_lead_to_its_own_blobs_alone(model, tmp_path):
    repository, other = tmp_path / "models--org--name", tmp_path / "models--org--other"
    for place in (repository, other):
        (place / "blobs").mkdir(parents=True)
        (place / "snapshots" / "abc").mkdir(parents=True)
        (place / "blobs" / "hash").write_bytes((model / "config.json").read_bytes())
    link = repository / "snapshots" / "abc" / "config.json"
    link.symlink_to("../../blobs/hash")
    assert own_file(link) == link
    assert rm.model.load_config(link.parent).hidden_size == CONFIG.hidden_size
    link.unlink()
    link.symlink_to(other / "blobs" / "hash")
    with pytest.raises(rm.RmError, match="outside of its directory"):
        own_file(link)


def test_a_template_that_the_user_names_may_lie_anywhere(model, tmp_path):
    (tmp_path / "mine.jinja").write_text("mine")
    (tmp_path / "link.jinja").symlink_to(tmp_path / "mine.jinja")
    assert rm.load_tokenizer(model, chat_template=tmp_path / "link.jinja").chat_template == "mine"


# Secrets.


@pytest.mark.long
def test_tokens_and_passwords_are_in_no_error_and_no_export(model, tmp_path, monkeypatch):
    token = "hf_" + "abcdefGHIJKL1234" * 2
    monkeypatch.setenv("HF_TOKEN", token)

    def fail(*args, **options):
        raise RuntimeError(f"401 for https://user:{token}@host/org/name with Bearer {token}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    monkeypatch.setattr("datasets.load_dataset", fail)
    address = f"https://user:pass-word@host/{tmp_path.name}"
    for load in (rm.load_reward_model, rm.load_tokenizer, rm.load_comparisons):
        for name in ("org/name", address, f"{address}.jsonl"):
            with pytest.raises(rm.RmError) as caught:
                load(name)
            assert token not in str(caught.value)
            assert "pass-word" not in str(caught.value)
    rm.save_reward_model(tmp_path / "export", rm.load_reward_model(model), rm.load_tokenizer(model))
    assert not [path for path in (tmp_path / "export").iterdir() if token.encode() in path.read_bytes()]
