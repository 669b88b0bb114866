"""wandb 0.31.0, offline: what lies on the disk of a process that logs once a second and is killed.

By default the file is written every 15 seconds; with `x_transaction_log_flush_interval=1.0` every second. In both, the
last step is missing: wandb holds it back until the next one begins. No network is needed.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

LOGS = """
import os, signal, sys, time, wandb
settings = wandb.Settings(console="off", silent=True, **eval(sys.argv[3]))
run = wandb.init(project="project", dir=sys.argv[1], mode="offline", settings=settings)
for step in range(int(sys.argv[2])):
    run.log({"loss": step + 0.0625}, step=step)
    time.sleep(1)
time.sleep(2)
os.killpg(0, signal.SIGKILL)
"""


def steps_on_disk(seconds: int, settings: dict) -> tuple[int, list[int]]:
    """Bytes of the file, and the steps whose values are in it, after a kill."""
    with tempfile.TemporaryDirectory() as directory:
        words = [sys.executable, "-c", LOGS, directory, str(seconds), repr(settings)]
        done = subprocess.run(words, start_new_session=True, capture_output=True)
        if done.returncode != -signal.SIGKILL:
            sys.exit(done.stderr.decode())
        (file,) = Path(directory).glob("wandb/offline-run-*/run-*.wandb")
        content = file.read_bytes()
    return len(content), [step for step in range(seconds) if f"{step + 0.0625}".encode() in content]


if __name__ == "__main__":
    os.environ.pop("WANDB_MODE", None)
    for seconds, settings in ((5, {}), (5, {"x_transaction_log_flush_interval": 1.0}), (20, {})):
        size, steps = steps_on_disk(seconds, settings)
        print(f"{settings or 'default'}, killed after {seconds} steps: {size} bytes, steps {steps}")
