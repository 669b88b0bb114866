"""Bytes that a compiled program accesses, by XLA's own analysis, with the bodies of loops as often as they run.

The analysis counts a loop's body once. So each body is made the entry of a copy of the module (hlo.proto: a module's
fields 1 to 6 are name, entry's name, computations, shape, id and entry's id; a computation's 1, 4 and 5 are name, shape
and id), analysed, and counted for its other turns.
"""

import re
from collections.abc import Iterator
from typing import Any

_LOOP = re.compile(r'while\(.*?body=%?([\w.\-]+).*?"known_trip_count":\{"n":"(\d+)"\}')


def bytes_accessed(compiled) -> float:
    """The bytes of a program of which every loop says how often it turns."""
    import jax
    from jaxlib import _hlo, _jax  # pyright: ignore[reportAttributeAccessIssue]

    (module,) = compiled.runtime_executable().hlo_modules()
    client, proto = jax.devices("cpu")[0].client, module.as_serialized_hlo_module_proto()
    total = _jax.hlo_module_cost_analysis(client, module)["bytes accessed"]
    for name, turns in _LOOP.findall(module.to_string()):
        body = _hlo.HloModule.from_serialized_hlo_module_proto(_with_entry(proto, name))
        total += (int(turns) - 1) * _jax.hlo_module_cost_analysis(client, body)["bytes accessed"]
    return total


def _with_entry(module: bytes, name: str) -> bytes:
    computations: list[Any] = [value for number, value in _fields(module) if number == 3]
    entry = next(found for found in map(dict, map(_fields, computations)) if found[1] == name.encode())
    kept = [(1, b"body"), (2, entry[1]), *((3, each) for each in computations), (4, entry[4]), (6, entry[5])]
    return b"".join(_field(number, value) for number, value in kept)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message in protobuf's wire format."""
    place = 0
    while place < len(message):
        key, place = _number(message, place)
        if key & 7 == 0:
            value, place = _number(message, place)
        else:
            length, place = _number(message, place) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], place)
            value, place = message[place : place + length], place + length
        yield key >> 3, value


def _number(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return value, place


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _encode(number << 3) + _encode(value)
    return _encode(number << 3 | 2) + _encode(len(value)) + value


def _encode(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])
