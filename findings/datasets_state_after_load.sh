#!/usr/bin/env bash
# datasets 5.2.0: a state that `IterableDataset.load_state_dict` was given is not what `state_dict` returns, until the first
# row has been read. Before that it returns the state of a stream at its begin. A run that is resumed and saves again before
# its first batch, because it evaluates first or is stopped at once, starts the epoch anew at the next resume.
#
# Seen on 2026-11-29, ten rows, stopped after 6: resumed, saved at once and resumed again, the stream begins with row 0;
# saved after one row, with row 7.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'datasets==5.2.0' 'pandas<4'
cd "$folder"
HF_HOME="$folder/cache" env/bin/python - <<'PYTHON'
import datasets


def stream(state=None):
    rows = datasets.Dataset.from_dict({"id": list(range(10))}).to_iterable_dataset()
    if state:
        rows.load_state_dict(state)
    return rows


def state_after(rows, count):
    iterator = iter(rows)
    for _ in range(count):
        next(iterator)
    return rows.state_dict()


stopped = state_after(stream(), 6)
at_once, after_one = (next(iter(stream(state_after(stream(stopped), count))))["id"] for count in (0, 1))
print(at_once, after_one)
assert after_one == 7
assert at_once == 0, "a loaded state can be saved at once: the finding is out of date"
PYTHON
