"""The reference workload of peers.py, as files for every system: a Llama with random weights, and real pairs.

llama/ holds a reward model of 29 M parameters and a byte-level BPE of 8192 tokens trained on the data. pairs.jsonl
holds `chosen` and `rejected`, whole texts, and `length`, the tokens of the longer side; over `MAX_LENGTH` it is left
out.

python benchmarks/workload.py SHARED NAME DIRECTORY
"""

import gzip
import json
import random
import sys
from pathlib import Path

SHARED = Path(__file__).parents[2] / "shared"
FILES = {
    "hh-rlhf": "data/hh-rlhf/harmless-base.raw.jsonl.gz",
    "ukp-convarg1": "data/ukp-convarg1/pairs.jsonl.gz",
    "humanevalpack": "data/humanevalpack/pairs.jsonl.gz",
}
MAX_LENGTH = 1024
VOCABULARY = 8192


def write_workload(shared: Path, name: str, directory: Path) -> None:
    """Writes `llama/` and `pairs.jsonl`, in an order drawn once."""
    with gzip.open(shared / FILES[name], "rt", encoding="utf-8") as lines:
        rows = [_texts(json.loads(line)) for line in lines]
    rows = [row for row in rows if row["chosen"] != row["rejected"]]
    tokenizer = train_tokenizer(text for row in rows for text in row.values())
    write_llama(directory / "llama", tokenizer)
    lengths = [1 + max(len(tokenizer.encode(text).ids) for text in row.values()) for row in rows]
    pairs = [{**row, "length": length} for row, length in zip(rows, lengths, strict=True) if length <= MAX_LENGTH]
    random.Random(0).shuffle(pairs)
    (directory / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")


def _texts(row: dict) -> dict[str, str]:
    def text(part: str | list[dict]) -> str:
        return part if isinstance(part, str) else "".join(message["content"] + "\n\n" for message in part)

    prompt = text(row.get("prompt", ""))
    return {side: prompt + text(row[side]) for side in ("chosen", "rejected")}


def train_tokenizer(texts):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_llama(directory: Path, tokenizer) -> None:
    """A reward model with random weights, as a Hugging Face directory."""
    import jax

    import rm

    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_LENGTH, **names}
    draft = directory.with_name("tokenizer")
    draft.mkdir(parents=True)
    tokenizer.save(str(draft / "tokenizer.json"))
    (draft / "tokenizer_config.json").write_text(json.dumps(config))
    model = rm.init_reward_model(reference_config(), key=jax.random.key(0))
    rm.save_reward_model(directory, model, rm.load_tokenizer(draft))


def reference_config():
    import rm

    return rm.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
    )


if __name__ == "__main__":
    write_workload(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
