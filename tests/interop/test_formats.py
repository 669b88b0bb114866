"""Golden token ids: every form of a row, through TRL's own preparation of data, live."""

import copy
import dataclasses
import functools
import gzip
import itertools
import json
from collections.abc import Callable
from datetime import date, datetime
from types import SimpleNamespace
from typing import Any

import pytest

transformers = pytest.importorskip("transformers", reason="needs the extra `interop`: torch, transformers, trl")
trl = pytest.importorskip("trl", reason="needs the extra `interop`: torch, transformers, trl")

import datasets

import rm
from rm.data.tokenize import tokenize_comparisons
from rm.text.special_tokens import CLASSES

from ..conftest import shared
from ..test_tokenize import chat, sequences
from ..tiny import CONFIG
from .conftest import auto_tokenizer

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]

Rows = list[dict]
DIRECTORIES = ("tokenizers/smollm2-135m-instruct", "tokenizers/minueza-32m-ultrachat", "models/stories260K")
CONFIG = dataclasses.replace(CONFIG, vocab_size=50_000)
COUNT = 200


def read(name: str, count: int | None = COUNT) -> Rows:
    with gzip.open(shared(f"data/{name}.jsonl.gz"), "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in itertools.islice(file, count)]


def sides(row: dict, change: Callable) -> dict:
    return row | {side: change(row[side]) for side in ("chosen", "rejected")}


def without(row: dict, *names: str) -> dict:
    return {name: value for name, value in row.items() if name not in names}


def sharegpt(messages: Rows) -> Rows:
    speakers = {"user": "human", "assistant": "gpt"}
    return [
        {"from": speakers.get(message["role"], message["role"]), "value": message["content"]} for message in messages
    ]


def roles_kept(messages: Rows) -> Rows:
    return [{"from": message["role"], "value": message["content"]} for message in messages]


def pairs_of(row: dict) -> Rows:
    ranked = sorted(zip(row["scores"], row["responses"], strict=True), key=lambda scored: -scored[0])
    return [
        {"prompt": row["prompt"], "chosen": chat("", better)[1:], "rejected": chat("", worse)[1:]}
        for (high, better), (low, worse) in itertools.combinations(ranked, 2)
        if high > low
    ]


def tools(row: dict, key: str = "city") -> list[dict]:
    about = row["chosen"][-1]["content"][:20]  # so that tools differ from row to row
    parameters = {"type": "object", "properties": {key: {"type": "string", "description": about}}}
    return [{"type": "function", "function": {"name": "weather", "description": "é < ü", "parameters": parameters}}]


def with_tools(rows: Rows) -> Rows:
    return [row | {"tools": tools(row)} for row in rows]


def with_tools_as_json(rows: Rows) -> Rows:
    return [row | {"tools": json.dumps(tools(row))} for row in rows]


def with_arguments(rows: Rows) -> Rows:
    return [row | {"chat_template_kwargs": {"word": row["chosen"][-1]["content"][:20]}} for row in rows]


# name: the data, rm's rows, TRL's rows
FORMS: dict[str, tuple[str, Callable[[Rows], Rows], Callable[[Rows], Rows]]] = {
    "text, explicit prompt": ("humanevalpack/pairs", list, list),
    "text, implicit prompt": ("hh-rlhf/harmless-base.raw", list, list),
    "chat, explicit prompt": ("hh-rlhf/pairs", list, list),
    "chat, short arguments": ("ukp-convarg1/pairs", list, list),
    "chat, multi-turn": ("llama-factory-demo/dpo_en_demo", list, list),
    "chat, implicit prompt": (
        "hh-rlhf/pairs",
        lambda rows: [without(sides(row, lambda side, row=row: row["prompt"] + side), "prompt") for row in rows],
        list,
    ),
    "messages answered by texts": (
        "hh-rlhf/pairs",
        lambda rows: [sides(row, lambda side: side[-1]["content"]) for row in rows],
        list,
    ),
    "tools as a list": ("hh-rlhf/pairs", with_tools, with_tools),
    "tools as JSON": ("hh-rlhf/pairs", with_tools_as_json, with_tools_as_json),
    "arguments of the template": ("hh-rlhf/pairs", with_arguments, with_arguments),
    "from/value": (
        "llama-factory-demo/dpo_en_demo",
        lambda rows: [sides(row, sharegpt) | {"prompt": sharegpt(row["prompt"])} for row in rows],
        lambda rows: [
            trl.maybe_convert_to_chatml(sides(row, roles_kept) | {"prompt": roles_kept(row["prompt"])}) for row in rows
        ],
    ),
    "from/value, conversations": (
        "llama-factory-demo/dpo_en_demo",
        lambda rows: [
            {"conversations": sharegpt(row["prompt"])} | without(sides(row, lambda side: sharegpt(side)[0]), "prompt")
            for row in rows
        ],
        list,
    ),
    "K-wise": ("gsm8k-solutions/kwise", list, lambda rows: [pair for row in rows for pair in pairs_of(row)]),
}
VARIABLES = "{{ word | default('') }}{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"


@functools.cache
def tokenizers(directory: str, extended: bool = False) -> tuple[rm.Tokenizer, Any]:
    """Ours and theirs; extended, of a template that writes the row's tools and arguments too."""
    ours, theirs = rm.load_tokenizer(shared(directory)), auto_tokenizer(shared(directory))
    if extended:
        theirs.chat_template = VARIABLES + theirs.chat_template
        ours = dataclasses.replace(ours, chat_template=theirs.chat_template)
    return ours, theirs


def with_trl(rows: Rows, tokenizer, max_length: int | None = None, streamed: bool = False) -> list[list[list[int]]]:
    """The ids of TRL's pairs, of which rm leaves out those with two equal sides."""
    arguments = SimpleNamespace(dataset_num_proc=None, max_length=max_length)
    rows = copy.deepcopy(rows)
    in_memory, stream = datasets.Dataset.from_list, datasets.IterableDataset.from_generator
    dataset: Any = stream(lambda: iter(rows)) if streamed else in_memory(rows)
    prepared = trl.RewardTrainer._prepare_dataset(None, dataset, tokenizer, arguments, "train")
    pairs = [[row["chosen_ids"], row["rejected_ids"]] for row in prepared]
    return [pair for pair in pairs if pair[0] != pair[1]]


def with_rm(rows: Rows, tokenizer: rm.Tokenizer, max_length: int = 10**6, **options) -> list[list[list[int]]]:
    dataset = datasets.Dataset.from_list(rows)
    return sequences(tokenize_comparisons(dataset, tokenizer, CONFIG, max_length=max_length, **options)[0])


@pytest.mark.parametrize("directory", DIRECTORIES)
@pytest.mark.parametrize("form", FORMS)
def test_ids_equal_trl(form, directory):
    data, our_rows, their_rows = FORMS[form]
    rows = read(data)
    ours, theirs = tokenizers(directory, form.startswith(("tools", "arguments")))
    expected = with_trl(their_rows(rows), theirs)
    assert len(rows) == COUNT
    assert len(expected) == len(their_rows(rows))  # none of these has two equal sides
    assert with_rm(our_rows(rows), ours) == expected


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_keys_that_a_row_lacks_stay_away(directory):
    # columns in memory give each row the keys of every row, as nulls: TRL renders them, but not those of a stream
    rows = [
        row | {"tools": tools(row, key=f"key{i % 2}"), "chat_template_kwargs": {("word", "other")[i % 2]: f"{i}"}}
        for i, row in enumerate(read("hh-rlhf/pairs"))
    ]
    ours, theirs = tokenizers(directory, extended=True)
    assert with_rm(rows, ours) == with_trl(rows, theirs, streamed=True)


def calls(city: str | None, unit: str | None) -> Rows:
    arguments = {"city": city, "unit": unit, "days": [1, None]}
    function = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [{"role": "assistant", "content": "", "tool_calls": [function]}]


CALLS = "{% for m in messages %}{{ m.tool_calls | tojson if m.tool_calls else '' }}{% endfor %}{{ tools | tojson }}"


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_nulls_in_tool_calls_and_tools_are_what_they_are_in_trl(directory):
    """Without them, the two responses of the second row are one."""
    ours, theirs = tokenizers(directory)
    theirs = copy.deepcopy(theirs)
    theirs.chat_template = CALLS
    ours = dataclasses.replace(ours, chat_template=CALLS)
    rows = [
        {"prompt": chat("How warm is it?"), "chosen": calls("Paris", None), "rejected": calls("Oslo", "F")},
        {"prompt": chat("How warm is it?"), "chosen": calls("Paris", None), "rejected": calls("Paris", "C")},
    ]
    rows = [row | {"tools": [{"name": "weather", "default": None}]} for row in rows]
    del rows[1]["chosen"][0]["tool_calls"][0]["function"]["arguments"]["unit"]
    rows[1]["rejected"] = calls("Paris", None)
    found = sequences(tokenize_comparisons(rows, ours, CONFIG, max_length=10**6)[0])
    assert len(found) == 2
    assert found == with_trl(rows, theirs, streamed=True)


ARGUMENTS = [
    {"chat_template": None},
    {"add_generation_prompt": True},
    {"add_generation_prompt": True, "continue_final_message": False},
    {"documents": [{"title": "a", "text": "b"}], "word": None},
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=[" ".join(arguments) for arguments in ARGUMENTS])
def test_arguments_that_transformers_names_are_taken_as_trl_takes_them(arguments):
    template = "{% if add_generation_prompt %}go{% endif %}{{ word }}{{ documents | tojson }}"
    ours, theirs = tokenizers("tokenizers/smollm2-135m-instruct")
    theirs = copy.deepcopy(theirs)
    theirs.chat_template = template + theirs.chat_template
    ours = dataclasses.replace(ours, chat_template=theirs.chat_template)
    rows = [row | {"chat_template_kwargs": arguments} for row in read("hh-rlhf/pairs", 20)]
    found = sequences(tokenize_comparisons(rows, ours, CONFIG, max_length=10**6)[0])
    assert found == with_trl(rows, theirs, streamed=True)


def test_a_template_in_a_row_which_trl_renders_is_refused():
    ours, theirs = tokenizers("tokenizers/smollm2-135m-instruct")
    arguments = {"chat_template": "{{ messages[-1].content }}"}
    (row,) = read("hh-rlhf/pairs", 1)
    rows = [row | {"chat_template_kwargs": arguments}]
    assert with_trl(rows, theirs, streamed=True)[0][0] == ours.encode(row["chosen"][-1]["content"])
    with pytest.raises(rm.DataError, match=r"chat_template must name one of the tokenizer's \(default\)"):
        tokenize_comparisons(rows, ours, CONFIG)


@pytest.mark.parametrize("arguments", [{"tokenize": True}, {"return_dict": True}, {"conversation": []}])
def test_arguments_that_trl_fails_on_are_refused(arguments):
    ours, theirs = tokenizers("tokenizers/smollm2-135m-instruct")
    rows = [row | {"chat_template_kwargs": arguments} for row in read("hh-rlhf/pairs", 1)]
    with pytest.raises(TypeError, match="multiple values"):
        with_trl(rows, theirs, streamed=True)
    with pytest.raises(rm.DataError, match="is not a variable of chat templates"):
        tokenize_comparisons(rows, ours, CONFIG)


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_only_pairs_of_equal_sides_are_left_out(directory):
    rows = read("hh-rlhf/pairs", None)
    equal = [i for i, row in enumerate(rows) if row["chosen"] == row["rejected"]]
    rows = [rows[i] for i in sorted({*equal, *range(COUNT - len(equal))})]
    ours, theirs = tokenizers(directory)
    expected = with_trl(rows, theirs)
    assert 0 < len(equal) == COUNT - len(expected)
    comparisons, table = tokenize_comparisons(rows, ours, CONFIG, max_length=10**6)
    assert sequences(comparisons) == expected
    assert table["dropped"] == {"identical": len(equal)}


def test_one_of_two_bos_is_taken_away():
    rows = [sides(row, "<s>".__add__) for row in read("hh-rlhf/harmless-base.raw")]
    ours, theirs = tokenizers("models/stories260K")
    twice = with_trl(rows, theirs)
    assert all(side[:2] == [ours.token_id("<s>")] * 2 for pair in twice for side in pair)
    assert with_rm(rows, ours) == [[side[1:] for side in pair] for pair in twice]


LIMITS = [("text, explicit prompt", 256), ("text, implicit prompt", 256), ("chat, explicit prompt", 256)]
LIMITS += [("chat, multi-turn", 1024)]


@pytest.mark.parametrize("directory", DIRECTORIES)
@pytest.mark.parametrize(("form", "max_length"), LIMITS)
def test_the_same_rows_are_over_length(form, directory, max_length):
    rows = read(FORMS[form][0])
    ours, theirs = tokenizers(directory)
    expected = with_trl(rows, theirs, max_length)
    assert 0 < len(expected) < len(rows)  # the limit leaves some out
    assert with_rm(rows, ours, max_length) == expected


def padded(pairs: list[list[list[int]]], left: bool) -> Rows:
    """The columns that EasyDeL's preference data have, padded to one length."""
    width = max(len(side) for pair in pairs for side in pair)
    rows = []
    for pair in pairs:
        row = {}
        for name, ids in zip(("chosen", "rejected"), pair, strict=True):
            ones, blank = [1] * len(ids), [0] * (width - len(ids))
            row[f"input_ids_{name}"] = blank + ids if left else ids + blank
            row[f"attention_mask_{name}"] = blank + ones if left else ones + blank
        rows.append(row)
    return rows


@pytest.mark.parametrize("directory", DIRECTORIES)
@pytest.mark.parametrize("names", [("chosen_ids", "rejected_ids"), ("chosen_input_ids", "rejected_input_ids")])
def test_token_ids_pass_as_they_are(directory, names):
    ours, theirs = tokenizers(directory)
    rows = [dict(zip(names, pair, strict=True)) for pair in with_trl(read("hh-rlhf/pairs"), theirs)]
    assert with_rm(rows, ours) == with_trl(rows, theirs)


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("directory", DIRECTORIES)
def test_padding_of_token_ids_is_taken_away(directory, left):
    ours, theirs = tokenizers(directory)
    expected = with_trl(read("ukp-convarg1/pairs"), theirs)
    assert with_rm(padded(expected, left), ours) == expected


def test_the_pinned_date_is_what_transformers_says_on_that_day(monkeypatch):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2025, 2, 3, 4, 5, 6)

    monkeypatch.setattr(transformers.utils.chat_template_utils, "datetime", Clock)
    ours, theirs = tokenizers("tokenizers/smollm2-135m-instruct")
    template = "{{ strftime_now('%d %b %Y, %A %B %-d, %j') }}\n" + str(ours.chat_template)
    ours = dataclasses.replace(ours, today=date(2025, 2, 3), chat_template=template)
    rendered = ours.apply_chat_template(chat("Hi", "Hello"))
    assert rendered.startswith("03 Feb 2025, Monday February 3, 034\n")
    assert rendered == theirs.apply_chat_template(chat("Hi", "Hello"), tokenize=False, chat_template=template)


def test_the_classes_that_are_read_exist():
    assert all(
        hasattr(transformers, name) or hasattr(transformers, f"{name}Tokenizer")
        for name in CLASSES.keys() - {"PreTrained"}
    )
    assert hasattr(transformers, "PreTrainedTokenizerFast")


def test_a_tokenizer_with_code_of_its_own_is_refused(tmp_path):
    source = shared("models/stories260K")
    config = json.loads((source / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "FancyTokenizer", "auto_map": {"AutoTokenizer": [None, "fancy.FancyTokenizer"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    with pytest.raises(ValueError, match="custom code"):
        transformers.AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    with pytest.raises(rm.TokenizerError, match="FancyTokenizer"):
        rm.load_tokenizer(tmp_path)
