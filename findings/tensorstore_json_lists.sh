#!/usr/bin/env bash
# tensorstore 0.1.86: every list of the JSON that a call returns stays in memory for ever, with what it holds, also when
# the caller has dropped it and the garbage collector has run. `Spec.to_json()` and `IndexDomain.to_json()` leave their
# lists behind, and `experimental_collect_matching_metrics()` leaves one for each metric. orbax-checkpoint 0.12.8 collects
# those metrics twice for each save: a process that saves ten small arrays grows by 24 lists and some 13 kB each time.
#
# Seen on 2026-11-29, lists that one call leaves behind: domain 2.0, spec 6.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q 'tensorstore==0.1.86'
"$folder/env/bin/python" - <<'PYTHON'
import gc

import tensorstore as ts


def lists():
    gc.collect()
    return sum(type(item) is list for item in gc.get_objects())


def left_by(call):
    call()
    before = lists()
    for _ in range(100):
        call()
    return (lists() - before) / 100


domain = ts.IndexDomain(shape=[2, 3])
array = {"shape": [2, 3], "chunks": [2, 3], "dtype": "<f4"}
spec = ts.Spec({"driver": "zarr", "kvstore": {"driver": "memory"}, "metadata": array})
found = {"domain": left_by(domain.to_json), "spec": left_by(spec.to_json)}
print(found)
assert found == {"domain": 2.0, "spec": 6.0}, "another number of lists stays: the finding is out of date"
PYTHON
