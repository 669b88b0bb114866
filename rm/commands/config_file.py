"""`--config FILE`: the flags of a command from a file, or from the record of a run."""

import datetime
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .flags import Flag, Takes, find_flag, flags_of, nearest, spelling
from .usage import check_command

# what the record of a run has and another run must not repeat: its place, where it was uploaded to, its machines
_NOT_REPEATED = {"output", "resume", "push_to", "distributed", "coordinator", "num_processes", "process_id"}


def with_config(argv: Sequence[str], commands: Mapping[str, type]) -> tuple[list[str], list[str]]:
    """The command line with the flags of its `--config` in place of it, and what of the file was left out, in lines.

    **Raises:** `ConfigError`, naming the file and the key.
    """
    places = [i for i, argument in enumerate(argv) if spelling(argument) == "--config"]
    if not places or argv[0].startswith("-"):
        return list(argv), []
    check_command(argv[0], commands)
    (place, *more), after = places, argv[places[0] + 1 :]
    _, equals, path = argv[place].partition("=")
    if more or not (equals or after):
        raise ConfigError(f"--config: expected one file, found {'several' if more else 'nothing'}")
    path = Path(path if equals else after[0])
    given = [*argv[1:place], *after[0 if equals else 1 :]]
    values, said = read_config(path, argv[0], commands)
    flags = flags_of(commands[argv[0]])
    here = {found.name for each in given if each.startswith("--") and (found := find_flag(flags, each))}
    if said and path.suffix == ".json" and "--output" in flags and "output" not in here:
        raise ConfigError(f"{path}: repeats the run but for its --output, which holds it; give another --output")
    taken = (_as_arguments(flag, values[flag.name]) for flag in flags.values() if flag.name in values.keys() - here)
    return [argv[0], *given, *(word for words in taken for word in words)], said


def read_config(path: Path, command: str, commands: Mapping[str, type]) -> tuple[dict[str, Any], list[str]]:
    """The values in a file by the names of arguments, each of the type of its flag; what was left out, in lines.

    Keys are spelt with dashes or underscores. Of a file of JSON with `arguments`, as `run.json` is, those are read.

    **Raises:** `ConfigError`, naming the file and the key.
    """
    found, said = _read(path), []
    if path.suffix == ".json" and isinstance(found.get("arguments"), dict):
        found = {name: value for name, value in found["arguments"].items() if name not in _NOT_REPEATED}
        said.append(f"{path}: repeats a run, but for --output, --resume, --push-to and the flags of several processes")
    flags, values, others = flags_of(commands[command]), {}, []
    of_train = flags_of(commands["train"]) if command == "data" else {}  # which shows what train would read
    for key, value in found.items():
        name = f"--{key.replace('_', '-')}"
        if isinstance(value, dict):
            raise ConfigError(f"{path}: {key}: is a table; every flag stands at the top, with its value")
        if name in flags and flags[name].name in values:
            raise ConfigError(f"{path}: {key}: stands there twice, with dashes and with underscores; take one out")
        if name in flags and not (value is None and flags[name].takes.optional):
            values[flags[name].name] = _checked(f"{path}: {key}", flags[name].takes, value)
        elif name in of_train:
            others.append(name)
        elif name not in flags:
            known = [each.removeprefix("--") for each in flags]
            raise ConfigError(f"{path}: {key}: {command} has no such flag{nearest(key.replace('_', '-'), known)}")
    if others:
        said.append(f"{path}: left out, as flags of train: {' '.join(others)}")
    return values, said


def _read(path: Path) -> dict[str, Any]:
    import yaml

    readers = {".toml": tomllib.loads, ".yaml": yaml.safe_load, ".yml": yaml.safe_load, ".json": json.loads}
    if path.suffix not in readers:
        raise ConfigError(f"{path}: --config takes a file that ends in {', '.join(readers)}")
    try:
        found = readers[path.suffix](path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:  # those of TOML, JSON and UTF-8 are ValueErrors
        raise ConfigError(f"{path}: is not {path.suffix[1:].upper()} ({error})") from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ConfigError(f"{path}: expected the names of flags, each with a value, found {_kind(found)}")
    return found


def _checked(where: str, takes: Takes, value: Any) -> Any:
    """The value, as a list where the flag takes several.

    **Raises:** `ConfigError`.
    """
    values = value if takes.several and isinstance(value, list) else [value]
    for each in values:
        if not _fits(takes, each):
            quotes = "; put it into quotes" if isinstance(each, int | float) and takes.kind in (str, Path) else ""
            raise ConfigError(f"{where}: expected {takes.words}, found {_kind(each)}{quotes}")
    return values if takes.several else value


def _fits(takes: Takes, value: Any) -> bool:
    if takes.kind is bool or isinstance(value, bool):
        return takes.kind is bool and isinstance(value, bool)
    if isinstance(value, int | float):
        return takes.kind in (int, float) and takes.accepts(str(value))
    if isinstance(value, str):  # YAML takes 1e-5 for a text
        return value in takes.choices or (takes.kind is not int and takes.accepts(value))
    return isinstance(value, datetime.date) and takes.accepts(str(value))


def _kind(value: Any) -> str:
    """What a value is, for an error."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return "a table" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)


def _as_arguments(flag: Flag, value: Any) -> list[str]:
    name = f"--{flag.name.replace('_', '-')}"
    if flag.takes.kind is bool:
        return [name if value else f"--no-{name.removeprefix('--')}"]
    return [name, *map(str, value)] if flag.takes.several else [f"{name}={value}"]
