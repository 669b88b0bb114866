"""The documents are true: what they name exists, what they show runs."""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import json
import random
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import jax
import numpy as np
import pytest

import rm
from rm.__main__ import _parse, main
from rm.commands.config_file import with_config
from rm.commands.data import DataArguments
from rm.commands.demo import DemoArguments
from rm.commands.evaluate import EvaluateArguments
from rm.commands.plan import PlanArguments
from rm.commands.score import ScoreArguments
from rm.commands.serve import ServeArguments
from rm.commands.train import TrainArguments
from rm.saving.examples import make_pair, write_llama

from .conftest import AS_USERS
from .test_commands import FIELDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = {"train": TrainArguments, "data": DataArguments, "score": ScoreArguments, "evaluate": EvaluateArguments}
COMMANDS |= {"serve": ServeArguments, "plan": PlanArguments, "demo": DemoArguments}
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
}
HISTORY = ("CHANGELOG.md", "benchmarks/LOG.md")  # true of their time
PRESENT = {name: text for name, text in PAGES.items() if name not in HISTORY}
THEIRS = "docs/coming_from.md"  # flags of other systems; see test_coming_from.py
REFERENCE = {name: text for name, text in PAGES.items() if name.startswith("docs/reference/")}
PEERS = {"torch", "transformers", "trl", "datasets", "easydel"}  # what code of the pages may need that the tests lack


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], flags=re.MULTILINE | re.DOTALL)


def one_line(text: str) -> str:
    """The words, without line breaks and the boxes that the help is drawn in."""
    return " ".join(re.sub(r"[^\x20-\x7e]", " ", text).split())


def flags(command: str) -> set[str]:
    """Every flag of a command, the negations of switches included."""
    names = {"--help", "--help-all", "--config"}
    for field in dataclasses.fields(COMMANDS[command]):
        name = field.name.replace("_", "-")
        names |= {f"--{name}", f"--no-{name}"} if field.type is bool else {f"--{name}"}
    return names


# The code in the pages.


@pytest.fixture
def demo_directory(tmp_path, monkeypatch, request) -> Path:
    """The current directory, with what the code of the pages reads: a model, preferences, votes, a run's metrics."""
    rng = random.Random(0)
    pairs = [make_pair(rng) for _ in range(getattr(request, "param", 2500))]
    llama = tmp_path / "rm-demo/llama"
    llama.mkdir(parents=True)
    write_llama(llama, [message["content"] for pair in pairs for side in pair.values() for message in side])
    rows = "".join(json.dumps(pair) + "\n" for pair in pairs)
    (tmp_path / "rm-demo/train.jsonl").write_text(rows, encoding="utf-8")
    (tmp_path / "votes.jsonl").write_text('{"winner": "a plum", "loser": "a wrench"}\n', encoding="utf-8")
    (tmp_path / "OUT").mkdir()
    (tmp_path / "OUT/metrics.jsonl").write_text('{"step": 1, "accuracy": 0.5}\n{"step": 2, "accuracy": 0.75}\n')
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(page: str, names: dict[str, Any]) -> dict[str, Any]:
    """Runs the page's blocks one after the other, but for those that need a peer; the names there are then."""
    for block in blocks(page, "python"):
        imported = {name.split(".")[0] for name in re.findall(r"^(?:import|from) ([\w.]+)", block, re.MULTILINE)}
        if not imported & PEERS:
            exec(compile(block, page, "exec"), names)
    return names


@pytest.mark.long
@pytest.mark.gate
@pytest.mark.optax
def test_the_example_composes(demo_directory):
    """In a process of its own, as a user runs it."""
    (example,) = [block for block in blocks("README.md", "python") if block.startswith("# compose\n")]
    assert len(example.splitlines()) <= 30
    env = AS_USERS | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", example], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    metrics, held_out, rewards = done.stdout.splitlines()
    assert np.isfinite(ast.literal_eval(metrics)["loss"])
    assert float(held_out) > 0.9, "nothing was learned"

    saved = demo_directory / "reward-model"
    question = {"role": "user", "content": "Name a fruit, please."}
    answers = [{"role": "assistant", "content": f"How about a {thing}?"} for thing in ("papaya", "wrench")]
    model, tokenizer = rm.load_reward_model(saved), rm.load_tokenizer(saved)
    again = rm.score(model, tokenizer, [{"messages": [question, answer]} for answer in answers])
    np.testing.assert_allclose(again, np.array(rewards.strip("[]").split(), float), rtol=1e-3)


@pytest.mark.long
@pytest.mark.gate
@pytest.mark.optax
@pytest.mark.parametrize("demo_directory", [600], indirect=True)
def test_the_tour_and_what_other_pages_add_to_it_run(demo_directory, capsys):
    """Every block of every page but the README, those of other pages with the names that the tour has left."""
    names = run("docs/tour.md", {})
    printed = capsys.readouterr().out
    assert "540 540 {}" in printed, "rows read, kept and dropped"
    assert names["found"]["n"] == 60
    saved, trained = (rm.score(model, names["tokenizer"], ["x y"]) for model in (names["again"], names["state"].model))
    np.testing.assert_array_equal(saved, trained)

    alone = ("README.md", "docs/tour.md", "docs/compose.md")
    others = [page for page in PAGES if page not in alone and blocks(page, "python")]
    assert {"docs/data.md", "docs/evaluate.md", "docs/score_and_serve.md", "docs/choose.md"} <= set(others)
    left = {page: run(page, dict(names)) for page in others}
    assert left["docs/data.md"]["table"]["kept"] == 1
    assert left["docs/choose.md"]["state"].model.shape == (128,)
    assert int(left["docs/devices.md"]["state"].step) == 2
    sharded = left["docs/devices.md"]["state"].model.blocks.q_proj.weight.sharding
    assert sharded.mesh.shape["fsdp"] == jax.device_count() == 8
    assert (demo_directory / "own-loss/model/model.safetensors").is_file()
    lines = (demo_directory / "own-loss/metrics.jsonl").read_text().splitlines()
    assert all(0 <= json.loads(line)["within"] <= 1 for line in lines), "the metric of one's own"


@pytest.mark.long
@pytest.mark.optax
@pytest.mark.parametrize("demo_directory", [600], indirect=True)
def test_the_compositions_of_the_page_run_after_the_tour(demo_directory):
    """What their values should be is in test_compose.py."""
    names = run("docs/compose.md", run("docs/tour.md", {}))
    assert names["hessian"].shape == (128, 128)
    assert names["history"]["loss"].shape == (3,)
    assert names["spread"].shape == names["batch"].ends.shape
    np.testing.assert_allclose(names["hessian"], names["hessian"].T, atol=1e-6)


@pytest.mark.parametrize("page", [page for page in PRESENT if blocks(page, "python")])
def test_code_is_code_and_its_names_exist(page):
    for block in blocks(page, "python"):
        ast.parse(block)
        for name in re.findall(r"\brm\.(\w+)", block):
            assert hasattr(rm, name) or importlib.util.find_spec(f"rm.{name}"), name


def test_the_rows_shown_are_read(loaded):
    model, tokenizer = loaded
    (pairs,) = ([json.loads(line) for line in block.splitlines()] for block in blocks("docs/index.md", "json"))
    (inputs,) = (
        [json.loads(line) for line in block.splitlines()] for block in blocks("docs/score_and_serve.md", "json")
    )
    assert len(pairs) == len(inputs) == 3
    _, table = rm.tokenize_comparisons(pairs, tokenizer, model.config)
    assert table["kept"] == 3
    assert np.isfinite(rm.score(model, tokenizer, inputs)).all()


# What the pages name.


def command_lines(text: str) -> list[str]:
    """Commands of `rm` in code, with lines that go on joined."""
    return re.findall(r"python -m rm (\w+[^`\n]*)", text.replace("\\\n", " "))


@pytest.mark.parametrize("page", [page for page in PRESENT if page != THEIRS])
def test_flags_exist(page):
    text = PAGES[page].replace("\\\n", " ")
    for name, arguments in re.findall(r"python benchmarks/([a-z]\w*)\.py([^`\n]*)", text):
        taken = set(re.findall(r"add_argument\(\s*\"(--[a-z-]+)\"", (ROOT / f"benchmarks/{name}.py").read_text()))
        assert set(re.findall(r"--[a-z-]+", arguments)) <= taken, name
    for line in command_lines(text):
        command, *_ = line.split()
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", line)) <= flags(command), line
    known = set().union(*(flags(command) for command in COMMANDS))
    other = r"python (?:benchmarks/|-m pip |-m sglang)[^`\n]*|vllm serve [^`\n]*|mkdocs [^`\n]*|git [^`\n]*"
    own = re.sub(other, "", text) if page != "CONTRIBUTING.md" else ""
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", own)) <= known


@pytest.mark.parametrize("page", [page for page in PRESENT if page != THEIRS])
def test_commands_are_understood(page, tmp_path, monkeypatch):
    """A flag's value, too, is one that the command takes, and so is what stands in a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "run.toml").write_text("".join(blocks(page, "toml")))
    for block in blocks(page, "bash"):
        for line in command_lines(block):
            if "…" not in line:
                command, *_ = words = shlex.split(line)
                assert isinstance(_parse(with_config(words, COMMANDS)[0]), COMMANDS[command]), line


def test_every_command_is_shown():
    assert {line.split()[0] for text in PRESENT.values() for line in command_lines(text)} == set(COMMANDS)


@pytest.mark.parametrize("page", PRESENT)
def test_public_names_exist(page):
    """`rm.name` and `rm.folder.name`, in code and in prose."""
    for dotted in set(re.findall(r"\brm\.([a-z_]\w*(?:\.\w+)*)", PRESENT[page])) - {"json", "plans"}:
        if dotted.split(".")[-1] in ("py", "json", "md"):
            continue
        first, *rest = dotted.split(".")
        found = getattr(rm, first, None) or importlib.import_module(f"rm.{first}")
        for number, name in enumerate(rest, 1):
            if not hasattr(found, name):
                importlib.import_module(".".join(["rm", first, *rest[:number]]))
            found = getattr(found, name)


def test_fields_and_extras_exist():
    assert [name for name in FIELDS if f"`{name}`" not in PAGES["docs/train.md"]] == []
    extras = {extra for text in PRESENT.values() for extra in re.findall(r"'\.\[(\w+)\]'", text)}
    assert {"test", "docs", "serve", "dev"} <= extras
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert [extra for extra in extras if not re.search(rf"^{extra} = \[", project, flags=re.MULTILINE)] == []


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, and of the objects of a page of the reference."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    slugs = {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}
    return slugs | set(re.findall(r"^::: (rm\.[\w.]+)$", text, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    path = ROOT / page
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), link
        if anchor:
            assert anchor in anchors(found.read_text(encoding="utf-8")), link


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150
    assert len(re.findall(r"^- ", README, re.MULTILINE)) <= 8
    (test_command,) = re.findall(r"^.*-m pytest.*$", README, re.MULTILINE)
    assert "[test]" in test_command, ".ci/run takes it from here"


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [rm.__version__]
    assert f"version = {{{rm.__version__}}}" in README


# The reference.


def shown() -> list[str]:
    """The objects that the reference shows."""
    return [name for text in REFERENCE.values() for name in re.findall(r"^::: rm\.([\w.]+)$", text, re.MULTILINE)]


def test_every_public_name_is_in_the_reference():
    """The names of `rm` by themselves, those that a folder has besides under its name; and none of either twice."""
    rooms = {
        path.parent.name: importlib.import_module(f"rm.{path.parent.name}") for path in ROOT.glob("rm/*/__init__.py")
    }
    inner = {f"{room}.{name}" for room, module in rooms.items() for name in getattr(module, "__all__", ())}
    inner = {name for name in inner if name.split(".")[1] not in rm.__all__}
    names = shown()
    assert (set(rm.__all__) | inner) - set(names) == {"__version__"}
    assert len(names) == len(set(names))
    index = set(re.findall(r"`rm\.(\w+)`", REFERENCE["docs/reference/index.md"]))
    assert {name for name in rm.__all__ if not name.endswith("Error")} <= index


def test_every_object_of_the_reference_exists():
    for name in shown():
        room, _, rest = name.rpartition(".")
        assert hasattr(importlib.import_module(f"rm.{room}" if room else "rm"), rest), name


def test_formulas_are_typeset():
    """TeX of hand-checked formulas, and of those of the docstrings: braces are closed, and none is left over."""
    spec = importlib.util.spec_from_file_location("formulas", ROOT / "docs/_site/formulas.py")
    assert spec is not None
    assert spec.loader is not None
    formulas = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(formulas)
    assert formulas.tex("-log σ(chosen - b_i²)") == r"-\log \sigma(\text{chosen} - b_{i}^2)"
    assert formulas.tex("mean_reward ≥ 0") == r"\text{mean\_reward} \ge 0"
    assert formulas.tex("√(p(1 - p)/n)") == r"\sqrt{p(1 - p)/n}"
    example = formulas.as_markdown("One line.\n\n>>> f(1,\n...   2)\n3\n\nThe end, `σ(x)`.")
    assert formulas.typeset("`σ(ж)`") == "`σ(ж)`", "not known"
    assert example == "One line.\n\n```pycon\n>>> f(1,\n...   2)\n3\n```\n\nThe end, $\\sigma(x)$."
    found = 0
    for path in ROOT.glob("rm/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = formulas.as_markdown(ast.get_docstring(node) or "")
                for formula in re.findall(r"\$([^$\n]+)\$", text):
                    found += 1
                    assert set(formula) & set("⟦⟧√") == set(), (path, formula)
                    assert formula.count("{") == formula.count("}"), (path, formula)
    assert found > 10


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
        main([command, "--help-all"])
    assert stop.value.code == 0
    printed = one_line(capsys.readouterr().out)
    texts = documented(command)
    assert list(texts) == [field.name for field in dataclasses.fields(COMMANDS[command])]
    for name, text in texts.items():
        assert f"--{name.replace('_', '-')}" in printed
        assert one_line(text) in printed, name
        assert text.endswith("."), name
