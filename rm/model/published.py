"""The heads of published reward models: the tensors that they are, found in the files of a model."""

import re
from collections.abc import Mapping

from ..errors import ConfigError, WeightsError
from ..files.weights import VALUE_HEAD, TensorFiles
from .config import LlamaConfig

# How the names of a head's tensors begin, and who publishes such heads.
HEADS = {
    "score": "transformers, TRL, OpenRLHF, INF-ORM",
    "value_head": "OpenRLHF, older versions",
    "v_head": "Athene, Starling",
    "v_head.summary": "TRL's value head: GRM, LLaMA-Factory",
    "regression_head": "UltraRM, Eurus",
    "score_head": "Safe RLHF: Beaver",
}
# How they end, by the leaf of `RewardModel`: of one linear layer, or of two with a ReLU between; biases may be missing.
LINEAR = {"score": "weight", "score_bias": "bias"}
MLP = {"score_hidden.weight": "0.weight", "score_hidden.bias": "0.bias", "score": "2.weight", "score_bias": "2.bias"}
_KNOWN = ", ".join(HEADS)
# Tensors of ArmoRM, QRM and URM, which weigh several objectives by the prompt.
_GATES = re.compile(r"(gating|regression_layer|weights\.fc)\..*|reward_transform_matrix")


def head_names(start: str, form: Mapping[str, str]) -> dict[str, str]:
    """The names of a head's tensors by leaf.

    >>> head_names("v_head", LINEAR)
    {'score': 'v_head.weight', 'score_bias': 'v_head.bias'}
    """
    return {leaf: f"{start}.{end}" for leaf, end in form.items()}


SCORE = head_names("score", LINEAR)  # of a `LlamaForSequenceClassification`


def find_head(files: TensorFiles, config: LlamaConfig, asked: str | None = None) -> dict[str, str]:
    """The tensors of a model's head by leaf: those in the files, of which there may be none, or what is asked for.

    **Arguments:** `asked`, `lm_head:ROW`, for a causal LM with a row of `lm_head` that is the reward's.

    **Raises:** `WeightsError` for two heads, for one that is not computed or cannot be read, for a missing row;
    `ConfigError` where a row is asked for beside a head.
    """
    gate = next((name for name in sorted(files.names) if _GATES.fullmatch(name)), None)
    if gate:
        found = f"tensor {gate!r} is of a model that weighs several objectives by the prompt (ArmoRM, QRM, URM)"
        raise WeightsError(f"{files.directory}: {found}, which is not computed; use one with a head of {_KNOWN}")
    heads = [head_names(start, form) for start in HEADS for form in (LINEAR, MLP)]
    whole = [head for head in heads if files.names.issuperset(head[leaf] for leaf in head if not leaf.endswith("bias"))]
    if len(whole) > 1:
        found = " and ".join(repr(head["score"]) for head in whole)
        raise WeightsError(f"{files.directory}: tensors of two heads, {found}; take out those of the wrong one")
    head = {leaf: name for head in whole for leaf, name in head.items() if name in files.names}
    pickled = files.directory / f"{VALUE_HEAD}.bin"
    if not head and pickled.is_file():
        raise WeightsError(f"{pickled}: only safetensors weights are read; save the head as {VALUE_HEAD}.safetensors")
    return head if asked is None else _row_of_lm_head(files, config, asked, head)


def _row_of_lm_head(files: TensorFiles, config: LlamaConfig, asked: str, head: Mapping[str, str]) -> dict[str, str]:
    row = re.fullmatch(r"lm_head:(\d{1,9})", asked, re.ASCII)
    if row is None:
        raise ConfigError(f"head (--head): expected lm_head:ROW, such as lm_head:0, found {asked!r}")
    if head:
        raise ConfigError(f"{files.directory}: has a head, {head['score']!r}; leave out head={asked!r} (--head)")
    tied = config.tie_word_embeddings and "lm_head.weight" not in files.names
    files.add_row("model.embed_tokens.weight" if tied else "lm_head.weight", int(row[1]), asked)
    return {"score": asked}


def expected_shapes(
    files: TensorFiles, head: Mapping[str, str], config: LlamaConfig, labels: int | None
) -> dict[str, tuple[int, ...]]:
    """The shapes that the leaves of a head must have.

    **Arguments:** `labels`, those that `config.json` states, which only count for the head that is `score.weight`.
    """

    def rows(leaf: str, otherwise: int) -> int:
        shape = files.shape(head.get(leaf, ""))
        return shape[0] if len(shape) == 2 and shape[0] else otherwise

    labels = (labels if head.get("score") == SCORE["score"] else None) or rows("score", 1)
    width = rows("score_hidden.weight", config.hidden_size)
    expected = {"score": (labels, width), "score_bias": (labels,)}
    expected |= {"score_hidden.weight": (width, config.hidden_size), "score_hidden.bias": (width,)}
    return {leaf: expected[leaf] for leaf in head}
