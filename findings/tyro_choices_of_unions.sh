#!/usr/bin/env bash
# tyro 1.0.17: a flag of type `Literal["auto"] | Literal["small", "large"]` is one list of choices, but its order changes
# from process to process with the seed of Python's string hashes, in the error for a wrong choice. The same choices in
# a single `Literal` keep their order. Whatever compares or documents such messages has to write one `Literal`.
#
# Seen on 2026-11-29: of eight seeds, more than one order for the union and one for the single list.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'tyro==1.0.17'
cat >"$folder/orders.py" <<'PYTHON'
import os
import re
import subprocess
import sys

program = """
from typing import Literal
import tyro
kind = KIND
def main(size: kind = "auto"): ...
tyro.cli(main, args=["--size", "tiny"])
"""


def orders(kind):
    found = set()
    for seed in range(8):
        code = program.replace("KIND", kind)
        env = os.environ | {"PYTHONHASHSEED": str(seed), "COLUMNS": "200"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
        found.add(tuple(re.findall(r"'(auto|small|large)'", done.stdout + done.stderr)))
    return found


union, single = orders('Literal["auto"] | Literal["small", "large"]'), orders('Literal["auto", "small", "large"]')
print("union:", sorted(union))
print("single:", sorted(single))
assert single == {("auto", "small", "large")}
assert len(union) > 1, "the order no longer changes: the finding is out of date"
PYTHON
"$folder/env/bin/python" "$folder/orders.py"
