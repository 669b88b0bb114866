"""The page for those who come from TRL is true of TRL: names, defaults, and that the same run is the same, live."""

import dataclasses
import inspect
import json
import sys

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `interop`: torch, transformers, trl")
trl = pytest.importorskip("trl", reason="needs the extra `interop`: torch, transformers, trl")
transformers = pytest.importorskip("transformers", reason="needs the extra `interop`: torch, transformers, trl")

import datasets

import rm
from rm.__main__ import _parse, main
from rm.commands.train import TrainArguments
from rm.training.optimizers import decay_mask

from ..test_coming_from import TABLES, block, command_line, literal, named, quoted

pytestmark = [pytest.mark.interop, pytest.mark.optax, pytest.mark.filterwarnings("default")]

OWN, INHERITED = (
    "`RewardConfig`: what it adds to `TrainingArguments`",
    "`RewardConfig`: what it has from `TrainingArguments`",
)
FIELDS = {field.name: field for field in dataclasses.fields(trl.RewardConfig)}
GENERAL = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
MATTER = """
    output_dir learning_rate per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps
    num_train_epochs max_steps warmup_steps lr_scheduler_type lr_scheduler_kwargs weight_decay max_grad_norm optim
    adam_beta1 adam_beta2 adam_epsilon bf16 fp16 gradient_checkpointing seed data_seed logging_steps eval_steps
    eval_strategy save_steps save_strategy save_total_limit load_best_model_at_end metric_for_best_model
    greater_is_better resume_from_checkpoint report_to push_to_hub hub_model_id dataloader_num_workers
    dataloader_drop_last dataloader_pin_memory remove_unused_columns fsdp deepspeed torch_compile disable_tqdm
    train_sampling_strategy full_determinism use_cpu
"""
# Short texts that compile fast; three updates in an epoch, so that updates 1, 4 and 7 take the same rows.
ROWS = [
    {"prompt": f"Q: {i} + {i}? A: ", "chosen": f"{2 * i}", "rejected": f"not {i}" + ", I think" * (i % 3)}
    for i in range(10, 34)
]


def test_every_field_that_is_trls_own_is_there_and_no_other():
    assert sorted(named(OWN)) == sorted(set(FIELDS) - GENERAL)
    assert set(named(INHERITED)) <= GENERAL & set(FIELDS)
    assert set(MATTER.split()) <= set(named(INHERITED))


def test_trls_defaults_are_those_of_its_config():
    for row in TABLES[OWN][1:] + TABLES[INHERITED][1:]:
        claimed = [literal(text) for text in quoted(row[1])]
        assert claimed == [FIELDS[name].default for name in quoted(row[0])], row


def test_what_the_page_says_that_none_becomes(tmp_path):
    config = trl.RewardConfig(output_dir=str(tmp_path), use_cpu=True)
    assert config.bf16 is True
    assert config.activation_checkpointing is True
    assert config.report_to == []


def test_every_argument_of_the_trainer_is_there_and_no_other():
    parameters = list(inspect.signature(trl.RewardTrainer.__init__).parameters)
    assert sorted(named("`RewardTrainer`: what it takes")) == sorted(set(parameters) - {"self"})


def test_trl_reads_the_columns():
    source = inspect.getsource(sys.modules[trl.RewardTrainer.__module__])
    assert [name for name in named("Columns") if f'"{name}"' not in source] == []


@pytest.mark.parametrize(
    ("kind", "kwargs", "ours"),
    [
        ("linear", {}, {"kind": "linear"}),
        ("cosine", {}, {"kind": "cosine"}),
        ("constant_with_warmup", {}, {"kind": "constant"}),
        ("cosine_with_min_lr", {"min_lr": 1e-5}, {"kind": "cosine", "end": 1e-5}),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_schedules_are_those_of_the_same_name(kind, kwargs, ours, share, tmp_path):
    """At every update: the rate that transformers' scheduler gives, warm-up included."""
    steps = 10
    config = trl.RewardConfig(output_dir=str(tmp_path), use_cpu=True, warmup_steps=share)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    warmup = config.get_warmup_steps(steps)
    theirs = transformers.get_scheduler(kind, optimizer, warmup, steps, scheduler_specific_kwargs=kwargs)
    expected = []
    for _ in range(steps):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    schedule = rm.learning_rate_schedule(peak=1e-4, steps=steps, warmup_steps=int(np.ceil(share * steps)), **ours)
    found = [np.asarray(schedule(step)) for step in range(steps)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-11)


def test_weight_decay_leaves_out_the_same(llama_directory):
    """The parameters that transformers' `Trainer` decays are those that `rm` decays, by number of values."""
    ours = rm.load_reward_model(llama_directory, key=jax.random.key(0))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(llama_directory, num_labels=1)
    decayed = transformers.Trainer.get_decay_parameter_names(None, theirs)
    sizes = jax.tree.map(lambda leaf, decays: leaf.size * decays, ours, decay_mask(ours))
    expected = sum(value.numel() for name, value in theirs.named_parameters() if name in decayed)
    assert 0 < sum(jax.tree.leaves(sizes)) == expected < sum(value.numel() for value in theirs.parameters())


def test_the_command_sets_trls_defaults(tmp_path):
    args, config = _parse(command_line()), trl.RewardConfig(output_dir=str(tmp_path), use_cpu=True)
    assert isinstance(args, TrainArguments)
    assert args.batch_size == config.per_device_train_batch_size * config.gradient_accumulation_steps
    assert args.center_rewards_coefficient == (config.center_rewards_coefficient or 0)
    assert (args.epochs, args.warmup_ratio) == (config.num_train_epochs, config.warmup_steps)
    assert args.schedule == config.lr_scheduler_type
    adam = ("adam_beta1", "adam_beta2", "adam_epsilon")
    for name in ("learning_rate", "weight_decay", "max_grad_norm", "max_length", *adam):
        assert getattr(args, name) == getattr(config, name), name


OTHER = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.3,
    "weight_decay": 0.1,
    "adam_beta1": 0.8,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-3,
    "max_grad_norm": 0.05,
    "center_rewards_coefficient": 0.1,
}
NAMES = {"lr_scheduler_type": "schedule", "warmup_steps": "warmup_ratio"}
ACCUMULATED = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        pytest.param({}, {}, id="as the page shows", marks=pytest.mark.long),
        pytest.param(
            OTHER | ACCUMULATED,
            {NAMES.get(name, name): value for name, value in OTHER.items()},
            id="other values, accumulated",
        ),
    ],
)
def test_the_same_run_is_the_same(changes, flags, tmp_path, llama_directory, monkeypatch):
    """The page's script and its command, as they stand and with the same changes to both: every update agrees."""
    monkeypatch.chdir(tmp_path)
    start = rm.load_reward_model(llama_directory, key=jax.random.key(3), head_std=0.1)
    rm.save_reward_model("START", start, rm.load_tokenizer(llama_directory))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    changed = "".join(f", {name}={value!r}" for name, value in changes.items())
    script, space = block("python").replace('"no"\n', f'"no"{changed}\n'), {}
    exec(compile(script, "coming_from.md", "exec"), space)
    expected = [entry for entry in space["trainer"].state.log_history if "loss" in entry]
    assert main([*command_line(), *(f"--{name.replace('_', '-')}={value}" for name, value in flags.items())]) == 0
    found = [json.loads(line) for line in (tmp_path / "OUT/metrics.jsonl").read_text().splitlines()]

    assert len(found) == len(expected) == 9
    assert expected[6]["loss"] < expected[0]["loss"] - 1e-3  # it goes somewhere, on the same rows
    names = set(named("Metrics")) & set(expected[0])
    assert names >= {"loss", "accuracy", "margin", "grad_norm", "learning_rate", "num_tokens", "epoch", "step"}
    for our, their in zip(found, expected, strict=True):
        for name in names - ({"min_reward", "max_reward"} if changes else set()):
            assert our[name] == pytest.approx(float(their[name]), abs=1e-4, rel=1e-3), (our["step"], name)


def test_the_metrics_of_trl_are_there(tmp_path, llama_directory):
    """What a run of TRL with an evaluation logs, and nothing else, has a row."""
    start = rm.load_reward_model(llama_directory, key=jax.random.key(3), head_std=0.1)
    rm.save_reward_model(tmp_path / "start", start, rm.load_tokenizer(llama_directory))
    rows = datasets.Dataset.from_list(ROWS[:8])
    config = trl.RewardConfig(
        output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, max_steps=1, logging_steps=1, save_strategy="no"
    )
    trainer = trl.RewardTrainer(str(tmp_path / "start"), args=config, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    trainer.evaluate()
    logged = {name for entry in trainer.state.log_history for name in entry}
    assert sorted(named("Metrics")) == sorted(logged)


@pytest.fixture
def six_pairs(llama_directory, tmp_path):
    """A reward model on disk and six pairs: it ranks all but the fifth rightly."""
    model = rm.load_reward_model(llama_directory, key=jax.random.key(3), head_std=1.0)
    model, tokenizer = rm.match_tokenizer(model, rm.load_tokenizer(llama_directory))
    rm.save_reward_model(tmp_path / "start", model, tokenizer)
    pairs = []
    for number, row in enumerate(ROWS[:6]):
        inputs = [{"prompt": row["prompt"], "response": row[side]} for side in ("chosen", "rejected")]
        chosen, rejected = rm.score(model, tokenizer, inputs)
        turned = (chosen < rejected) == (number != 4)
        sides = {"chosen": row["rejected"], "rejected": row["chosen"]} if turned else {}
        pairs.append(row | sides | {"difference": (chosen - rejected) * (-1 if turned else 1)})
    return tmp_path / "start", pairs


def written(rows, path):
    """The pairs as a file, without what the test knows of them."""
    kept = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return kept


def test_trl_weighs_a_short_last_micro_batch_like_a_full_one_and_we_every_pair_alike(six_pairs, tmp_path):
    """The page would name a difference that is not there. Six pairs as 4 + 2: the mean of two means, and of six."""
    start, pairs = six_pairs
    rows = written(pairs, tmp_path / "pairs.jsonl")
    config = trl.RewardConfig(
        output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, per_device_train_batch_size=4, max_steps=1,
        gradient_accumulation_steps=2, logging_steps=1, save_strategy="no", train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer = trl.RewardTrainer(str(start), args=config, train_dataset=datasets.Dataset.from_list(rows))
    trainer.train()
    theirs = trainer.state.log_history[0]["loss"]
    flags = ["--batch-size=6", "--max-steps=1", "--log-every=1", "--center-rewards-coefficient=0", "--no-shuffle"]
    paths = ["--model", str(start), "--dataset", str(tmp_path / "pairs.jsonl"), "--output", str(tmp_path / "rm")]
    assert main(["train", *paths, *flags]) == 0
    ours = json.loads((tmp_path / "rm/metrics.jsonl").read_text().splitlines()[0])["loss"]
    losses = np.logaddexp(0, [-row["difference"] for row in pairs])
    print(f"TRL {theirs:.4f}, rm {ours:.4f}")
    assert theirs == pytest.approx((losses[:4].mean() + losses[4:].mean()) / 2, abs=1e-4)
    assert ours == pytest.approx(losses.mean(), abs=1e-4)
    assert abs(theirs - ours) > 0.01


def test_trls_accuracy_is_the_mean_of_batches_and_ours_of_pairs(six_pairs, tmp_path):
    """The page would name a difference that is not there: four of five right are 0.5 there in batches of 4."""
    start, pairs = six_pairs
    rows = datasets.Dataset.from_list(written(pairs[:5], tmp_path / "pairs.jsonl"))
    config = trl.RewardConfig(
        output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, per_device_eval_batch_size=4, save_strategy="no"
    )
    theirs = trl.RewardTrainer(str(start), args=config, train_dataset=rows, eval_dataset=rows).evaluate()
    model, tokenizer = rm.load_reward_model(start), rm.load_tokenizer(start)
    comparisons, _ = rm.tokenize_comparisons(rows, tokenizer, model.config)
    ours = rm.evaluate(model, comparisons, batch_size=4)
    print(f"TRL {theirs['eval_accuracy']}, rm {ours['accuracy']}")
    assert theirs["eval_accuracy"] == 0.5
    assert ours["accuracy"] == 0.8
