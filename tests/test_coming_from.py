"""The page for those who come from other systems is true of this version: its flags, defaults, functions, commands."""

import ast
import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import rm
from rm.__main__ import _parse, main
from rm.commands.serve import ServeArguments
from rm.commands.train import TrainArguments
from rm.data.formats import COLUMNS
from rm.evaluation.scoring import METRICS

from .test_commands import FIELDS

PATH = Path(__file__).parents[1] / "docs/coming_from.md"
PAGE = PATH.read_text(encoding="utf-8")
DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainArguments)}
EASYDEL = """
    model_name learning_rate learning_rate_end max_sequence_length disable_dropout center_rewards_coefficient
    dataset_num_proc remove_unused_columns total_batch_size num_train_epochs save_directory save_steps do_last_save
    use_wandb attn_mechanism optimizer scheduler weight_decay clip_grad gradient_accumulation_steps max_training_steps
    sharding_axis_dims truncation_mode
"""
# Flags and defaults in openrlhf/cli/train_rm.py and serve_rm.py of OpenRLHF 0.11.2, which has no build for CPUs
OPENRLHF = {
    "--ckpt.output_dir": "./ckpt",
    "--ckpt.save_steps": -1,
    "--ckpt.save_hf": False,
    "--ckpt.disable_ds": False,
    "--logger.logging_steps": 1,
    "--eval.steps": -1,
    "--ckpt.path": "./ckpt/checkpoints_rm",
    "--ckpt.max_num": 3,
    "--ckpt.max_mem": 100_000_000,
    "--ckpt.load_enable": False,
    "--ds.use_universal_ckpt": False,
    "--model.gradient_checkpointing_enable": False,
    "--ds.deepcompile": False,
    "--train.seed": 42,
    "--train.full_determinism_enable": False,
    "--local_rank": -1,
    "--ds.zero_stage": 2,
    "--ds.param_dtype": "bf16",
    "--ds.zpg": 1,
    "--ds.adam_offload": False,
    "--ds.attn_implementation": "flash_attention_2",
    "--ds.experts_implementation": None,
    "--ds.grad_accum_dtype": None,
    "--ds.overlap_comm": False,
    "--model.gradient_checkpointing_reentrant": False,
    "--data.disable_fast_tokenizer": False,
    "--data.dataloader_num_workers": 0,
    "--ds.tensor_parallel_size": 1,
    "--model.model_name_or_path": None,
    "--ds.value_head_prefix": "score",
    "--ds.ring_attn_size": 1,
    "--ds.ring_attn_head_stride": 1,
    "--ds.load_in_4bit": False,
    "--ds.lora.rank": 0,
    "--ds.lora.alpha": 16,
    "--ds.lora.dropout": 0,
    "--ds.lora.target_modules": "all-linear",
    "--train.max_epochs": 1,
    "--model.aux_loss_coef": 0,
    "--model.compute_fp32_loss_enable": False,
    "--model.margin_loss_enable": False,
    "--train.micro_batch_size": 1,
    "--train.batch_size": 128,
    "--model.loss_type": "sigmoid",
    "--optim": "adam",
    "--muon.lr": 0.02,
    "--muon.momentum": 0.95,
    "--muon.ns_steps": 5,
    "--muon.nesterov": True,
    "--muon.no_nesterov": None,
    "--adam.lr": 9e-6,
    "--adam.betas": (0.9, 0.95),
    "--adam.eps": 1e-8,
    "--adam.weight_decay": 0.0,
    "--lr_scheduler": "cosine_with_min_lr",
    "--lr_warmup_ratio": 0.03,
    "--min_lr_ratio": 0.1,
    "--max_norm": 1.0,
    "--ds.packing_samples": False,
    "--data.dataset": None,
    "--data.dataset_probs": None,
    "--eval.dataset": None,
    "--data.dataset_split": "train",
    "--eval.split": "train",
    "--data.max_samples": 1_000_000,
    "--data.prompt_key": None,
    "--data.chosen_key": "chosen",
    "--data.rejected_key": "rejected",
    "--data.input_template": None,
    "--data.apply_chat_template": False,
    "--data.tokenizer_chat_template": None,
    "--data.max_len": 512,
    "--logger.wandb.key": None,
    "--logger.wandb.org": None,
    "--logger.wandb.group": None,
    "--logger.wandb.project": "openrlhf_train_rm",
    "--logger.wandb.run_name": "rm_MMDDTHH:MM",  # of the start
    "--logger.tensorboard_dir": None,
    "--use_ms": False,
}
OPENRLHF_SERVER = """
    --reward.model_name_or_path --reward.normalize_enable --ds.value_head_prefix --data.max_len --port --host
    --ds.load_in_4bit --ds.param_dtype --ds.attn_implementation --ds.experts_implementation
    --data.disable_fast_tokenizer --ds.packing_samples --batch_size --use_ms
"""


def tables() -> dict[str, list[list[str]]]:
    """The tables by the heading above each: the cells of every row, the header first."""
    found, heading = {}, ""
    for line in PAGE.splitlines():
        heading = line.strip("# ") if line.startswith("#") else heading
        if line.startswith("|") and not line.startswith("|---"):
            found.setdefault(heading, []).append([cell.strip() for cell in line[1:-1].split("|")])
    return found


TABLES = tables()
ROWS = [row for rows in TABLES.values() for row in rows[1:]]


def quoted(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def literal(text: str) -> Any:
    """The value that a default is written as; a bare word is a string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def named(heading: str) -> list[str]:
    """The names in the first column of a table."""
    return [name for row in TABLES[heading][1:] for name in quoted(row[0])]


def block(language: str) -> str:
    """The page's only code block in a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return found


def command_line() -> list[str]:
    """The arguments of the command that the page shows, after `python -m rm`."""
    words = shlex.split(block("bash").replace("\\\n", ""))
    assert words[:3] == ["python", "-m", "rm"]
    return words[3:]


def test_rows_are_whole_and_names_have_a_row_each():
    for heading, (header, *rows) in TABLES.items():
        assert rows, heading
        assert [row for row in rows if len(row) != len(header)] == [], heading
        assert [row for row in rows if not row[0] or not row[2 if "default" in header else 1]] == [], heading
        if "default" in header:
            assert [row for row in rows if len(quoted(row[1])) != len(quoted(row[0]))] == [], heading
        names = named(heading)
        assert [name for name in names if names.count(name) > 1] == [], heading


def test_flags_exist():
    ours = PAGE.replace(block("bash"), "")
    for row in ROWS:
        ours = ours.replace(f"| {row[0]} |", "|")  # what the others call it
    flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", ours)) | {word for word in command_line() if word[:2] == "--"}
    known = {name for field in DEFAULTS for name in (field, f"no_{field}")}
    known |= {field.name for field in dataclasses.fields(ServeArguments)}
    assert {flag for flag in flags if flag[2:].replace("-", "_") not in known} == set()


def test_our_defaults_are_those_of_the_flags():
    checked = 0
    for row in (row for row in ROWS if len(row) == 5):
        flags = [name for name in quoted(row[2]) if name.startswith("--")]
        assert bool(flags) != (row[2] == "none"), row
        if not flags:
            assert row[3] == "–", row
            continue
        real = [DEFAULTS[flag[2:].replace("-", "_")] for flag in flags]
        claimed = [dataclasses.MISSING] if row[3] == "required" else [literal(text) for text in quoted(row[3])]
        assert claimed == real, row
        assert [type(value) for value in claimed] == [type(value) for value in real], row
        checked += len(real)
    assert checked > 80


def test_functions_and_commands_exist(capsys):
    assert set(re.findall(r"\brm\.(\w+)", PAGE)) <= set(rm.__all__)
    for command in set(re.findall(r"python -m rm (\w+)", PAGE)):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0, command
        assert f"usage: python -m rm {command} " in capsys.readouterr().out


def test_columns_and_metrics_exist():
    assert set(named("Columns")) <= COLUMNS
    evaluated = {f"eval_test_{name}" for name in METRICS}
    assert {name for row in TABLES["Metrics"][1:] for name in quoted(row[1])} <= {*FIELDS, *evaluated}
    assert set(FIELDS) - {name for row in TABLES["Metrics"][1:] for name in quoted(row[1])} == {"skipped"}


def test_the_arguments_of_easydel_are_there():
    assert set(EASYDEL.split()) <= {*named("`RewardConfig`"), *named("The model's configuration")}


def test_the_flags_of_openrlhf_and_their_defaults_are_those_of_the_version_named():
    """Somebody would look for a flag that was renamed, or take a default for another."""
    assert "OpenRLHF 0.11.2" in PAGE
    claimed = [
        (name, literal(text))
        for row in TABLES["Training"][1:]
        for name, text in zip(quoted(row[0]), quoted(row[1]), strict=True)
    ]
    assert sorted(claimed) == sorted(OPENRLHF.items())
    assert set(named("Serving")) <= set(OPENRLHF_SERVER.split())


def test_the_command_is_understood_and_sets_what_differs():
    """Each of its flags changes a default, and what it leaves out is as the page says."""
    args = _parse(command_line())
    assert isinstance(args, TrainArguments)
    changed = {name: value for name, value in vars(args).items() if value != DEFAULTS[name]}
    named_flags = {word[2:].removeprefix("no-").replace("-", "_") for word in command_line() if word[:2] == "--"}
    assert set(changed) == named_flags
    assert (args.learning_rate, args.batch_size, args.epochs, args.center_rewards_coefficient) == (1e-4, 8, 3.0, 0.0)


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert links
    assert [link for link in links if not (PATH.parent / link).exists()] == []
