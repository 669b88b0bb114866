"""The model card of an exported reward model."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_ABOUT = """# {name}

A reward model: a Llama backbone with one scalar output{base}, trained on preference pairs (Bradley–Terry) with
[`rm`](https://pypi.org/project/rm-jax/) {version}. A higher reward means a better response; only differences between
responses to the same prompt mean something.
"""

_USE = """## Use

```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{place}")
model = AutoModelForSequenceClassification.from_pretrained("{place}", dtype="float32")


def reward(text, **options):
    inputs = tokenizer(text, return_tensors="pt", **options)
    with torch.no_grad():
        return model(**inputs).logits[0, 0].item()

{chat}
text = "2 + 2 = " + "4"  # prompt + response
print(reward({ended}))
```

In JAX:

```python
import rm

model, tokenizer = rm.load_reward_model("{place}"), rm.load_tokenizer("{place}")
rewards = rm.score(model, tokenizer, [{rows}])
```

The reward is read at the rightmost token whose id is not `pad_token_id` ({pad}). `rm.json` records where the
model comes from.

How texts were built in training, and are to be built for the same rewards:

- A prompt and a response that are texts are joined as they are, with nothing between them. {eos}The tokenizer then adds
  the special tokens that its `tokenizer.json` says.
- A text that begins with the beginning-of-sequence token gets no second one: take it away before `tokenizer(text)`.
- Messages are rendered by the chat template, without a generation prompt, and tokenized with
  `add_special_tokens=False`: the template has written the special tokens.
- `dtype="float32"`: version 5 of transformers otherwise computes in the type of the weights on disk, the score too.
- TRL's `GRPOTrainer`, given this model as a reward function, joins prompts and completions that are texts with neither
  a token at the beginning nor one at the end, which gives other rewards than these. Messages it renders as above.
{date}"""

_CHAT = """
messages = [{"role": "user", "content": "2 + 2 = "}, {"role": "assistant", "content": "4"}]
chat = tokenizer.apply_chat_template(messages, tokenize=False)
print(reward(chat, add_special_tokens=False))
"""

_DATE_IS_WRITTEN = """- In training the chat template was told that today is {date}. That date is written in the
  template here, so that rewards do not change with the calendar.
"""

_DATE_IS_OPEN = """- In training the chat template was told that today is {date}. It asks for the date in a way
  that could not be replaced, and transformers tells it the present one: there, rewards of messages change with the
  calendar. Where `rm` computes them, they do not.
"""

_LIMITS = """## Limits

- Rewards rank responses to one prompt. Those of different prompts, or of different models, are not comparable.
- It has learned what the people or models preferred who compared the responses above, with their errors and biases.
  Nothing says how it ranks texts of another kind, another language or another template.
- A model that is optimized against these rewards finds what they wrongly prefer.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """How a tokenizer builds texts; `date` is what its chat templates were told, where they ask."""

    chat: bool = False
    eos_token: str | None = None
    date: str | None = None
    date_is_written: bool = True


def model_card(name: str, record: Mapping[str, Any], texts: Texts = Texts()) -> str:
    """The text of `README.md`: what the model is, its data and figures as far as the record has them, how to use it.

    **Arguments:** `record`, what `rm.json` says; `texts`, what to say of the way texts are built.
    """
    name = (record.get("repository") or name).rpartition("/")[2]
    base = f" on `{_name(record['base_model'])}`" if record.get("base_model") else ""
    about = _ABOUT.format(name=name, base=base, version=record["rm_version"])
    use = _use(record, texts)
    sections = (about, _evaluation(record), _data(record), _training(record), use, _LIMITS + _more_limits(record))
    return f"---\n{_front_matter(name, record)}\n---\n\n" + "\n".join(section for section in sections if section)


def _use(record: Mapping[str, Any], texts: Texts) -> str:
    """How to score with the model, and how its texts are built."""
    date = _DATE_IS_WRITTEN if texts.date_is_written else _DATE_IS_OPEN
    rows = '{"messages": messages}, ' if texts.chat else ""
    return _USE.format(
        place=record.get("repository") or "PATH_OR_HUB_ID",
        chat=_CHAT if texts.chat else "",
        ended="text + tokenizer.eos_token" if texts.eos_token else "text",
        rows=f'{rows}{{"prompt": "2 + 2 = ", "response": "4"}}',
        pad=record["pooling"]["pad_token_id"],
        eos=f"`{texts.eos_token}` follows, unless the response ends in it. " if texts.eos_token else "",
        date=date.format(date=texts.date) if texts.date else "",
    )


def _front_matter(name: str, record: Mapping[str, Any]) -> str:
    """What the hub reads, as its own library writes it."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-classification",
            task_name="Preference ranking",
            dataset_type=_name(table["source"]),
            dataset_name=_name(table["source"]),
            metric_type="accuracy",
            metric_value=value,
        )
        for table, figures in _evaluated(record)
        if math.isfinite(value := figures.get("accuracy", math.nan))
    ]
    hub = dict.fromkeys(table["source"] for table in _tables(record, "train").values() if table.get("hub"))
    data = ModelCardData(
        base_model=record["base_model"] if record.get("base_model_is_hub_id") else None,
        datasets=list(hub) or None,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["reward-model", "rm-jax"],
        **({"model_name": name, "eval_results": results} if results else {}),
    )
    return data.to_yaml()


def _tables(record: Mapping[str, Any], kind: str) -> dict[str, Mapping[str, Any]]:
    """What happened to the data sets of training (`train`) or of the evaluations (`eval`), by their names."""
    data = record.get("data")
    data = data if isinstance(data, Mapping) else {}
    return {name: table for name, table in data.items() if name == kind or name.startswith(f"{kind}_")}


def _evaluated(record: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], dict[str, float]]]:
    """Each evaluation set with its figures."""
    found = record.get("evaluation") or {}
    return [
        (table, {key.removeprefix(f"{name}_"): value for key, value in found.items() if key.startswith(f"{name}_")})
        for name, table in _tables(record, "eval").items()
    ]


def _evaluation(record: Mapping[str, Any]) -> str:
    columns = ("accuracy", "margin", "loss", "mean_reward", "std_reward")
    rows = [
        (f"`{_name(table['source'])}`", table["kept"], *(f"{figures.get(column, math.nan):.4g}" for column in columns))
        for table, figures in _evaluated(record)
    ]
    if not rows:
        found = record.get("evaluation") or {}
        plain = [(name, f"{value:.4g}") for name, value in found.items() if isinstance(value, int | float)]
        return _section("Evaluation", _table(("metric", "value"), plain)) if plain else ""
    head = ("held-out data", "pairs", "accuracy", "margin", "loss", "mean reward", "std of rewards")
    said = "Accuracy is the share of pairs whose chosen response has the higher reward; a tie counts as wrong. The "
    said += "margin is the mean of chosen − rejected."
    reward = record.get("reward")
    if reward:
        said += f" Over all {reward['count']} held-out rewards the mean is {reward['mean']:.4g}, the standard deviation"
        said += f" {reward['std']:.4g}."
    return _section("Evaluation", _table(head, rows), said)


def _data(record: Mapping[str, Any]) -> str:
    rows = [
        (
            f"`{_name(table['source'])}`",
            table["read"],
            table["kept"],
            table.get("taken", table["kept"]),
            _dropped(table),
        )
        for table in _tables(record, "train").values()
    ]
    head = ("training data", "rows read", "comparisons kept", "trained on", "dropped")
    return _section("Data", _table(head, rows)) if rows else ""


def _training(record: Mapping[str, Any]) -> str:
    given = record.get("hyperparameters")
    if not given:
        return ""
    rows = [(f"`{name}`", f"`{value}`") for name, value in given.items() if value is not None]
    template = record.get("chat_template_sha256")
    said = f"{record['steps']} updates of {record['parameters']:,} parameters. "
    said += f"The chat template has the sha256 `{template}`." if template else "There is no chat template."
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return _section("Training", said, _table(("hyperparameter", "value"), rows), f"Versions: {versions}.")


def _more_limits(record: Mapping[str, Any]) -> str:
    """Those that follow from the figures of this run."""
    lines = []
    if longest := (record.get("hyperparameters") or {}).get("max_length"):
        lines.append(f"- It was trained on texts of at most {longest} tokens.")
    for table in _tables(record, "train").values():
        if table.get("chosen_longer") is not None:
            share = f"{table['chosen_longer']:.1%}"
            lines.append(f"- In `{_name(table['source'])}` the chosen response was the longer one in {share} of pairs.")
    return "".join(f"{line}\n" for line in lines)


def _dropped(table: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in table["dropped"].items()) or "none"


def _name(source: str) -> str:
    """A data set or a model without its place on somebody's disk."""
    return Path(source).name if Path(source).is_absolute() else source


def _section(title: str, *parts: str) -> str:
    return "\n\n".join((f"## {title}", *parts)) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
