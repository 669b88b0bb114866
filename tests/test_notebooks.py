"""The notebooks run from top to bottom, teach what they say, and are committed without outputs."""

import ast
import functools
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from .conftest import AS_USERS, shared

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@functools.cache
def executed(path: Path, data: str = "") -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    environment = AS_USERS | {"PYTHONPATH": str(ROOT), "RM_DATA": data}
    if path.stem == "08_adapters":  # on a real model and real preferences
        environment |= {"RM_MODEL": str(shared("models/stories260K")), "RM_COMPARISONS": "240", "RM_RATE": "1e-4"}
        environment |= {"RM_DATA": str(shared("data/ukp-convarg1/pairs.jsonl.gz"))}
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(env=environment)
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if cell.outputs or cell.execution_count is not None] == []


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path):
    outputs = [output for cell in executed(path).cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"] == []


@pytest.mark.long
def test_the_first_notebook_learns():
    cells = {cell.id: cell for cell in executed(ROOT / "notebooks/01_train_a_reward_model.ipynb").cells}
    (held_out,) = cells["evaluate"].outputs
    assert ast.literal_eval(held_out.data["text/plain"])["accuracy"] > 0.95
    for name in ("picture", "curve", "histogram"):
        assert [output for output in cells[name].outputs if "image/png" in output.get("data", {})], name


def printed(notebook: nbformat.NotebookNode, cell: str) -> str:
    """What a cell printed."""
    (found,) = (each for each in notebook.cells if each.id == cell)
    return "".join(output.text for output in found.outputs if output.output_type == "stream")


@pytest.mark.long
def test_real_preferences_are_read_by_the_notebook_on_evaluation():
    """A newcomer would name real data and get the generated ones, or an error."""
    path = ROOT / "notebooks/04_evaluate_and_trust.ipynb"
    data = str(shared("data/ukp-convarg1/pairs.jsonl.gz"))
    first, *findings = printed(executed(path, data), "real").splitlines()
    assert first.startswith(f"{data}: 3000 read, 3000 kept, accuracy 0.7")
    assert findings[0].startswith("Length bias: it rewards longer responses")


@pytest.mark.long
def test_the_notebook_from_easydel_ends_in_the_same_rewards_as_its_command():
    """The two forms of one run would be two runs."""
    notebook = executed(ROOT / "notebooks/09_from_easydel.ipynb")
    accuracies = re.findall(r"accuracy (\d\.\d+)", printed(notebook, "evaluate"))
    assert len(accuracies) == 2
    assert min(map(float, accuracies)) > 0.95
    assert float(printed(notebook, "command").split()[-1]) < 0.05


@pytest.mark.long
def test_the_notebook_on_uses_gives_what_its_text_says():
    """The reward would not rise and the length with it, wrong labels would not be doubted, or pairs would be lost."""
    notebook = executed(ROOT / "notebooks/10_use_a_reward_model.ipynb")
    numbers = re.findall(r"(-?\d\.\d+) in the first ten updates, +(-?\d\.\d+)", printed(notebook, "grpo"))
    gains = [float(last) - float(first) for first, last in numbers]  # reward, grade, sentences that add nothing
    assert gains[0] > 1
    assert gains[1] > 0.5
    assert gains[2] > 0.5
    shares = [int(share) for share in re.findall(r"(\d+)% of them exchanged", printed(notebook, "doubt"))]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 50
    labelled, new, read = map(int, re.findall(r"\d+", printed(notebook, "pairs").splitlines()[0]))
    assert labelled + new == read
