"""Random comparisons of known lengths, for measuring what an update costs."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rm.data.comparisons import TokenizedComparisons
    from rm.model.config import LlamaConfig


def random_comparisons(config: "LlamaConfig", count: int, prefix: int, *responses: int) -> "TokenizedComparisons":
    """`count` comparisons of random token ids that share exactly `prefix` tokens, with responses of these lengths."""
    from rm.data.comparisons import flatten

    rng = np.random.default_rng(0)
    sequences = []
    for _ in range(count):
        prompt = rng.integers(0, config.vocab_size, prefix)
        own = [rng.integers(0, config.vocab_size, length) for length in responses]
        for k, response in enumerate(own):
            response[0] = k  # else a response may begin as another does
        sequences.append([np.concatenate([prompt, response]) for response in own])
    return flatten(sequences, [0.0] * count, config)
