"""Every chat template that TRL ships, conversations of every kind, every way to list tokens: `transformers`, live.

Each test prints how many cases are equal, refused by both, and different, which must be none.
"""

import copy
import dataclasses
import importlib.resources
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import tokenizers

transformers = pytest.importorskip("transformers", reason="needs the extra `interop`: torch, transformers, trl")
trl = pytest.importorskip("trl", reason="needs the extra `interop`: torch, transformers, trl")

import rm
from rm.data.render import RowError, render_messages
from rm.text.special_tokens import CLASSES

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]

TEMPLATES = {
    path.name.removesuffix(".jinja"): path.read_text(encoding="utf-8")
    for path in sorted(importlib.resources.files(trl).joinpath("chat_templates").iterdir(), key=lambda path: path.name)
    if path.name.endswith(".jinja")
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The weather of a <city> & "more", é',
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where", "default": None}},
            "required": ["city"],
        },
    },
}
SYSTEM = {"role": "system", "content": "You are a helpful geographer."}
ASK = {"role": "user", "content": "  How warm is it in <Paris> & 'Oslo'?\n"}
ANSWER = {"role": "assistant", "content": 'It is 20 °C there, "mild" 🙂.'}
AGAIN = [{"role": "user", "content": "And tomorrow?"}, {"role": "assistant", "content": "Colder, I believe. "}]
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "abc123def", "content": "20 degrees"}


def call(**arguments: Any) -> dict:
    function = {"name": "weather", "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "id": "abc123def", "function": function}],
    }


def parts(*texts: str) -> list[dict]:
    return [{"type": "text", "text": text} for text in texts]


def thought(name: str) -> dict:
    return ANSWER | {name: "Paris lies in France."}


# name: the messages, and what else the row has
CONVERSATIONS: dict[str, tuple[list[dict], dict]] = {
    "one turn": ([ASK, ANSWER], {}),
    "system": ([SYSTEM, ASK, ANSWER], {}),
    "developer": ([SYSTEM | {"role": "developer"}, ASK, ANSWER], {}),
    "turns": ([ASK, ANSWER, *AGAIN], {}),
    "system and turns": ([SYSTEM, ASK, ANSWER, *AGAIN], {}),
    "two users": ([ASK, ASK, ANSWER], {}),
    "empty answer": ([ASK, {"role": "assistant", "content": ""}], {}),
    "prompt alone": ([ASK], {"chat_template_kwargs": {"add_generation_prompt": True}}),
    "tools": ([SYSTEM, ASK, ANSWER], {"tools": [TOOL]}),
    "tools as JSON": ([ASK, ANSWER], {"tools": json.dumps([TOOL, TOOL])}),
    "no tools": ([ASK, ANSWER], {"tools": []}),
    "tool call": ([SYSTEM, ASK, call(city="Oslo")], {"tools": [TOOL]}),
    "tool call with content": ([ASK, call(city="Oslo") | {"content": "Let me look."}], {"tools": [TOOL]}),
    "tool call with nulls": ([ASK, call(city=None, days=[1, None, {"from": None}])], {"tools": [TOOL]}),
    "tool result": ([SYSTEM, ASK, call(city="Oslo"), RESULT, ANSWER], {"tools": [TOOL]}),
    "tool result as object": (
        [ASK, call(city="Oslo"), RESULT | {"content": {"warm": None}}, ANSWER],
        {"tools": [TOOL]},
    ),
    "tool result in parts": ([ASK, call(city="Oslo"), RESULT | {"content": parts("20 degrees")}, ANSWER], {}),
    "reasoning_content": ([ASK, thought("reasoning_content")], {}),
    "reasoning": ([ASK, thought("reasoning")], {}),
    "thinking": ([SYSTEM, ASK, thought("thinking")], {}),
    "reasoning and a call": ([ASK, call(city="Oslo") | {"reasoning": "I look."}, RESULT, ANSWER], {"tools": [TOOL]}),
    "reasoning of an earlier turn": ([ASK, thought("reasoning"), *AGAIN], {}),
    "reasoning in the text": ([ASK, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes."}, *AGAIN], {}),
    "no thinking": ([ASK, ANSWER], {"chat_template_kwargs": {"enable_thinking": False}}),
    "documents": ([ASK, ANSWER], {"chat_template_kwargs": {"documents": [{"title": "A", "text": "B"}]}}),
    "more arguments": ([ASK, ANSWER], {"chat_template_kwargs": {"chat_template": None, "date_string": "1 May 2026"}}),
    "null keys": ([ASK | {"name": None}, ANSWER | {"tool_calls": None, "reasoning_content": None}], {}),
    "parts of the user": ([SYSTEM, ASK | {"content": parts("How warm is it in Paris?")}, ANSWER], {}),
    "several parts": ([ASK | {"content": parts("How warm is it ", "in <Paris>?")}, ANSWER], {}),
    "all in parts": (
        [
            SYSTEM | {"content": parts("You are a geographer.")},
            ASK | {"content": parts("How warm is it in Paris?")},
            ANSWER | {"content": parts("It is 20 degrees.")},
            *AGAIN,
        ],
        {},
    ),
}
IMAGE = [ASK | {"content": [{"type": "image"}, *parts("What is it?")]}, ANSWER]


# Directories.

SPECIAL = ("<s>", "</s>", "<unk>", "<pad>")
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
TURNS = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<|eot_id|>"]


def write_bytes_tokenizer(directory: Path, config: Mapping[str, Any], files: Mapping[str, Any] | None = None) -> Path:
    """A tokenizer of bytes with a few merges, and files of a directory beside it."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *alphabet, "th", "er", "<|"))}
    model = tokenizers.models.BPE(vocab=vocabulary, merges=[("t", "h"), ("e", "r"), ("<", "|")], unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    write_files(directory, {"tokenizer_config.json": config, **(files or {})})
    return directory


def write_files(directory: Path, files: Mapping[str, Any]) -> None:
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def added(*tokens: str, first: int = 300) -> dict[str, dict]:
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    return {str(first + i): {"content": token, **flags, "special": True} for i, token in enumerate(tokens)}


VARIANTS: dict[str, tuple[dict, dict]] = {
    "plain": (NAMED, {}),
    "without names": ({}, {}),
    "names of all kinds": (NAMED | {"sep_token": "<sep>", "cls_token": "<cls>", "image_token": "<image>"}, {}),
    "additional_special_tokens": (NAMED | {"additional_special_tokens": TURNS}, {}),
    "extra_special_tokens": (NAMED | {"extra_special_tokens": TURNS, "tokenizer_class": "TokenizersBackend"}, {}),
    "extra_special_tokens by name": (NAMED | {"extra_special_tokens": {"eot_token": "<|eot_id|>"}}, {}),
    "added_tokens_decoder": (NAMED | {"added_tokens_decoder": added(*TURNS)}, {}),
    "special_tokens_map.json": ({}, {"special_tokens_map.json": NAMED | {"eos_token": "<|im_end|>"}}),
    "added_tokens.json": (NAMED, {"added_tokens.json": {token: 300 - i for i, token in enumerate(TURNS)}}),
    "split_special_tokens": (NAMED | {"additional_special_tokens": TURNS, "split_special_tokens": True}, {}),
}


# Both sides.


def their_text(tokenizer: Any, messages: Sequence[dict], row: Mapping[str, Any]) -> str | None:
    """The text as TRL's reward trainer asks for it; `None` where the template refuses."""
    tools = row.get("tools")
    arguments = {"tools": json.loads(tools) if isinstance(tools, str) else tools, **row.get("chat_template_kwargs", {})}
    try:
        return tokenizer.apply_chat_template(copy.deepcopy(messages), tokenize=False, **arguments)
    except Exception:  # of every kind
        return None


def expected_text(tokenizer: Any, messages: Sequence[dict], row: Mapping[str, Any]) -> str | None:
    """The same, with parts as text where the template refuses lists, prints them as Python does, or loses a text."""
    text = their_text(tokenizer, messages, row)
    lists = [message["content"] for message in messages if isinstance(message.get("content"), list)]
    said = [part["text"].strip() for content in lists for part in content]
    if text is not None and not any(str(content) in text for content in lists) and all(part in text for part in said):
        return text
    joined = [
        message | {"content": "".join(part["text"] for part in message["content"])}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]
    return their_text(tokenizer, joined, row) if lists else text


def our_text(tokenizer: rm.Tokenizer, messages: Sequence[dict], row: Mapping[str, Any]) -> str | None:
    """The text of a row, as training, evaluation and serving render it; `None` where it is refused in one line."""
    try:
        return render_messages(row, list(messages), tokenizer)
    except RowError:
        return None


@pytest.fixture
def say(capsys):
    """Prints what was counted, also where pytest keeps what a test prints to itself."""

    def say(name: str, counts: Counter[str], different: Sequence[str]) -> None:
        with capsys.disabled():
            print(f"\n{name}: {counts['equal']} equal, {counts['refused']} refused, {len(different)} different")
        assert list(different) == []

    return say


def test_there_are_as_many_templates_as_were_compared():
    """Were the folder moved in another version, the test below would compare nothing."""
    assert len(TEMPLATES) >= 72


@pytest.mark.parametrize("variant", VARIANTS)
def test_texts_and_ids_of_every_template_and_conversation_are_those_of_transformers(tmp_path, say, variant):
    """All conversations with the plain tokenizer, every third one, in turn, with the others."""
    config, files = VARIANTS[variant]
    directory = write_bytes_tokenizer(tmp_path, {"tokenizer_class": "PreTrainedTokenizerFast"} | config, files)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    loaded = rm.load_tokenizer(directory, today=date.today())
    counts, different, kinds = Counter(), [], []
    turn = list(VARIANTS).index(variant)
    for number, (name, template) in enumerate(TEMPLATES.items()):
        theirs.chat_template = template
        ours = dataclasses.replace(loaded, chat_template=template)
        kinds = list(CONVERSATIONS)[(number + turn) % 3 :: 3] if turn else list(CONVERSATIONS)
        for kind in kinds:
            messages, row = CONVERSATIONS[kind]
            expected, text = expected_text(theirs, messages, row), our_text(ours, messages, row)
            same = text == expected
            if same and text is not None:
                same = (
                    ours.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False)["input_ids"]
                )
            counts["different" if not same else "refused" if text is None else "equal"] += 1
            different += [] if same else [f"{name}, {kind}: {expected!r:.400} | {text!r:.400}"]
    say(f"{len(TEMPLATES)} templates x {len(kinds)} conversations, {variant}", counts, different)
    assert counts["equal"] > 4 * counts["refused"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_of_a_whole_call_are_those_of_transformers_and_images_are_refused(tmp_path, name):
    directory = write_bytes_tokenizer(tmp_path, NAMED, {"chat_template.jinja": TEMPLATES[name]})
    theirs, ours = transformers.AutoTokenizer.from_pretrained(directory), rm.load_tokenizer(directory)
    expected = their_text(theirs, [ASK, ANSWER], {})  # some take messages in parts alone
    if expected is not None and "strftime_now" not in TEMPLATES[name]:
        ids = theirs.apply_chat_template([ASK, ANSWER], tokenize=True, return_dict=True)["input_ids"]
        assert ours.encode(ours.apply_chat_template([ASK, ANSWER]), add_special_tokens=False) == ids
    with pytest.raises(RowError, match=r"message 0, part 0: .* found type 'image'"):
        render_messages({}, IMAGE, ours)


# Templates by name.

OWN = {"none": None, "text": "text", "list": [("default", "list"), ("tool_use", "list, tools")]}
OWN |= {"list without default": [("tool_use", "list, tools"), ("rag", "list, rag")]}


def named_directories() -> Iterator[tuple[str, dict, dict]]:
    files = (
        "chat_template.jinja",
        "additional_chat_templates/default.jinja",
        "additional_chat_templates/tool_use.jinja",
    )
    for own, there in itertools.product(OWN, itertools.product((False, True), repeat=3)):
        value = OWN[own]
        listed = [{"name": name, "template": text} for name, text in value] if isinstance(value, list) else value
        config = NAMED if listed is None else NAMED | {"chat_template": listed}
        found = {name: name for name, is_there in zip(files, there, strict=True) if is_there}
        yield f"{own}, {', '.join(found) or 'no files'}", config, found


def test_the_template_that_is_taken_is_that_of_transformers(tmp_path, say):
    counts, different = Counter(), []
    for number, (name, config, files) in enumerate(named_directories()):
        directory = write_bytes_tokenizer(tmp_path / str(number), config, files)
        theirs, ours = transformers.AutoTokenizer.from_pretrained(directory), rm.load_tokenizer(directory)
        for tools, asked in itertools.product((None, [], [TOOL]), (None, "tool_use")):
            row = {"tools": tools, "chat_template_kwargs": {"chat_template": asked} if asked else {}}
            expected, text = their_text(theirs, [ASK], row), our_text(ours, [ASK], row)
            expected = None if asked and expected == asked else expected  # no such name: they render it
            counts["different" if text != expected else "refused" if text is None else "equal"] += 1
            different += [] if text == expected else [f"{name}, {tools}, {asked}: {expected} | {text}"]
    say("templates by name", counts, different)


# Special tokens, and what surrounds a text.

ADDITIONAL = ({}, {"additional_special_tokens": ["<x>", "<y>"]}, {"additional_special_tokens": []})
EXTRA = ({}, {"extra_special_tokens": ["<e>", "<x>"]}, {"extra_special_tokens": {"image_token": "<img>"}})
MAPS = (
    {},
    {"additional_special_tokens": ["<m>", "<y>"]},
    {"extra_special_tokens": ["<e>", {"content": "<n>", "lstrip": True}]},
    {"eos_token": "<q>", "pad_token": None, "mask_token": {"content": "<m>", "lstrip": True}},
    {"extra_special_tokens": {"audio_token": "<aud>"}, "boa_token": "<boa>"},
)
NUMBERED = ({}, {"<b>": 301, "<a>": 300}, {"<x>": 2, "<e>": 300})
DECODERS = (None, {}, added("<d>", "<x>"), added("<e>", "</s>", first=1))
PROBE = "a <x><y> <e>b<img> <m><n> <q><aud><boa> <a><b><d> </s><s> <pad>c<sep>"


def test_tokens_that_configurations_list_have_the_ids_of_transformers(tmp_path, say):
    counts, different = Counter(), []
    cases = itertools.product(ADDITIONAL, EXTRA, MAPS, NUMBERED, DECODERS)
    for number, (additional, extra, named, numbered, decoder) in enumerate(cases):
        config = NAMED | {"sep_token": "<sep>"} | additional | extra
        config |= {} if decoder is None else {"added_tokens_decoder": decoder}
        files = {"special_tokens_map.json": named} if named else {}
        files |= {"added_tokens.json": numbered} if numbered else {}
        directory = write_bytes_tokenizer(tmp_path / str(number), config, files)
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
        ours = rm.load_tokenizer(directory)
        tokens = {name: token for name in NAMED if (token := getattr(ours, name))} | dict(ours.named_tokens)
        found = tokens, ours.encode(PROBE)
        expected = theirs.special_tokens_map, theirs(PROBE)["input_ids"]
        counts["equal"] += found == expected
        different += [] if found == expected else [f"{config}, {files}: {expected} | {found}"]
    say("special tokens", counts, different)


def class_names() -> list[str]:
    own = CLASSES.keys() - {"PreTrained", "TokenizersBackend"}
    built = [f"{name}Tokenizer{end}" for name in sorted(own) for end in ("", "Fast")]
    return ["PreTrainedTokenizerFast", "TokenizersBackend", *built]


def processor(backend: tokenizers.Tokenizer, bos: str | None, eos: str | None) -> Any:
    around = [token for token in (bos, eos) if token]
    single = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
    ids = [(token, backend.token_to_id(token)) for token in around]
    return tokenizers.processors.TemplateProcessing(single=single, pair=None, special_tokens=ids)


# transformers 5.24 puts a post-processor of its own over that of tokenizer.json: compared as PreTrainedTokenizerFast
OVER_THE_FILE = ("CodeLlamaTokenizer", "CodeLlamaTokenizerFast", "GPTNeoXTokenizer", "GPTNeoXTokenizerFast")


def built_by(name: str, base: Path) -> tokenizers.Tokenizer:
    """The tokenizer that a class makes of the vocabulary: AutoTokenizer of transformers 5 makes it again."""
    if name in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        return tokenizers.Tokenizer.from_file(str(base / "tokenizer.json"))
    model = json.loads((base / "tokenizer.json").read_text())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return getattr(transformers, name)(vocab=model["vocab"], merges=merges, **NAMED).backend_tokenizer


@pytest.mark.parametrize("name", class_names())
def test_what_surrounds_a_text_is_that_of_transformers(tmp_path, say, name):
    """add_bos_token and add_eos_token, each absent, false or true, over four post-processors."""
    counts, different = Counter(), []
    backend = built_by(name, write_bytes_tokenizer(tmp_path / "base", NAMED))
    loaders = [transformers.PreTrainedTokenizerFast] + [transformers.AutoTokenizer] * (name not in OVER_THE_FILE)
    flags, ends = (None, False, True), itertools.product((None, "<s>"), (None, "</s>"))
    for number, (add_bos, add_eos, (bos, eos)) in enumerate(itertools.product(flags, flags, ends)):
        directory = tmp_path / str(number)
        directory.mkdir()
        backend.post_processor = processor(backend, bos, eos)
        backend.save(str(directory / "tokenizer.json"))
        said = {"tokenizer_class": name, "add_bos_token": add_bos, "add_eos_token": add_eos}
        config = NAMED | {flag: value for flag, value in said.items() if value is not None}
        write_files(directory, {"tokenizer_config.json": config})
        ours = rm.load_tokenizer(directory)
        for load, text in itertools.product(loaders, ("the other", "a</s>", "")):
            found, expected = ours.encode(text), load.from_pretrained(directory)(text)["input_ids"]
            counts["equal"] += found == expected
            different += [] if found == expected else [f"{load.__name__} {config} {bos} {eos}: {expected} | {found}"]
    say(f"add_bos_token x add_eos_token x post-processor, {name}", counts, different)


@pytest.mark.parametrize("name", sorted(CLASSES.keys() - {"PreTrained", "TokenizersBackend"}))
def test_tokens_that_a_class_names_by_itself_are_those_of_transformers(tmp_path, name):
    base = write_bytes_tokenizer(tmp_path / "base", NAMED)
    model = json.loads((base / "tokenizer.json").read_text())["model"]
    defaults = CLASSES[name]
    words = {token: i for i, token in enumerate(dict.fromkeys((*defaults.values(), *model["vocab"])))}
    merges = [tuple(merge) for merge in model["merges"]]
    built = getattr(transformers, f"{name}Tokenizer")(vocab=words, merges=merges)
    directory = tmp_path / "model"
    directory.mkdir()
    built._tokenizer.save(str(directory / "tokenizer.json"))
    write_files(directory, {"tokenizer_config.json": {"tokenizer_class": f"{name}Tokenizer"}})
    ours, theirs = rm.load_tokenizer(directory), transformers.AutoTokenizer.from_pretrained(directory)
    tokens = {token: getattr(ours, token) for token in NAMED} | dict(ours.named_tokens)
    assert {token: theirs.special_tokens_map.get(token) for token in tokens} == tokens
    assert ours.encode("the other") == theirs("the other")["input_ids"]
