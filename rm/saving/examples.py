"""A small random Llama and synthetic preferences for the demo and the notebooks, without any download."""

import random
from pathlib import Path

import jax

from ..files.weights import write_json
from ..model.config import LlamaConfig
from ..model.llama import init_reward_model
from .export import write_model

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


def make_pair(rng: random.Random) -> dict[str, list[dict[str, str]]]:
    """A random preference: only the chosen response names a thing of the requested kind; length does not matter.

    >>> sorted(make_pair(random.Random(0)))
    ['chosen', 'prompt', 'rejected']
    """
    requested, different = rng.sample(sorted(_TOPICS), 2)
    question = rng.choice(_QUESTIONS).format(requested)
    topics = (requested, different)
    chosen, rejected = (rng.choice(_ANSWERS).format(rng.choice(_TOPICS[topic].split())) for topic in topics)
    return {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def write_llama(directory: Path, texts: list[str]) -> None:
    """Writes an ordinary Hugging Face directory: a byte-level tokenizer trained on the texts and a random Llama.

    **Arguments:** `directory`, which must exist; `texts`, for a vocabulary of at most 512 tokens.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     write_llama(Path(directory), ["a text", "another one"])
    ...     sorted(path.name for path in Path(directory).iterdir())
    ['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json']
    """
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
    classifier_fields = ("num_labels", "problem_type", "id2label", "label2id")
    causal_lm = {name: value for name, value in llama.to_hf().items() if name not in classifier_fields}
    write_json(directory / "config.json", causal_lm | {"architectures": ["LlamaForCausalLM"], "dtype": "float32"})
    write_model(directory, init_reward_model(llama, key=jax.random.key(0)), max_shard_bytes=10**9, head=False)
