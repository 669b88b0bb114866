"""Tokenized comparisons as flat arrays, in which the shared prefix of a comparison is stored once."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Int64

from ..model.config import LlamaConfig

ARRAYS = ("offsets", "ends", "keys", "margin", "row", "source")  # fields with an entry for every comparison


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class TokenizedComparisons:
    """Comparisons of K responses each, as flat arrays.

    Comparison `i` is `tokens[offsets[i, 0] : offsets[i, K + 1]]`: the shared prefix, then the rest of each response.
    `ends[i, k]` is the index, in the sequence `prefix + response k`, of the token at which its reward is read.
    Sequences with equal `keys` are equal. Comparison `i` comes from row `row[i]` of `sources[source[i]]`.
    """

    tokens: Int32[np.ndarray, "tokens"]
    offsets: Int64[np.ndarray, "B K+2"]
    ends: Int32[np.ndarray, "B K"]
    keys: Int64[np.ndarray, "B K"]
    margin: Float32[np.ndarray, "B"]
    row: Int64[np.ndarray, "B"]
    source: Int32[np.ndarray, "B"]
    sources: tuple[str, ...] = ("data",)

    def __len__(self) -> int:
        return len(self.margin)

    def __repr__(self) -> str:
        counts = f"{len(self)} comparisons of {self.ends.shape[1]} responses, {int(self.num_tokens.sum())} tokens"
        return f"TokenizedComparisons({counts}, from {', '.join(self.sources[:3])}{', …' * (len(self.sources) > 3)})"

    @functools.cached_property
    def fitted(self) -> dict[tuple, Any]:
        """The row shapes that were fitted to these comparisons, by the options of the fit."""
        return {}

    @property
    def lengths(self) -> Int64[np.ndarray, "B K+1"]:
        """Token counts of the shared prefix and of the rest of each response."""
        return np.diff(self.offsets, axis=1)

    @property
    def num_tokens(self) -> Int64[np.ndarray, "B"]:
        """Token counts of all sequences of a comparison; the shared prefix counts once for each response."""
        return self.lengths[:, 1:].sum(1) + self.ends.shape[1] * self.lengths[:, 0]

    @property
    def fingerprint(self) -> str:
        """A hash of the arrays that training depends on."""
        arrays = (self.tokens, self.offsets, self.ends, self.margin)
        return hashlib.sha256(b"".join(hashlib.sha256(array.tobytes()).digest() for array in arrays)).hexdigest()[:16]

    def origin(self, index: int) -> str:
        """The name of a comparison's row in errors, such as `data: row 3`; rows are counted from 0."""
        return f"{self.sources[self.source[index]]}: row {self.row[index]}"

    def take(self, indices: Sequence[int] | np.ndarray) -> "TokenizedComparisons":
        """The comparisons at `indices`, in that order."""
        chosen = self.offsets[np.asarray(indices, np.int64)]
        pieces = [self.tokens[start:stop] for start, stop in chosen[:, [0, -1]]]
        starts = np.concatenate([[0], np.cumsum(chosen[:, -1] - chosen[:, 0])])[:-1]
        arrays = {name: getattr(self, name)[indices] for name in ARRAYS}
        arrays["offsets"] = chosen - chosen[:, :1] + starts[:, None]
        return dataclasses.replace(self, tokens=np.concatenate([np.zeros(0, np.int32), *pieces]), **arrays)


def concatenate(parts: Sequence[TokenizedComparisons]) -> TokenizedComparisons:
    """The comparisons of all parts in order; all parts have the same K."""
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0, *(len(part.tokens) for part in parts[:-1])])
    firsts = np.cumsum([0, *(len(part.sources) for part in parts[:-1])], dtype=np.int32)
    moved = [
        dataclasses.replace(part, offsets=part.offsets + start, source=part.source + first)
        for part, start, first in zip(parts, starts, firsts, strict=True)
    ]
    arrays = {name: np.concatenate([getattr(part, name) for part in moved]) for name in ("tokens", *ARRAYS)}
    return TokenizedComparisons(**arrays, sources=tuple(name for part in parts for name in part.sources))


def mix(
    parts: Sequence[TokenizedComparisons], weights: Sequence[float] | None = None, *, seed: int = 0
) -> tuple[TokenizedComparisons, list[int]]:
    """Mixes several sets of comparisons; also returns the number taken from each.

    Without weights, all are taken. With weights, as many as the ratio allows before one part runs out are drawn at
    random without replacement: `nᵢ = ⌊wᵢ · minⱼ(|partⱼ| / wⱼ)⌋`.

    **Raises:** `ValueError` where no comparison of a part is taken, because its weight is too small or it is empty.
    """
    counts = [len(part) for part in parts]
    if weights is not None:
        scale = min(count / weight for count, weight in zip(counts, weights, strict=True))
        counts = [int(weight * scale + 1e-9) for weight in weights]  # undoes rounding to just below a whole number
    if not all(counts):
        raise ValueError(f"weights {list(weights or ())} leave a part of the mixture without comparisons: {counts}")
    drawn = [
        part if count == len(part) else part.take(np.random.default_rng([seed, number]).permutation(len(part))[:count])
        for number, (part, count) in enumerate(zip(parts, counts, strict=True))
    ]
    return concatenate(drawn), counts


def flatten(
    sequences: Sequence[Sequence[Sequence[int] | np.ndarray]],
    margins: Sequence[float],
    config: LlamaConfig,
    *,
    share_prefix: bool = True,
    rows: Sequence[int] | None = None,
) -> TokenizedComparisons:
    """Builds comparisons from K token sequences each, with their longest common prefix stored once.

    At least one token of each sequence stays outside the prefix. No prefix is shared where a sequence is
    longer than `config.fixed_rope_length`: its length then changes the rotation of every token, even in the prompt.
    """
    pieces, lengths, ends, keys = [], [], [], []
    for number, sides in enumerate(sequences):
        arrays = [np.asarray(side, np.int32) for side in sides]
        same_rope = max(map(len, arrays)) <= config.fixed_rope_length
        prefix = common_prefix(arrays) if share_prefix and same_rope else 0
        pieces += [arrays[0][:prefix], *(side[prefix:] for side in arrays)]
        lengths.append([prefix, *(len(side) - prefix for side in arrays)])
        ends.append([reward_index(side, config.pad_token_id) for side in arrays])
        place = [] if share_prefix else [number if rows is None else rows[number], number]
        keys.append([_key(side, [*place, k] if place else []) for k, side in enumerate(arrays)])
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    count, parts = len(lengths), len(lengths[0])
    return TokenizedComparisons(
        tokens=np.concatenate(pieces),
        offsets=np.stack([starts[k : k + count * parts : parts] for k in range(parts + 1)], axis=1),
        ends=np.asarray(ends, np.int32),
        keys=np.asarray(keys, np.int64),
        margin=np.asarray(margins, np.float32),
        row=np.asarray(range(count) if rows is None else rows, np.int64),
        source=np.zeros(count, np.int32),
    )


def reward_index(ids: Int32[np.ndarray, "N"], pad_token_id: int | None) -> int:
    """The index at which the reward is read: the rightmost non-pad token, or the last token without a pad token.

    This is `LlamaForSequenceClassification`'s rule; see `LlamaConfig.pad_token_id`.

    >>> reward_index(np.array([5, 6, 2], np.int32), pad_token_id=0), reward_index(np.array([5, 6, 2], np.int32), 2)
    (2, 1)
    """
    if pad_token_id is None or (len(ids) and ids[-1] != pad_token_id):  # nearly always
        return len(ids) - 1
    real = np.flatnonzero(ids != pad_token_id)
    return int(real[-1]) if len(real) else 0


def with_reward_token(ids: Any, config: LlamaConfig) -> Any:
    """The ids, with the token at their end at which the configuration says that rewards are read."""
    token = config.reward_token_id
    return ids if token is None or (len(ids) and ids[-1] == token) else [*ids, token]


def cut_off(ids: Any, max_length: int | None, config: LlamaConfig) -> Any:
    """The first `max_length` ids of a sequence; the last of them stays the one at which rewards are read.

    >>> config = LlamaConfig(vocab_size=9, hidden_size=4, intermediate_size=4, num_hidden_layers=1,
    ...                      num_attention_heads=1, reward_token_id=8)
    >>> cut_off([1, 2, 3, 8], 3, config)
    [1, 2, 8]
    """
    if max_length is None or len(ids) <= max_length:
        return ids
    return ids[:max_length] if config.reward_token_id is None else [*ids[: max_length - 1], config.reward_token_id]


def common_prefix(arrays: Sequence[Int32[np.ndarray, "_"]]) -> int:
    """The number of leading tokens that all sequences share, at most one less than the shortest sequence has."""
    shortest = min(map(len, arrays))
    differ = np.zeros(shortest, bool)
    for side in arrays[1:]:
        differ |= side[:shortest] != arrays[0][:shortest]
    first = int(differ.argmax()) if shortest else 0
    return min(shortest - 1, first if differ.any() else shortest)


def _key(ids: Int32[np.ndarray, "N"], place: Sequence[int]) -> int:
    # 64 bits: in practice, different sequences of one update never collide
    digest = hashlib.sha256(ids.tobytes() + np.array(place, np.int64).tobytes()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)
