"""Hub ids, against a small hub on the loopback interface: what is asked for, what is kept, what errors say."""

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import rm
from rm.files.hub import resolve_directory

COMMITS = {"main": "a" * 40, "v2": "b" * 40}
UNWANTED = (
    "README.md",
    "pytorch_model.bin",
    "original/consolidated.00.pth",
    "consolidated.safetensors",
    "onnx/model.onnx",
    "original/tokenizer.model",
    "training_args.bin",
)

CONFIGS = """---
configs:
- config_name: english
  data_files: [{split: train, path: en.jsonl}]
- config_name: german
  data_files: [{split: test, path: de.jsonl}]
---
"""
ENGLISH = [{"prompt": "2?", "chosen": word, "rejected": "no"} for word in ("two", "a pair", "2")]
GERMAN = [row | {"chosen": "zwei"} for row in ENGLISH]
PAIRS = {
    commit: {
        "README.md": CONFIGS.encode(),
        "en.jsonl": "".join(
            json.dumps(row | {"prompt": f"{version} {row['prompt']}"}) + "\n" for row in ENGLISH
        ).encode(),
        "de.jsonl": "".join(json.dumps(row) + "\n" for row in GERMAN).encode(),
    }
    for version, commit in COMMITS.items()
}

CODE = """
import json, sys
import jax
import rm

def weights(hub_id, **options):
    model = rm.load_reward_model(hub_id, key=jax.random.key(0), **options)
    return [*model.embed_tokens.shape, float(model.embed_tokens[0, 0])]

def attempt(function, *args, **options):
    try:
        return function(*args, **options)
    except rm.RmError as error:
        return str(error)

def data(name, **options):
    return rm.load_comparisons(name, **options).to_list()

print(json.dumps({
    "data": attempt(data, "org/pairs", config_name="english"),
    "data, German": attempt(data, "org/pairs", config_name="german", split="test[1:]"),
    "data v2": attempt(data, "org/pairs", config_name="english", revision="v2", split="train[:1]"),
    "data, streaming": attempt(lambda: list(rm.load_comparisons("org/pairs", config_name="english", streaming=True))),
    "data, no config": attempt(data, "org/pairs", config_name="french"),
    "data, no revision": attempt(data, "org/pairs", config_name="english", revision="v3"),
    "data, no split": attempt(data, "org/pairs", config_name="english", split="dev"),
    "data, missing": attempt(data, "org/nothing"),
    "main": attempt(weights, "org/tiny"),
    "v2": attempt(weights, "org/tiny", revision="v2"),
    "ids": attempt(lambda: rm.load_tokenizer("org/tiny").encode("The old house.")),
    "missing": attempt(weights, "org/nothing"),
    "no revision": attempt(weights, "org/tiny", revision="v3"),
}))
"""


class Hub(http.server.ThreadingHTTPServer):
    """Serves `org/tiny` as the hub does, and notes what is asked for."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, dict[str, bytes]]]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = repositories
        self.asked: list[str] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.asked.append(path)
        match path.removeprefix("datasets/").split("/"):
            case ["api", "models" | "datasets", "org", "tiny" | "pairs" as repository, *rest]:
                self.answer_api(self.server.repositories[repository], rest)
            case ["org", "tiny" | "pairs" as repository, "resolve", revision, *name]:
                self.answer_file(self.server.repositories[repository], revision, "/".join(name))
            case _:
                self.refuse("RepoNotFound")

    def answer_file(self, repository: dict[str, dict[str, bytes]], revision: str, name: str):
        commit = COMMITS.get(revision, revision)
        content = repository.get(commit, {}).get(name)
        if content is None:
            self.refuse("EntryNotFound" if commit in repository else "RevisionNotFound")
        else:
            digest = hashlib.sha1(content).hexdigest()
            self.send(200, content, {"ETag": f'"{digest}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"})

    def answer_api(self, repository: dict[str, dict[str, bytes]], rest: list[str]):
        commit = COMMITS.get(rest[1] if rest else "main", rest[1] if rest else "")
        if commit not in repository:
            self.refuse("RevisionNotFound")
        elif rest and rest[0] in ("tree", "paths-info"):
            files = repository[commit]
            if rest[0] == "paths-info":
                asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                files = {path: content for path, content in files.items() if path in asked.get("paths", [])}
            self.send_json([{"type": "file", "path": p, "size": len(c), "oid": "0" * 40} for p, c in files.items()])
        else:
            siblings = [{"rfilename": path} for path in repository[commit]]
            self.send_json({"_id": "0", "id": "org/tiny", "sha": commit, "private": False, "siblings": siblings})

    def refuse(self, code: str):
        self.send(404, b'{"error": "not found"}', {"X-Error-Code": code, "X-Error-Message": "not found"})

    def send_json(self, value: object):
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, content: bytes, headers: dict[str, str]):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def repository(tmp_path_factory, llama_directory) -> dict[str, dict[str, bytes]]:
    """Two commits of the small Llama: in one file, and in shards with another embedding; both with unwanted files."""
    other = shutil.copytree(llama_directory, tmp_path_factory.mktemp("hub") / "other")
    stored = load_file(other / "model.safetensors")
    stored["model.embed_tokens.weight"] = np.full((512, 128), 0.25, np.float32)
    (other / "model.safetensors").unlink()
    where = {}
    for half in (0, 1):
        part = {name: stored[name] for name in sorted(stored)[half::2]}
        name = f"model-{half + 1:05d}-of-00002.safetensors"
        save_file(part, other / name)
        where |= dict.fromkeys(part, name)
    (other / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return {
        commit: {path.name: path.read_bytes() for path in directory.iterdir()} | dict.fromkeys(UNWANTED, b"x" * 99)
        for commit, directory in zip(COMMITS.values(), (llama_directory, other), strict=True)
    }


@pytest.fixture(scope="module")
def runs(repository, tmp_path_factory) -> dict:
    """What `CODE` prints with an empty cache and, the hub gone, with a full one; and what the hub was asked for."""
    home = tmp_path_factory.mktemp("hf_home")
    hub = Hub({"tiny": repository, "pairs": PAIRS})
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("HF_", "HUGGING"))}
    environment = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")} | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "JAX_PLATFORMS": "cpu",
    }

    def run(**more: str) -> dict:
        done = subprocess.run(
            [sys.executable, "-c", CODE],
            env=environment | more,
            cwd=Path(rm.__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    first, asked = run(), list(hub.asked)
    hub.shutdown()
    hub.server_close()
    return {"first": first, "offline": run(HF_HUB_OFFLINE="1"), "asked": asked}


def test_a_hub_id_loads_what_the_repository_holds(runs, repository, llama_directory):
    expected = load_file(llama_directory / "model.safetensors")["model.embed_tokens.weight"]
    assert runs["first"]["main"] == [512, 128, float(expected[0, 0])]
    assert runs["first"]["ids"] == rm.load_tokenizer(llama_directory).encode("The old house.")


def test_a_revision_is_another_commit(runs):
    assert runs["first"]["v2"] == [512, 128, 0.25]


def test_only_needed_files_are_fetched(runs):
    fetched = {tuple(path.split("/", 4)[3:]) for path in runs["asked"] if path.startswith("org/tiny/resolve/")}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    shards = {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)} | {"model.safetensors.index.json"}
    main = {(COMMITS["main"], name) for name in {"config.json", "model.safetensors"} | tokenizer}
    assert fetched == main | {(COMMITS["v2"], name) for name in {"config.json"} | shards}


def test_the_cache_serves_a_second_run_without_the_hub(runs):
    for name in ("main", "v2", "ids"):
        assert runs["offline"][name] == runs["first"][name]


@pytest.mark.parametrize("run", ["first", "offline"])
@pytest.mark.parametrize(("case", "hub_id"), [("missing", "org/nothing"), ("no revision", "org/tiny")])
def test_what_the_hub_has_not_is_one_line_that_names_it(runs, run, case, hub_id):
    message = runs[run][case]
    assert isinstance(message, str)
    assert message.startswith(f"{hub_id}: cannot be fetched from the hub; ")
    assert "\n" not in message


def test_a_revision_that_does_not_exist_is_named(runs):
    assert "v3" in runs["first"]["no revision"]


@pytest.mark.parametrize("load", [rm.load_reward_model, rm.load_tokenizer, lambda path: resolve_directory(path, ["*"])])
@pytest.mark.parametrize(
    "path", ["./nowhere", "../nowhere/model", "/nowhere/model", "runs/nowhere/model", "~/nowhere", "nowhere/", "a b"]
)
def test_a_path_that_does_not_exist_is_one_line_without_asking_the_hub(monkeypatch, load, path):
    def refuse(*args, **options):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(rm.RmError, match=r"^[^\n]*expected a model directory or a hub id[^\n]*$") as caught:
        load(path)
    assert str(caught.value).startswith(path)


def test_a_local_directory_wins_over_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/tiny").mkdir(parents=True)
    assert resolve_directory("org/tiny", ["*"]) == Path("org/tiny")


def test_a_data_set_of_the_hub_has_configurations_revisions_splits_and_streams(runs):
    english = [row | {"prompt": "main 2?"} for row in ENGLISH]
    assert runs["first"]["data"] == english
    assert runs["first"]["data, streaming"] == english
    assert runs["first"]["data v2"] == [ENGLISH[0] | {"prompt": "v2 2?"}]
    assert runs["first"]["data, German"] == GERMAN[1:]
    assert runs["offline"]["data v2"] == runs["first"]["data v2"]  # without a revision, offline, the newest counts


def test_what_a_data_set_of_the_hub_lacks_is_named(runs):
    assert "french" in runs["first"]["data, no config"]
    assert "v3" in runs["first"]["data, no revision"]
    assert "dev" in runs["first"]["data, no split"]
    assert "org/nothing" in runs["first"]["data, missing"]
