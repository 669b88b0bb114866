"""A description of the server for programs: OpenAPI 3.1, made of the classes that its bodies are read into."""

from typing import Any

import msgspec

from ..version import __version__
from .error_bodies import Error, OpenAIError
from .openai_bodies import ModelList
from .protocols import ADDRESSES, Address
from .state import Health

_GETS = {  # path: what it says, what it answers, how it writes errors
    "/health": ("Whether every model is ready", Health, Error),
    "/v1/models": ("The names that requests may give as `model`", ModelList, OpenAIError),
}


def describe_server(*, needs_token: bool) -> dict[str, Any]:
    """The description of every address.

    **Arguments:** `needs_token`, whether requests must bring one.
    """
    kinds = _kinds()
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    refs = dict(zip(map(str, kinds), schemas, strict=True))
    paths = {path: {"post": _post(address, refs)} for path, address in ADDRESSES.items()}
    for path, (summary, answer, error) in _GETS.items():
        paths[path] = {"get": {"summary": summary, "responses": _responses(refs[str(answer)], refs[str(error)])}}
    paths["/health"]["get"] |= {"security": []}
    paths["/health"]["get"]["responses"]["503"] = _content("Not ready", refs[str(Health)])
    for path, summary, kind in (
        ("/metrics", "Counters and times for Prometheus", "text/plain"),
        ("/openapi.json", "This description", "application/json"),
    ):
        paths[path] = {"get": {"summary": summary, "responses": _responses({}, refs[str(Error)], kind)}}
    found: dict[str, Any] = {"openapi": "3.1.0", "info": {"title": "rm serve", "version": __version__}, "paths": paths}
    found["components"] = {"schemas": components}
    if needs_token:
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"token": []}]
    return found


def _kinds() -> list[Any]:
    """Every class that a body is read into or written from, once."""
    found = [answer for _, *both in _GETS.values() for answer in both]
    for address in ADDRESSES.values():
        found += [*address.answers, *address.answers.values(), address.error]
    return list({str(kind): kind for kind in found}.values())


def _post(address: Address, refs: dict[str, Any]) -> dict[str, Any]:
    asked = [refs[str(kind)] for kind in address.answers]
    answers = [refs[str(answer)] for answer in address.answers.values()]
    return {
        "summary": f"Rewards, as clients of {address.whose} ask for them",
        "requestBody": {"required": True, "content": {"application/json": {"schema": _any(asked)}}},
        "responses": _responses(_any(answers), refs[str(address.error)]),
    }


def _any(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _responses(answer: dict[str, Any], error: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
    return {"200": _content("The answer", answer, kind), "default": _content("An error, in one line", error)}


def _content(description: str, schema: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
    return {"description": description, "content": {kind: {"schema": schema}}}
