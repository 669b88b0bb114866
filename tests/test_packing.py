"""Packing loses nothing, and the batches of any step are known without the steps before it."""

import dataclasses
import functools
import itertools
import math
from itertools import pairwise

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rm
from rm.data.comparisons import TokenizedComparisons, concatenate, flatten
from rm.packing.bin_packing import pack_bins
from rm.packing.fit_shapes import fit_row_shapes
from rm.packing.groups import make_items
from rm.packing.row_shapes import RowShape
from rm.packing.rows import pack

from .conftest import shared
from .tiny import CONFIG
from .xla import AS_OPTIMIZED

PAD = 0
FIELDS = ("tokens", "segments", "parts", "positions", "ends", "index", "margin")
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
        row=np.arange(len(lengths)),
        source=np.zeros(len(lengths), np.int32),
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
    if len(batch.regions) > 1:
        region = np.repeat(np.arange(len(batch.regions)), batch.regions)
        assert (batch.parts == region)[batch.segments > 0].all(), "a part outside its region"
    place = np.arange(batch.tokens.shape[1])
    for r, s in np.ndindex(batch.index.shape):
        if batch.index[r, s] < 0:
            assert batch.margin[r, s] == 0
            continue
        segments, parts = batch.segments[r], batch.parts[r]
        sees = [
            (segments == segments[end]) & (place <= end) & np.isin(parts, (0, parts[end])) for end in batch.ends[r, s]
        ]
        assert all(batch.segments[r, batch.ends[r, s]] > 0), "read where nothing is"
        used[r] |= np.isin(batch.segments[r], batch.segments[r, batch.ends[r, s]])
        assert int(batch.index[r, s]) not in out
        out[int(batch.index[r, s])] = {
            "sequences": [batch.tokens[r, seen].tolist() for seen in sees],
            "positions": [batch.positions[r, seen].tolist() for seen in sees],
            "margin": batch.margin[r, s],
        }
    for rest in (batch.tokens, batch.segments, batch.parts, batch.positions):
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
        options["layout"] = data.draw(st.sampled_from(["regions", "whole", "gathered"]))
        shapes = fit_row_shapes(comparisons, data.draw(st.integers(1, 16)), **options)
        assert len(shapes) <= 8
    else:
        room = st.integers(0, 100)
        longest = [comparisons.lengths[:, 0].max(), *[comparisons.lengths[:, 1:].max()] * comparisons.keys.shape[1]]
        if data.draw(st.booleans()):
            longest = [comparisons.lengths.sum(1).max()]
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


def test_sequences_of_several_chunks_without_shared_prefixes_are_not_taken_for_one_another():
    """Packing would compute one of them, and give its reward to the other."""
    chunks = [
        flatten([[[1, 2], [1, 3]]] * 2, [0.0] * 2, CONFIG, share_prefix=False, rows=rows) for rows in ([0, 0], [5, 6])
    ]
    assert len(np.unique(concatenate(chunks).keys)) == 8


def ten(lengths=((3, 2, 4),) * 10) -> TokenizedComparisons:
    sizes = np.array(lengths)
    offsets = np.concatenate([[0], sizes.ravel().cumsum()])
    return TokenizedComparisons(
        tokens=np.arange(offsets[-1], dtype=np.int32),
        offsets=np.stack([offsets[0:-1:3], offsets[1::3], offsets[2::3], offsets[3::3]], 1),
        ends=(sizes[:, :1] + sizes[:, 1:] - 1).astype(np.int32),
        keys=np.arange(len(sizes) * 2).reshape(-1, 2),
        margin=np.zeros(len(sizes), np.float32),
        row=np.arange(len(sizes)),
        source=np.zeros(len(sizes), np.int32),
    )


@pytest.mark.parametrize("regions", [(2, 4, 4), (3, 1, 4), (3, 3, 3)], ids=["prefix", "shorter", "longer"])
def test_a_comparison_longer_than_its_regions_raises_instead_of_being_cut(regions):
    with pytest.raises(ValueError, match=r"3, 4, 2.*does not fit"):
        pack(ten(), range(10), [RowShape(rows=2, slots=4, regions=regions)])


def test_a_longer_response_takes_the_longer_region():
    (batch,) = pack(ten(), [0, 1], [RowShape(rows=1, slots=2, regions=(6, 6, 6))])
    assert [np.count_nonzero(batch.segments[0, part]) for part in (slice(6), slice(6, 12), slice(12, 18))] == [6, 6, 6]
    assert unpack(batch) == {i: as_read(ten(), i) for i in (0, 1)}


def test_in_whole_rows_responses_of_one_prompt_share_its_prefix_however_many_they_are():
    comparisons = flatten([[A, B], [B, C], [C, D]], [0.0] * 3, CONFIG)
    (batch,) = pack(comparisons, range(3), [RowShape(rows=1, slots=3, regions=(40,))])
    assert real_tokens([batch]) == 3 + 4 * 5
    assert batch.parts[0, :23].tolist() == [0] * 3 + [1] * 5 + [2] * 5 + [3] * 5 + [4] * 5
    assert unpack(batch) == {i: as_read(comparisons, i) for i in range(3)}


def test_a_comparison_longer_than_a_whole_row_raises_instead_of_being_cut():
    with pytest.raises(ValueError, match=r"9.*does not fit"):
        pack(ten(), range(10), [RowShape(rows=2, slots=4, regions=(8,))])


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


def test_the_same_comparisons_are_fitted_once():
    """Every evaluation of a run would fit the rows of the same data again."""
    comparisons = flatten([[[1] * 40 + [2] * n, [1] * 40 + [3]] for n in range(1, 30)], [0.0] * 29, CONFIG)
    shapes = fit_row_shapes(comparisons, 8, layout="whole")
    assert fit_row_shapes(comparisons, 8, layout="whole") is shapes
    assert fit_row_shapes(comparisons, 8, layout="regions") != shapes
    assert fit_row_shapes(comparisons.take(range(3)), 8, layout="whole") != shapes


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


@quick
@given(any_comparisons, st.integers(1, 5), st.integers(1, 3), st.sampled_from(["regions", "whole", "gathered"]))
def test_an_update_is_packed_alike_alone_and_among_others(comparisons, batch_size, rows, layout):
    """Else the fill that is reported, planned for a whole epoch, is not that of the batches."""
    shapes = fit_row_shapes(comparisons, batch_size, rows=rows, layout=layout)
    indices = np.random.default_rng(0).integers(0, len(comparisons), (7, batch_size))
    together = pack_bins(make_items(comparisons, indices, shapes[0]).needs, shapes)
    for u in range(7):
        alone = pack_bins(make_items(comparisons, indices[u : u + 1], shapes[0]).needs, shapes)
        for one, all_of_them in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[0], all_of_them[u])


@pytest.mark.long
@pytest.mark.gate
@quick
@given(
    any_comparisons,
    st.integers(1, 16),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from(["regions", "whole", "gathered"]),
)
def test_parts_of_the_rows_together_are_the_whole(comparisons, batch_size, rows, seed, layout):
    """A process that makes the rows of its own devices would train on something else than the others think."""
    plan = rm.plan_batches(comparisons, batch_size, rows=rows, seed=seed, layout=layout)
    alone = rm.plan_batches(comparisons, batch_size, seed=seed, layout=layout)
    step = plan.steps_per_epoch - 1
    parts = [plan.batch_at(step, slice(row, row + 1)) for row in range(rows)]
    for whole, *shares in zip(plan.batch_at(step), *parts, strict=True):
        assert {share.tokens.shape for share in shares} == {(1, sum(whole.regions))}, "devices would wait or fail"
        for name in FIELDS:
            np.testing.assert_array_equal(np.concatenate([getattr(s, name) for s in shares]), getattr(whole, name))
    found = [i for part in parts for batch in part for i in unpack(batch)]
    assert sorted(found) == sorted(alone.indices_at(step)) == sorted(i for b in alone.batch_at(step) for i in unpack(b))


def test_the_short_last_batch_of_an_epoch_can_be_left_out():
    plan = rm.plan_batches(ten(), 4, drop_last=True)
    assert plan.steps_per_epoch == 2
    assert [len(plan.indices_at(step)) for step in range(6)] == [4] * 6
    orders = [np.concatenate([plan.indices_at(2 * epoch + s) for s in (0, 1)]).tolist() for epoch in range(8)]
    assert set().union(*orders) == set(range(10)), "always the same ones are left out"
    assert rm.plan_batches(ten(), 5, drop_last=True).steps_per_epoch == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 11, "drop_last": True}, "10 comparisons make no update of 11"),
        ({"batch_size": 0}, "batch_size must be at least 1, found 0"),
        ({"batch_size": 4, "rows": 0}, "rows must be at least 1, found 0"),
    ],
)
def test_a_plan_without_updates_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        rm.plan_batches(ten(), **arguments)


@quick
@given(any_comparisons, st.integers(1, 6), st.integers(1, 2))
def test_the_fill_is_that_of_the_batches(comparisons, batch_size, rows):
    plan = rm.plan_batches(comparisons, batch_size, rows=rows)
    batches = [batch for step in range(plan.steps_per_epoch) for batch in plan.batch_at(step)]
    assert plan.fill() == pytest.approx(real_tokens(batches) / sum(batch.tokens.size for batch in batches))
    last = plan.batch_at(plan.steps_per_epoch - 1)
    assert plan.fill([plan.steps_per_epoch - 1]) == pytest.approx(
        real_tokens(last) / sum(batch.tokens.size for batch in last)
    )


def test_rows_stay_under_the_cap_unless_a_comparison_is_longer():
    comparisons = ten([(30, 40, 40)] * 60 + [(200, 300, 300)])
    for cap, longest in ((4096, 4096), (1024, 1024), (64, 864)):  # the last comparison, in multiples of 32: 224 + 2·320
        shapes = rm.plan_batches(comparisons, 60, micro_batch_tokens=cap).shapes
        assert max(sum(shape.regions) for shape in shapes) <= longest


@functools.cache
def real_comparisons(name: str) -> TokenizedComparisons:
    rows = rm.load_comparisons(str(shared(f"data/{name}/pairs.jsonl.gz")))
    tokenizer = rm.load_tokenizer(shared("tokenizers/smollm2-135m-instruct"))
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.max_token_id + 1)
    return rm.tokenize_comparisons(rows, tokenizer, config, max_length=1024)[0]


@pytest.mark.long
@pytest.mark.parametrize("layout", ["regions", "whole"])
@pytest.mark.parametrize(("batch_size", "least"), [(16, 0.80), (64, 0.85)])
@pytest.mark.parametrize("name", ["hh-rlhf", "humanevalpack", "ukp-convarg1"])
def test_little_is_padding_on_real_data(name, batch_size, least, layout):
    plan = rm.plan_batches(real_comparisons(name), batch_size, layout=layout)
    assert len(plan.shapes) <= 8
    assert plan.fill() >= least


@pytest.mark.long
@pytest.mark.gate
def test_arguments_that_meet_in_a_batch_are_computed_once():
    """In ukp-convarg1 about a thousand arguments make 12,792 pairs."""
    plan = rm.plan_batches(real_comparisons("ukp-convarg1"), 64)
    batches, indices = plan.batch_at(0), plan.indices_at(0)
    found = {i: read for batch in batches for i, read in unpack(batch).items()}
    assert found == {i: as_read(plan.comparisons, i) for i in indices}
    assert real_tokens(batches) < 0.99 * plan.comparisons.lengths[indices].sum()


@pytest.mark.long
def test_packed_rewards_equal_unpacked_ones_on_real_comparisons():
    """A trained Llama, every sequence in a row of its own, its prompt not shared, against packed batches."""
    model = rm.load_reward_model(shared("models/stories260K"), key=jax.random.key(0), head_std=0.1)
    tokenizer = rm.load_tokenizer(shared("models/stories260K"))
    model, tokenizer = rm.match_tokenizer(model, tokenizer)
    rows = [
        {side: row[side] for side in ("prompt", "chosen", "rejected")}
        for name in ("hh-rlhf", "ukp-convarg1")
        for row in rm.load_comparisons(str(shared(f"data/{name}/pairs.jsonl.gz")), split="train[:1000]")
    ]
    shared_prefix, unshared = (
        rm.tokenize_comparisons(rows, tokenizer, model.config, max_length=288, share_prefix=share)[0]
        for share in (True, False)
    )
    indices = np.random.default_rng(0).permutation(len(unshared))[:500]
    plain = RowShape(rows=8, slots=1, regions=(0, 288, 288))
    expected = rewards_by_index(model, pack(unshared, indices, [plain]))
    assert np.std(list(expected.values())) > 0.05, "too much alike to tell"
    for layout in ("regions", "whole"):
        shapes = fit_row_shapes(shared_prefix, 64, layout=layout)
        batches = [batch for start in range(0, 500, 64) for batch in pack(shared_prefix, indices[start:][:64], shapes)]
        assert real_tokens(batches) < 0.99 * shared_prefix.lengths[indices].sum(), "no response met another"
        found = rewards_by_index(model, batches)
        assert sorted(found) == sorted(expected) == sorted(indices)
        for i in indices:
            np.testing.assert_allclose(found[i], expected[i], rtol=0, atol=1e-5)


def rewards_by_index(model: rm.RewardModel, batches) -> dict[int, np.ndarray]:
    forward = jax.jit(rm.rewards, compiler_options=AS_OPTIMIZED)
    computed = [(batch.index, np.asarray(forward(model, batch))) for batch in batches]
    return {int(index[at]): r[at] for index, r in computed for at in zip(*np.nonzero(index >= 0), strict=True)}
