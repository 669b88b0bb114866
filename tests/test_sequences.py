"""Sequences packed to be scored share what they begin with, and nothing else: each gets the reward it gets alone."""

import dataclasses
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rm
from rm.data.comparisons import TokenizedComparisons, flatten
from rm.evaluation.scoring import score_sequences
from rm.packing.sequences import pack_sequences

from .tiny import CONFIG

WIDE = dataclasses.replace(CONFIG, head_dim=4)
PADDED = dataclasses.replace(WIDE, pad_token_id=9)  # many sequences end in it, some rewards are read in a prefix
DYNAMIC = dataclasses.replace(WIDE, rope=rm.Rope(type="dynamic", factor=2.0), max_position_embeddings=12)
ids = st.lists(st.integers(1, 4), max_size=50)  # few tokens, so that beginnings are often the same


def alone(sequences: list[list[int]], config=CONFIG) -> TokenizedComparisons:
    return flatten([[sequence] for sequence in sequences], [0.0] * len(sequences), config, share_prefix=False)


def draw_sequences() -> list[list[int]]:
    """Prompts with several responses, copies, sequences that others go on from, single ones."""
    random = np.random.default_rng(0)
    prompts = [random.integers(1, 10, length).tolist() for length in (3, 9, 20, 70)]
    answers = [prompt + random.integers(1, 10, random.integers(1, 9)).tolist() for prompt in prompts for _ in range(4)]
    ended = [prompts[2] + [9] * count for count in (1, 2, 3)]
    return [*answers, *answers[:2], *prompts, *ended, [1], [2, 2], random.integers(1, 10, 130).tolist()]


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(beginnings=st.lists(ids, min_size=1, max_size=4), rest=st.lists(ids, min_size=1, max_size=12), size=st.data())
def test_every_sequence_can_be_read_off_the_rows(beginnings, rest, size):
    """If a prefix were shared by too many, or a piece laid elsewhere, a sequence would read differently."""
    sequences = [beginnings[i % len(beginnings)] + end + [5] for i, end in enumerate(rest)]
    found = {}
    for batch in pack_sequences(alone(sequences), CONFIG, batch_size=size.draw(st.integers(1, 20))):
        for row, slot in np.argwhere(batch.index >= 0):
            end = batch.ends[row, slot, 0]  # the last token, which is always the sequence's own
            same = batch.segments[row] == batch.segments[row, end]
            own = (batch.parts[row] == 0) | (batch.parts[row] == batch.parts[row, end])
            where = np.flatnonzero(same & own & (np.arange(len(same)) <= end))
            assert batch.positions[row, where].tolist() == list(range(len(where)))
            assert batch.index[row, slot] not in found
            found[int(batch.index[row, slot])] = batch.tokens[row, where].tolist()
    assert found == dict(enumerate(sequences))


def test_what_several_sequences_begin_with_is_computed_once():
    """4 prompts of 50 tokens with 4 answers of 5 each: 280 tokens rather than 880, in any order."""
    sequences = [[number] * 50 + [5 + answer] * 5 for answer in range(4) for number in range(1, 5)]
    batches = list(pack_sequences(alone(sequences), CONFIG, batch_size=8))
    assert sum(int((batch.segments > 0).sum()) for batch in batches) == 280


def test_rows_are_full_and_of_two_shapes_at_most():
    """200 sequences that share nothing; a new shape is a compilation."""
    random = np.random.default_rng(0)
    sequences = [[1 + i % 9, i // 9, *random.integers(1, 10, random.integers(20, 200))] for i in range(200)]
    batches = list(pack_sequences(alone(sequences), CONFIG, batch_size=16))
    assert len({batch.tokens.shape for batch in batches}) <= 2
    assert sum(map(len, sequences)) > 0.9 * sum(batch.tokens.size for batch in batches)


@pytest.mark.parametrize("layout", ["whole", pytest.param("regions", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "config",
    [WIDE, *(pytest.param(config, marks=pytest.mark.long) for config in (PADDED, DYNAMIC))],
    ids=["plain", "padded", "dynamic"],
)
def test_a_reward_does_not_depend_on_who_shares_the_row(monkeypatch, layout, config):
    """Whole rows with shared prefixes as on CPUs, one sequence a row as on accelerators; rotations that stretch."""
    monkeypatch.setattr(sys.modules["rm.evaluation.scoring"], "default_layout", lambda: layout)
    model = rm.init_reward_model(config, key=jax.random.key(0), head_std=1.0)
    sequences = draw_sequences()
    expected = np.concatenate([score_sequences(model, [one], batch_size=1) for one in sequences])
    assert np.ptp(expected) > 0.1
    for batch_size in (1, 5, 64):
        found = score_sequences(model, sequences, batch_size=batch_size)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_rows_of_given_lengths_are_nearly_full():
    """A server would compute up to half as much again as its requests have tokens: 2304 tokens took a row of 3072."""
    rng = np.random.default_rng(0)
    sequences = [rng.integers(4, 60, 36).tolist() for _ in range(64)]  # 2304 tokens
    lengths = [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]
    rows = list(pack_sequences(alone(sequences), CONFIG, batch_size=128, lengths_of_rows=lengths))
    assert sorted(int(i) for row in rows for i in row.index.ravel() if i >= 0) == list(range(64))
    assert sum(row.tokens.size for row in rows) <= 1.1 * 2304
