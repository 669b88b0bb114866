"""What is uploaded is what is here: the archives hold every file, and the wheel runs where there is nothing else."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import rm

from .conftest import AS_USERS

ROOT = Path(__file__).parents[1]
SKIPPED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
pytestmark = pytest.mark.long


def run(*command: str, **options) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> dict[str, Path]:
    """The source archive, and the wheel that is built from it; nothing is fetched for it."""
    pytest.importorskip("build", reason="needs `build` (extra `dev`)")
    source, output = tmp_path_factory.mktemp("source") / "checkout", tmp_path_factory.mktemp("archives")
    shutil.copytree(ROOT, source, ignore=SKIPPED)
    run("-m", "build", "--no-isolation", "--outdir", str(output), str(source), cwd=output)
    return {path.suffix: path for path in output.iterdir()}


def files_of(folder: str) -> set[str]:
    """Paths of the files in a folder of the checkout, without what running it leaves there."""
    found = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in found if not path.name.startswith(".")}


def test_the_archives_hold_every_file(archives):
    """A template, the marker for type checkers or a module would be missing where the package is installed."""
    with zipfile.ZipFile(archives[".whl"]) as wheel:
        held = {name for name in wheel.namelist() if name.startswith("rm/")}
        assert held == files_of("rm")
        assert "rm/py.typed" in held
        assert all(wheel.read(name) == (ROOT / name).read_bytes() for name in held)
    with tarfile.open(archives[".gz"]) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert names >= files_of("rm") | files_of("tests") | {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"}


@pytest.mark.gate
def test_the_wheel_trains_from_an_empty_folder(archives, llama_directory, pairs_file, tmp_path):
    """Whoever installs it has no checkout beside it."""
    target, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    run("-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(target), str(archives[".whl"]))
    options = {"cwd": empty, "env": AS_USERS | {"PYTHONPATH": str(target)}}
    where = run("-c", "import rm; print(rm.__file__, rm.__version__)", **options).split()
    assert where == [str(target / "rm/__init__.py"), rm.__version__]
    files = ["--model", str(llama_directory), "--dataset", str(pairs_file), "--output", "run"]
    run("-m", "rm", "train", *files, "--max-steps", "2", "--batch-size", "4", **options)
    assert (empty / "run/model/model.safetensors").is_file()
