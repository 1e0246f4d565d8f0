"""docs/errors.md, docs/refusals.md and docs/metrics.md say what the code does, of everything."""

import re
from http import HTTPStatus
from pathlib import Path
from typing import get_type_hints

import pytest
import typer

from api.cli.exit_codes import ANSWERS
from api.cli.main import COMMANDS, app
from api.http import figures, problem_meanings
from api.refusals import GROUPS as REFUSALS
from bench.reference_pages import PAGES, filled
from engine.errors import RefusalReason

ROOT = Path(__file__).parents[2]
_RAISED = re.compile(r"HTTPException\(\s*(\d{3})(?: if \w+ else (\d{3}))?")
_REFUSED = re.compile(r"self\._refuse\(\s*(\d{3})")
_STATUS = re.compile(r"super\(\).__init__\(HTTPStatus\.(\w+)")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_current(name: str) -> None:
    assert page(name) == filled(name, page(name)), "`make docs-reference` writes it anew"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_without_marks_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has no lines <!-- "):
        filled(name, "no marks")


def test_every_code_has_its_meaning_and_every_meaning_its_code() -> None:
    meanings = [code for group in problem_meanings.GROUPS.values() for code in group]
    assert len(meanings) == len(set(meanings))
    assert set(meanings) == {*problem_meanings.problems()}
    for group in problem_meanings.GROUPS.values():
        assert all(len(one.means) > 15 and len(one.do) > 10 for one in group.values())


def test_every_status_that_the_service_raises_is_among_them() -> None:
    raised: set[int] = set()
    for file in (ROOT / "api").rglob("*.py"):
        text = file.read_text()
        for pair in _RAISED.findall(text):
            raised |= {int(one) for one in pair if one}
        raised |= {int(one) for one in _REFUSED.findall(text)}
        raised |= {HTTPStatus[one].value for one in _STATUS.findall(text)}
    assert len(raised) > 8
    assert raised <= {*problem_meanings.STATUSES}


def test_every_reason_of_a_refusal_stands_there_once() -> None:
    told = [reason for group in REFUSALS.values() for reason in group]
    assert sorted(told) == sorted(RefusalReason)
    rows = re.findall(r"^\| `([a-z-]+)` \|", page("refusals.md"), re.MULTILINE)
    assert rows == told


def test_every_figure_and_every_label_has_its_meaning() -> None:
    used = {label for one in figures.FIGURES.values() for label in one.labels}
    assert used == {*figures.LABELS}
    named = {one.shown for one in figures.FIGURES.values()}
    rows = re.findall(r"^\| `(precedent_\w+)` \|", page("metrics.md"), re.MULTILINE)
    assert sorted(rows) == sorted(named)
    for one in figures.FIGURES.values():
        assert one.meaning.endswith(".")
        for unit in ("seconds", "bytes"):
            assert one.name.endswith(f"_{unit}") == one.unit.startswith(unit), one.name


def test_commands_that_answer_by_their_exit_code_are_told_with_it() -> None:
    """Those that return one: a worker has it from its broker, the others answer a question."""
    root = typer.main.get_command(app)
    commands = {
        f"{name} {inner}".strip(): command
        for name in COMMANDS
        for found in [root.get_command(None, name)]
        for inner, command in (getattr(found, "commands", None) or {"": found}).items()
    }
    answering = {
        name
        for name, command in commands.items()
        if get_type_hints(command.callback).get("return") is int
    }
    assert answering - {"worker"} <= {*ANSWERS}
    assert {*ANSWERS} <= {*commands}
