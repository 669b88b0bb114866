"""Host memory of loading a model onto a mesh of 8 devices, in one process and in each of two.

python benchmarks/load_mesh.py [--scratch DIRECTORY] [--bytes 2000000000]

Every process must hold little more than what its own devices keep: its parts of the weights, and 1 GB. How fast the
slowest is, is told by `cat` of the same files, each time dropped from the page cache before (see load.py).
"""

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from load import BYTES, check_memory, drop, peak, touch

DEVICES = 8
SPARE = 1e9  # bytes that a process may hold besides its parts


def load(directory: Path, address: str, processes: int, number: int) -> None:
    """Loads the parts of this process's devices and prints what that took."""
    import jax
    import safetensors.numpy  # noqa: F401 (its import is not the loading)

    import rm

    if processes > 1:
        rm.connect(address, processes, number)
    mesh = rm.make_mesh(fsdp=DEVICES)
    jax.block_until_ready(jax.numpy.zeros(1))
    before, start = peak(), time.perf_counter()
    model = jax.block_until_ready(rm.load_reward_model(directory, mesh=mesh))
    seconds, after = time.perf_counter() - start, peak()
    own = sum(part.data.nbytes for leaf in jax.tree.leaves(model) for part in leaf.addressable_shards)
    print(json.dumps({"seconds": seconds, "peak_bytes": after - before, "own_bytes": own}))


def start(directory: Path, processes: int) -> list[dict[str, float]]:
    """The figures of each of so many processes, which share the devices."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={DEVICES // processes}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, "--load", str(directory), "--address", address, "--processes", str(processes)]
    running = [
        subprocess.Popen([*command, "--number", str(number)], env=environment, stdout=subprocess.PIPE, text=True)
        for number in range(processes)
    ]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit("a process failed; see above")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def cat_seconds(files: list[Path]) -> float:
    """How long `cat` reads the files that are not in the page cache."""
    touch(drop(files))
    begin = time.perf_counter()
    subprocess.run(["cat", *files], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where the model is written")
    parser.add_argument("--bytes", type=int, default=BYTES, help="of the model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)  # one process, as the next three
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        load(args.load, args.address, args.processes, args.number)
        return
    check_memory(args.bytes)
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        directory = Path(folder) / "model"
        writer = f"import load, pathlib; load.write(pathlib.Path({str(directory)!r}), 'float32', True, {args.bytes})"
        subprocess.run([sys.executable, "-c", writer], check=True, cwd=Path(__file__).parent)  # this one stays small
        print(
            "| processes | process | its parts, GB | peak of loading, GB | allowed, GB | seconds | `cat` | rate/cat |"
        )
        print("|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
        files = sorted(directory.glob("*.safetensors"))
        for processes, _ in itertools.product((1, 2), range(args.rounds)):
            reading = cat_seconds(files)
            touch(2 * drop(files))
            for number, figures in enumerate(start(directory, processes)):
                own, most, seconds = figures["own_bytes"], figures["peak_bytes"], figures["seconds"]
                row = f"{own / 1e9:.2f} | {most / 1e9:.2f} | {(own + SPARE) / 1e9:.2f} | {seconds:.1f}"
                print(f"| {processes} | {number} | {row} | {reading:.1f} | {reading / seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
