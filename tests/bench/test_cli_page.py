"""docs/cli.md says what the command line does, of every command."""

import re
from pathlib import Path

import pytest

from api.cli.main import COMMANDS
from bench.cli_page import filled

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_is_current() -> None:
    text = PAGE.read_text()
    assert text == filled(text), "`make docs-cli` writes it anew"


def test_every_command_and_every_inner_one_is_on_it() -> None:
    named = re.findall(r"^###+ `precedent ([a-z-]+(?: [a-z]+)?)", PAGE.read_text(), re.MULTILINE)
    assert {name.split()[0] for name in named} == {*COMMANDS}
    assert {"jobs report", "keys create", "audit verify"} <= {*named}


def test_every_option_says_what_it_is() -> None:
    rows = re.findall(r"^\| `.*\|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) > 150
    assert not [row for row in rows if not row.rstrip(" |").rpartition("|")[2].strip()]


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="<!-- commands -->"):
        filled("# Commands\n")
