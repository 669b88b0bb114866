#!/usr/bin/env bash
# wandb 0.31.0, offline: a run that logs one step a second and is killed after five has no step on the disk, because the file
# is written every 15 seconds. The setting `x_transaction_log_flush_interval` (not in 0.30) writes it every second; then all
# steps are there but the last, which wandb holds back until the next one begins. No network is needed.
#
# Seen on 2026-11-28: default [], with an interval of one second [0, 1, 2, 3].
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'wandb==0.31.0'
cd "$folder"
cat > log.py <<'PYTHON'
import json, os, signal, sys, time

import wandb

settings = wandb.Settings(console="off", silent=True, **json.loads(sys.argv[2]))
run = wandb.init(project="project", dir=sys.argv[1], mode="offline", settings=settings)
for step in range(5):
    run.log({"loss": step + 0.0625}, step=step)
    time.sleep(1)
time.sleep(2)
os.killpg(0, signal.SIGKILL)
PYTHON
env/bin/python - <<'PYTHON'
import pathlib, subprocess, sys

cases = (("default", "{}", []), ("second", '{"x_transaction_log_flush_interval": 1.0}', [0, 1, 2, 3]))
for name, settings, expected in cases:
    pathlib.Path(name).mkdir()
    subprocess.run([sys.executable, "log.py", name, settings], start_new_session=True, capture_output=True)
    (file,) = pathlib.Path(name).glob("wandb/offline-run-*/run-*.wandb")
    found = [step for step in range(5) if f"{step + 0.0625}".encode() in file.read_bytes()]
    print(name, found)
    assert found == expected, "another number of steps is kept: the finding is out of date"
PYTHON
