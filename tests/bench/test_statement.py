"""docs/dicom-conformance.md says what the code does."""

import re
from pathlib import Path

import pytest

from bench.statement import TABLES, filled
from engine.errors import RefusalReason

PAGE = (Path(__file__).parents[2] / "docs" / "dicom-conformance.md").read_text()
SLOW = {"transfer syntaxes"}
"""Asked of the reader, in a process of its own."""


def table(name: str, text: str = PAGE) -> str:
    found = re.search(rf"<!-- {name} -->\n\n(.*?)\n\n<!-- /{name} -->", text, re.DOTALL)
    assert found, name
    return found[1]


@pytest.mark.parametrize("name", sorted(TABLES.keys() - SLOW))
def test_the_page_has_the_tables_of_the_code(name: str) -> None:
    assert table(name) == TABLES[name](), "`make conformance-statement` writes it anew"


@pytest.mark.slow
def test_the_page_has_the_transfer_syntaxes_that_are_read() -> None:
    wanted = TABLES["transfer syntaxes"]()
    assert table("transfer syntaxes") == wanted, "`make conformance-statement` writes it anew"


def test_uncompressed_and_usual_compressed_syntaxes_are_read() -> None:
    rows = dict(
        re.findall(r"^\| .+ \| `([0-9.]+)` \| (.+) \|$", table("transfer syntaxes"), re.MULTILINE)
    )
    for syntax in ("", ".1", ".2", ".1.99", ".4.50", ".4.70", ".4.80", ".4.90", ".4.91", ".5"):
        assert rows[f"1.2.840.10008.1.2{syntax}"].startswith("yes"), syntax
    assert rows["1.2.840.10008.1.2.4.102"] == "no"


def test_every_reason_has_words() -> None:
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", table("refusals"), re.MULTILINE))
    assert rows.keys() == {reason.value for reason in RefusalReason}
    assert all(len(words) > 5 for words in rows.values())


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="<!-- statuses -->"):
        filled("no marks", ["statuses"])
    assert table("statuses", filled("<!-- statuses -->\n<!-- /statuses -->", ["statuses"]))


def test_it_is_a_provider_of_verification_alone_among_other_services() -> None:
    classes = re.findall(r"^\| (.+) \| `[0-9.]+` \| SCP \|$", table("sop classes"), re.MULTILINE)
    assert classes[0] == "Verification SOP Class"
    assert len(classes) > 100
    assert not [name for name in classes if "FIND" in name or "MOVE" in name or "GET" in name]
