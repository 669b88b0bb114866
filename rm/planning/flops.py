"""The floating-point operations of an update over comparisons of known lengths.

What has to be computed is counted, whatever computes it: matrix products and visible pairs of attention alone, no
padding, no embedding and no head. Two operations to a multiplication with its addition; a backward pass costs two
forward ones (Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Integer

from ..model.config import LlamaConfig


class Work(NamedTuple):
    """What the comparisons of an update ask for."""

    tokens: int  # a shared prefix counts once
    pairs: int  # of a query and a key that it sees
    rewards: int  # tokens at which a reward is read
    reward_pairs: int  # the pairs of those tokens


class Flops(NamedTuple):
    """Operations, by what they are for."""

    products: int  # with weights
    attention: int  # scores and their products with values

    @property
    def total(self) -> int:
        """All of them."""
        return self.products + self.attention


def count_work(lengths: Integer[np.ndarray, "B _"]) -> Work:
    """The work of comparisons of `lengths` `[B, 1 + K]`, prefix first, as `TokenizedComparisons` has them.

    >>> count_work(np.array([[2, 1, 3]]))  # 3 pairs in the prefix, 2 + 1 and 6 + 6 in the responses
    Work(tokens=6, pairs=18, rewards=2, reward_pairs=8)
    """
    prefix, own = lengths[:, :1].astype(np.int64), lengths[:, 1:].astype(np.int64)
    pairs = (prefix * (prefix + 1) // 2).sum() + (own * prefix + own * (own + 1) // 2).sum()
    return Work(int(lengths.sum()), int(pairs), own.size, int((prefix + own).sum()))


def forward_flops(config: LlamaConfig, work: Work) -> Flops:
    """One forward: all blocks, the last one's queries, output and MLP at the rewards alone."""
    width, whole = config.num_attention_heads * config.head_dim, config.num_hidden_layers - 1
    keys_values, rest = _layer_weights(config)
    return Flops(
        products=2 * ((whole + 1) * keys_values * work.tokens + rest * (whole * work.tokens + work.rewards)),
        attention=4 * width * (whole * work.pairs + work.reward_pairs),
    )


def update_flops(config: LlamaConfig, work: Work, *, remat: Literal["none", "dots", "full"] = "none") -> Flops:
    """Forward and backward, and what `remat` computes again; `"none"` gives the count that MFU is defined by.

    No optimizer: its operations are few, its cost is memory traffic. Attention that never stores its scores computes
    them again in the backward pass under any `remat`; that is left out, because it does not have to be.
    """
    forward, whole = forward_flops(config, work), config.num_hidden_layers - 1
    down = 2 * config.hidden_size * config.intermediate_size * (whole * work.tokens + work.rewards)
    again = {
        "none": Flops(0, 0),
        "dots": Flops(0, forward.attention),
        "full": Flops(forward.products - down, forward.attention),  # no gradient needs a block's output
    }[remat]
    return Flops(3 * forward.products + again.products, 3 * forward.attention + again.attention)


def count_parameters(config: LlamaConfig) -> int:
    """Parameters of a reward model without biases."""
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    embedding_and_head = (config.vocab_size + 1) * config.hidden_size
    return config.num_hidden_layers * sum(_layer_weights(config)) + norms + embedding_and_head


def _layer_weights(config: LlamaConfig) -> tuple[int, int]:
    """Weights of a layer's key and value projections, and of its other matrices."""
    hidden, size = config.hidden_size, config.head_dim
    keys_values = 2 * hidden * config.num_key_value_heads * size
    return keys_values, 2 * hidden * config.num_attention_heads * size + 3 * hidden * config.intermediate_size
