"""Packing loses nothing, and the batches of any step are known without the steps before it."""

import dataclasses
import itertools
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rm
from rm.data.comparisons import TokenizedComparisons, flatten
from rm.data.fit_shapes import fit_row_shapes
from rm.data.packing import pack
from rm.data.row_shapes import RowShape

from .tiny import CONFIG

PAD = 0
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


@st.composite
def comparisons_with_repeats(draw) -> TokenizedComparisons:
    """Comparisons of K sequences from a small pool for each of a few prompts; some end in padding by id."""
    K = draw(st.integers(1, 3))
    numbers, pools = itertools.count(1), []
    for _ in range(draw(st.integers(1, 3))):
        prompt = list(itertools.islice(numbers, draw(st.integers(0, 40))))
        pool = [
            prompt + list(itertools.islice(numbers, draw(st.integers(1, 50)))) for _ in range(draw(st.integers(1, 5)))
        ]
        longer = [ids[:-1] + list(itertools.islice(numbers, 4)) for ids in pool[:1]]  # shares more than the prompt
        padded = [ids + [PAD] * draw(st.integers(0, 2)) for ids in pool + longer]
        pools.append(padded)
    side = st.sampled_from(pools).flatmap(lambda pool: st.lists(st.sampled_from(pool), min_size=K, max_size=K))
    sequences = draw(st.lists(side, min_size=1, max_size=14))
    config = dataclasses.replace(CONFIG, pad_token_id=PAD)
    return flatten(sequences, np.arange(len(sequences)) + 1.0, config, share_prefix=draw(st.booleans()))


any_comparisons = st.one_of(comparisons_of_any_length(), comparisons_with_repeats())


def whole_sequences(comparisons: TokenizedComparisons, i: int) -> list[list[int]]:
    prefix, *own = [comparisons.tokens[a:b].tolist() for a, b in pairwise(comparisons.offsets[i].tolist())]
    return [prefix + part for part in own]


def as_read(comparisons: TokenizedComparisons, i: int) -> dict:
    """Comparison `i` as a reward sees it: every sequence up to where it is read, its positions, the margin."""
    sequences = [ids[: end + 1] for ids, end in zip(whole_sequences(comparisons, i), comparisons.ends[i], strict=True)]
    return {
        "sequences": sequences,
        "positions": [list(range(len(ids))) for ids in sequences],
        "margin": comparisons.margin[i],
    }


def unpack(batch: rm.PreferenceBatch) -> dict[int, dict]:
    """What the model sees of each comparison of a micro-batch, by index, by the rule of the mask."""
    out, used = {}, np.zeros(batch.tokens.shape, bool)
    region = np.repeat(np.arange(len(batch.regions)), batch.regions)
    place = np.arange(batch.tokens.shape[1])
    for r, s in np.ndindex(batch.index.shape):
        if batch.index[r, s] < 0:
            assert batch.margin[r, s] == 0
            continue
        sees = [(batch.segments[r] == batch.segments[r, end]) & (place <= end) & np.isin(region, (0, region[end]))
                for end in batch.ends[r, s]]  # fmt: skip
        assert all(batch.segments[r, batch.ends[r, s]] > 0), "read where nothing is"
        used[r] |= np.isin(batch.segments[r], batch.segments[r, batch.ends[r, s]])
        assert int(batch.index[r, s]) not in out
        out[int(batch.index[r, s])] = {
            "sequences": [batch.tokens[r, seen].tolist() for seen in sees],
            "positions": [batch.positions[r, seen].tolist() for seen in sees],
            "margin": batch.margin[r, s],
        }
    for rest in (batch.tokens, batch.segments, batch.positions):
        assert not rest[~used].any(), "something lies outside every comparison"
    return out


def real_tokens(batches) -> int:
    return sum(int((batch.segments > 0).sum()) for batch in batches)


@quick
@given(st.data(), any_comparisons)
def test_every_comparison_is_placed_once_and_reads_back_as_it_was(data, comparisons):
    count = len(comparisons)
    indices = data.draw(st.permutations(range(count)).map(lambda order: order[: data.draw(st.integers(1, count))]))
    if data.draw(st.booleans()):
        options = {"rows": data.draw(st.integers(1, 3)), "micro_batch_tokens": data.draw(st.sampled_from([64, 4096]))}
        shapes = fit_row_shapes(comparisons, data.draw(st.integers(1, 16)), **options)
        assert len(shapes) <= 8
    else:
        room = st.integers(0, 100)
        longest = [comparisons.lengths[:, 0].max(), *[comparisons.lengths[:, 1:].max()] * comparisons.keys.shape[1]]
        regions = tuple(int(length + data.draw(room)) for length in longest)
        shapes = [RowShape(rows=data.draw(st.integers(1, 4)), slots=data.draw(st.integers(1, 5)), regions=regions)]
    batches = pack(comparisons, indices, shapes)
    found = [unpack(batch) for batch in batches]
    assert sorted(i for batch in found for i in batch) == sorted(indices)
    assert {i: read for batch in found for i, read in batch.items()} == {i: as_read(comparisons, i) for i in indices}

    apart = comparisons.lengths[list(indices)].sum()
    without_repeats = len(np.unique(comparisons.keys[list(indices)])) == comparisons.keys[list(indices)].size
    assert real_tokens(batches) == apart if without_repeats else real_tokens(batches) <= apart
    by_regions = {shape.regions: shape for shape in shapes}
    for batch in batches:
        shape = by_regions[batch.regions]
        assert batch.tokens.shape == batch.segments.shape == batch.positions.shape == (shape.rows, sum(shape.regions))
        assert batch.ends.shape == (shape.rows, shape.slots, comparisons.ends.shape[1])
        assert batch.index.shape == batch.margin.shape == (shape.rows, shape.slots)
        assert (batch.index >= 0).any(), "a micro-batch that holds nothing"


A, B, C, D = ([1, 2, 3, *range(10 * n, 10 * n + 5)] for n in range(1, 5))  # a prompt of 3, responses of 5


@pytest.mark.parametrize(
    ("sequences", "tokens"),
    [
        ([[A, B], [C, D]], 3 + 5 + 5 + 3 + 5 + 5),  # the prompt alone is not looked for: nothing says it is the same
        ([[A, B], [A, B]], 3 + 5 + 5),
        ([[A, B], [B, A]], 3 + 5 + 5),
        ([[A, B], [A, C]], 3 + 5 + 5 + 3 + 5),  # three responses need two segments, each with the prompt
        ([[A, B], [B, C], [C, D]], 3 + 5 + 5 + 3 + 5 + 5),
        ([[A, B], [C, D], [B, C]], 3 + 5 + 5 + 3 + 5 + 5),
        ([[A, A]], 7 + 1),
        ([[A, B, C], [A, B, D]], 3 + 5 + 5 + 5 + 3 + 5),
        ([[[*A, 1], [*A, 2], [*A, 3]], [[*A, 1], C, D]], 8 + 3 + 3 + 6 + 5 + 5),  # as one item: three times A
    ],
)  # fmt: skip
def test_a_response_of_several_comparisons_is_computed_once(sequences, tokens):
    comparisons = flatten(sequences, [0.0] * len(sequences), CONFIG)
    shape = RowShape(rows=1, slots=4, regions=(99,) * (len(sequences[0]) + 1))
    (batch,) = pack(comparisons, range(len(sequences)), [shape])
    assert real_tokens([batch]) == tokens
    assert unpack(batch) == {i: as_read(comparisons, i) for i in range(len(sequences))}


def test_comparisons_that_have_no_room_together_stay_apart():
    comparisons = flatten([[A, B], [B, C], [C, D]], [0.0] * 3, CONFIG)
    for shape, tokens in (
        (RowShape(rows=1, slots=2, regions=(9, 20, 20)), 3 * 13),
        (RowShape(rows=1, slots=3, regions=(5, 20, 20)), 3 * 13),
        (RowShape(rows=1, slots=3, regions=(9, 9, 9)), 3 * 13),
        (RowShape(rows=1, slots=3, regions=(6, 10, 10)), 2 * 13),
    ):
        batches = pack(comparisons, range(3), [shape])
        assert real_tokens(batches) == tokens
        found = {i: read for batch in batches for i, read in unpack(batch).items()}
        assert found == {i: as_read(comparisons, i) for i in range(3)}


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
    assert [whole_sequences(comparisons, i) for i in range(len(sequences))] == sequences
    assert comparisons.ends.tolist() == [[len(ids) - 1 for ids in sides] for sides in sequences]
    assert comparisons.margin.tolist() == list(range(len(sequences)))
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


@pytest.mark.parametrize("regions", [(2, 4, 4), (3, 1, 4), (3, 3, 3)], ids=["prefix", "shorter", "longer"])
def test_a_comparison_longer_than_its_regions_raises_instead_of_being_cut(regions):
    with pytest.raises(ValueError, match=r"3, 4, 2.*does not fit"):
        pack(ten(), range(10), [RowShape(rows=2, slots=4, regions=regions)])


def test_a_longer_response_takes_the_longer_region():
    (batch,) = pack(ten(), [0, 1], [RowShape(rows=1, slots=2, regions=(6, 6, 6))])
    assert [np.count_nonzero(batch.segments[0, part]) for part in (slice(6), slice(6, 12), slice(12, 18))] == [6, 6, 6]
    assert unpack(batch) == {i: as_read(ten(), i) for i in (0, 1)}


@pytest.mark.parametrize("batch_size", [1, 3, 64, 500])
def test_the_first_shape_has_room_for_the_longest_comparison(batch_size):
    comparisons = ten([(500, 1, 1), (1, 700, 1), *[(3, 2, 4)] * 100, (0, 1, 1)])
    shapes = fit_row_shapes(comparisons, batch_size)
    prefix, *responses = shapes[0].regions
    assert prefix >= 500
    assert min(responses) >= 700
    assert sum(len(unpack(batch)) for batch in pack(comparisons, range(103), shapes)) == 103


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
