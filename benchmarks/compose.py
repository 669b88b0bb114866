"""Compositions of rm with JAX, optax and Equinox on one device and on a mesh of four, beside independent references.

python benchmarks/compose.py [--only WORDS …] [--pythons PYTHON …]

Every cell shows the largest difference from the reference, relative to its largest value, or the line by which `rm`
refuses. With `--pythons`, the table has two columns for each interpreter, which may have another version of JAX. Exits
with 1 where a difference is beyond its bound or an error is not the one that is meant.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence

if __name__ == "__main__" and "--json" in sys.argv:  # flags of XLA are those of an interpreter's own version
    from cells import set_devices

    set_devices()

import composed_transforms
import composed_updates
import jax
import numpy as np
from compositions import COMPOSITIONS, Place

import rm

MESH = {"fsdp": 2, "tensor": 2}
__all__ = ["composed_transforms", "composed_updates"]  # which enter their compositions


def far(found: object, expected: object) -> float:
    """The largest difference of two trees, relative to the largest value of the second; NaN if there is one."""
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    ]
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    largest = np.max([np.abs(b).max(initial=0) for _, b in pairs])
    return float(np.max([np.abs(a - b).max(initial=0) for a, b in pairs]) / largest)


def run(name: str, on_mesh: bool) -> tuple[str, bool]:
    """The text of a cell, and whether it is good."""
    place = Place(rm.make_mesh(**MESH, devices=jax.devices()[:4]) if on_mesh else None)
    case = COMPOSITIONS[name]
    refused = case.refused_on_mesh if on_mesh else case.refused
    try:
        distance = far(*case.run(place))
    except Exception as error:  # what is not meant stands in its cell
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"
        meant = refused is not None and isinstance(error, rm.RmError | TypeError) and refused in line
        return f"refused: {line}" if meant else f"NOT MEANT: {line[:300]}", meant
    good = refused is None and distance <= case.within  # false for NaN
    return f"{distance:.0e}" if good else f"{distance:.0e} BEYOND {case.within:.0e}", good


def column(names: Sequence[str]) -> list[tuple[str, str, bool]]:
    """The two cells of every composition: `[(one device, mesh, whether both are good)]`."""
    cells = []
    for number, name in enumerate(names):
        (one, good), (mesh, also) = (run(name, on_mesh) for on_mesh in (False, True))
        cells.append((one, mesh, good and also))
        print(f"jax {jax.__version__}, {name}: {one} | {mesh}", file=sys.stderr, flush=True)
        if number % 8 == 7:
            jax.clear_caches()  # all programs would take more memory maps than Linux gives a process
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="compositions with one of these words in their names")
    parser.add_argument("--pythons", nargs="+", help="interpreters, by default this one")
    parser.add_argument("--json", action="store_true", help="print the cells of this interpreter alone")
    args = parser.parse_args()
    names = [name for name in COMPOSITIONS if any(words in name for words in args.only)]
    if args.json:
        rm.keep_compiled()
        print(json.dumps([jax.__version__, column(names)]))
        return
    columns = []
    for python in args.pythons or [sys.executable]:
        command = [python, __file__, "--json", "--only", *args.only]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=dict(os.environ))
        columns.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"| composition | {' | '.join(f'jax {version}, one device | on {MESH}' for version, _ in columns)} |")
    print(f"|---|{'---|---|' * len(columns)}")
    for number, name in enumerate(names):
        print(f"| {name} | {' | '.join(f'{cells[number][0]} | {cells[number][1]}' for _, cells in columns)} |")
    bad = [name for _, cells in columns for name, (*_, good) in zip(names, cells, strict=True) if not good]
    print(f"{len(names)} compositions: {', '.join(bad) or 'every cell is equal to its reference or refused as meant'}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
