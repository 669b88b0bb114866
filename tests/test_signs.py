"""What a run says of itself when it learns nothing, and that ordinary runs do not say it."""

import json
import math
import random

import pytest

from rm.__main__ import main
from rm.commands.signs import Signs, after_evaluation, after_update, after_window, at_the_end
from rm.saving.examples import make_pair, write_llama

pytestmark = pytest.mark.optax


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small Llama and pairs that can be learned, as the demo makes them."""
    directory = tmp_path_factory.mktemp("place")
    rng = random.Random(0)
    pairs = [make_pair(rng) for _ in range(160)]
    (directory / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (directory / "llama").mkdir()
    write_llama(directory / "llama", [text["content"] for pair in pairs for side in pair.values() for text in side])
    return directory


@pytest.fixture
def train(place, tmp_path, capsys):
    """Runs `train` and gives its lines with a warning, and what it said on stderr."""

    def run(*flags: str, name: str = "run") -> tuple[list[dict], list[str]]:
        output = tmp_path / name
        fixed = ["--model", str(place / "llama"), "--dataset", str(place / "pairs.jsonl"), "--output", str(output)]
        capsys.readouterr()
        assert main(["train", *fixed, "--log-every", "5", "--batch-size", "8", *flags]) == 0
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if "warning" in line], capsys.readouterr().err.splitlines()

    return run


@pytest.mark.parametrize("coefficient", ["0.1", pytest.param("0", marks=pytest.mark.long)])
def test_a_rate_that_destroys_the_model_is_said_once(train, coefficient):
    """All rewards are equal and no gradient is left: the run would go on to its end, and export that."""
    flags = ["--center-rewards-coefficient", coefficient, "--save-final-only", "--quiet"]
    warnings, errors = train("--learning-rate", "1e3", "--max-steps", "12", *flags)
    ((line,), (said,)) = warnings, errors
    assert 3 <= line["step"] <= 6
    assert line["warning"].startswith("all rewards were 0 and the gradient exactly 0 in 3 updates")
    assert "lower --learning-rate" in line["warning"]
    assert said == f"rm: step {line['step']}/12: {line['warning']}"


@pytest.mark.long
def test_it_is_not_said_again_when_the_run_goes_on(train):
    """Three updates before the checkpoint and many after it are one event."""
    flags = ["--learning-rate", "1e3", "--save-every", "6", "--schedule", "constant", "--resume", "auto", "--quiet"]
    first, _ = train("--max-steps", "6", *flags)
    both, errors = train("--max-steps", "12", *flags)
    assert len(first) == 1
    assert both == [first[0] | {"epoch": both[0]["epoch"]}]
    assert [error for error in errors if "gradient" in error] == []


def test_equal_rewards_in_an_evaluation_are_said_once(train):
    evaluate = ["--eval-split", "train[:8]", "--eval-every", "5", "--save-final-only"]
    warnings, _ = train("--learning-rate", "1e3", "--max-steps", "10", *evaluate)
    said = [line for line in warnings if line["warning"].startswith("eval_pairs: all rewards are 0: ")]
    assert [line["step"] for line in said] == [5]


def test_a_loss_that_never_moves_is_said_at_the_end(train):
    """With the reasons for which it may not; a rate of 1e-9 is one of them."""
    warnings, errors = train("--learning-rate", "1e-9", "--head-std", "0", "--max-steps", "20", "--save-final-only")
    (line,) = warnings
    assert line["step"] == 20
    assert line["warning"].startswith("the loss was ln 2 = 0.693 from the first update to the last")
    assert "too low a --learning-rate" in line["warning"]
    assert len(errors) == 1


@pytest.mark.parametrize(
    "flags",
    [
        ["--learning-rate", "3e-3"],
        ["--learning-rate", "3e-3", "--head-std", "0", "--eval-on-start", "--eval-split", "train[:8]"],
        pytest.param(
            ["--learning-rate", "3e-3", "--head-std", "0", "--warmup-ratio", "0.5", "--lora-rank", "2"],
            marks=pytest.mark.long,
        ),
        pytest.param(["--learning-rate", "3e-3", "--train", "head", "--batch-size", "1"], marks=pytest.mark.long),
    ],
    ids=["new head", "head of zeros", "head of zeros, slow start, adapters", "head alone, one pair at a time"],
)
def test_an_ordinary_run_says_nothing(train, flags):
    """False alarms would teach people not to read them."""
    assert train("--max-steps", "20", "--save-final-only", *flags) == ([], [])


def test_the_last_line_is_there_without_checkpoint_and_evaluation(train, tmp_path):
    """The metrics of the last update would never be read."""
    train("--max-steps", "10", "--save-final-only")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10]


# By hand.


def update(low: float, high: float, norm: float) -> dict[str, float]:
    return {"min_reward": low, "max_reward": high, "mean_reward": (low + high) / 2, "grad_norm": norm}


def test_only_three_updates_in_a_row_count():
    """A batch of pairs that are cut to the same tokens has equal rewards and no gradient."""
    dead, alive = update(1.0, 1.0, 0.0), update(1.0, 2.0, 0.0)  # the last, a loss that is 0 as far as floats go
    said, signs = [], Signs()
    for values in (dead, dead, alive, dead, dead, update(1.0, 1.0, 1e-9), dead, dead, dead, dead, dead):
        signs, text = after_update(signs, values)
        said.append(bool(text))
    assert said == [False] * 8 + [True, False, False]


def test_the_loss_is_near_ln_2_in_every_line_or_nothing_is_said():
    """By hand: 0.01 on either side."""
    for losses, expected in (
        ([0.69, 0.70], True),
        ([0.69, 0.68], False),
        ([0.69, 0.71], False),
        ([0.69, math.nan], False),
    ):
        signs = Signs()
        for loss in losses:
            signs = after_window(signs, loss)
        assert bool(at_the_end(signs, 20)) == expected, losses
        assert not at_the_end(signs, 19)
    assert not at_the_end(Signs(dead=3), 20), "this was said already"


def test_every_set_is_said_by_itself():
    found = {"eval_a_min_reward": 1.5, "eval_a_max_reward": 1.5, "eval_b_min_reward": 0.0, "eval_b_max_reward": 0.1}
    signs, said = after_evaluation(Signs(), found)
    assert [text.partition(":")[0] for text in said] == ["eval_a"]
    signs, said = after_evaluation(signs, found | {"eval_b_max_reward": 0.0})
    assert [text.partition(":")[0] for text in said] == ["eval_b"]
