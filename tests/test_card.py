"""The model card, and the way of an export to the hub: its real figures, nobody's paths and tokens."""

import base64
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

import rm
from rm.__main__ import main
from rm.files.hub import push_reward_model
from rm.saving.card import model_card

pytestmark = pytest.mark.optax
TOKEN = "hf_abcdefgh12345678"
FLAGS = ["--batch-size", "4", "--max-steps", "2", "--learning-rate", "1e-3"]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data(pairs, tmp_path_factory) -> Path:
    """Where the files lie: training data of which one row is dropped, and two sets to evaluate on."""
    directory = tmp_path_factory.mktemp("somebodys-data")
    write(directory / "pairs.jsonl", [*pairs, {"chosen": "same", "rejected": "same"}])
    write(directory / "few.jsonl", pairs[:3])
    write(directory / "more.jsonl", pairs[3:])
    return directory


@pytest.fixture(scope="module")
def run(llama_directory, data, tmp_path_factory) -> Path:
    """A run that is evaluated on two sets of different size."""
    output = tmp_path_factory.mktemp("runs") / "run"
    sets = [str(data / name) for name in ("few.jsonl", "more.jsonl")]
    fixed = ["--model", str(llama_directory), "--dataset", str(data / "pairs.jsonl"), "--output", str(output)]
    with jax.numpy_dtype_promotion("standard"):
        assert main(["train", *fixed, *FLAGS, "--eval-dataset", *sets]) == 0
    return output


@pytest.mark.long
def test_the_reward_of_the_record_is_that_of_all_held_out_rewards(run, data, pairs):
    """Rewards would be normalized by whichever set comes first on the command line."""
    model, tokenizer = rm.load_reward_model(run / "model"), rm.load_tokenizer(run / "model")
    rows = [{"text": row[side] + tokenizer.eos_token} for row in pairs for side in ("chosen", "rejected")]
    rewards = rm.score(model, tokenizer, [row["text"] for row in rows]).astype(np.float64)
    for record in (json.loads((run / name).read_text()) for name in ("model/rm.json", "run.json")):
        expected = {"mean": pytest.approx(rewards.mean(), abs=1e-5), "std": pytest.approx(rewards.std(), abs=1e-5)}
        assert record["reward"] == expected | {"count": 24, "data": ["few", "more"]}


@pytest.mark.long
@pytest.mark.gate
def test_the_card_has_the_figures_of_the_run(run, llama_directory):
    card = (run / "model/README.md").read_text(encoding="utf-8")
    record = json.loads((run / "model/rm.json").read_text())
    evaluation = record["evaluation"]
    for name, count in (("few", 3), ("more", 9)):
        accuracy, margin = (evaluation[f"eval_{name}_{metric}"] for metric in ("accuracy", "margin"))
        assert f"| `{name}.jsonl` | {count} | {accuracy:.4g} | {margin:.4g} |" in card
    assert "| `pairs.jsonl` | 13 | 12 | 12 | 1 identical |" in card
    mean, std = record["reward"]["mean"], record["reward"]["std"]
    assert f"Over all 24 held-out rewards the mean is {mean:.4g}, the standard deviation {std:.4g}." in card
    assert "| `learning_rate` | `0.001` |" in card
    assert f"sha256 `{record['chat_template_sha256']}`" in card
    assert f"jax {jax.__version__}" in card
    assert "2 updates of " in card
    assert f'"{llama_directory.name}"' not in card


@pytest.mark.long
def test_the_front_matter_is_what_the_hub_reads(run):
    """The hub would show neither the figures nor what the model is for."""
    from huggingface_hub import ModelCard

    found = ModelCard.load(run / "model/README.md").data
    assert (found.library_name, found.pipeline_tag) == ("transformers", "text-classification")
    assert found.tags == ["reward-model", "rm-jax"]
    evaluation = json.loads((run / "run.json").read_text())["evaluation"]
    results = [(each.dataset_name, each.metric_type, each.metric_value) for each in found.eval_results]
    names = ("few", "more")
    assert results == [(f"{n}.jsonl", "accuracy", pytest.approx(evaluation[f"eval_{n}_accuracy"])) for n in names]
    assert found.base_model is None, "a local directory is no model of the hub"
    assert found.datasets is None


@pytest.mark.long
@pytest.mark.gate
def test_what_is_given_away_has_no_path_of_the_machine(run, llama_directory, data):
    """The names of people, clients and projects are in paths."""
    for name in ("README.md", "rm.json"):
        text = (run / "model" / name).read_text(encoding="utf-8")
        assert [place for place in (run, llama_directory.parent, data) if str(place) in text] == []
    assert "pairs.jsonl" in text


RECORD = {"rm_version": "1", "pooling": {"pad_token_id": 7}}


def test_a_model_and_data_of_the_hub_are_linked():
    from huggingface_hub import ModelCardData

    table = {"read": 5, "kept": 4, "dropped": {}, "chosen_longer": 0.75}
    data = {"train_a": table | {"source": "org/pairs", "hub": True}, "train_b": table | {"source": "b|c.jsonl"}}
    record = RECORD | {"base_model": "org/llama", "base_model_is_hub_id": True, "data": data, "repository": "me/mine"}
    card = model_card("model", record)
    _, front, body = card.split("---\n", 2)
    tags = ["reward-model", "rm-jax"]
    expected = ModelCardData(
        base_model="org/llama",
        datasets=["org/pairs"],
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=tags,
    )
    assert front.strip() == expected.to_yaml()
    assert "# mine\n" in body
    assert 'from_pretrained("me/mine")' in body
    assert "| `b\\|c.jsonl` | 5 | 4 | 4 | none |" in body
    assert "In `org/pairs` the chosen response was the longer one in 75.0% of pairs." in body


@pytest.mark.parametrize(
    "more", [{}, {"data": "pairs"}, {"evaluation": {"accuracy": 0.5}}, {"base_model": "/home/somebody/llama"}]
)
def test_a_record_with_little_in_it_has_a_card(more):
    """`save_reward_model` takes any provenance."""
    card = model_card("mine", RECORD | more)
    assert "# mine\n" in card
    assert "(7)" in card
    assert ("| accuracy | 0.5 |" in card) == ("evaluation" in more)
    assert "/home" not in card


class Hub(http.server.ThreadingHTTPServer):
    """Takes what is pushed as the hub does, from who may push."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.made: list[dict] = []
        self.refuses = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self):
        if self.path != "/api/whoami-v2":
            return self.send(404, {"error": "not found"})
        role = {f"Bearer {TOKEN}": "write", f"Bearer {TOKEN}-read": "read"}.get(self.headers.get("Authorization"))
        if role is None:
            return self.send(401, {"error": "Invalid username or password."})
        return self.send(200, {"name": "Me", "orgs": [{"name": "org"}], "auth": {"accessToken": {"role": role}}})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            return self.send(200, {"url": f"{self.server.url}/org/mine"})
        if self.path.endswith("/preupload/main"):
            files = [file["path"] for file in json.loads(body)["files"]]
            answer = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
            return self.send(200, {"files": answer})
        if self.path.endswith("/commit/main"):
            if self.server.refuses:
                return self.send(403, {"error": "your disk quota is used up"})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.send(200, {"commitUrl": f"{self.server.url}/org/mine/commit/1", "commitOid": "1"})
        return self.send(200, {"errors": [], "warnings": []})  # of the card

    def send(self, status: int, value: object):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def hub():
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def command_line(arguments: list[str], hub: Hub, home: Path, token: str | None) -> subprocess.CompletedProcess[str]:
    """`python -m rm` with a hub of its own and nobody's login but `token`."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("HF_", "HUGGING"))}
    environment = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    return subprocess.run(
        [sys.executable, "-m", "rm", *arguments],
        env=environment,
        cwd=Path(rm.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.long
@pytest.mark.parametrize("refuses", [False, True])
def test_a_run_ends_on_the_hub_or_says_how_it_gets_there(llama_directory, data, tmp_path, hub, refuses):
    """A hub that is full or down at the end would cost the run."""
    hub.refuses = refuses
    output = tmp_path / "run"
    fixed = ["--model", str(llama_directory), "--dataset", str(data / "pairs.jsonl"), "--output", str(output)]
    done = command_line(["train", *fixed, *FLAGS, "--push-to", "org/mine"], hub, tmp_path / "home", TOKEN)
    files = {path.name: path.read_bytes() for path in (output / "model").iterdir()}
    assert {"model.safetensors", "config.json", "rm.json", "README.md", "tokenizer.json"} <= files.keys()
    assert rm.load_reward_model(output / "model").score is not None
    (made,) = hub.made
    assert (made["organization"], made["name"]) == ("org", "mine")
    assert made.get("private") or made.get("visibility") == "private"  # of old versions, and of new ones
    assert b'from_pretrained("org/mine")' in files["README.md"]
    if refuses:
        assert (done.returncode, hub.files) == (2, {})
        (error,) = done.stderr.splitlines()
        assert error.startswith(f"rm: {output}/model cannot be pushed to org/mine (")
        assert error.endswith(f"this pushes it again: hf upload org/mine {output}/model --private")
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert hub.files == files
        assert done.stdout.endswith(f"and at {hub.url}/org/mine\n")
    written = b"".join(path.read_bytes() for path in output.rglob("*") if path.is_file())
    assert TOKEN.encode() not in written + done.stdout.encode() + done.stderr.encode()


@pytest.mark.long
@pytest.mark.parametrize(
    ("token", "repository", "said"),
    [
        (None, "org/mine", "log in with `hf auth login`"),
        (f"{TOKEN}-wrong", "org/mine", "log in with `hf auth login`"),
        (f"{TOKEN}-read", "org/mine", "your token may only read"),
        (TOKEN, "other/mine", "other is neither you nor an organization of yours (Me, org)"),
        (TOKEN, "mine", "--push-to: expected org/name, found 'mine'"),
    ],
)
def test_who_may_not_push_is_told_before_the_run(tmp_path, hub, token, repository, said):
    """Hours would be spent first."""
    fixed = ["--model", "./none", "--dataset", "none.jsonl", "--output", str(tmp_path / "run")]
    done = command_line(["train", *fixed, "--push-to", repository], hub, tmp_path / "home", token)
    assert done.returncode == 2
    (error,) = done.stderr.splitlines()
    assert error.startswith("rm: ")
    assert said in error
    assert TOKEN not in error
    assert not (tmp_path / "run").exists()


def test_only_an_export_is_pushed_and_no_link_out_of_it(tmp_path, monkeypatch):
    """A link in a stranger's directory would publish a file of this machine."""
    monkeypatch.setattr("huggingface_hub.HfApi", None)
    with pytest.raises(rm.ConfigError, match="expected a directory that save_reward_model wrote"):
        push_reward_model(tmp_path, "org/mine")
    (tmp_path / "rm.json").write_text("{}")
    with pytest.raises(rm.ConfigError, match="expected a repository of the hub, org/name"):
        push_reward_model(tmp_path, "mine")
    (tmp_path / "secret").symlink_to("/etc/hostname")
    with pytest.raises(rm.RmError, match="is a link to /etc/hostname"):
        push_reward_model(tmp_path, "org/mine")
