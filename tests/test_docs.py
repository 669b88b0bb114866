"""The documents are true: what they name exists, what they show runs."""

import ast
import dataclasses
import inspect
import json
import random
import re
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pytest

import rm
from rm.__main__ import main
from rm.commands.data import DataArguments
from rm.commands.demo import DemoArguments
from rm.commands.evaluate import EvaluateArguments
from rm.commands.plan import PlanArguments
from rm.commands.score import ScoreArguments
from rm.commands.serve import ServeArguments
from rm.commands.train import TrainArguments
from rm.saving.examples import make_pair, write_llama

from .test_commands import FIELDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COMMANDS = {"train": TrainArguments, "data": DataArguments, "score": ScoreArguments, "evaluate": EvaluateArguments}
COMMANDS |= {"serve": ServeArguments, "plan": PlanArguments, "demo": DemoArguments}


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def one_line(text: str) -> str:
    """The words, without line breaks and the boxes that the help is drawn in."""
    return " ".join(re.sub(r"[^\x20-\x7e]", " ", text).split())


def flags(command: str) -> set[str]:
    """Every flag of a command, the negations of switches included."""
    names = {"--help"}
    for field in dataclasses.fields(COMMANDS[command]):
        name = field.name.replace("_", "-")
        names |= {f"--{name}", f"--no-{name}"} if field.type is bool else {f"--{name}"}
    return names


# The code in the README.


@pytest.fixture
def demo_directory(tmp_path, monkeypatch) -> Path:
    """The current directory, with the part of `rm-demo/` that the example needs: a model and preferences."""
    rng = random.Random(0)
    pairs = [make_pair(rng) for _ in range(2500)]
    llama = tmp_path / "rm-demo/llama"
    llama.mkdir(parents=True)
    write_llama(llama, [message["content"] for pair in pairs for side in pair.values() for message in side])
    rows = "".join(json.dumps(pair) + "\n" for pair in pairs)
    (tmp_path / "rm-demo/train.jsonl").write_text(rows, encoding="utf-8")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.long
@pytest.mark.optax
def test_the_example_composes(demo_directory, capsys):
    (example,) = [block for block in blocks("python") if block.startswith("# compose\n")]
    assert len(example.splitlines()) <= 30
    exec(compile(example, "README.md", "exec"), {})
    metrics, held_out, rewards = capsys.readouterr().out.splitlines()
    assert np.isfinite(ast.literal_eval(metrics)["loss"])
    assert float(held_out) > 0.9, "nothing was learned"

    saved = demo_directory / "reward-model"
    question = {"role": "user", "content": "Name a fruit, please."}
    answers = [{"role": "assistant", "content": f"How about a {thing}?"} for thing in ("papaya", "wrench")]
    model, tokenizer = rm.load_reward_model(saved), rm.load_tokenizer(saved)
    again = rm.score(model, tokenizer, [{"messages": [question, answer]} for answer in answers])
    np.testing.assert_allclose(again, np.array(rewards.strip("[]").split(), float), rtol=1e-3)


def test_the_rows_shown_are_read(loaded):
    model, tokenizer = loaded
    pairs, inputs = ([json.loads(line) for line in block.splitlines()] for block in blocks("json"))
    assert len(pairs) == len(inputs) == 3
    _, table = rm.tokenize_comparisons(pairs, tokenizer, model.config)
    assert table["kept"] == 3
    assert np.isfinite(rm.score(model, tokenizer, inputs)).all()


# What the README names.


def test_flags_and_commands_exist():
    known = set().union(*(flags(command) for command in COMMANDS))
    for name, arguments in re.findall(r"python benchmarks/(\w+)\.py([^`\n]*)", README):
        taken = set(re.findall(r"add_argument\(\s*\"(--[a-z-]+)\"", (ROOT / f"benchmarks/{name}.py").read_text()))
        assert set(re.findall(r"--[a-z-]+", arguments)) <= taken
    own = re.sub(r"python (benchmarks/[^`\n]*|-m pip [^`]*)", "", README)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", own)) <= known
    assert set(re.findall(r"python -m rm (\w+)", README)) == set(COMMANDS)
    for command, arguments in re.findall(r"python -m rm (\w+)([^`\n]*)", README):
        assert set(re.findall(r"--[a-z-]+", arguments)) <= flags(command)


def test_functions_fields_and_extras_exist():
    functions = set(re.findall(r"\brm\.(\w+)\(", README))
    assert functions
    assert functions <= set(rm.__all__)
    assert [name for name in FIELDS if f"`{name}`" not in README] == []
    extras = set(re.findall(r"'\.\[(\w+)\]'", README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert [extra for extra in extras if not re.search(rf"^{extra} = \[", project, flags=re.MULTILINE)] == []


@pytest.mark.parametrize(
    "name",
    ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "docs/design.md", "docs/coming_from.md"],
)
def test_links_lead_somewhere(name):
    path = ROOT / name
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


# The help of the commands.


def documented(command: str) -> dict[str, str]:
    """The fields of a command's arguments, inherited ones first, with the text below each."""
    texts = {}
    for kind in reversed(COMMANDS[command].__mro__[:-1]):
        (definition,) = ast.parse(inspect.getsource(kind)).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in pairwise(definition.body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                texts[ast.unparse(field.target)] = below.value.value
    return texts


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_flag(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    shown = one_line(capsys.readouterr().out)
    texts = documented(command)
    assert list(texts) == [field.name for field in dataclasses.fields(COMMANDS[command])]
    for name, text in texts.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert one_line(text) in shown, name
        assert text.endswith("."), name
