"""Valid files changed at random, and the readers that get them: shared by tests/test_fuzz.py and benchmarks/fuzz.py."""

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

import rm
from rm.data.tokenize import tokenize_comparisons
from rm.files.row_files import checked_rows
from rm.files.weights import INDEX
from rm.text.pad_token import match_config

from .tiny import CONFIG, NAMED, PAIRS_OF_WORDS, TEMPLATE, make_tokenizer

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
CHAT = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
ODD = (None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e308, float("nan"), float("inf"), 10**12, -(10**12), 2**31, 2**63)
ODD += (
    2**64,
    10**400,
    "",
    "a",
    "\ud800",
    "\0",
    "../x",
    "/etc/passwd",
    "9" * 30,
    "x" * 5000,
    [],
    {},
    [[]],
    [None],
    {"": 0},
)
NESTED = 3000  # deeper than what Python or a parser in Rust recurses into


def write_base(directory: Path) -> None:
    """A small reward model with its tokenizer, `single/` in one file and `shards/` in two, and `pairs.jsonl`."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(directory / "tokenizer", NAMED | {"pad_token": "<unk>", "chat_template": TEMPLATE})
    model = rm.init_reward_model(CONFIG, key=jax.random.key(0))
    for name, size in {"single": 10**9, "shards": 3000}.items():
        shutil.rmtree(directory / name, ignore_errors=True)
        rm.save_reward_model(directory / name, model, tokenizer, max_shard_bytes=size)
        (directory / name / "rm.json").unlink()  # its checksums would find every change
    (directory / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS_OF_WORDS))


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes flipped, cut, doubled, taken out or put in."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(5):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1:
                del out[at:]
            case 2:
                del out[at : at + rng.randrange(1, 40)]
            case 3:
                out[at:at] = out[at : at + rng.randrange(1, 200)]
            case _:
                out[at:at] = rng.choice((b"\0", b"\xff", b"{", b"[", b'"', b"\\ud800", b"9" * 40, b"-", b"\n", b","))
    return bytes(out)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with every key in it."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def mutate_json(rng: random.Random, document: Any) -> bytes:
    """A document with values of other kinds, keys missing, added or twice, and nesting; sometimes bytes changed."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(document))
        if not places:
            break
        container, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del container[key]
            case 1:
                other, name = rng.choice(places)
                found = other[name] if rng.random() < 0.9 and name in other else rng.choice(ODD)
                container[key] = copy.deepcopy(found)
            case 2 if isinstance(container, dict):
                container[rng.choice(("a", "", "\ud800", "../x", "0", "__metadata__"))] = container.pop(key)
            case 3:
                container[key] = rng.choice(([container[key]], {"a": container[key]}, "NESTED"))
            case _:
                container[key] = copy.deepcopy(rng.choice(ODD))
    text = json.dumps(document).replace('"NESTED"', rng.choice(("[", '{"a":')) * NESTED)
    if rng.random() < 0.1:
        text = text.replace("{", '{"a": 1, "a": [], ', 1)
    data = text.encode()
    return mutate_bytes(rng, data) if rng.random() < 0.1 else data


def mutate_safetensors(rng: random.Random, data: bytes) -> bytes:
    """A file with another header over the same values, or with another length of the header."""
    size = int.from_bytes(data[:8], "little")
    header, values = json.loads(data[8 : 8 + size]), data[8 + size :]
    match rng.randrange(7):
        case 0:
            return mutate_bytes(rng, data)
        case 6:
            at = rng.randrange(len(values))
            return data[: 8 + size] + values[:at] + rng.randbytes(1) + values[at + 1 :]
        case 1:
            return (
                rng.choice((0, 1, size - 1, size + 1, 10**8, 2**40, 2**63, 2**64 - 1)).to_bytes(8, "little") + data[8:]
            )
        case 2:
            name = rng.choice([name for name in header if name != "__metadata__"])
            changes: dict[str, list[Any]] = {
                "shape": [[], [0], [2**63, 2], [10**12, 10**12], [-1], [1.5], [2**32, 2**32], [8, 1], [None]],
                "data_offsets": [[0, 0], [0, 2**63], [-8, 8], [8, 0], [0, 10**15], [4, 36], [0]],
                "dtype": ["F64", "I8", "BF16", "F8_E4M3", "", 7],
            }
            field = rng.choice(list(changes))
            header[name][field] = rng.choice(changes[field])
            text = json.dumps(header).encode()
        case 3:
            text = json.dumps(header).encode()
            text = text[:-1] + b", " + text[1:]  # every name twice
        case _:
            text = mutate_json(rng, header)
    return len(text).to_bytes(8, "little") + text + values


def _changed(directory: Path, name: str, content: bytes, read: Callable[[], object]) -> None:
    path = directory / name
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(content)
    try:
        read()
    finally:
        path.unlink() if before is None else path.write_bytes(before)


def _change_json(base: Path, name: str, rng: random.Random, read: Callable[[], object]) -> None:
    path = base / name
    before = (
        path.read_bytes() if path.exists() else b'{"tensors": {}, "sha256": {}, "chat_template_date": "2024-07-26"}'
    )
    change = mutate_json(rng, json.loads(before)) if rng.random() < 0.8 else mutate_bytes(rng, before)
    _changed(base, name, change, read)


def weights(base: Path, rng: random.Random) -> None:
    """The tensors of one file."""
    name = "model.safetensors"
    content = mutate_safetensors(rng, (base / "single" / name).read_bytes())
    _changed(base / "single", name, content, lambda: rm.load_reward_model(base / "single"))


def index(base: Path, rng: random.Random) -> None:
    """The index of two files."""
    _change_json(base / "shards", INDEX, rng, lambda: rm.load_reward_model(base / "shards"))


def config(base: Path, rng: random.Random) -> None:
    """config.json, and the weights that it describes."""
    read = rm.load_reward_model if rng.random() < 0.3 else rm.model.load_config
    _change_json(base / "single", "config.json", rng, lambda: read(base / "single"))


def record(base: Path, rng: random.Random) -> None:
    """rm.json, with the checksums of what was exported."""
    read = rng.choice((rm.model.load_config, rm.load_tokenizer))
    _change_json(base / "single", "rm.json", rng, lambda: read(base / "single"))


def _use(directory: Path) -> None:
    tokenizer = rm.load_tokenizer(directory)
    tokenizer.decode(tokenizer.encode("a b ab é x")[:8])
    if tokenizer.chat_template is not None:
        tokenizer.encode(tokenizer.apply_chat_template(CHAT))
    match_config(CONFIG, tokenizer)


def tokenizer(base: Path, rng: random.Random) -> None:
    """tokenizer.json, loaded and used."""
    _change_json(base / "single", "tokenizer.json", rng, lambda: _use(base / "single"))


def tokenizer_config(base: Path, rng: random.Random) -> None:
    """tokenizer_config.json, loaded and used."""
    _change_json(base / "single", "tokenizer_config.json", rng, lambda: _use(base / "single"))


def chat_template(base: Path, rng: random.Random) -> None:
    """A template with bytes changed, compiled and rendered."""
    text = mutate_bytes(rng, TEMPLATE.encode()).decode("utf-8", "replace")
    _changed(base / "single", "chat_template.jinja", text.encode("utf-8", "replace"), lambda: _use(base / "single"))


def _rows(path: Path, tokenizer: rm.Tokenizer) -> None:
    tokenize_comparisons([row for _, row in checked_rows(path)], tokenizer, CONFIG, cache=False)


def rows(base: Path, rng: random.Random) -> None:
    """A JSON-lines file, read and tokenized."""
    loaded = rm.load_tokenizer(base / "single")
    row = rng.choice(PAIRS_OF_WORDS)
    good = json.dumps(row).encode()
    lines = [good, mutate_json(rng, row) if rng.random() < 0.8 else mutate_bytes(rng, good)]
    read = _rows if rng.random() < 0.9 else _data_set
    _changed(base, "pairs.jsonl", b"\n".join(lines) + b"\n", lambda: read(base / "pairs.jsonl", loaded))


def _data_set(path: Path, tokenizer: rm.Tokenizer) -> None:
    tokenize_comparisons(rm.load_comparisons(path), tokenizer, CONFIG, cache=False)


TARGETS: dict[str, Callable[[Path, random.Random], None]] = {
    function.__name__: function
    for function in (weights, index, config, record, tokenizer, tokenizer_config, chat_template, rows)
}
