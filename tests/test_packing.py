"""Packing loses nothing, and the batches of any step are known without the steps before it."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rm
from rm.data.comparisons import TokenizedComparisons, flatten
from rm.data.packing import RowShape, fit_row_shape, pack

from .tiny import CONFIG

quick = settings(max_examples=60, deadline=None, database=None, derandomize=True)


@st.composite
def comparisons_of_any_length(draw) -> TokenizedComparisons:
    """1 to 12 comparisons of K responses; no token occurs twice, and a reward may be read at any of them."""
    K = draw(st.integers(1, 3))
    lengths = draw(
        st.lists(st.tuples(st.integers(0, 70), *[st.integers(1, 70)] * K), min_size=1, max_size=12).map(np.array)
    )
    offsets = np.concatenate([[0], lengths.ravel().cumsum()])
    sequence_lengths = lengths[:, :1] + lengths[:, 1:]
    fractions = draw(st.lists(st.floats(0, 1), min_size=lengths[:, 1:].size, max_size=lengths[:, 1:].size))
    return TokenizedComparisons(
        tokens=1 + np.arange(offsets[-1], dtype=np.int32),
        offsets=np.stack([offsets[k : k + lengths.size : K + 1] for k in range(K + 1)] + [offsets[K + 1 :: K + 1]], 1),
        ends=((sequence_lengths - 1) * np.array(fractions).reshape(-1, K)).round().astype(np.int32),
        keys=np.arange(len(lengths) * K).reshape(-1, K),
        margin=np.array(fractions[::K], np.float32) + 1,
    )


def as_read(comparisons: TokenizedComparisons, i: int) -> dict:
    """Comparison `i` as a reader wants it: every whole sequence, its positions, what is read, the margin."""
    bounds = comparisons.offsets[i].tolist()
    prefix = comparisons.tokens[bounds[0] : bounds[1]].tolist()
    own = [comparisons.tokens[a:b].tolist() for a, b in pairwise(bounds[1:])]
    sequences = [prefix + part for part in own]
    return {
        "sequences": sequences,
        "positions": [list(range(len(ids))) for ids in sequences],
        "read": [ids[end] for ids, end in zip(sequences, comparisons.ends[i], strict=True)],
        "margin": comparisons.margin[i],
    }


def unpack(batch: rm.PreferenceBatch) -> dict[int, dict]:
    """The comparisons of a micro-batch, by index; fails on any token, slot or margin that belongs to none."""
    out, used = {}, np.zeros(batch.tokens.shape, bool)
    bounds = np.cumsum([0, *batch.regions])
    for r, s in np.ndindex(batch.index.shape):
        at = np.flatnonzero(batch.segments[r] == s + 1)
        if batch.index[r, s] < 0:
            assert len(at) == 0
            assert batch.margin[r, s] == 0
            continue
        used[r, at] = True
        parts = [at[(bounds[k] <= at) & (at < bounds[k + 1])] for k in range(len(batch.regions))]
        assert all(np.diff(part).tolist() == [1] * (len(part) - 1) for part in parts if len(part)), "torn apart"
        wholes = [np.concatenate([parts[0], part]) for part in parts[1:]]
        assert all(end in whole for end, whole in zip(batch.ends[r, s], wholes, strict=True)), "read elsewhere"
        assert int(batch.index[r, s]) not in out
        out[int(batch.index[r, s])] = {
            "sequences": [batch.tokens[r, whole].tolist() for whole in wholes],
            "positions": [batch.positions[r, whole].tolist() for whole in wholes],
            "read": batch.tokens[r, batch.ends[r, s]].tolist(),
            "margin": batch.margin[r, s],
        }
    for rest in (batch.tokens, batch.segments, batch.positions):
        assert not rest[~used].any(), "something lies outside every comparison"
    return out


@quick
@given(st.data(), comparisons_of_any_length())
def test_every_comparison_is_placed_once_and_reads_back_as_it_was(data, comparisons):
    count = len(comparisons)
    indices = data.draw(st.permutations(range(count)).map(lambda order: order[: data.draw(st.integers(1, count))]))
    if data.draw(st.booleans()):
        shape = fit_row_shape(comparisons, data.draw(st.integers(1, 16)))
    else:
        room = st.integers(0, 100)
        longest = comparisons.lengths.max(0)
        regions = tuple(int(length + data.draw(room)) for length in longest)
        shape = RowShape(rows=data.draw(st.integers(1, 4)), slots=data.draw(st.integers(1, 5)), regions=regions)
    batches = pack(comparisons, indices, shape)
    found = [unpack(batch) for batch in batches]
    assert sorted(i for batch in found for i in batch) == sorted(indices)
    assert {i: read for batch in found for i, read in batch.items()} == {i: as_read(comparisons, i) for i in indices}
    for batch in batches:
        assert batch.regions == shape.regions
        assert batch.tokens.shape == batch.segments.shape == batch.positions.shape == (shape.rows, sum(shape.regions))
        assert batch.ends.shape == (shape.rows, shape.slots, comparisons.ends.shape[1])
        assert batch.index.shape == batch.margin.shape == (shape.rows, shape.slots)
        assert (batch.index >= 0).any(), "a micro-batch that holds nothing"


@quick
@given(
    st.integers(1, 4).flatmap(
        lambda K: st.lists(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=9), min_size=K, max_size=K))
    ),
    st.booleans(),
)
def test_splitting_off_the_common_prefix_keeps_every_sequence(sequences, share_prefix):
    sequences = [*sequences, [[1, 2]] * len(sequences[0])] if sequences else [[[1]]]
    comparisons = flatten(sequences, np.arange(len(sequences)), CONFIG, share_prefix=share_prefix)
    read = [as_read(comparisons, i) for i in range(len(sequences))]
    assert [one["sequences"] for one in read] == sequences
    assert [one["read"] for one in read] == [[ids[-1] for ids in sides] for sides in sequences]
    assert [one["margin"] for one in read] == list(range(len(sequences)))
    for sides, (prefix, *own) in zip(sequences, comparisons.lengths.tolist(), strict=True):
        assert min(own) >= 1
        common = 0
        while common < min(map(len, sides)) - 1 and len({ids[common] for ids in sides}) == 1:
            common += 1
        assert prefix == (common if share_prefix else 0)


def ten(lengths=((3, 2, 4),) * 10) -> TokenizedComparisons:
    sizes = np.array(lengths)
    offsets = np.concatenate([[0], sizes.ravel().cumsum()])
    return TokenizedComparisons(
        tokens=np.arange(offsets[-1], dtype=np.int32),
        offsets=np.stack([offsets[0:-1:3], offsets[1::3], offsets[2::3], offsets[3::3]], 1),
        ends=(sizes[:, :1] + sizes[:, 1:] - 1).astype(np.int32),
        keys=np.arange(len(sizes) * 2).reshape(-1, 2),
        margin=np.zeros(len(sizes), np.float32),
    )


@pytest.mark.parametrize("regions", [(2, 4, 4), (3, 1, 4), (3, 4, 3)], ids=["prefix", "chosen", "rejected"])
def test_a_comparison_longer_than_its_regions_raises_instead_of_being_cut(regions):
    with pytest.raises(ValueError, match=r"3, 2, 4.*does not fit"):
        pack(ten(), range(10), RowShape(rows=2, slots=4, regions=regions))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_fitted_shape_has_room_for_the_longest_comparison(batch_size):
    comparisons = ten([(500, 1, 1), (1, 700, 1), *[(3, 2, 4)] * 100, (0, 1, 1)])
    shape = fit_row_shape(comparisons, batch_size)
    prefix, chosen, rejected = shape.regions
    assert (prefix >= 500, chosen >= 700, rejected >= 4) == (True, True, True)
    assert shape.rows >= 1
    assert sum(len(unpack(batch)) for batch in pack(comparisons, range(103), shape)) == 103


def order_of(plan: rm.BatchPlan, epoch: int) -> list[int]:
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    return [int(i) for step in steps for batch in plan.batch_at(step) for i in sorted(batch.index[batch.index >= 0])]


def test_a_step_is_the_same_whether_others_came_before_it():
    """Else a resumed run trains on other batches."""
    iterated = rm.plan_batches(ten(), 3, seed=5)
    batches = [iterated.batch_at(step) for step in range(9)]
    for step in (8, 0, 3, 4):
        direct = rm.plan_batches(ten(), 3, seed=5).batch_at(step)
        for one, other in zip(direct, batches[step], strict=True):
            for name in ("tokens", "segments", "positions", "ends", "index", "margin"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 64])
def test_every_epoch_takes_each_comparison_once_in_an_order_of_its_own(batch_size):
    plan = rm.plan_batches(ten(), batch_size, seed=1)
    assert plan.steps_per_epoch == math.ceil(10 / batch_size)
    orders = [np.concatenate([plan.indices_at(e * plan.steps_per_epoch + s) for s in range(plan.steps_per_epoch)])
              for e in range(4)]  # fmt: skip
    assert [sorted(order) for order in orders] == [list(range(10))] * 4
    assert len({tuple(order) for order in orders}) == 4
    assert [sorted(order_of(plan, epoch)) for epoch in range(4)] == [list(range(10))] * 4


def test_another_seed_gives_another_order_and_the_same_seed_the_same():
    orders = [rm.plan_batches(ten(), 10, seed=seed).indices_at(0).tolist() for seed in (0, 1, 2, 1)]
    assert len(set(map(tuple, orders))) == 3
    assert orders[1] == orders[3]


def test_the_last_batch_of_an_epoch_is_short_and_the_next_epoch_starts_anew():
    plan = rm.plan_batches(ten(), 4)
    sizes = [len(plan.indices_at(step)) for step in range(6)]
    assert sizes == [4, 4, 2, 4, 4, 2]
    assert [sum(len(unpack(batch)) for batch in plan.batch_at(step)) for step in range(6)] == sizes


def test_without_shuffling_every_epoch_follows_the_file():
    plan = rm.plan_batches(ten(), 4, shuffle=False)
    expected = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [plan.indices_at(step).tolist() for step in range(6)] == expected * 2
    assert order_of(plan, 1) == list(range(10))
