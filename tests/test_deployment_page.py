"""What docs/deployment.md says is complete, and exists."""

import re
from pathlib import Path

from typer.testing import CliRunner

from api.cli.main import app
from engine.settings import Settings
from engine.store.server_version import RUN_ON

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "deployment.md").read_text()


def test_settings_that_it_names_exist() -> None:
    named = set(re.findall(r"`(jobs|indexing|receive|zip|limits)\.([a-z_]+)`", PAGE))
    assert len(named) > 10
    for group, name in named:
        assert name in type(getattr(Settings(), group)).model_fields, f"{group}.{name}"


def test_commands_that_it_shows_exist() -> None:
    shown = set(re.findall(r"precedent (jobs [a-z]+|[a-z]+)(?= |$|`)", PAGE, re.MULTILINE))
    assert {"jobs submit", "jobs report", "worker", "receive"} <= shown
    for words in shown:
        assert CliRunner().invoke(app, [*words.split(), "--help"]).exit_code == 0, words


def test_the_server_that_it_names_is_the_one_that_was_run() -> None:
    for page in ("deployment.md", "search.md"):
        named = re.findall(r"Qdrant (\d+\.\d+\.\d+)", (DOCS / page).read_text())
        assert set(named) == {RUN_ON}, page
