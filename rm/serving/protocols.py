"""The addresses of a server: what each takes, answers and says of an error, and how a body becomes inputs."""

import re
from typing import Any, NamedTuple

import msgspec

from ..data.inputs import Input
from ..errors import DataError
from .bodies import (
    Answering,
    OpenRLHFAnswer,
    OpenRLHFRequest,
    Prediction,
    PredictRequest,
    Request,
    ScoreAnswer,
    ScoreRequest,
)
from .error_bodies import Error, OpenAIError, PredictError
from .openai_bodies import (
    ClassifyAnswer,
    ClassifyRequest,
    EmbeddingsAnswer,
    EmbeddingsRequest,
    PoolingAnswer,
    PoolingRequest,
    SGLangAnswer,
    SGLangRequest,
)


class Address(NamedTuple):
    """The address that clients of a server, `whose`, send one of several requests to, each with its answer."""

    whose: str
    answers: dict[type[Request], Any]  # by the request, of which each has a field for its inputs that no other has
    error: type[Error] | type[OpenAIError] | type[PredictError] = Error
    invalid: int = 422  # the status of what cannot be answered


ADDRESSES = {
    "/score": Address("rm", {ScoreRequest: ScoreAnswer}),
    "/get_reward": Address("OpenRLHF", {OpenRLHFRequest: OpenRLHFAnswer}),
    "/classify": Address(
        "vLLM and SGLang",
        {ClassifyRequest: ClassifyAnswer, SGLangRequest: SGLangAnswer | list[SGLangAnswer]},
        OpenAIError,
        400,
    ),
    "/pooling": Address("vLLM", {PoolingRequest: PoolingAnswer}, OpenAIError, 400),
    "/v1/embeddings": Address("SGLang and OpenAI", {EmbeddingsRequest: EmbeddingsAnswer}, OpenAIError, 400),
    "/predict": Address(
        "text-embeddings-inference", {PredictRequest: list[Prediction | list[Prediction]]}, PredictError
    ),
}

_WORDS = {"Expected": "expected", "got": "found", "Invalid": "invalid", "str": "a text", "array": "a list"}
_WORDS |= {"object": "an object", "int": "a number", "float": "a number", "bool": "true or false"}


class Asked(NamedTuple):
    """A request that has been understood."""

    inputs: dict[str, Input]  # by their names in errors
    answering: Answering
    model: str | None
    truncate: bool | None  # what is too long, or refuse it; `None` for what the server does
    special_tokens: bool  # to be added to texts
    unread: tuple[str, ...]  # fields that were sent and are not read


def understand(body: Any, address: Address, most: int) -> Asked:
    """What the JSON of a body asks for, `most` inputs at the utmost.

    **Raises:** `DataError`, naming the field.

    >>> understand({"inputs": ["a", 5]}, ADDRESSES["/score"], 8)
    Traceback (most recent call last):
    rm.errors.DataError: inputs[1]: expected a text or an object, found a number
    """
    given = {name: value for name, value in body.items() if value is not None} if isinstance(body, dict) else body
    kinds = list(address.answers)
    kind = next((each for each in kinds if isinstance(given, dict) and each.field in given), kinds[0])
    try:
        request = msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise DataError(_line(str(error), given, kinds, kind)) from None
    except UnicodeEncodeError:  # in a name, or where no text is expected
        raise DataError("body: holds half a character (a lone surrogate); expected Unicode text") from None
    inputs = request.named_inputs()
    if len(inputs) > most:
        raise DataError(f"{kind.field}: expected at most {most} items (--max-inputs), found {len(inputs)}")
    return Asked(
        inputs=inputs,
        answering=request.answering(),
        model=getattr(request, "model", None),
        truncate=getattr(request, "truncate", None),
        special_tokens=getattr(request, "add_special_tokens", None) is not False,
        unread=tuple(name for name in kind.unread if name in given),
    )


def _line(text: str, given: Any, kinds: list[type[Request]], kind: type[Request]) -> str:
    """msgspec's words for what is wrong, in the form of our errors."""
    what, _, where = text.partition(" - at `$")
    where = where.strip(".`")
    if found := re.fullmatch(r"Object missing required field `(.*)`", what):
        expected = " or ".join(["this field", *(repr(each.field) for each in kinds if each is not kind)])
        return f"{found[1]}: missing; expected {expected}, found {', '.join(given) or 'an empty object'}"
    if found := re.fullmatch(r"Object contains unknown field `(.*)`", what):
        known = getattr(kind, "__struct_fields__", ())
        name = f"{where}.{found[1]}" if where else found[1]
        return f"{name}: unknown field" if where else f"{name}: unknown field; expected {', '.join(known)}"
    what = re.sub(r"\b\w+\b", lambda word: _WORDS.get(word[0], word[0]), what.replace("`", "").replace(" | ", " or "))
    if not where:
        return f"body: expected an object with the field {kind.field!r}, {what.partition(', ')[2]}"
    return f"{where}: {what}"


def error_at(path: str) -> type[Error] | type[OpenAIError] | type[PredictError]:
    """How errors are written at a path."""
    if path in ADDRESSES:
        return ADDRESSES[path].error
    return OpenAIError if path.startswith("/v1/") else Error
