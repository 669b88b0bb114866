"""Tokenized comparisons on disk, found again by what went into them."""

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import tokenizers

from ..errors import OutputError
from ..files.output import new_directory
from ..files.row_files import LINE
from ..model.config import LlamaConfig
from ..text.tokenizer import Tokenizer
from .comparisons import TokenizedComparisons
from .encode import EncodeOptions

if TYPE_CHECKING:
    from datasets import Dataset

ARRAYS = ("offsets", "ends", "keys", "margin", "row", "source")
_HASHED_ROWS = 10_000

Result = tuple[TokenizedComparisons, Counter[tuple[str, str]]]


def cache_entry(
    rows: "Dataset", columns: Sequence[str], tokenizer: Tokenizer, config: LlamaConfig, options: EncodeOptions
) -> Path:
    """Where the result lies, or would: a directory named by the contents of data, tokenizer and options.

    It is in the cache of `datasets`, so `HF_HOME` moves it along.
    """
    from datasets import config as settings

    digest = hashlib.sha256()
    pooling = [config.pad_token_id, config.vocab_size, config.rope.type, config.max_position_embeddings]
    facts = [tokenizers.__version__, tokenizer.today, pooling, dataclasses.asdict(options)]
    digest.update(json.dumps(facts, default=str, sort_keys=True).encode())
    code = {
        path.name: path.read_bytes() for path in Path(__file__).parent.glob("*.py")
    }  # another version, another result
    for name, content in sorted({**code, **tokenizer.files}.items()):
        digest.update(f"{name}:{len(content)}:".encode() + content)
    _hash_rows(rows, [name for name in columns if name != LINE], digest)
    return Path(settings.HF_DATASETS_CACHE) / "rm-tokenized" / digest.hexdigest()


def _hash_rows(rows: "Dataset", columns: Sequence[str], digest: Any) -> None:
    """The rows' values, however they are chunked in memory."""
    import pyarrow as pa

    from ..files.arrow_files import read_tables

    for table in read_tables(rows, columns, _HASHED_ROWS):
        sink = pa.BufferOutputStream()
        table = table.combine_chunks().replace_schema_metadata(None)  # pyright: ignore[reportAttributeAccessIssue]
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        digest.update(sink.getvalue())


def load_entry(entry: Path) -> Result | None:
    """What an entry holds, its tokens mapped rather than read; `None` where it is not there or not whole."""
    try:
        arrays = {name: np.load(entry / f"{name}.npy") for name in ARRAYS}
        counts = json.loads((entry / "counts.json").read_text(encoding="utf-8"))
        tokens = np.memmap(entry / "tokens.bin", np.int32, "r")
    except (OSError, ValueError):
        return None
    if len(tokens) != arrays["offsets"][-1, -1]:
        return None
    return TokenizedComparisons(tokens=tokens, **arrays), Counter({(kind, name): n for kind, name, n in counts})


def save_entry(
    entry: Path, tokens: IO[bytes], comparisons: TokenizedComparisons, counts: Counter[tuple[str, str]]
) -> None:
    """Keeps a result, its tokens copied from the file that holds them; a cache that cannot be written is none."""
    try:
        with new_directory(entry) as draft:
            tokens.seek(0)
            with (draft / "tokens.bin").open("wb") as file:
                shutil.copyfileobj(tokens, file)
            for name in ARRAYS:
                np.save(draft / f"{name}.npy", getattr(comparisons, name))
            listed = [[kind, name, n] for (kind, name), n in counts.items()]
            (draft / "counts.json").write_text(json.dumps(listed), encoding="utf-8")
    except OutputError:
        pass
