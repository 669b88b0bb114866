"""The command line: a help that fits a screen, wrong values in one line, flags from files, recipes."""

import dataclasses
import datetime
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from rm.__main__ import _KINDS, _parse, main
from rm.commands.config_file import with_config
from rm.commands.evaluate import EvaluateArguments
from rm.commands.flags import flags_of
from rm.commands.options import flag
from rm.commands.train import TrainArguments

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
NEEDED = {"model": "m", "dataset": ["d"], "output": "o"}


def shown(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(argv))
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", _KINDS)
def test_the_help_fits_a_screen_and_says_where_the_rest_is(command, capsys, monkeypatch):
    """Nobody would find the flags that matter among eighty."""
    monkeypatch.setenv("COLUMNS", "100")
    lines = shown(capsys, command, "--help").splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    text, flags, kind = " ".join(lines), flags_of(_KINDS[command]), _KINDS[command]
    assert [
        name for name, each in flags.items() if each.default is dataclasses.MISSING and f"  {name} " not in text
    ] == []
    common = {flag(name) for name in getattr(kind, "common", ())} or set(flags)
    assert common <= set(flags)
    more = f"python -m rm {command} --help-all explains {len(flags)} flags: more of these groups"
    assert (more in text) == (common < set(flags))
    assert shown(capsys, command, "-h").splitlines() == lines


def test_the_long_help_has_every_flag_under_its_group(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = shown(capsys, "train", "--help-all").splitlines()
    assert lines.index("Several processes of one run:") < lines.index(
        "  --distributed            Join the other processes of the run; they are found on SLURM, Open MPI,"
    )
    assert "  --shuffle, --no-shuffle  Shuffle the data, anew every epoch. (default: True)" in lines
    assert "  --seed N                 Seed of the new score head and of the order of the data. (default: 0)" in lines


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("train --batch-size x", "--batch-size: expected a whole number, found 'x'"),
        ("train --batch-size 1.5", "--batch-size: expected a whole number, found '1.5'"),
        ("train --batch_size=x", "--batch_size: expected a whole number, found 'x'"),
        ("train --batch-size", "--batch-size: expected a whole number, found nothing"),
        ("train --batch-size 1 2", "--batch-size: expected one value, found 2: 1 2"),
        ("train --output --epochs 1", "--output: expected a path, found nothing"),
        ("train --micro-batch-tokens x", "--micro-batch-tokens: expected auto or a whole number, found 'x'"),
        ("train --lora-targets q z", "--lora-targets: expected q, k, v, o, gate, up or down, found 'z'"),
        ("train --shuffle=no", "--shuffle: is on where it stands, and takes no value, found 'no'"),
        ("train pairs.jsonl", "train: expected a flag, found 'pairs.jsonl'; python -m rm train --help-all lists all"),
        ("train --no-model", "train has no flag --no-model, perhaps --model; python -m rm train --help-all lists all"),
        (
            "data --truncation middle",
            "--truncation: expected drop, truncate-left-prompt or truncate-right, found 'middle'",
        ),
        ("data --show many", "--show: expected a whole number, found 'many'"),
        ("score --dtype half", "--dtype: expected auto, float32 or bfloat16, found 'half'"),
        ("score --max-length long", "--max-length: expected a whole number, found 'long'"),
        ("evaluate --invalid keep", "--invalid: expected raise or drop, found 'keep'"),
        ("evaluate --label-weights 1 x", "--label-weights: expected a number, found 'x'"),
        ("serve --truncation cut", "--truncation: expected refuse or truncate-right, found 'cut'"),
        ("serve --port http", "--port: expected a whole number, found 'http'"),
        ("plan --remat some", "--remat: expected none, dots or full, found 'some'"),
        ("plan --batch-size x", "--batch-size: expected a whole number, found 'x'"),
        ("demo --output", "--output: expected a path, found nothing"),
    ],
)
def test_a_wrong_value_is_one_line_with_what_is_expected(argv, line, capsys):
    assert main(argv.split()) == 2
    assert capsys.readouterr().err == f"rm: {line}\n"


def test_negative_numbers_and_lists_are_values():
    """They begin with a dash, or are several, and would be taken for mistakes."""
    argv = ["train", "--model", "m", "--dataset", "a=0.7", "b=0.3", "--output=o", "--label-weights", "1", "-0.5"]
    args = _parse(argv)
    assert (args.dataset, args.label_weights) == (("a=0.7", "b=0.3"), (1.0, -0.5))


# Flags from files.


def parsed(argv: list[str]) -> Any:
    """The arguments of a command line with its file."""
    return _parse(with_config(argv, _KINDS)[0])


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "run.toml",
            'model = "m"\ndataset = ["d", "e"]\noutput = "o"\nlearning-rate = 1e-3\nmax_steps = 7\nshuffle = false\n'
            'drop-last = true\nchat_template_date = 2024-01-31\nmicro-batch-tokens = "auto"\n'
            "label-weights = [1, -0.5]\n",
        ),
        (
            "run.yaml",
            "model: m\ndataset: [d, e]\noutput: o\nlearning_rate: 1e-3\nmax-steps: 7\nshuffle: false\ndrop_last: true\n"
            "chat-template-date: 2024-01-31\nmicro_batch_tokens: auto\nlabel_weights:\n- 1\n- -0.5\neval_every: null\n",
        ),
        (
            "run.json",
            '{"model": "m", "dataset": ["d", "e"], "output": "o", "learning_rate": 0.001, "max-steps": 7, "shuffle": '
            'false, "drop_last": true, "chat_template_date": "2024-01-31", "label_weights": [1, -0.5]}',
        ),
    ],
)
def test_a_file_is_what_the_flags_are(tmp_path, name, text):
    path = write(tmp_path / name, text)
    flags = (
        "--learning-rate 1e-3 --max-steps 7 --no-shuffle --drop-last --chat-template-date 2024-01-31 --label-weights"
    )
    given = ["train", "--model", "m", "--dataset", "d", "e", "--output", "o", *flags.split(), "1", "-0.5"]
    assert parsed(["train", "--config", str(path)]) == _parse(given)
    assert parsed(["train", f"--config={path}"]) == _parse(given)


def test_flags_given_win_over_the_file(tmp_path):
    path = write(
        tmp_path / "a.toml", 'model = "m"\ndataset = "d"\noutput = "o"\nseed = 3\nshuffle = false\nepochs = 2\n'
    )
    args = parsed(["train", "--seed", "5", "--config", str(path), "--shuffle", "--dataset", "e", "f"])
    assert (args.seed, args.shuffle, args.dataset, args.epochs, args.model) == (5, True, ("e", "f"), 2.0, "m")


BAD = {  # the end of a file, and what is said of it
    "learning-rte = 1e-5": "learning-rte: train has no such flag, perhaps learning-rate",
    'batch-size = "many"': "batch-size: expected a whole number, found 'many'",
    'batch_size = "16"': "batch_size: expected a whole number, found '16'",
    "batch-size = 1.5": "batch-size: expected a whole number, found 1.5",
    "batch-size = true": "batch-size: expected a whole number, found true",
    "batch-size = [1]": "batch-size: expected a whole number, found a list",
    'shuffle = "no"': "shuffle: expected true or false, found 'no'",
    "shuffle = 0": "shuffle: expected true or false, found 0",
    'schedule = "step"': "schedule: expected linear, cosine or constant, found 'step'",
    "head_std = 0.1": "head_std: expected a text, found 0.1; put it into quotes",
    'lora_targets = ["q", "z"]': "lora_targets: expected q, k, v, o, gate, up or down, found 'z'",
    "eval-dataset = [1]": "eval-dataset: expected a text, found 1; put it into quotes",
    "eval_dataset = [{}]": "eval_dataset: expected a text, found a table",
    "[lora]\nrank = 1": "lora: is a table; every flag stands at the top, with its value",
    "max_length = 1\nmax-length = 2": "max-length: stands there twice, with dashes and with underscores; take one out",
}


@pytest.mark.parametrize("text", BAD)
def test_what_is_wrong_in_a_file_is_one_line_with_file_and_key(tmp_path, text, capsys):
    path = write(tmp_path / "a.toml", f'model = "m"\ndataset = ["d"]\noutput = "{tmp_path}/run"\n{text}\n')
    assert main(["train", "--config", str(path)]) == 2
    assert capsys.readouterr().err == f"rm: {path}: {BAD[text]}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.toml", "x = [", "is not TOML (Invalid value (at end of document))"),
        ("a.yaml", "x: [", "is not YAML (while parsing a flow node"),
        ("a.json", "{", "is not JSON (Expecting property name"),
        ("a.yml", "- x", "expected the names of flags, each with a value, found a list"),
        ("a.yaml", "learning_rate: null", "learning_rate: expected a number, found null"),
        ("a.txt", "", "--config takes a file that ends in .toml, .yaml, .yml, .json"),
        ("a.toml", None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path, name, text, line, capsys):
    path = tmp_path / name
    if text is not None:
        write(path, text)
    assert main(["train", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"rm: {path}: {line}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(("argv", "found"), [(["--config"], "nothing"), (["--config", "a", "--config=b"], "several")])
def test_there_is_one_file(argv, found, capsys):
    assert main(["train", *argv]) == 2
    assert capsys.readouterr().err == f"rm: --config: expected one file, found {found}\n"


@pytest.mark.parametrize(
    ("command", "text", "name", "value"),
    [
        ("score", 'model = "m"\ninput = "i"\noutput = "o"\nmax-length = 9', "max_length", 9),
        ("evaluate", 'model = ["m", "n"]\ndataset = "d"\noutput = "o"', "model", ("m", "n")),
        ("serve", 'model = "m"\nport = 0\nmax_wait = 2', "max_wait", 2.0),
        ("plan", 'model = "llama-1b"\ntopology = "cpu:1"\noffload = true', "offload", True),
        ("demo", 'output = "o"', "output", Path("o")),
    ],
)
def test_every_command_takes_a_file(tmp_path, command, text, name, value):
    path = write(tmp_path / "a.toml", text)
    assert getattr(_parse(with_config([command, "--config", str(path)], _KINDS)[0]), name) == value


def test_data_shows_what_a_file_for_train_would_read(tmp_path):
    """The same file for both: the flags of train alone are named, and a misspelt one is still refused."""
    text = 'model = "m"\ndataset = "d"\nbatch-size = 4\nlearning-rate = 1e-3\nepochs = 2\n'
    path = write(tmp_path / "a.toml", text)
    argv, said = with_config(["data", "--config", str(path)], _KINDS)
    assert _parse(argv).batch_size == 4
    assert said == [f"{path}: left out, as flags of train: --learning-rate --epochs"]
    with pytest.raises(Exception, match=r"a.toml: epoch: data has no such flag"):
        with_config(["data", "--config", str(write(tmp_path / "a.toml", "epoch = 1"))], _KINDS)


@pytest.mark.parametrize(
    "args",
    [
        TrainArguments(model="m", dataset=("d",), output=Path("o")),
        TrainArguments(
            model="m@v",
            dataset=("d=0.7", "e=0.3"),
            output=Path("o"),
            chat_template=Path("t.jinja"),
            chat_template_date=datetime.date(2024, 1, 31),
            rename=("chosen=a", "rejected=b"),
            label_weights=(1.0, -0.5),
            max_steps=3,
            shuffle=False,
            drop_empty=True,
            micro_batch_tokens=512,
            learning_rate=1e-5,
            lora_rank=4,
            lora_targets=("q", "v"),
            eval_dataset=("f",),
            time_limit="90",
        ),
        EvaluateArguments(model=("m", "n"), dataset="d", output=Path("o"), by="kind", sections="rewardbench"),
    ],
    ids=["defaults", "other values", "an evaluation"],
)
def test_every_argument_comes_back_from_a_record(tmp_path, args):
    """A value that JSON has in another form would be refused, or be another one."""
    record = {"arguments": dataclasses.asdict(args) | {"output": "elsewhere", "resume": "auto"}}
    path = write(tmp_path / "run.json", json.dumps(record, default=str))
    command = "train" if isinstance(args, TrainArguments) else "evaluate"
    assert parsed([command, "--config", str(path), "--output", "o"]) == args


def test_machines_and_uploads_are_not_repeated(tmp_path):
    """All processes would be the first one, and the upload of the run would be replaced."""
    given = {"distributed": True, "coordinator": "a:1", "num_processes": 2, "process_id": 0, "push_to": "org/name"}
    args = TrainArguments(model="m", dataset=("d",), output=Path("o"), **given)
    path = write(tmp_path / "run.json", json.dumps({"arguments": dataclasses.asdict(args)}, default=str))
    found = parsed(["train", "--config", str(path), "--output", "o"])
    assert {name: getattr(found, name) for name in given} == dict.fromkeys(given) | {"distributed": False}


@pytest.mark.optax
def test_the_record_of_a_run_repeats_it(tmp_path, llama_directory, pairs_file, capsys):
    """All but its place: with the record alone, the run would be written over."""
    fixed = ["--model", str(llama_directory), "--dataset", str(pairs_file), "--run-name", "first"]
    options = ["--max-steps", "2", "--batch-size", "4", "--adam-beta2", "0.95", "--no-shuffle", "--save-final-only"]
    assert main(["train", *fixed, *options, "--output", str(tmp_path / "one"), "--log-every", "1"]) == 0
    record = tmp_path / "one/run.json"
    assert "\nadamw (0.9, 0.95, 1e-08), peak learning rate 5e-06, linear\n" in capsys.readouterr().out
    assert "adam_beta2" in (tmp_path / "one/model/README.md").read_text()
    assert main(["train", "--config", str(record)]) == 2
    expected = f"rm: {record}: repeats the run but for its --output, which holds it; give another --output\n"
    assert capsys.readouterr().err == expected
    assert main(["train", "--config", str(record), "--output", str(tmp_path / "two")]) == 0
    assert capsys.readouterr().out.startswith(f"{record}: repeats a run, but for --output, ")
    one, two = (json.loads((tmp_path / name / "run.json").read_text())["arguments"] for name in ("one", "two"))
    assert {name for name in one if one[name] != two[name]} == {"output"}
    assert (two["adam_beta2"], two["run_name"]) == (0.95, "first")
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]


# Recipes.


def test_there_are_recipes():
    assert [path.stem for path in RECIPES] == ["llama2", "skywork_reward", "tulu3"]


@pytest.mark.optax
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs(path, tmp_path, llama_directory, pairs_file):
    """With a small model and data in place of its own; all other flags are the recipe's."""
    data = write(tmp_path / "two.jsonl", "\n".join(pairs_file.read_text().splitlines()[:4]) + "\n")
    toy = {"model": llama_directory, "dataset": data, "eval-dataset": data, "eval-split": "train", "dtype": "float32"}
    flags = [word for name, value in toy.items() for word in (f"--{name}", str(value))]
    output = tmp_path / "run"
    assert main(["train", "--config", str(path), *flags, "--max-steps", "1", "--output", str(output)]) == 0
    arguments = json.loads((output / "run.json").read_text())["arguments"]
    recipe = {name.replace("-", "_"): value for name, value in tomllib.loads(path.read_text()).items()}
    kept = {name: value for name, value in recipe.items() if flag(name)[2:] not in toy}
    assert len(kept) > 5
    assert {name: arguments[name] for name in kept} == kept
    shutil.rmtree(output)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_names_its_source_and_where_to_run_it(path):
    text = path.read_text()
    assert "arXiv" in text
    assert "What differs, or" in text
    assert f"python -m rm train --config recipes/{path.name}" in text
    page = (path.parents[1] / "docs/train.md").read_text()
    assert f"(../recipes/{path.name})" in page
