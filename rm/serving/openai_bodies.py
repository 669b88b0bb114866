"""Bodies in the manner of OpenAI's, as clients of vLLM, SGLang and veRL know them."""

import base64
from functools import partial
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

from ..data.inputs import Input
from ..errors import DataError
from .bodies import LABEL, Answering, Body, Scored, Unread, by_name

Encoding = Literal["float", "base64"]


class Usage(msgspec.Struct, kw_only=True):
    """How many tokens were scored."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class ListAnswer(msgspec.Struct, kw_only=True):
    """What the answers begin with."""

    object: Literal["list"] = "list"
    model: str
    usage: Usage


class VLLMBody(Body):
    """What vLLM takes at each address of a reward model: texts, or one conversation.

    `use_activation` changes nothing: vLLM has no activation for a head with `"problem_type": "regression"`, as exports
    have it.
    """

    field: ClassVar[str] = "input"
    unread: ClassVar[tuple[str, ...]] = ("user", "request_id", "priority", "cache_salt")
    input: str | list[str] | None = None
    messages: list[dict[str, Any]] | None = None
    model: str | None = None
    use_activation: bool | None = None
    add_special_tokens: bool | None = None
    user: Unread = None
    request_id: Unread = None
    priority: Unread = None
    cache_salt: Unread = None

    def named_inputs(self) -> dict[str, Input]:
        """Texts, or the conversation that the chat template renders."""
        if (self.input is None) == (self.messages is None):
            raise DataError(f"input: expected this field or 'messages', found {'both' if self.messages else 'neither'}")
        if self.messages is None:
            return by_name(self.field, self.input or [])
        if self.add_special_tokens:
            raise DataError("add_special_tokens: expected false for messages: the chat template writes these tokens")
        return {"messages": {"messages": self.messages}}


class ClassifyRequest(VLLMBody):
    """What vLLM takes at /classify."""

    def answering(self) -> Answering:
        """The rewards as the only `probs`."""
        return ClassifyAnswer.of


class ClassifyItem(msgspec.Struct, kw_only=True):
    """The reward of one input."""

    index: int
    label: str = LABEL
    probs: list[float]
    num_classes: int = 1


class ClassifyAnswer(ListAnswer):
    """What vLLM answers; veRL 0.9.1 reads `data[-1].probs[-1]` (verl/experimental/reward_loop/reward_loop.py)."""

    id: str
    created: int
    data: list[ClassifyItem]

    @classmethod
    def of(cls, scored: Scored) -> "ClassifyAnswer":
        """The rewards in this form."""
        data = [ClassifyItem(index=i, probs=[reward]) for i, reward in enumerate(scored.rewards)]
        return cls(id=f"classify-{scored.id}", created=scored.created, data=data, **_common(scored))


class PoolingRequest(VLLMBody):
    """What vLLM takes at /pooling."""

    task: Literal["classify"] | None = None
    encoding_format: Encoding = "float"

    def answering(self) -> Answering:
        """The rewards as vectors of one number."""
        return partial(PoolingAnswer.of, encoding=self.encoding_format)


class PoolingItem(msgspec.Struct, kw_only=True):
    """The reward of one input."""

    index: int
    object: Literal["pooling"] = "pooling"
    data: list[float] | str


class PoolingAnswer(ListAnswer):
    """What vLLM answers."""

    id: str
    created: int
    data: list[PoolingItem]

    @classmethod
    def of(cls, scored: Scored, *, encoding: Encoding) -> "PoolingAnswer":
        """The rewards in this form."""
        data = [PoolingItem(index=i, data=encode(reward, encoding)) for i, reward in enumerate(scored.rewards)]
        return cls(id=f"pool-{scored.id}", created=scored.created, data=data, **_common(scored))


class EmbeddingsRequest(Body):
    """What SGLang takes at /v1/embeddings, where it gives the rewards of a reward model, and what `openai` sends."""

    field: ClassVar[str] = "input"
    unread: ClassVar[tuple[str, ...]] = ("user", "rid", "priority")
    input: str | list[str]
    model: str | None = None
    encoding_format: Encoding = "float"
    user: Unread = None
    rid: Unread = None
    priority: Unread = None

    def named_inputs(self) -> dict[str, Input]:
        """Texts."""
        return by_name(self.field, self.input)

    def answering(self) -> Answering:
        """The rewards as vectors of one number."""
        return partial(EmbeddingsAnswer.of, encoding=self.encoding_format)


class EmbeddingItem(msgspec.Struct, kw_only=True):
    """The reward of one input."""

    index: int
    object: Literal["embedding"] = "embedding"
    embedding: list[float] | str


class EmbeddingsAnswer(ListAnswer):
    """What SGLang answers; veRL 0.9.1 reads `data[-1].embedding[-1]`."""

    data: list[EmbeddingItem]

    @classmethod
    def of(cls, scored: Scored, *, encoding: Encoding) -> "EmbeddingsAnswer":
        """The rewards in this form."""
        data = [EmbeddingItem(index=i, embedding=encode(reward, encoding)) for i, reward in enumerate(scored.rewards)]
        return cls(data=data, **_common(scored))


class SGLangRequest(Body):
    """What SGLang takes at /classify."""

    field: ClassVar[str] = "text"
    unread: ClassVar[tuple[str, ...]] = ("rid", "priority")
    text: str | list[str]
    model: str | None = None
    rid: Unread = None
    priority: Unread = None

    def named_inputs(self) -> dict[str, Input]:
        """Texts."""
        return by_name(self.field, self.text)

    def answering(self) -> Answering:
        """An object for one text, a list of them for a list."""
        return (lambda scored: SGLangAnswer.of(scored)[0]) if isinstance(self.text, str) else SGLangAnswer.of


class SGLangMeta(msgspec.Struct, kw_only=True):
    """What there is beside a reward."""

    id: str
    prompt_tokens: int


class SGLangAnswer(msgspec.Struct, kw_only=True):
    """The reward of one text, as the only number of `embedding`."""

    embedding: list[float]
    meta_info: SGLangMeta

    @classmethod
    def of(cls, scored: Scored) -> "list[SGLangAnswer]":
        """The rewards in this form."""
        pairs = zip(scored.rewards, scored.tokens, strict=True)
        return [cls(embedding=[reward], meta_info=SGLangMeta(id=scored.id, prompt_tokens=n)) for reward, n in pairs]


class ModelCard(msgspec.Struct, kw_only=True):
    """A model, or the weighted sum of all."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["rm"] = "rm"
    max_model_len: int


class ModelList(msgspec.Struct, kw_only=True):
    """The names that requests may give as `model`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def encode(reward: float, encoding: Encoding) -> list[float] | str:
    """A vector of one number, in base64 as float32 of the lowest byte first.

    >>> encode(1.0, "float"), encode(1.0, "base64")
    ([1.0], 'AACAPw==')
    """
    return [reward] if encoding == "float" else base64.b64encode(np.array(reward, "<f4").tobytes()).decode()


def _common(scored: Scored) -> dict[str, Any]:
    tokens = sum(scored.tokens)
    return {"model": scored.model, "usage": Usage(prompt_tokens=tokens, total_tokens=tokens)}
