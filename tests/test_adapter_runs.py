"""Runs of which a part trains: resumed bitwise, small on disk, never on another base."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import rm
from rm.__main__ import main

pytestmark = [pytest.mark.optax, pytest.mark.long, pytest.mark.gate]
OPTIONS = ["--batch-size=4", "--learning-rate=1e-2", "--log-every=1", "--save-every=2", "--quiet"]
LORA = ["--lora-rank=2", "--lora-targets", "q", "up", "--freeze-layers=1"]


def train(model: Path, data: Path, output: Path, *flags: str) -> int:
    return main(["train", f"--model={model}", f"--dataset={data}", f"--output={output}", *OPTIONS, *flags])


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@pytest.fixture(scope="module")
def runs(llama_directory, pairs, tmp_path_factory):
    """The base, the data, and a run of four updates with adapters and one without."""
    place = tmp_path_factory.mktemp("adapters")
    data = place / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    base = Path(shutil.copytree(llama_directory, place / "base"))
    assert train(base, data, place / "lora", "--max-steps=4", *LORA) == 0
    assert train(base, data, place / "whole", "--max-steps=4") == 0
    return place


def test_a_run_with_adapters_goes_on_bitwise_and_exports_both(runs, capsys):
    base, data = runs / "base", runs / "pairs.jsonl"
    assert train(base, data, runs / "parts", "--max-steps=2", "--schedule=constant", *LORA) == 0
    assert train(base, data, runs / "parts", "--max-steps=4", "--schedule=constant", "--resume=auto", *LORA) == 0
    assert train(base, data, runs / "at once", "--max-steps=4", "--schedule=constant", *LORA) == 0
    assert losses(runs / "parts") == losses(runs / "at once")
    for name in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
        one, other = (load_file(runs / run / name) for run in ("parts", "at once"))
        for tensor, values in one.items():
            np.testing.assert_array_equal(values, other[tensor], err_msg=tensor)
    assert (runs / "parts/adapter-2").is_dir()  # of the shorter run, as its model

    found, original = load_file(runs / "parts/model/model.safetensors"), load_file(base / "model.safetensors")
    moved = {name for name, values in original.items() if name in found and not np.array_equal(values, found[name])}
    last = rm.load_reward_model(runs / "parts/model").config.num_hidden_layers - 1
    assert moved == {
        f"model.layers.{layer}.{name}.weight"
        for layer in range(1, last + 1)
        for name in ("self_attn.q_proj", "mlp.up_proj")
    }


def test_a_checkpoint_is_small_and_a_model(runs):
    assert size(runs / "lora/checkpoints/4") < 0.2 * size(runs / "whole/checkpoints/4")
    record = json.loads((runs / "lora/run.json").read_text())["model"]
    assert 0 < record["trained"] < 0.1 * record["parameters"]
    texts = ["The red house of oz.", "yes"]
    (runs / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    scores = []
    for model in ("lora/checkpoints/4", "lora/model", "lora/adapter"):
        output = runs / f"{model.replace('/', '_')}.jsonl"
        assert main(["score", f"--model={runs / model}", f"--input={runs / 'texts.jsonl'}", f"--output={output}"]) == 0
        scores.append([json.loads(line)["reward"] for line in output.read_text().splitlines()])
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    np.testing.assert_allclose(scores[0], scores[2], atol=1e-5)


def test_another_base_is_refused(runs, tmp_path, capfd):
    """The checkpoint has nothing of the base, so the run would go on as another model in silence."""
    output, other = (Path(shutil.copytree(runs / name, tmp_path / name)) for name in ("lora", "base"))
    tensors = load_file(other / "model.safetensors")
    save_file({name: values * 1.01 for name, values in tensors.items()}, other / "model.safetensors")
    before = (output / "metrics.jsonl").read_bytes()
    original = (runs / "base").rename(runs / "original")
    other.rename(runs / "base")  # for the run remembers the path
    code = train(runs / "base", runs / "pairs.jsonl", output, "--max-steps=6", "--resume=auto", *LORA)
    (runs / "base").rename(other)
    original.rename(runs / "base")
    assert code == 2
    assert "put the weights back as they were" in capfd.readouterr().err
    assert (output / "metrics.jsonl").read_bytes() == before


def test_an_adapter_on_an_adapter_is_merged_alone(runs, tmp_path, capsys):
    """An adapter directory whose base is another one would not load."""
    flags = ["--max-steps=1", "--lora-rank=2", "--batch-size=4"]
    paths = [f"--model={runs / 'lora/adapter'}", f"--dataset={runs / 'pairs.jsonl'}", f"--output={tmp_path / 'run'}"]
    assert main(["train", *paths, *flags]) == 0
    assert "no adapter: --model is an adapter itself" in capsys.readouterr().out
    assert not (tmp_path / "run/adapter").exists()
    rm.load_reward_model(tmp_path / "run/model")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--train=head", "--lora-rank=2"], "--train head trains the head alone: leave out"),
        (["--lora-rank=2", "--lora-alpha=0"], "--lora-alpha must be greater than 0, found 0"),
        (["--lora-alpha=4"], "--lora-alpha, --lora-targets and --rslora need --lora-rank"),
        (["--freeze-layers=99"], "--freeze-layers must be at most"),
        (["--freeze-layers=-1"], "must not be negative"),
        (["--head-std=tulu"], "--head-std: expected a number that is not negative, or instructgpt, found 'tulu'"),
    ],
)
def test_flags_that_contradict_each_other(llama_directory, pairs_file, tmp_path, capfd, flags, expected):
    assert train(llama_directory, pairs_file, tmp_path / "run", "--max-steps=1", *flags) == 2
    assert expected in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
