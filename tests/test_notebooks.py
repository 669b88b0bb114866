"""The notebooks run from top to bottom, teach what they say, and are committed without outputs."""

import ast
import functools
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from .conftest import AS_USERS, shared

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@functools.cache
def executed(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    environment = AS_USERS | {"PYTHONPATH": str(ROOT)}
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
