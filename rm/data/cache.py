"""A cache of tokenized comparisons on disk, by a hash of the data, the tokenizer and the options."""

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

from ..errors import OutputError, warn_once
from ..files.output import new_directory
from ..files.row_files import LINE
from ..model.config import LlamaConfig
from ..text.tokenizer import Tokenizer
from .comparisons import ARRAYS, TokenizedComparisons
from .encode import Counts, EncodeOptions

if TYPE_CHECKING:
    from datasets import Dataset

_HASHED_ROWS = 10_000

Result = tuple[TokenizedComparisons, Counts]


def cache_entry(
    rows: "Dataset", columns: Sequence[str], tokenizer: Tokenizer, config: LlamaConfig, options: EncodeOptions
) -> Path:
    """The directory of a result, named by a hash of the contents of data, tokenizer and options.

    It is in the cache of `datasets`, which `HF_HOME` moves.
    """
    from datasets import config as settings

    digest = hashlib.sha256()
    pooling = [config.pad_token_id, config.reward_token_id, config.vocab_size, config.fixed_rope_length]
    facts = [tokenizers.__version__, tokenizer.today, pooling, dataclasses.asdict(options)]
    digest.update(json.dumps(facts, default=str, sort_keys=True).encode())
    # another version of the code may give another result
    code = {path.name: path.read_bytes() for path in Path(__file__).parent.glob("*.py")}
    for name, content in sorted({**code, **tokenizer.files}.items()):
        digest.update(f"{name}:{len(content)}:".encode() + content)
    _hash_rows(rows, [name for name in columns if name != LINE], digest)
    return Path(settings.HF_DATASETS_CACHE) / "rm-tokenized" / digest.hexdigest()


def _hash_rows(rows: "Dataset", columns: Sequence[str], digest: Any) -> None:
    """Adds the values of the rows to the digest, whatever their chunks in memory."""
    import pyarrow as pa

    from ..files.arrow_files import read_tables

    for table in read_tables(rows, columns, _HASHED_ROWS):
        sink = pa.BufferOutputStream()
        table = table.combine_chunks().replace_schema_metadata(None)  # pyright: ignore[reportAttributeAccessIssue]
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        digest.update(sink.getvalue())


def load_entry(entry: Path) -> Result | None:
    """The result in an entry, its tokens memory-mapped; `None` if the entry is missing or incomplete."""
    try:
        arrays = {name: np.load(entry / f"{name}.npy") for name in ARRAYS}
        counts = json.loads((entry / "counts.json").read_text(encoding="utf-8"))
        tokens = np.memmap(entry / "tokens.bin", np.int32, "r")
    except (OSError, ValueError):
        return None
    if len(tokens) != arrays["offsets"][-1, -1]:
        return None
    return TokenizedComparisons(tokens=tokens, **arrays), Counter({(kind, name): n for kind, name, n in counts})


def save_entry(entry: Path, tokens: IO[bytes], comparisons: TokenizedComparisons, counts: Counts) -> None:
    """Saves a result, its tokens copied from the file `tokens`; a cache that cannot be written is a warning."""
    try:
        with new_directory(entry) as draft:
            tokens.seek(0)
            with (draft / "tokens.bin").open("wb") as file:
                shutil.copyfileobj(tokens, file)
            for name in ARRAYS:
                np.save(draft / f"{name}.npy", getattr(comparisons, name))
            listed = [[kind, name, n] for (kind, name), n in counts.items()]
            (draft / "counts.json").write_text(json.dumps(listed), encoding="utf-8")
    except OutputError as error:
        warn_once(f"{error}: these rows are tokenized again next time")
