"""Comparisons with the live peers; each module skips where they are not installed."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `interop`: torch, transformers, trl")
transformers = pytest.importorskip("transformers", reason="needs the extra `interop`: torch, transformers, trl")

torch.set_num_threads(2)
torch.manual_seed(0)


def auto_tokenizer(directory: Path):
    """`transformers`' tokenizer as users load it: of the class that the directory names."""
    return transformers.AutoTokenizer.from_pretrained(directory)


def fast_tokenizer(directory: Path):
    """`transformers`' tokenizer as `tokenizer.json` describes it, never rebuilt from the class that is named."""
    return transformers.PreTrainedTokenizerFast.from_pretrained(directory)
