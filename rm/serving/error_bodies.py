"""Errors, each of one line, as the clients of each server read them."""

from http import HTTPStatus

import msgspec


class Error(msgspec.Struct, kw_only=True):
    """An error in one line."""

    error: str

    @classmethod
    def of(cls, _: int, line: str) -> "Error":
        """The line."""
        return cls(error=line)


class PredictError(msgspec.Struct, kw_only=True):
    """An error as clients of text-embeddings-inference read it."""

    error: str
    error_type: str

    @classmethod
    def of(cls, status: int, line: str) -> "PredictError":
        """The line, with its kind."""
        return cls(error=line, error_type={503: "Overloaded", 500: "Backend"}.get(status, "Validation"))


class OpenAIErrorFields(msgspec.Struct, kw_only=True):
    """What an error is."""

    message: str
    type: str
    code: int
    param: str | None = None


class OpenAIError(msgspec.Struct, kw_only=True):
    """An error as clients of vLLM, SGLang and OpenAI read it."""

    error: OpenAIErrorFields

    @classmethod
    def of(cls, status: int, line: str) -> "OpenAIError":
        """The line, with a kind such as BadRequestError."""
        kind = HTTPStatus(status).phrase.replace(" ", "").removesuffix("Error") + "Error"
        return cls(error=OpenAIErrorFields(message=line, type=kind, code=status))
