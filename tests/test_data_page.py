"""The table of docs/data.md, row by row."""

import json
import re
from pathlib import Path

import pytest

import rm
from rm.data.formats import parse_row
from rm.data.joining import join_responses

from .tiny import NAMED, TEMPLATE, make_tokenizer

PAGE = (Path(rm.__file__).parents[1] / "docs/data.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([^|`]+) \| `([{\[].*[}\]])` \| `(.*)` \|$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> rm.Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"), {**NAMED, "chat_template": TEMPLATE})


def test_the_page_shows_the_template_of_its_table():
    assert f"`{TEMPLATE}`" in PAGE
    assert len(ROWS) == 42


@pytest.mark.parametrize(("kind", "row", "expected"), ROWS, ids=[kind for kind, *_ in ROWS])
def test_a_row_is_read_as_the_page_says(tokenizer, kind, row, expected):
    rows = json.loads(row)
    (joined,) = join_responses(rows if isinstance(rows, list) else [rows])
    parsed = parse_row(joined, tokenizer)
    best = parsed.rankings[0].order[0]
    assert parsed.sequences[best] == expected.replace("⏎", "\n")
