"""Where a model or a tokenizer lies: a local directory, or a Hugging Face hub id fetched into the local cache."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, RmError, first_line

RECORD = "rm.json"  # what an exported directory says of itself
ADAPTER = "adapter_config.json"  # of an adapter in peft's form

_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_LOG_IN = "log in with `hf auth login`, with a token that may write"


def resolve_directory(path_or_hub_id: str | Path, patterns: Sequence[str], *, revision: str | None = None) -> Path:
    """The directory that holds the files; a hub id is downloaded once (only what matches `patterns`).

    **Raises:** `RmError` where there is neither such a directory nor such a repository.
    """
    path = Path(path_or_hub_id)
    if path.is_dir():
        return path
    if path.exists() or not _HUB_ID.fullmatch(str(path_or_hub_id)):
        raise RmError(f"{path_or_hub_id}: expected a model directory or a hub id such as 'org/name', found neither")
    return _download(str(path_or_hub_id), patterns, revision)


def _download(hub_id: str, patterns: Sequence[str], revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    advice = "check the name and the connection, or give a local directory"
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError:
        advice = "the repository is gated: accept its licence on the hub and log in with `hf auth login`"
    except (RepositoryNotFoundError, HFValidationError):
        advice = "no such directory here and no such repository on the hub (or it is private: `hf auth login`)"
    except RevisionNotFoundError:
        advice = f"the repository has no revision {revision!r}"
    except OSError:  # offline, a full disk: all of them arrive as OSError
        pass
    except Exception as error:
        advice = f"{type(error).__name__}; {advice}"
    raise RmError(f"{hub_id}: cannot be fetched from the hub; {advice}") from None


def is_repository(name: str) -> bool:
    """Whether it has the form `org/name` of a repository that can be written.

    >>> is_repository("org/name"), is_repository("name"), is_repository("./out/model")
    (True, False, False)
    """
    return "/" in name and _HUB_ID.fullmatch(name) is not None


def check_push(repo_id: str) -> None:
    """Refuses before a run what would fail after it: no login, a token that may only read, another's name space."""
    from huggingface_hub import HfApi

    try:
        me = HfApi().whoami()
    except Exception as error:  # of the login, the network and the hub, each its own kind
        raise RmError(f"{repo_id}: cannot be pushed to ({first_line(error)}); {_LOG_IN}") from None
    owner, names = repo_id.partition("/")[0], [me["name"], *(org["name"] for org in me.get("orgs", []))]
    if owner.lower() not in [name.lower() for name in names]:
        found = f"{owner} is neither you nor an organization of yours ({', '.join(names)})"
        raise RmError(f"{repo_id}: cannot be pushed to; {found}")
    if me.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise RmError(f"{repo_id}: cannot be pushed to, for your token may only read; {_LOG_IN}")


def push_reward_model(directory: str | Path, repo_id: str, *, private: bool = True) -> str:
    """Uploads an exported reward model to the hub as one commit, and returns the address of the repository.

    **Arguments:** `directory`, as `save_reward_model` wrote it; `repo_id`, `org/name`; `private`, whether a repository
    that this makes can be seen by its owners alone (one that exists stays as it is).

    **Raises:** `ConfigError` where the directory holds no export or the name is none; `RmError` where the hub refuses.

    >>> rm.push_reward_model("OUT/model", "org/name")  # doctest: +SKIP
    'https://huggingface.co/org/name'
    """
    from huggingface_hub import HfApi

    directory = Path(directory)
    if not (directory / RECORD).is_file():
        raise ConfigError(f"{directory}: expected a directory that save_reward_model wrote, found no {RECORD} in it")
    if not is_repository(repo_id):
        raise ConfigError(f"{repo_id}: expected a repository of the hub, org/name")
    for path in directory.rglob("*"):
        if path.is_symlink() or not path.is_dir():
            own_file(path, directory)  # else a link would publish what it leads to
    try:
        address = HfApi().create_repo(repo_id, private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=repo_id, folder_path=directory, commit_message="A reward model, trained with rm")
    except Exception as error:  # of the login, the network and the hub, each its own kind
        again = f"hf upload {repo_id} {directory}{' --private' if private else ''}"
        found = f"{directory} cannot be pushed to {repo_id} ({first_line(error)})"
        raise RmError(f"{found}; the model is whole where it is, and this pushes it again: {again}") from None
    return str(address)


def read_record(directory: Path) -> dict[str, Any]:
    """What `rm.json` says of an exported directory, of any other nothing."""
    path = own_file(directory / RECORD)
    return read_json(path) if path.exists() else {}


def adapter_base(directory: Path) -> tuple[str, str | None] | None:
    """The base of the adapter in a directory, and its revision; `None` where there is no adapter.

    A relative path is one from here, or from the directory.

    **Raises:** `ConfigError` where the adapter does not name its base, or the base is an adapter.
    """
    source = own_file(directory / ADAPTER)
    if not source.is_file():
        return None
    config = read_json(source)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(base, str) or not base or not isinstance(revision, str | None):
        raise ConfigError(f"{source}: base_model_name_or_path must name the base, found {base!r}; write it there")
    if not Path(base).is_dir() and (directory / base).is_dir():
        base = str(directory / base)
    if not Path(base).is_dir() and not _HUB_ID.fullmatch(base):
        raise ConfigError(f"{source}: no directory {base}, where the base was; correct base_model_name_or_path")
    if (Path(base) / ADAPTER).is_file():
        raise ConfigError(f"{source}: the base {base} is an adapter too; merge that one first")
    return base, revision


def check_unchanged(directory: Path, names: Iterable[str]) -> None:
    """Raises `ConfigError` for files that are not what was exported."""
    recorded = read_record(directory).get("sha256")
    for name in names:
        known = recorded.get(name) if isinstance(recorded, dict) else None
        if known not in (None, sha256_of(directory / name)):
            advice = f"copy the directory again, or take its entry out of {RECORD} where the change is meant"
            raise ConfigError(f"{directory / name}: is not what was exported ({RECORD} has another sha256); {advice}")


def sha256_of(path: Path) -> str:
    """The hash of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def own_file(path: Path, directory: Path | None = None) -> Path:
    """A file of a model directory, refused where it leads elsewhere or never ends: a stranger may have made it.

    **Arguments:** `directory`, the model's, where `path` lies in a folder of it.

    **Raises:** `RmError`. In the hub's cache the links lead to the blobs of the same repository.
    """
    home, target = Path(os.path.realpath(directory or path.parent)), Path(os.path.realpath(path))
    blobs = home.parent.parent / "blobs"
    if target.exists() and not target.is_file():
        raise RmError(f"{path}: expected an ordinary file, found a directory, a pipe or a device")
    if target.is_relative_to(home) or (home.parent.name == "snapshots" and target.is_relative_to(blobs)):
        return path
    link = os.readlink(path) if path.is_symlink() else target  # or its folder is one
    raise RmError(f"{path}: is a link to {link}, outside of its directory; put a copy there")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises `ConfigError` where the file is missing or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected a Hugging Face model directory") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON (line {error.lineno}: {error.msg}); download it again") from None
    except (OSError, ValueError, RecursionError) as error:  # also bad UTF-8, long numbers, thousands of nested lists
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {type(value).__name__}; download it again")
    return value
