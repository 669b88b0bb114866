"""Strict numerics for every test, eight CPU devices, and small models and data made here."""

import atexit
import gc
import os
import shutil
import sys
import tempfile
import time

from .xla import FEW_OPTIMIZATIONS

# eight devices on two busy cores may have to wait for one another for more than the 40 s after which XLA ends a process
os.environ.setdefault(
    "XLA_FLAGS",
    f"--xla_force_host_platform_device_count=8 {FEW_OPTIMIZATIONS}"
    " --xla_cpu_collective_call_terminate_timeout_seconds=300",
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # hundreds of processes compile the same

# nothing is left in, or read from, the caches of the person who runs the tests; all workers share what one compiles
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["HF_DATASETS_CACHE"] = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="rm-tests-")
    atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)

import json
from pathlib import Path

import jax
import pytest

import rm
from rm.saving.examples import write_llama

jax.config.update("jax_numpy_rank_promotion", "raise")

# for processes that compute for long: XLA optimizes as it does for users, and there is one device
AS_USERS = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}

SHARED = Path(__file__).parents[2] / "shared"


def shared(path: str) -> Path:
    """A file of the shared folder; the test skips where the folder is not there."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared (real models, tokenizers and data), which is not here")
    return SHARED / path


@pytest.fixture(autouse=True)
def strict_dtypes(request):
    """No silent promotion, except where optax takes part: its bias correction mixes integers and floats."""
    relaxed = request.node.get_closest_marker("optax") or isinstance(request.node, pytest.DoctestItem)
    with jax.numpy_dtype_promotion("standard" if relaxed else "strict"):
        yield


@pytest.fixture
def unraised():
    """For tests that restore what is damaged: Orbax gives up at the first error, and asyncio complains of the rest."""
    seen = []
    before, sys.unraisablehook = sys.unraisablehook, lambda _: seen.append(True)
    yield
    gc.collect()  # here, and not in the test that comes next
    if seen:
        time.sleep(1)  # for the reads that are still under way
    sys.unraisablehook = before


@pytest.fixture(scope="session")
def llama_directory(tmp_path_factory) -> Path:
    """A small causal Llama with a tokenizer and a chat template, as `transformers` would save it."""
    directory = tmp_path_factory.mktemp("llama")
    texts = [f"The {a} {b} of {c}." for a in ("red", "old", "big") for b in ("house", "tree") for c in ("rome", "oz")]
    write_llama(directory, texts)
    return directory


@pytest.fixture(scope="session")
def pairs() -> list[dict]:
    """Twelve text pairs; most share a prompt, one has none, one response begins like the other."""
    rows = [
        {"chosen": f"Q: what is {i} + {i}? A: {2 * i}", "rejected": f"Q: what is {i} + {i}? A: {2 * i + 1}, I think"}
        for i in range(10)
    ]
    rows += [{"chosen": "yes", "rejected": "no way"}, {"chosen": "the old tree", "rejected": "the old tree of rome"}]
    return rows


@pytest.fixture
def pairs_file(tmp_path, pairs) -> Path:
    """The pairs as a JSON-lines file."""
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def loaded(llama_directory) -> tuple[rm.RewardModel, rm.Tokenizer]:
    """The small Llama with a new head, and its tokenizer."""
    model = rm.load_reward_model(llama_directory, key=jax.random.key(1), head_std=0.5)
    return rm.match_tokenizer(model, rm.load_tokenizer(llama_directory))
