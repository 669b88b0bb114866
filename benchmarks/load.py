"""How fast weights load against `cat` of the same files, and the host memory that takes.

python benchmarks/load.py [--rounds 5] [--scratch DIRECTORY] [--output FILE.json]

Writes models of about 2 GB and drops their files from the page cache before each reading of them. The scratch
directory must be on the disk to measure; in memory (tmpfs) nothing can be dropped.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BYTES = 2_000_000_000
SHARD_BYTES = 500_000_000
# The type on disk, the type of the parameters, and whether there are shards.
CASES = [
    ("float32", "float32", False),
    ("float32", "float32", True),
    ("bfloat16", "float32", False),
    ("bfloat16", "float32", True),
    ("bfloat16", "bfloat16", False),
]


def write(directory: Path, dtype: str, sharded: bool, size: int) -> None:
    """A reward model with random weights in files of about `size` bytes."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import rm

    vocabulary, hidden, ffn = 32000, 2048, 5632
    layer = 4 * hidden**2 + 3 * hidden * ffn
    config = rm.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=max(2, round((size / jnp.dtype(dtype).itemsize - vocabulary * hidden) / layer)),
        num_attention_heads=16,
        pad_token_id=0,
    )
    template = jax.eval_shape(lambda: rm.init_reward_model(config, key=jax.random.key(0), dtype=jnp.dtype(dtype)))
    noise = np.random.default_rng(0).standard_normal(2**24, np.float32)  # repeated: drawing more takes a minute
    model = jax.tree.map(lambda leaf: jnp.asarray(np.resize(noise, leaf.shape), leaf.dtype), template)
    shard_bytes = SHARD_BYTES if sharded else 10 * size
    rm.save_reward_model(directory, model, _tokenizer(directory), max_shard_bytes=shard_bytes)


def _tokenizer(directory: Path):
    from tokenizers import Tokenizer, models

    import rm

    draft = directory.with_name("tokenizer")
    draft.mkdir(exist_ok=True)
    Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>")).save(str(draft / "tokenizer.json"))
    (draft / "tokenizer_config.json").write_text('{"pad_token": "<pad>", "eos_token": "</s>"}')
    return rm.load_tokenizer(draft)


def load(directory: Path, dtype: str) -> None:
    """Loads the model and prints seconds, the memory that took and the weights' own, both in bytes."""
    import jax
    import safetensors.numpy  # noqa: F401 (its import is not the loading)

    import rm

    jax.block_until_ready(jax.numpy.zeros(1))
    touch(3 * sum(file.stat().st_size for file in directory.iterdir()))  # the page cache and float32 of bfloat16
    before, start = peak(), time.perf_counter()
    model = jax.block_until_ready(rm.load_reward_model(directory, dtype=jax.numpy.dtype(dtype)))
    seconds, after = time.perf_counter() - start, peak()
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
    print(json.dumps({"load_seconds": seconds, "peak_bytes": after - before, "weights_bytes": weights}))


def peak() -> int:
    """The most memory that this process has held, in bytes; it begins at what its parent held when it forked."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def touch(size: int) -> None:
    """Gets `size` bytes of memory from the host of a virtual machine, which takes back what is free for some seconds.

    The first touch of such memory is many times slower than a disk, which is no property of `cat` or of the loading.
    """
    subprocess.run([sys.executable, "-c", f"import numpy; numpy.ones({size}, numpy.uint8)"], check=True)


def drop(files: list[Path]) -> int:
    """Drops files from the page cache; returns their bytes."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return sum(file.stat().st_size for file in files)


def run_round(directory: Path, dtype: str) -> dict[str, float]:
    """One `cat` and one loading, each of files that are not in the page cache."""
    files = sorted(directory.glob("*.safetensors"))
    touch(drop(files))
    start = time.perf_counter()
    subprocess.run(["cat", *files], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    size = drop(files)
    arguments = ["--load", directory, "--dtype", dtype]
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE)
    loaded = json.loads(done.stdout)
    return loaded | {"cat_seconds": seconds, "file_bytes": size, "ratio": seconds / loaded["load_seconds"]}


def check_memory(size: int) -> None:
    """Ends the benchmark where the page cache, the weights and their copy in float32 would crowd out other programs."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = 1024 * int(lines["MemAvailable"].split()[0])
    if available < 4 * size:
        sys.exit(
            f"models of {size / 1e9:.1f} GB need {4 * size / 1e9:.1f} GB of memory, {available / 1e9:.1f} are free"
        )


def run_case(scratch: Path, disk: str, dtype: str, sharded: bool, rounds: int, size: int) -> dict:
    check_memory(size)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        directory = Path(folder) / "model"
        arguments = ["--write", directory, "--dtype", disk, "--bytes", str(size), *["--sharded"] * sharded]
        subprocess.run([sys.executable, __file__, *arguments], check=True)  # so that this process stays small
        files = len(list(directory.glob("*.safetensors")))
        figures = [run_round(directory, dtype) for _ in range(rounds)]
    return {"disk": disk, "parameters": dtype, "files": files, "rounds": figures}


def row(case: dict) -> str:
    rounds = case["rounds"]
    cat, read = (
        statistics.median(figures["file_bytes"] / figures[f"{side}_seconds"] / 1e9 for figures in rounds)
        for side in ("cat", "load")
    )
    ratios = [figures["ratio"] for figures in rounds]
    peaks = [figures["peak_bytes"] / figures["weights_bytes"] for figures in rounds]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
    sizes = f"{rounds[0]['file_bytes'] / 1e9:.2f} | {rounds[0]['weights_bytes'] / 1e9:.2f}"
    names = f"{case['disk']} | {case['parameters']} | {case['files']} | {sizes}"
    return f"| {names} | {cat:.2f} | {read:.2f} | {spread} | {max(peaks):.2f} |"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bytes", type=int, default=BYTES, help="of the files of a model, about")
    parser.add_argument("--scratch", type=Path, help="where the models are written; a temporary folder by default")
    parser.add_argument("--output", type=Path, help="a JSON file for every round's figures")
    for flag in ("--write", "--load"):  # what the processes of their own do
        parser.add_argument(flag, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32", help=argparse.SUPPRESS)
    parser.add_argument("--sharded", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.write:
        return write(args.write, args.dtype, args.sharded, args.bytes)
    if args.load:
        return load(args.load, args.dtype)
    print(
        "| on disk | parameters | files | GB on disk | GB in memory | cat GB/s | load GB/s | load/cat | peak/weights |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    cases = []
    for case in CASES:
        cases.append(run_case(args.scratch, *case, args.rounds, args.bytes))
        print(row(cases[-1]), flush=True)
    if args.output:
        args.output.write_text(json.dumps(cases, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
