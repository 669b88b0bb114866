"""The commands from end to end: what they write, and that a run can be interrupted, repeated and used."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest

import rm
from rm.__main__ import main
from rm.commands.run_directory import dataset_name
from rm.commands.train import TrainArguments, train
from rm.evaluation.scoring import METRICS

from .conftest import AS_USERS

pytestmark = [pytest.mark.optax, pytest.mark.long]

FIELDS = [
    "step",
    "epoch",
    "loss",
    "accuracy",
    "margin",
    "min_reward",
    "mean_reward",
    "max_reward",
    "grad_norm",
    "skipped",
    "learning_rate",
    "num_tokens",
    "pairs_per_second",
    "tokens_per_second",
]


def test_the_next_run_finds_what_the_one_before_compiled(tmp_path, llama_directory, pairs_file):
    """In the user's cache folder, where JAX was given no other."""
    env = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    env |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    script = (
        "import collections, sys, jax\nfrom rm.__main__ import main\nevents = collections.Counter()\n"
        "jax.monitoring.register_event_listener(lambda event, **_: events.update([event]))\n"
        "assert main(sys.argv[1:]) == 0\nprint(events['/jax/compilation_cache/cache_misses'])"
    )
    misses = []
    for name in ("first", "second"):
        options = ["--max-steps", "1", "--batch-size", "4", "--output", str(tmp_path / name), "--no-cache"]
        command = ["train", "--model", str(llama_directory), "--dataset", str(pairs_file), *options]
        done = subprocess.run(
            [sys.executable, "-c", script, *command], env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        misses.append(int(done.stdout.splitlines()[-1]))
    assert misses[0] > 0
    assert misses[1] == 0
    assert any((tmp_path / "rm" / "compiled").iterdir())


def test_a_cache_that_jax_was_given_stays(tmp_path):
    before = jax.config.values["jax_compilation_cache_dir"]
    assert before == os.environ["JAX_COMPILATION_CACHE_DIR"]
    rm.keep_compiled(tmp_path)
    assert jax.config.values["jax_compilation_cache_dir"] == before


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def run(tmp_path, llama_directory, pairs_file):
    """Trains in `tmp_path/NAME` and returns that directory."""

    def train(name: str, *flags: str):
        fixed = ["--model", str(llama_directory), "--dataset", str(pairs_file), "--output", str(tmp_path / name)]
        options = ["--batch-size", "4", "--learning-rate", "1e-3", "--log-every", "1"]
        assert main(["train", *fixed, *options, *flags]) == 0
        return tmp_path / name

    return train


@pytest.mark.gate
def test_train_writes_metrics_record_and_model(run, pairs_file, llama_directory):
    flags = [
        "--epochs",
        "2",
        "--eval-dataset",
        str(pairs_file),
        str(pairs_file),
        "--eval-every",
        "4",
        "--warmup-ratio",
        "0.5",
    ]
    output = run("run", *flags)
    entries = lines(output / "metrics.jsonl")
    training = [entry for entry in entries if "loss" in entry]
    assert [list(entry) for entry in training] == [FIELDS] * 6
    assert [entry["step"] for entry in training] == [1, 2, 3, 4, 5, 6]
    assert [entry["epoch"] for entry in training] == pytest.approx([n / 3 for n in range(1, 7)])
    assert [entry["learning_rate"] for entry in training] == pytest.approx(
        [0, 1e-3 / 3, 2e-3 / 3, 1e-3, 2e-3 / 3, 1e-3 / 3]
    )

    evaluations = [entry for entry in entries if "loss" not in entry]
    assert [entry["step"] for entry in evaluations] == [4, 6]
    names = ("loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward", "std_reward")
    expected = ["step", "epoch", *(f"eval_{data}_{name}" for data in ("pairs", "pairs_2") for name in names)]
    assert list(evaluations[0]) == expected

    record = json.loads((output / "run.json").read_text())
    chosen = {name: record["arguments"][name] for name in ("batch_size", "dtype", "remat", "micro_batch_tokens")}
    assert chosen == {"batch_size": 4, "dtype": "float32", "remat": "full", "micro_batch_tokens": 4096}
    table = record["data"]["train"]
    assert (table["read"], table["kept"], table["dropped"], table["taken"]) == (12, 12, {}, 12)
    assert table["source"] == str(pairs_file)
    assert record["versions"]["jax"] == jax.__version__
    tokenizer = rm.load_tokenizer(llama_directory)
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    count = sum(
        len(tokenizer.encode(row[side] + tokenizer.eos_token)) for row in rows for side in ("chosen", "rejected")
    )
    assert training[-1]["num_tokens"] == 2 * count

    trained = rm.load_reward_model(output / "model")
    comparisons, _ = rm.tokenize_comparisons(rows, tokenizer, trained.config)
    final = rm.evaluate(trained, comparisons, center_rewards_coefficient=0.1)
    assert {f"eval_pairs_{name}": pytest.approx(final[name], abs=1e-5) for name in METRICS} == {
        name: value for name, value in evaluations[-1].items() if name.startswith("eval_pairs_") and "_2_" not in name
    }


def test_the_first_step_of_a_fresh_head_costs_about_log_two(run):
    first, *_ = lines(run("run", "--max-steps", "1", "--center-rewards-coefficient", "0") / "metrics.jsonl")
    assert first["loss"] == pytest.approx(math.log(2), abs=0.1)


def test_windows_average_what_happened_in_them(run):
    every = lines(run("every", "--max-steps", "5") / "metrics.jsonl")
    third = lines(run("third", "--max-steps", "5", "--log-every", "3") / "metrics.jsonl")
    assert [entry["step"] for entry in third] == [3, 5]
    for name in ("loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward"):
        means = [sum(entry[name] for entry in every[a:b]) / (b - a) for a, b in ((0, 3), (3, 5))]
        assert [entry[name] for entry in third] == pytest.approx(means), name
    assert [entry["num_tokens"] for entry in third] == [every[2]["num_tokens"], every[4]["num_tokens"]]


def deterministic(entries: list[dict]) -> list[dict]:
    return [{name: value for name, value in entry.items() if "second" not in name} for entry in entries]


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param([], marks=pytest.mark.gate),
        ["--optimizer", "muon", "--moments", "bfloat16", "--parameters", "bfloat16", "--offload"],
    ],
)
def test_a_resumed_run_equals_one_that_was_not_interrupted(run, tmp_path, monkeypatch, kept):
    """What was computed before an interruption would be lost, also where rounding draws numbers."""
    flags = ["--max-steps", "6", "--save-every", "2", "--log-every", "3", *kept]
    whole = run("whole", *flags)

    advance = rm.BatchPlan.batch_at

    def cut_off(plan, step):
        if step == 5:
            raise RuntimeError("cut off")
        return advance(plan, step)

    monkeypatch.setattr(rm.BatchPlan, "batch_at", cut_off)
    with pytest.raises(RuntimeError, match="cut off"):
        run("cut", *flags)
    monkeypatch.undo()
    cut = run("cut", *flags, "--resume", "auto")
    assert deterministic(lines(cut / "metrics.jsonl")) == deterministic(lines(whole / "metrics.jsonl"))
    for a, b in zip(*(jax.tree.leaves(rm.load_reward_model(out / "model")) for out in (whole, cut)), strict=True):
        np.testing.assert_array_equal(a, b)


def hinge(model, batch, compute=rm.Compute()):
    """`max(0, 1 - (r₁ - r₂))`, with the share of comparisons inside the margin."""
    r = rm.rewards(model, batch, compute)
    loss = jax.nn.relu(1 - (r[..., 0] - r[..., 1]))
    return loss, r, {"inside": (loss > 0).astype(loss.dtype)}


@pytest.mark.parametrize("mesh", [None, "data=8"])
def test_an_objective_of_ones_own_has_the_whole_command_around_it(
    tmp_path, llama_directory, pairs_file, monkeypatch, mesh
):
    """Log, evaluations, checkpoints, resuming and meshes are for every loss, and touch no file of the package."""
    fixed = {"model": str(llama_directory), "dataset": (str(pairs_file),), "eval_split": "train[:6]", "mesh": mesh}
    fixed |= {"batch_size": 4, "learning_rate": 1e-3, "max_steps": 4, "save_every": 2, "log_every": 2, "quiet": True}

    def run(name, **more):
        args = TrainArguments(output=tmp_path / name, **fixed, **more)
        assert train(args, objective=partial(hinge, compute=args.compute())) == 0
        return tmp_path / name

    whole = run("whole")
    with monkeypatch.context() as patch:
        batch_at = rm.BatchPlan.batch_at
        patch.setattr(
            rm.BatchPlan, "batch_at", lambda plan, step, *rows: batch_at(plan, step, *rows) if step < 3 else 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            run("cut")
    cut = run("cut", resume="auto")
    assert deterministic(lines(cut / "metrics.jsonl")) == deterministic(lines(whole / "metrics.jsonl"))

    model, tokenizer = rm.load_reward_model(cut / "model"), rm.load_tokenizer(cut / "model")
    rows = rm.load_comparisons(pairs_file, split="train[:6]")
    chosen, rejected = rm.comparison_rewards(model, rm.tokenize_comparisons(rows, tokenizer, model.config)[0]).T
    losses = np.maximum(0, 1 - (chosen.astype(float) - rejected))
    (evaluation,) = [entry for entry in lines(cut / "metrics.jsonl") if "eval_pairs_loss" in entry]
    assert evaluation["eval_pairs_loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert evaluation["eval_pairs_inside"] == pytest.approx((losses > 0).mean())
    assert all(0 <= entry["inside"] <= 1 for entry in lines(cut / "metrics.jsonl") if "loss" in entry)
    assert json.loads((cut / "run.json").read_text())["objective"] == "hinge"
    with pytest.raises(rm.ConfigError, match="the run has the objective hinge, found pairwise; resume with the same"):
        train(TrainArguments(output=cut, resume="auto", **fixed))


@pytest.mark.gate
def test_an_interrupted_process_leaves_its_last_checkpoint(run, tmp_path, llama_directory, pairs_file):
    """Ctrl-C while a checkpoint is being written must not cost it."""
    script = f"""
import signal, sys
import rm
from rm.__main__ import main
batch_at = rm.BatchPlan.batch_at
def interrupted(plan, step):
    if step == 3:
        raise KeyboardInterrupt
    return batch_at(plan, step)
rm.BatchPlan.batch_at = interrupted
flags = "--batch-size 4 --learning-rate 1e-3 --max-steps 5 --save-every 3 --log-every 1".split()
sys.exit(main(["train", "--model", {str(llama_directory)!r}, "--dataset", {str(pairs_file)!r},
               "--output", {str(tmp_path / "cut")!r}, *flags]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (130, "rm: interrupted\n")
    assert [path.name for path in (tmp_path / "cut/checkpoints").iterdir()] == ["3"]
    cut = run("cut", "--max-steps", "5", "--save-every", "3", "--resume", "auto")
    assert [entry["step"] for entry in lines(cut / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_resuming_before_the_first_checkpoint_starts_the_log_again(run, monkeypatch):
    with monkeypatch.context() as patch:
        batch_at = rm.BatchPlan.batch_at
        patch.setattr(rm.BatchPlan, "batch_at", lambda plan, step: batch_at(plan, step) if step < 2 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("cut", "--max-steps", "3", "--save-every", "3")
    entries = lines(run("cut", "--max-steps", "3", "--save-every", "3", "--resume", "auto") / "metrics.jsonl")
    assert [entry["step"] for entry in entries] == [1, 2, 3]


@pytest.mark.parametrize(
    ("flag", "value"), [("--seed", "5"), ("--batch-size", "2"), ("--max-steps", "4"), ("--learning-rate", "0.1")]
)
def test_resuming_with_other_arguments_is_refused(tmp_path, llama_directory, pairs_file, capsys, flag, value):
    given = {"--model": llama_directory, "--dataset": pairs_file, "--output": tmp_path / "run", "--max-steps": 6}
    arguments = {"model": str(llama_directory), "dataset": (str(pairs_file),), "max_steps": 6, "dtype": "float32"}
    defaults = dataclasses.asdict(TrainArguments(**arguments, output=tmp_path / "run"))
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/run.json").write_text(json.dumps({"arguments": defaults, "steps": 6}, default=str))
    flags = [str(word) for pair in (given | {flag: value}).items() for word in pair]
    assert main(["train", *flags, "--resume", "auto"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert flag in error


def test_a_run_that_diverges_exports_nothing(tmp_path, llama_directory, pairs_file, capsys):
    fixed = ["--model", str(llama_directory), "--dataset", str(pairs_file), "--output", str(tmp_path / "run")]
    assert main(["train", *fixed, "--learning-rate", "1e30", "--epochs", "4", "--log-every", "1"]) == 2
    assert "updates were skipped, see metrics.jsonl; nothing is exported" in capsys.readouterr().err
    assert not (tmp_path / "run/model").exists()
    assert any(entry["loss"] is None for entry in lines(tmp_path / "run/metrics.jsonl"))  # NaN is not JSON


@pytest.mark.gate
def test_sharing_prefixes_changes_no_trajectory(run):
    shared, apart = (
        run(name, "--max-steps", "3", flag) for name, flag in (("a", "--share-prefix"), ("b", "--no-share-prefix"))
    )
    for one, other in zip(lines(shared / "metrics.jsonl"), lines(apart / "metrics.jsonl"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert one["num_tokens"] == other["num_tokens"]


def test_bfloat16_compute_leaves_float32_parameters(run):
    output = run("run", "--max-steps", "2", "--dtype", "bfloat16")
    assert json.loads((output / "model/config.json").read_text())["dtype"] == "float32"
    assert all(np.isfinite(entry["loss"]) for entry in lines(output / "metrics.jsonl"))


def test_score_keeps_rows_and_order_and_reads_every_form(tmp_path, loaded):
    model, tokenizer = loaded
    rm.save_reward_model(tmp_path / "model", model, tokenizer)
    rows = [
        {"text": "The old tree of rome.", "id": 7, "nested": {"é": [1, None]}},
        {"prompt": "The red ", "response": "house."},
        {"messages": [{"role": "user", "content": "tree?"}, {"role": "assistant", "content": "house"}]},
        {"prompt": [{"role": "user", "content": "tree?"}], "response": [{"role": "assistant", "content": "house"}]},
        {"text": "x"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert main(["score", "--model", str(tmp_path / "model"), *files, "--batch-size", "2"]) == 0
    scored = lines(tmp_path / "out.jsonl")
    assert [{name: value for name, value in row.items() if name != "reward"} for row in scored] == rows
    rewards = [row["reward"] for row in scored]
    assert rewards[2] == rewards[3]
    texts = ["The old tree of rome.", "The red house.<|end|>", "<|user|>tree?<|end|><|assistant|>house<|end|>", "x"]
    alone = [float(rm.score(model, tokenizer, [text])[0]) for text in texts]
    assert [rewards[0], rewards[1], rewards[2], rewards[4]] == pytest.approx(alone, abs=1e-5)


def test_score_says_how_many_rows_it_cut_off(tmp_path, loaded, capsys):
    model, tokenizer = loaded
    rm.save_reward_model(tmp_path / "model", model, tokenizer)
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": "The old tree of rome."}) + '\n{"text": "x"}\n')
    files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert main(["score", "--model", str(tmp_path / "model"), *files, "--max-length", "2"]) == 0
    assert "2 rows scored, 1 of them cut off at 2 tokens" in capsys.readouterr().out


def test_scores_do_not_depend_on_company(loaded):
    """Batch size, order and neighbours must not move a reward beyond float rounding."""
    model, tokenizer = loaded
    texts = ["The old tree. " * n for n in (1, 9, 3, 30, 2, 1)]
    alone = np.concatenate([rm.score(model, tokenizer, [text]) for text in texts])
    for batch_size in (1, 3, 64):
        np.testing.assert_allclose(rm.score(model, tokenizer, texts, batch_size=batch_size), alone, atol=1e-5)
    np.testing.assert_allclose(rm.score(model, tokenizer, texts[::-1])[::-1], alone, atol=1e-5)
    assert rm.score(model, tokenizer, []).shape == (0,)


@pytest.mark.parametrize(
    ("dataset", "taken", "name"),
    [
        ("dir/my-pairs.jsonl.gz", (), "my_pairs"),
        ("org/name.v2", (), "name"),
        ("a/x.json", ("x",), "x_2"),
        ("b/x.json", ("x", "x_2"), "x_3"),
        ("x.json", ("x_3", "x"), "x_2"),
    ],
)
def test_names_of_evaluation_sets(dataset, taken, name):
    assert dataset_name(dataset, taken) == name


def test_demo_learns_what_needs_prompt_and_response(tmp_path):
    """The documented first command, in a process of its own."""
    command = [sys.executable, "-m", "rm", "demo", "--output", str(tmp_path / "demo")]
    done = subprocess.run(command, env=AS_USERS, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    evaluation = json.loads((tmp_path / "demo/run/run.json").read_text())["evaluation"]
    assert evaluation["eval_test_accuracy"] > 0.95
    right, wrong = (row["reward"] for row in lines(tmp_path / "demo/scores.jsonl"))
    assert right > wrong
    assert "python -m rm train --model" in done.stdout
