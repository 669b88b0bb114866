"""Bodies of requests and of their answers, as clients of rm, OpenRLHF and text-embeddings-inference know them."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

import msgspec

from ..data.inputs import Input
from ..errors import DataError

Unread = Any  # a field that cannot change a reward: it is taken, and counted
LABEL = "LABEL_0"  # what `transformers` calls the one label of a reward model


class Scored(NamedTuple):
    """What there is to say of the inputs of a request, once they are scored."""

    rewards: list[float]
    tokens: list[int]
    model: str
    id: str
    created: int


Answering = Callable[[Scored], Any]


class Request(Protocol):
    """The body of a request, as a class that says what is scored and what is answered."""

    field: ClassVar[str]  # has the inputs
    unread: ClassVar[tuple[str, ...]]

    def named_inputs(self) -> dict[str, Input]:
        """The inputs, under the names that errors give them."""
        ...

    def answering(self) -> Answering:
        """What makes the answer that the client reads; it holds no input, for those are let go before."""
        ...


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What all requests have: a field they are in that no other has, and none that is ignored in silence."""

    unread: ClassVar[tuple[str, ...]] = ()


def by_name(field: str, values: str | Sequence[Input]) -> dict[str, Input]:
    """One input under the name of its field, or several under theirs.

    >>> by_name("text", "a"), by_name("text", ["a", "b"])
    ({'text': 'a'}, {'text[0]': 'a', 'text[1]': 'b'})
    """
    return {field: values} if isinstance(values, str) else {f"{field}[{i}]": each for i, each in enumerate(values)}


class ScoreRequest(Body):
    """Inputs in the forms of `rm.score`."""

    field: ClassVar[str] = "inputs"
    inputs: list[str | dict[str, Any]]
    model: str | None = None

    def named_inputs(self) -> dict[str, Input]:
        """Texts and mappings."""
        return by_name(self.field, self.inputs)

    def answering(self) -> Answering:
        """One reward for each input."""
        return lambda scored: ScoreAnswer(rewards=scored.rewards)


class ScoreAnswer(msgspec.Struct, kw_only=True):
    """One reward for each input."""

    rewards: list[float]


class OpenRLHFRequest(Body):
    """Texts, each a prompt with its response, special tokens included: what OpenRLHF 0.11.2 sends.

    See SingleTurnAgentExecutor._fetch_rewards_via_http in openrlhf/utils/agent.py; before it,
    openrlhf/utils/remote_rm_utils.py.
    """

    field: ClassVar[str] = "query"
    unread: ClassVar[tuple[str, ...]] = ("prompts", "labels")
    query: list[str]
    prompts: Unread = None
    labels: Unread = None

    def named_inputs(self) -> dict[str, Input]:
        """Texts."""
        return by_name(self.field, self.query)

    def answering(self) -> Answering:
        """What openrlhf/cli/serve_rm.py answers."""
        return lambda scored: OpenRLHFAnswer(rewards=scored.rewards, scores=scored.rewards)


class OpenRLHFAnswer(msgspec.Struct, kw_only=True):
    """The rewards, and the same as `scores`, which are for the client's dynamic filtering."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, float] = {}


class Parameters(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What `huggingface_hub.InferenceClient.text_classification` sends besides."""

    function_to_apply: Literal["none", "sigmoid"] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=1)] | None = None  # there is one label


class PredictRequest(Body):
    """A text, or a batch of lists of one text: what clients of text-embeddings-inference send."""

    field: ClassVar[str] = "inputs"
    inputs: str | list[str | list[str]]
    raw_scores: bool = False
    truncate: bool | None = None
    parameters: Parameters = msgspec.field(default_factory=Parameters)
    model: str | None = None

    def named_inputs(self) -> dict[str, Input]:
        """Texts; a pair of them, which the original server takes, is no input of a reward model."""
        if isinstance(self.inputs, str):
            return {self.field: self.inputs}
        if not self.inputs:
            raise DataError("inputs: expected a text or a batch of them, found an empty list")
        batch = [[each] if isinstance(each, str) and len(self.inputs) == 1 else each for each in self.inputs]
        for i, each in enumerate(batch):
            if isinstance(each, str) or len(each) != 1:
                advice = "join prompt and response, and send a batch as [[TEXT], [TEXT]]"
                raise DataError(f"inputs[{i}]: expected a list of one text; {advice}")
        return by_name(self.field, [each[0] for each in batch])

    def answering(self) -> Answering:
        """A list for one text, a list of lists for a batch."""
        raw = self.raw_scores or self.parameters.function_to_apply == "none"
        alone = all(isinstance(each, str) for each in self.inputs)

        def answer(scored: Scored) -> list[Prediction | list[Prediction]]:
            found = [Prediction(score=reward if raw else sigmoid(reward)) for reward in scored.rewards]
            return [*found] if alone else [[each] for each in found]

        return answer


class Prediction(msgspec.Struct, kw_only=True):
    """The reward of a text with `raw_scores`, else its sigmoid, as the original server has it."""

    score: float
    label: str = LABEL


def sigmoid(reward: float) -> float:
    """`1 / (1 + exp(-reward))`, for rewards of any size.

    >>> sigmoid(0.0), sigmoid(-1e4)
    (0.5, 0.0)
    """
    return 0.5 + 0.5 * math.tanh(0.5 * reward)
