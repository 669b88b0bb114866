"""`python -m rm demo`: the whole way on data made here, in about two minutes on two cores."""

import dataclasses
import json
import random
from pathlib import Path

import jax

from ..config import LlamaConfig
from ..errors import OutputError
from ..hf import write_model
from ..model import init_reward_model
from ..output import check_writable
from ..weights import write_json
from .score import ScoreArguments, score
from .train import TrainArguments, train

_TOPICS = {
    "an animal": "heron otter badger lizard falcon beetle salmon rabbit",
    "a tool": "hammer chisel pliers wrench shovel sander drill ladder",
    "a fruit": "mango cherry papaya lemon apricot plum quince melon",
    "an instrument": "violin trumpet cello banjo flute organ drum harp",
    "a garment": "jacket mitten scarf sandal turban apron trousers hat",
    "a vehicle": "tractor ferry scooter wagon glider canoe tram lorry",
}
_QUESTIONS = ("Tell me about {}.", "Name {}, please.", "I am looking for {}. Which one?", "What is {} that you like?")
_ANSWERS = (
    "I would say the {}.",
    "The {} comes to mind first, and it is one that most people know well.",
    "How about a {}?",
    "Let me think for a moment. My answer is the {}.",
)
_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoArguments:
    """Make a small model and preference data, train on them, evaluate, export and score: nothing to download."""

    output: Path = Path("rm-demo")
    """Directory for the model, the data, the run (run/) and the scores."""


def demo(args: DemoArguments) -> None:
    """A response is right when it names a thing of the kind that the prompt asks for, whatever its length."""
    base, run = args.output / "llama", args.output / "run"
    if args.output.exists():
        raise OutputError(f"{args.output}: exists already; choose another --output or remove it")
    check_writable(args.output)
    base.mkdir(parents=True)
    rng = random.Random(0)
    pairs = [make_pair(rng) for _ in range(3000)]
    _write_rows(args.output / "train.jsonl", pairs[:2500])
    _write_rows(args.output / "test.jsonl", pairs[2500:])
    _write_rows(args.output / "questions.jsonl", _questions())
    write_llama(base, [text["content"] for pair in pairs for messages in pair.values() for text in messages])

    train(
        TrainArguments(
            model=str(base),
            dataset=(str(args.output / "train.jsonl"),),
            eval_dataset=(str(args.output / "test.jsonl"),),
            output=run,
            learning_rate=1e-3,
            batch_size=32,
            epochs=3.0,
            warmup_ratio=0.1,
            center_rewards_coefficient=0.01,
            log_every=20,
        )
    )
    scores = args.output / "scores.jsonl"
    score(ScoreArguments(model=str(run / "model"), input=args.output / "questions.jsonl", output=scores))
    for line in scores.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        print(f"  {row['reward']:+.2f}  {row['messages'][0]['content']} {row['messages'][1]['content']}")
    accuracy = json.loads((run / "run.json").read_text(encoding="utf-8"))["evaluation"]["eval_test_accuracy"]
    print(f"held-out accuracy {accuracy:.3f}\n\nNext, with a Llama and preferences of your own:")
    print("  python -m rm train --model LLAMA_DIR_OR_HUB_ID --dataset PAIRS.jsonl --output RUN")
    print("  python -m rm evaluate --model RUN/model --dataset HELD_OUT.jsonl --output EVALUATION")
    print("  python -m rm score --model RUN/model --input RESPONSES.jsonl --output SCORES.jsonl")


def make_pair(rng: random.Random) -> dict[str, list[dict[str, str]]]:
    """A preference whose right response names a thing of the kind asked for."""
    asked, other = rng.sample(sorted(_TOPICS), 2)
    question = rng.choice(_QUESTIONS).format(asked)
    chosen, rejected = (rng.choice(_ANSWERS).format(rng.choice(_TOPICS[topic].split())) for topic in (asked, other))
    return {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def _questions() -> list[dict]:
    asked = (("Name a fruit, please.", "How about a papaya?"), ("Name a fruit, please.", "How about a wrench?"))
    roles = ("user", "assistant")
    return [
        {"messages": [{"role": role, "content": text} for role, text in zip(roles, turn, strict=True)]}
        for turn in asked
    ]


def _write_rows(path: Path, rows: list) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_llama(directory: Path, texts: list[str]) -> None:
    """An ordinary Hugging Face directory: a byte-level tokenizer trained on the texts and a random Llama."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=_SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    config |= {"eos_token": "<|end|>", "pad_token": "<|pad|>"}
    write_json(directory / "tokenizer_config.json", config | {"chat_template": _TEMPLATE})
    llama = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.06,
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=0,
    )
    causal_lm = {
        name: value for name, value in llama.to_hf().items() if name not in ("num_labels", "id2label", "label2id")
    }
    write_json(directory / "config.json", causal_lm | {"architectures": ["LlamaForCausalLM"], "dtype": "float32"})
    write_model(directory, init_reward_model(llama, key=jax.random.key(0)), max_shard_bytes=10**9, head=False)
