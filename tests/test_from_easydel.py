"""The page on EasyDeL's tutorial: every argument has its counterpart, and the Python and the command agree."""

import re
import shlex
from dataclasses import MISSING, fields

import numpy as np
import pytest

import rm
from rm.__main__ import _parse, main
from rm.commands.train import TrainArguments

from .test_docs import PAGES, blocks, command_lines, demo_directory, run

__all__ = ["demo_directory"]  # the fixture
NAME = "docs/from_easydel.md"
ARGUMENTS = """
    model_name learning_rate max_sequence_length disable_dropout center_rewards_coefficient dataset_num_proc
    remove_unused_columns total_batch_size num_train_epochs save_directory learning_rate_end use_wandb
    repo_id dataset_name dataset_split attn_mechanism do_last_save save_steps
"""  # of the tutorial's RewardConfig and of its command
CLASSES = "AutoTokenizer load_dataset AutoEasyDeLModelForSequenceClassification RewardConfig RewardTrainer eval_dataset"


def commands() -> list[TrainArguments]:
    """The page's commands, parsed: the tutorial's, the demo's, and that of the same run in both."""
    found = [_parse(shlex.split(line)) for block in blocks(NAME, "bash") for line in command_lines(block)]
    assert [type(args) for args in found] == [TrainArguments] * 3
    return found


def test_every_class_and_argument_of_the_tutorial_has_a_row():
    """A reader who looks for one would not find it."""
    left = " ".join(row.split("|")[1] for row in PAGES[NAME].splitlines() if row.startswith("| "))
    named = set(re.findall(r"\w+", left))
    assert set(ARGUMENTS.split()) | set(CLASSES.split()) <= named


def test_the_tutorials_command_keeps_its_settings():
    """The run would be another one than that of the tutorial."""
    args, demo, _ = commands()
    assert (args.model, args.dataset) == ("meta-llama/Llama-3.1-8B-Instruct", ("trl-lib/ultrafeedback_binarized",))
    assert (args.max_length, args.batch_size, args.epochs, args.center_rewards_coefficient) == (2048, 16, 3.0, 0.1)
    assert (args.learning_rate, args.learning_rate_end, args.save_every) == (1e-6, 6e-7, 1000)
    assert (demo.learning_rate, demo.learning_rate_end) == (1000 * 1e-6, 1000 * 5e-7)


def test_the_same_run_leaves_out_only_what_is_the_default_in_both():
    """The command would not do what the lines above it do in EasyDeL."""
    args = commands()[-1]
    defaults = {field.name: field.default for field in fields(TrainArguments) if field.default is not MISSING}
    same = {"batch_size": 16, "center_rewards_coefficient": 0.1, "weight_decay": 0.0, "max_length": 1024}
    assert same.items() <= defaults.items()
    assert (args.schedule, args.max_grad_norm, args.shuffle, args.epochs) == ("constant", 0.0, False, 3.0)


@pytest.mark.long
@pytest.mark.optax
@pytest.mark.parametrize("demo_directory", [300], indirect=True)
def test_python_and_command_end_in_the_same_rewards(demo_directory):
    """The steps in Python would not be what the command does."""
    names = run(NAME, {})
    (_, words, _) = (shlex.split(line) for block in blocks(NAME, "bash") for line in command_lines(block))
    out = demo_directory / "COMMAND"
    words[words.index("--output") + 1] = str(out)
    assert main(words) in (None, 0)
    model = rm.load_reward_model(out / "model")
    ours, theirs = (rm.comparison_rewards(each, names["held_out"]) for each in (names["state"].model, model))
    assert np.std(ours) > 0.05, "nothing was learned"
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
