"""The scripts of benchmarks/ run as they stand, on toy sizes; those that other tests run are left out here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import AS_USERS, SHARED, shared

ROOT = Path(__file__).parents[1]
NEEDS_SHARED = ["breakdown", "precision", "compile", "serve", "peers", "before", "pack"]
TOYS = {
    "attention": ["--quick"],
    "breakdown": ["--rounds", "1"],
    "before": [str(ROOT), "--rounds", "1", "--updates", "1", "--texts", "8"],
    "compile": ["--rounds", "1"],
    "fuzz": ["--minutes", "0.05"],
    "gpu": ["--tiny"],
    "house": [],
    "load": ["--rounds", "1", "--bytes", "1000000"],
    "load_mesh": ["--rounds", "1", "--bytes", "1000000"],
    "long_inputs": ["--lengths", "64", "128", "--tiny"],
    "pack": ["--quick"],
    "peers": ["--systems", "rm-float32", "rm-lora-float32", "--rounds", "1", "--updates", "1"],
    "precision": ["--updates", "2", "--seeds", "1"],
    "scaling": ["--quick"],
    "serve": ["--texts", "20", "--clients", "2", "--least", "0"],  # so few texts say nothing of its speed
}


@pytest.mark.long
@pytest.mark.parametrize("name", TOYS)
def test_a_script_runs(name, tmp_path):
    """A script that no test runs would rot unseen."""
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", *TOYS[name]]
    if name in NEEDS_SHARED:
        shared("data")
        command += ["--shared", SHARED]
    env = AS_USERS | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
