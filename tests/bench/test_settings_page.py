"""docs/settings.md says what the code does, of every setting."""

from pathlib import Path

import pytest

from bench.settings_page import filled
from engine.settings_described import groups

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_is_current() -> None:
    text = PAGE.read_text()
    assert text == filled(text), "`make docs-settings` writes it anew"


def test_every_setting_says_what_it_means() -> None:
    settings = [one for group in groups() for one in group.settings]
    assert len(settings) > 150
    assert not [one.name for one in settings if len(one.meaning) < 8]
    assert not [one.name for one in settings if not one.values]
    assert not [group.name for group in groups() if group.name and not group.about]


def test_nothing_on_it_depends_on_the_machine() -> None:
    by_name = {one.name: one for group in groups() for one in group.settings}
    assert by_name["indexing.readers"].by_machine
    assert by_name["indexing.readers"].default is None
    assert by_name["search.k"].values == "whole number, 1 to 1,000"
    assert by_name["search.k"].default == "10"


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="<!-- settings -->"):
        filled("no marks")
