"""Using a reward model: scores of texts, metrics on comparisons."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .config import LlamaConfig
from .data.batches import default_layout
from .data.comparisons import TokenizedComparisons, flatten
from .data.fit_shapes import fit_row_shapes
from .data.packing import pack
from .data.render import RowError, as_messages, check_text, render_messages, render_response
from .data.row_shapes import RowShape
from .data.tokenize import check_vocabulary
from .data.tokenizer import Tokenizer
from .errors import DataError
from .losses import centering_penalty, pairwise_loss
from .metrics import preference_metrics
from .model import RewardModel, rewards
from .shapes import checked

Input = str | Mapping[str, Any]

_jit_rewards = jax.jit(rewards, static_argnames=("dtype", "remat"))


@checked
def score(
    model: RewardModel,
    tokenizer: Tokenizer,
    inputs: Sequence[Input],
    *,
    dtype: Any = jnp.float32,
    batch_size: int = 16,
    max_length: int | None = None,
) -> Float[np.ndarray, "n"]:
    """The rewards of texts and conversations, float32, in the order given.

    **Arguments:** `inputs`, each a text (tokenized exactly as given), or a dict with `text`, with `prompt` and
    `response`, or with `messages` (the last two go the way of the training data); `dtype`, of the computation;
    `batch_size`, sequences of one forward; `max_length`, tokens after which an input is cut off, all kept when `None`.

    **Raises:** `DataError`, naming the input, where it has none of these forms.

    Example: `rm.score(model, tokenizer, [{"prompt": "2 + 2 = ", "response": "4"}])`.
    """
    names = [f"input {number}" for number in range(len(inputs))]
    sequences = encode_inputs(inputs, tokenizer, model.config, names=names)
    return score_sequences(model, sequences, dtype=dtype, batch_size=batch_size, max_length=max_length)


@checked
def score_sequences(
    model: RewardModel,
    sequences: Sequence[Sequence[int]],
    *,
    dtype: Any = jnp.float32,
    batch_size: int = 16,
    max_length: int | None = None,
) -> Float[np.ndarray, "n"]:
    """The rewards of token sequences; the arguments are those of `score`."""
    if batch_size < 1 or (max_length is not None and max_length < 1):
        raise ValueError(f"batch_size and max_length must be at least 1, found {batch_size} and {max_length}")
    if not sequences:
        return np.zeros(0, np.float32)
    cut = flatten([[ids[:max_length]] for ids in sequences], [0.0] * len(sequences), model.config, share_prefix=False)
    lengths = cut.lengths[:, 1]
    order = np.argsort(lengths, kind="stable")  # neighbours in length pad each other least
    out = np.empty(len(order), np.float32)
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        shape = RowShape(rows=min(batch_size, len(order)), slots=1, regions=(0, _round_up(int(lengths[chunk].max()))))
        out[chunk] = _rewards_of(model, cut, chunk, [shape], dtype)[:, 0]
    return out


def encode_inputs(
    inputs: Sequence[Input], tokenizer: Tokenizer, config: LlamaConfig, *, names: Sequence[str]
) -> list[list[int]]:
    """The token ids of the inputs of `score`; `names` are what errors call them."""
    check_vocabulary(tokenizer, config)
    rendered = []
    for item, name in zip(inputs, names, strict=True):
        try:
            rendered.append(_render_input(item, tokenizer))
        except RowError as error:
            raise DataError(f"{name}: {error}") from None
    ids: list[list[int]] = [[]] * len(rendered)
    for chat in (False, True):
        where = [i for i, (_, is_chat) in enumerate(rendered) if is_chat == chat]
        encoded = tokenizer.encode_batch([rendered[i][0] for i in where], add_special_tokens=not chat)
        for i, tokens in zip(where, encoded, strict=True):
            if not tokens:
                raise DataError(f"{names[i]}: no tokens; expected at least one")
            ids[i] = tokens
    return ids


def _render_input(item: Input, tokenizer: Tokenizer) -> tuple[str, bool]:
    if isinstance(item, str) or isinstance(item.get("text"), str):
        return check_text(item if isinstance(item, str) else item["text"]), False
    messages = as_messages(item.get("messages"))
    if messages:
        return render_messages(item, messages, tokenizer), True
    if "response" in item and "prompt" in item:
        text, kind, _ = render_response(item, item["response"], "response", tokenizer)
        return text, kind == "chat"
    raise RowError(f"expected text, prompt and response, or messages; found {', '.join(item) or 'nothing'}")


@checked
def evaluate(
    model: RewardModel,
    comparisons: TokenizedComparisons,
    *,
    batch_size: int = 16,
    dtype: Any = jnp.float32,
    center_rewards_coefficient: float = 0.0,
) -> dict[str, float]:
    """`loss`, `preference_metrics` and the spread `std_reward` over all comparisons, each with the same weight.

    **Arguments:** `comparisons`, as `tokenize_comparisons` returns them; the rest as for training.
    """
    shapes = fit_row_shapes(comparisons, batch_size, layout=default_layout())
    chunks = np.split(np.arange(len(comparisons)), range(batch_size, len(comparisons), batch_size))
    both = np.concatenate([_rewards_of(model, comparisons, chunk, shapes, dtype) for chunk in chunks])
    chosen, rejected = both[:, 0], both[:, 1]
    loss = pairwise_loss(chosen, rejected, comparisons.margin)
    loss += center_rewards_coefficient * centering_penalty(chosen, rejected)
    metrics = {"loss": loss.mean(), **preference_metrics(chosen, rejected), "std_reward": both.std()}
    return {name: float(value) for name, value in metrics.items()}


def _rewards_of(
    model: RewardModel, comparisons: TokenizedComparisons, indices: np.ndarray, shapes: Sequence[RowShape], dtype: Any
) -> Float[np.ndarray, "B K"]:
    """Rewards of the comparisons at `indices`, in that order."""
    place = {int(i): at for at, i in enumerate(indices)}
    out = np.empty((len(indices), comparisons.ends.shape[1]), np.float32)
    for batch in pack(comparisons, indices, shapes):
        computed = np.asarray(_jit_rewards(model, batch, dtype=dtype, remat="none"))
        for row, slot in np.argwhere(batch.index >= 0):
            out[place[int(batch.index[row, slot])]] = computed[row, slot]
    return out


def _round_up(length: int) -> int:
    """The next of 32, 48, 64, 96, 128, 192, …: few shapes to compile, little to pad."""
    power = max(32, 1 << (length - 1).bit_length())
    return power * 3 // 4 if power > 32 and length <= power * 3 // 4 else power
