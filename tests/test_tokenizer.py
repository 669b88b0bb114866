"""The files of a tokenizer: templates, special tokens, what surrounds a text; with literal texts and ids."""

import json
from fnmatch import fnmatch

import jax
import pytest

import rm
from rm.data.render import RowError, render_messages
from rm.data.tokenize import tokenize_comparisons

from .tiny import CONFIG, NAMED, TEMPLATE, WORDS, make_tokenizer, write_tokenizer

BOS, EOS, A, B, C, D, AB = range(1, 8)


def chat(*turns: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


CONVERSATION = chat("a < 'b' & é", "c")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        pytest.param("{{ messages[0].content | tojson }}", "\"a < 'b' & é\"", id="tojson escapes no HTML"),
        pytest.param("{{ {'b': 1, 'a': [2]} | tojson(indent=1) }}", '{\n "b": 1,\n "a": [\n  2\n ]\n}', id="indent"),
        pytest.param("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024", id="strftime_now"),
        pytest.param("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}", "user", id="break"),
        pytest.param(
            "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
            "c",
            id="continue",
        ),
        pytest.param("{% generation %}{{ messages[1].content }}{% endgeneration %}!", "c!", id="generation"),
        pytest.param("  {% if true %}\nx\n  {% endif %}\ny", "x\ny", id="blocks leave no lines behind"),
        pytest.param("{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}", "<s></s>False", id="special tokens"),
        pytest.param("{{ add_generation_prompt }}{{ tools }}", "FalseNone", id="no generation prompt, no tools"),
        pytest.param("{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}", "2", id="namespace"),
    ],
)
def test_what_templates_in_the_wild_use(tmp_path, template, expected):
    tokenizer = make_tokenizer(tmp_path, NAMED, files={"chat_template.jinja": template})
    assert tokenizer.apply_chat_template(CONVERSATION) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('the user speaks first') }}",
        "{{ messages.append(1) }}",
        "{{ messages[7].content }}",
        "{{ 'a' + 1 }}",
        "{% if %}",
    ],
)
def test_a_template_that_fails_is_refused_in_one_line_with_its_row(tmp_path, template):
    tokenizer = make_tokenizer(tmp_path, NAMED | {"chat_template": template})
    with pytest.raises(rm.DataError, match=r"^data: row 0: the chat template [^\n]*$"):
        tokenize_comparisons([{"chosen": chat("a", "b"), "rejected": chat("a", "c")}], tokenizer, CONFIG)


NONE = {"bos_token": None, "eos_token": None, "unk_token": None, "pad_token": None}
AS_OBJECTS = {name: {"content": token, "lstrip": False, "special": True} for name, token in NAMED.items()}


@pytest.mark.parametrize(
    ("config", "legacy", "expected"),
    [
        pytest.param(NAMED, None, NAMED, id="tokenizer_config"),
        pytest.param(AS_OBJECTS, None, NAMED, id="tokenizer_config, objects"),
        pytest.param({}, NAMED, NAMED, id="special_tokens_map alone"),
        pytest.param({}, AS_OBJECTS, NAMED, id="special_tokens_map, objects"),
        pytest.param({"eos_token": None}, {"eos_token": "</s>"}, {"eos_token": "</s>"}, id="null in one, in the other"),
        pytest.param({"eos_token": "</s>"}, {"eos_token": "d"}, {"eos_token": "d"}, id="special_tokens_map wins"),
        pytest.param(
            {"eos_token": "</s>", "added_tokens_decoder": {}},
            {"eos_token": "d"},
            {"eos_token": "</s>"},
            id="beside added_tokens_decoder it is not read",
        ),
        pytest.param({}, None, {}, id="none"),
    ],
)
def test_special_tokens_from_either_file(tmp_path, config, legacy, expected):
    tokenizer = make_tokenizer(tmp_path, config, files=legacy and {"special_tokens_map.json": legacy})
    assert {name: getattr(tokenizer, name) for name in NONE} == NONE | expected
    ids = {None: None, "</s>": EOS, "d": D}
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (ids[expected.get("eos_token")], None)


@pytest.mark.parametrize("where", ["tokenizer_config.json", "special_tokens_map.json"])
def test_special_tokens_that_tokenizer_json_does_not_list_are_whole_tokens(tmp_path, where):
    config = {"tokenizer_config.json": {}} | {where: NAMED | {"pad_token": "[PAD]"}}
    tokenizer = make_tokenizer(tmp_path, config.pop("tokenizer_config.json"), special=[], files=config)
    assert tokenizer.encode("ab</s>a[PAD]b") == [BOS, AB, EOS, A, 10, B]
    assert (tokenizer.pad_token_id, tokenizer.max_token_id) == (10, 10)


def test_added_tokens_of_the_config_are_whole_tokens_in_the_order_of_their_ids(tmp_path):
    added = {str(10 + i): {"content": f"<|{i}|>", "special": True, "lstrip": False} for i in range(2)}
    config = NAMED | {"added_tokens_decoder": dict(reversed(added.items()))}
    assert make_tokenizer(tmp_path, config).encode("a<|1|>b<|0|>") == [BOS, A, 11, B, 10]


NAMES = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]
FOLDER = {"additional_chat_templates/tool_use.jinja": "x"}
DEFAULT = {"additional_chat_templates/default.jinja": TEMPLATE}
FILE = {"chat_template.jinja": TEMPLATE}


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        pytest.param({"chat_template": TEMPLATE}, {}, (TEMPLATE, {}), id="text"),
        pytest.param({"chat_template": NAMES}, {}, (TEMPLATE, {"tool_use": "x"}), id="named"),
        pytest.param({"chat_template": NAMES[:1]}, {}, (None, {"tool_use": "x"}), id="named without a default"),
        pytest.param({"chat_template": "x"}, FILE, (TEMPLATE, {}), id="the file before the text"),
        pytest.param({"chat_template": NAMES}, FILE, (TEMPLATE, {}), id="the file before a list"),
        pytest.param({}, FILE, (TEMPLATE, {}), id="the file alone"),
        pytest.param({}, FILE | FOLDER, (TEMPLATE, {"tool_use": "x"}), id="the file and the folder"),
        pytest.param({}, {"chat_template.jinja": "y"} | DEFAULT, (TEMPLATE, {}), id="the folder before the file"),
        pytest.param({"chat_template": TEMPLATE}, FOLDER, (None, {"tool_use": "x"}), id="the folder before the text"),
        pytest.param({}, {}, (None, {}), id="none"),
    ],
)
def test_where_the_chat_templates_lie(tmp_path, config, files, expected):
    tokenizer = make_tokenizer(tmp_path, NAMED | config, files=files)
    assert (tokenizer.chat_template, tokenizer.named_templates) == expected


def test_the_template_for_tools_is_taken_where_there_are_tools_or_it_is_asked_for(tmp_path):
    """With the default one the tools are lost."""
    files = {
        "chat_template.jinja": "plain",
        "additional_chat_templates/tool_use.jinja": "{{ (tools or []) | length }} tools",
    }
    tokenizer = make_tokenizer(tmp_path, NAMED, files=files)
    assert tokenizer.apply_chat_template(CONVERSATION) == "plain"
    assert tokenizer.apply_chat_template(CONVERSATION, tools=[{"name": "f"}]) == "1 tools"
    assert tokenizer.apply_chat_template(CONVERSATION, tools=[]) == "0 tools"
    assert tokenizer.apply_chat_template(CONVERSATION, tools=[], chat_template="{{ 1 + 1 }}") == "2"
    assert tokenizer.apply_chat_template(CONVERSATION, chat_template="tool_use") == "0 tools"
    assert tokenizer.apply_chat_template(CONVERSATION, tools=[], chat_template="default") == "plain"


def test_named_templates_go_into_an_export_and_another_template_replaces_all(tmp_path):
    files = {"chat_template.jinja": "plain", "additional_chat_templates/tool_use.jinja": "tools"}
    tokenizer = make_tokenizer(tmp_path / "tokenizer", NAMED | {"pad_token": "<unk>"}, files=files)
    rm.save_reward_model(tmp_path / "model", rm.init_reward_model(CONFIG, key=jax.random.key(0)), tokenizer)
    exported = rm.load_tokenizer(tmp_path / "model")
    assert (exported.chat_template, exported.named_templates) == ("plain", {"tool_use": "tools"})
    (tmp_path / "mine.jinja").write_text("mine")
    replaced = rm.load_tokenizer(tmp_path / "model", chat_template=tmp_path / "mine.jinja")
    assert (replaced.chat_template, replaced.named_templates) == ("mine", {})
    assert [name for name in replaced.files if "tool_use" in name] == []


def test_named_templates_are_fetched_from_the_hub_whose_cache_holds_links(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    write_tokenizer(snapshot, NAMED | {"chat_template": "plain"})
    (tmp_path / "models--org--name" / "blobs").mkdir()
    (tmp_path / "models--org--name" / "blobs" / "hash").write_text("tools")
    (snapshot / "additional_chat_templates").mkdir()
    (snapshot / "additional_chat_templates" / "tool_use.jinja").symlink_to("../../../blobs/hash")
    asked = []

    def fetch(name, *, allow_patterns, **options):
        asked.extend(allow_patterns)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert rm.load_tokenizer("org/name").named_templates == {"tool_use": "tools"}
    assert any(fnmatch("additional_chat_templates/tool_use.jinja", pattern) for pattern in asked)


FLAGS = [
    ({}, None),
    ({"add_bos_token": True}, None),
    ({"add_eos_token": False}, None),
    ({"add_bos_token": False}, "add_bos_token is false, tokenizer.json adds one"),
    ({"add_eos_token": True}, "add_eos_token is true, tokenizer.json adds none"),
]


@pytest.mark.parametrize(("flags", "said"), FLAGS)
def test_tokenizer_json_decides_what_surrounds_a_text_and_a_contradiction_is_said_once(tmp_path, caplog, flags, said):
    """Else a text ends in two EOS, or begins without the BOS that the model was trained with."""
    directory = write_tokenizer(tmp_path, NAMED | flags)
    for _ in range(2):
        tokenizer = rm.load_tokenizer(directory)
        assert tokenizer.encode("a") == [BOS, A]
        assert tokenizer.encode("a", add_special_tokens=False) == [A]
    expected = [f"{directory / 'tokenizer_config.json'}: {said}; tokenizer.json decides, as in transformers 5"]
    assert caplog.messages == (expected if said else [])


def test_special_tokens_that_a_template_names_are_written(tmp_path):
    """Undefined, they would vanish from the text: the turns would have no end."""
    config = NAMED | {"sep_token": "[SEP]", "image_token": "[IMG]", "extra_special_tokens": {"eot_token": "[EOT]"}}
    template = "{{ sep_token }} {{ cls_token is defined }} {{ image_token }} {{ eot_token }}"
    tokenizer = make_tokenizer(tmp_path, config | {"chat_template": template})
    assert tokenizer.apply_chat_template(CONVERSATION) == "[SEP] False [IMG] [EOT]"
    assert tokenizer.encode("a[EOT]b[SEP][IMG]") == [BOS, A, 12, B, 10, 11]


@pytest.mark.parametrize(
    ("config", "files"),
    [
        ({"additional_special_tokens": ["<x>", "<y>"]}, {}),
        ({"extra_special_tokens": ["<x>", "<y>"]}, {}),
        ({}, {"special_tokens_map.json": {"additional_special_tokens": ["<x>", "<y>"]}}),
        ({}, {"added_tokens.json": {"<y>": 11, "<x>": 10}}),
    ],
    ids=["additional_special_tokens", "extra_special_tokens", "special_tokens_map.json", "added_tokens.json"],
)
def test_tokens_that_are_only_listed_are_whole_tokens(tmp_path, config, files):
    """In pieces, the model would read several tokens where it was trained with one."""
    assert make_tokenizer(tmp_path, NAMED | config, files=files).encode("a<y>b<x>") == [BOS, A, 11, B, 10]


def test_special_tokens_of_a_text_are_split_where_the_configuration_asks(tmp_path):
    words = [*WORDS, "<", "/", "s", ">"]
    assert make_tokenizer(tmp_path / "whole", NAMED, words=words).encode("a </s>") == [BOS, A, EOS]
    split = make_tokenizer(tmp_path / "split", NAMED | {"split_special_tokens": True}, words=words)
    assert split.encode("a </s>")[:2] == [BOS, A]
    assert EOS not in split.encode("a </s>") or split.encode("a </s>") == [BOS, A, EOS]


def test_padding_and_truncation_stored_in_the_file_are_switched_off(tmp_path):
    make_tokenizer(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 8},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert rm.load_tokenizer(tmp_path).encode_batch(["a b c", "a"]) == [[BOS, A, B, C], [BOS, A]]


# Messages.

ARGUMENTS = "{{ messages[-1].tool_calls[0].function.arguments | tojson }}"


def test_nulls_in_arguments_and_tools_are_values(tmp_path):
    """Without them two different calls are one text."""
    tokenizer = make_tokenizer(tmp_path, NAMED | {"chat_template": ARGUMENTS + "{{ tools | tojson }}"})
    calls = [{"function": {"name": "f", "arguments": {"x": None, "y": [None, {"z": None}]}}}]
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    row = {"tools": [{"name": "f", "default": None}], "chat_template_kwargs": {"unset": None}}
    expected = '{"x": null, "y": [null, {"z": null}]}[{"name": "f", "default": null}]'
    assert render_messages(row, said, tokenizer) == expected


def test_keys_of_a_message_that_are_null_are_left_out(tmp_path):
    tokenizer = make_tokenizer(tmp_path, NAMED | {"chat_template": "{{ messages | tojson }}"})
    message = {"role": "user", "content": "a", "name": None, "metadata": {"x": None}}
    assert render_messages({}, [message], tokenizer) == '[{"role": "user", "content": "a", "metadata": {"x": null}}]'


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_of_any_name_reaches_templates_that_read_another(tmp_path, name):
    template = "{{ messages[0].reasoning_content }} {{ messages[0].thinking }}"
    tokenizer = make_tokenizer(tmp_path, NAMED | {"chat_template": template})
    assert tokenizer.apply_chat_template([{"role": "assistant", "content": "a", name: "b"}]) == "b b"


PRINTS = "{% for m in messages %}{{ m.content }}|{% endfor %}"
READS = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}<{{ part.text }}>{% endfor %}{% endif %}|{% endfor %}"
)
FORGETS = "{% for m in messages %}{{ m.content if m.content is string }}|{% endfor %}"
PARTS = [{"type": "text", "text": "Hello, "}, {"type": "text", "text": "you"}]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        pytest.param(PRINTS, "Hello, you|a|", id="prints the content"),
        pytest.param(READS, "<Hello, ><you>|a|", id="reads parts"),
        pytest.param(FORGETS, "Hello, you|a|", id="writes nothing for a list"),
        pytest.param("{{ messages[0].content + '!' }}", "Hello, you!", id="fails on a list"),
    ],
)
def test_text_in_parts_is_text_and_never_a_list_of_python(tmp_path, template, expected):
    tokenizer = make_tokenizer(tmp_path, NAMED | {"chat_template": template})
    conversation = [{"role": "user", "content": PARTS}, {"role": "assistant", "content": "a"}]
    assert tokenizer.apply_chat_template(conversation) == expected


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ({"type": "image", "image": "x.png"}, "found type 'image'"),
        ({"type": "input_audio"}, "found type 'input_audio'"),
        ({"type": "text", "text": None}, "found type 'text'"),
        ({"text": "a"}, "found no type"),
        ("a", "found type 'str'"),
    ],
)
def test_a_part_that_is_no_text_is_named_with_its_place(tmp_path, part, found):
    tokenizer = make_tokenizer(tmp_path, NAMED | {"chat_template": READS})
    chosen = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [*PARTS, part]}]
    place = r"^data: row 0: message 1, part 2: expected the type 'text' with a text, "
    with pytest.raises(rm.DataError, match=place + found):
        tokenize_comparisons([{"chosen": chosen, "rejected": chat("a", "b")}], tokenizer, CONFIG)


def test_an_object_that_a_tool_returns_reaches_the_template_and_a_list_is_not_printed(tmp_path):
    row = {"role": "tool", "content": {"temperature": 3}}
    tokenizer = make_tokenizer(tmp_path, NAMED | {"chat_template": "{{ messages[0].content | tojson }}"})
    assert render_messages({}, [row], tokenizer) == '{"temperature": 3}'
    assert render_messages({}, [row | {"content": [{"temperature": 3}]}], tokenizer) == '[{"temperature": 3}]'
    prints = make_tokenizer(tmp_path / "prints", NAMED | {"chat_template": PRINTS})
    with pytest.raises(RowError, match="message 0: the chat template prints its content as a Python list"):
        render_messages({}, [row | {"content": [{"temperature": 3}]}], prints)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"chat_template": "default"}, "False"),
        ({"add_generation_prompt": True, "continue_final_message": False}, "True"),
        ({"documents": [{"title": "a"}]}, "False a"),
    ],
)
def test_arguments_of_a_row_are_taken_as_transformers_takes_them(tmp_path, arguments, expected):
    template = "{{ add_generation_prompt }}{% for d in documents or [] %} {{ d.title }}{% endfor %}"
    tokenizer = make_tokenizer(tmp_path, NAMED | {"chat_template": template})
    assert render_messages({"chat_template_kwargs": arguments}, CONVERSATION, tokenizer) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"continue_final_message": True}, "continue_final_message: removes the end"),
        ({"continue_final_message": "content"}, "continue_final_message: removes the end"),
        ({"truncation": True}, "truncation: is not a variable of chat templates; leave it out"),
        ({"tokenize": False}, "tokenize: is not a variable of chat templates; leave it out"),
        ({"documents": "a"}, "documents: expected a list of objects, found str 'a'"),
        (
            {"chat_template": "{{ 1 }}"},
            r"chat_template must name one of the tokenizer's \(default\), found str '{{ 1 }}'",
        ),
        ({"messages": []}, "'chat_template_kwargs': expected an object without self, messages and tools"),
        ({"tools": []}, "'chat_template_kwargs': expected an object without self, messages and tools"),
    ],
)
def test_arguments_that_change_more_than_the_text_are_refused(tmp_path, arguments, expected):
    """Ignored, they would be believed to have had an effect."""
    tokenizer = make_tokenizer(tmp_path, NAMED | {"chat_template": PRINTS})
    with pytest.raises(RowError, match=expected):
        render_messages({"chat_template_kwargs": arguments}, CONVERSATION, tokenizer)
