"""Comparisons with the live peers; each module skips where they are not installed."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `interop`: torch, transformers, trl")
transformers = pytest.importorskip("transformers", reason="needs the extra `interop`: torch, transformers, trl")

torch.set_num_threads(2)
torch.manual_seed(0)


def fast_tokenizer(directory: Path):
    """`transformers`' tokenizer from `tokenizer.json` itself, never rebuilt from its class."""
    config = json.loads((directory / "tokenizer_config.json").read_text())
    known = ("bos_token", "eos_token", "unk_token", "pad_token", "chat_template", "add_bos_token", "add_eos_token")
    kept = {name: config[name] for name in known if name in config}
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"), **kept)
