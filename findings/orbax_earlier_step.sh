#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: after a return to an earlier step, `CheckpointManager.save` saves nothing until the run has passed
# the last step that lies in the directory. It returns False, without a warning, also for intervals that are due. A run with
# checkpoints 10 and 20 that goes back to 10 and is killed at 18 has lost all it did, and its next start goes on from step 20
# of the run that was given up. `force=True` saves, but a new process still takes 20 for the latest.
#
# Seen on 2026-11-29: save(12) False, save(18) False, latest step 20; with force 12 is saved, the latest in a new manager is 20.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'orbax-checkpoint==0.12.8' 'jax==0.10.2'
cd "$folder"
JAX_PLATFORMS=cpu env/bin/python - <<'PYTHON'
import pathlib

import numpy as np
import orbax.checkpoint as ocp

place = pathlib.Path("run").absolute()


def manager():
    return ocp.CheckpointManager(place, options=ocp.CheckpointManagerOptions(enable_async_checkpointing=False))


def save(checkpoints, step, **options):
    return checkpoints.save(step, args=ocp.args.StandardSave({"weight": np.full(2, float(step))}), **options)


first = manager()
assert save(first, 10) and save(first, 20)
second = manager()
second.restore(10, args=ocp.args.StandardRestore({"weight": np.zeros(2)}))
saved = [save(second, 12), save(second, 18)]
latest = manager().latest_step()
forced = save(second, 12, force=True), sorted(manager().all_steps()), manager().latest_step()
print(saved, latest, forced)
assert saved == [False, False] and latest == 20, "earlier steps are saved: the finding is out of date"
assert forced == (True, [10, 12, 20], 20), "force does something else: the finding is out of date"
PYTHON
