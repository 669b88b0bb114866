#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: one evaluation that gives NaN makes `CheckpointManager` delete the best checkpoint. Checkpoints are
# sorted by their metric, NaN is neither less nor more than a number, and so the order, and with it what `max_to_keep` leaves
# and what `best_step` names, depends on where the NaN came. It can be the very checkpoint with NaN. `best_fn` has to map NaN
# to infinity by itself.
#
# Seen on 2026-11-29, losses of steps 0 to 3, best_mode "min", two kept: 0.5, 0.65, 0.6, 0.7 keeps [0, 2] and the best is 0;
# 0.5, NaN, 0.6, 0.7 keeps [2, 3] and the best is 2; after 0.5, NaN the best is 1, the one with NaN.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'orbax-checkpoint==0.12.8' 'jax==0.10.2'
cd "$folder"
JAX_PLATFORMS=cpu env/bin/python - <<'PYTHON'
import math
import os
import tempfile

import numpy as np
import orbax.checkpoint as ocp


def kept(losses):
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, best_fn=lambda metrics: metrics["loss"], best_mode="min", enable_async_checkpointing=False
    )
    checkpoints = ocp.CheckpointManager(tempfile.mkdtemp(dir=os.getcwd()), options=options)
    for step, loss in enumerate(losses):
        checkpoints.save(step, metrics={"loss": loss}, args=ocp.args.StandardSave({"weight": np.ones(2)}))
    return sorted(checkpoints.all_steps()), checkpoints.best_step()


found = [kept(losses) for losses in ([0.5, 0.65, 0.6, 0.7], [0.5, math.nan, 0.6, 0.7], [0.5, math.nan])]
print(found)
assert found[0] == ([0, 2], 0)
assert found[1] == ([2, 3], 2), "the best checkpoint is kept: the finding is out of date"
assert found[2] == ([0, 1], 1), "NaN is not the best: the finding is out of date"
PYTHON
