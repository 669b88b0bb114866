"""The floating-point operations of an update over comparisons of known lengths.

The count covers the necessary work, whatever the implementation: matrix products and visible pairs of attention, but no
padding, no embedding and no head. A multiply-add counts as two operations; a backward pass costs two forward passes
(Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Integer

from ..model.config import LlamaConfig
from ..model.llama import init_reward_model


class Work(NamedTuple):
    """The work of an update, in tokens and visible pairs."""

    tokens: int  # a shared prefix counts once
    pairs: int  # of a query and a key that it sees
    rewards: int  # tokens at which a reward is read
    reward_pairs: int  # pairs whose query is such a token


class Flops(NamedTuple):
    """Floating-point operations by kind."""

    products: int  # with weights
    attention: int  # scores and their products with values

    @property
    def total(self) -> int:
        """The sum of both kinds."""
        return self.products + self.attention


def count_work(lengths: Integer[np.ndarray, "B _"], window: int | None = None) -> Work:
    """The work of comparisons of `lengths` `[B, 1 + K]`, prefix first, as `TokenizedComparisons` has them.

    **Arguments:** `window`, the sliding window in tokens.

    >>> count_work(np.array([[2, 1, 3]]))  # 3 pairs in the prefix, 2 + 1 and 6 + 6 in the responses
    Work(tokens=6, pairs=18, rewards=2, reward_pairs=8)
    """
    prefix, own = lengths[:, :1].astype(np.int64), lengths[:, 1:].astype(np.int64)
    most = int(lengths.sum()) if window is None else window  # keys that a query sees

    def pairs(length: np.ndarray) -> np.ndarray:  # of a sequence, whose queries see 1, 2, …, most, most, … keys
        rising = np.minimum(length, most)
        return rising * (rising + 1) // 2 + (length - rising) * most

    whole = prefix + own
    seen = pairs(prefix).sum() + (pairs(whole) - pairs(prefix)).sum()
    return Work(int(lengths.sum()), int(seen), own.size, int(np.minimum(whole, most).sum()))


def forward_flops(config: LlamaConfig, work: Work) -> Flops:
    """The operations of a forward pass; the last block computes queries, output and MLP at the rewards only."""
    width, layers = config.num_attention_heads * config.head_dim, config.num_hidden_layers - 1  # without the last
    keys_values, rest = _layer_weights(config)
    return Flops(
        products=2 * ((layers + 1) * keys_values * work.tokens + rest * (layers * work.tokens + work.rewards)),
        attention=4 * width * (layers * work.pairs + work.reward_pairs),
    )


def update_flops(config: LlamaConfig, work: Work, *, remat: Literal["none", "dots", "full"] = "none") -> Flops:
    """The operations of a forward and a backward pass with the recomputation of `remat`; MFU is defined with `"none"`.

    The optimizer is left out: it has few operations and is bound by memory traffic. Attention without stored scores
    recomputes them in the backward pass with any `remat`; this is left out too, because it is not necessary work.
    """
    forward, layers = forward_flops(config, work), config.num_hidden_layers - 1
    down = 2 * config.hidden_size * config.intermediate_size * (layers * work.tokens + work.rewards)
    recomputed = {
        "none": Flops(0, 0),
        "dots": Flops(0, forward.attention),
        "full": Flops(forward.products - down, forward.attention),  # no gradient needs a block's output
    }[remat]
    return Flops(3 * forward.products + recomputed.products, 3 * forward.attention + recomputed.attention)


def count_parameters(config: LlamaConfig) -> int:
    """The number of parameters of a reward model."""
    one = dataclasses.replace(config, num_hidden_layers=1)
    model = jax.eval_shape(lambda: init_reward_model(one, key=jax.random.key(0)))
    whole, block = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (model, model.last_block))
    return whole + (config.num_hidden_layers - 1) * block


def _layer_weights(config: LlamaConfig) -> tuple[int, int]:
    """The numbers of weights in a layer's key and value projections, and in its other matrices."""
    hidden, size = config.hidden_size, config.head_dim
    keys_values = 2 * hidden * config.num_key_value_heads * size
    return keys_values, 2 * hidden * config.num_attention_heads * size + 3 * hidden * config.intermediate_size
