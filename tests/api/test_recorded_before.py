"""Commands show nothing that has no row in the audit log, and what is revoked half-way is whole."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from services.loopback import LoopbackClient
from sqlalchemy import text
from typer.testing import CliRunner

from api.audit.log import open_log
from api.audit.schema import AUDIT
from api.audit.verify import verify
from api.cli.main import app
from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.errors import AuditError
from engine.settings import Settings
from indexer.archive import Archive
from indexer.datadir.layout import DataDir
from indexer.ledger.database import Database, open_database

ROOT = Path(__file__).parents[2]


@pytest.fixture
def site(indexed, tmp_path: Path) -> Settings:
    """An archive whose log is empty."""
    settings = indexed.copy(tmp_path / "data")
    for left in settings.data_dir.glob("audit.sqlite*"):
        left.unlink()
    return settings


def rows_of(settings: Settings) -> list[dict[str, Any]]:
    with open_log(settings) as log:
        assert verify(log).flaws == []
        return [row.document for row in log.between()]


def commands(site: Settings, image: Path) -> list[list[str]]:
    """Commands that show something of the archive, or of who has access to it."""
    both = ["--data-dir", str(site.data_dir), "--model", str(site.model)]
    return [
        ["search", str(image), *both],
        ["search", str(image), "--json", *both],
        ["recommend", "--study", "1.2.4.0", *both],
        ["duplicates", "--json", "--similarity", "0.5", "--max-bits", "3", *both],
        ["delete", "--study", "1.2.4.1", "--dry-run", *both],
        ["delete", "--study", "1.2.4.1", *both],
        ["audit", "search", *both[:2]],
        ["audit", "export", *both[:2]],
        ["keys", "create", "ward", *both[:2]],
        ["report", "1.2.4.0", "--out", str(site.data_dir / "report.dcm"), *both],
        ["sendings", "list", *both[:2]],
    ]


def test_what_cannot_be_recorded_is_not_shown(site: Settings, indexed) -> None:
    """The log is well when it is looked at, and then takes no row: as on a disk that fills up."""
    image = indexed.files["ct"][0]
    with open_log(site) as log:
        log.check()
    with (
        Database(f"sqlite:///{site.data_dir / 'audit.sqlite'}", AUDIT) as database,
        database.begin() as connection,
    ):
        connection.execute(
            text(
                "CREATE TRIGGER full BEFORE INSERT ON audit WHEN new.chain = 'commands' "
                "BEGIN SELECT RAISE(ABORT, 'no room'); END"
            )
        )
    for arguments in commands(site, image):
        result = CliRunner().invoke(app, arguments, input="y\n", env={"COLUMNS": "200"})
        assert isinstance(result.exception, AuditError), arguments
        assert "no room" in str(result.exception)
        assert result.stdout == "", arguments
    exported = site.data_dir.parent / "all.ndjson"
    exporting = ["audit", "export", str(exported), "--data-dir", str(site.data_dir)]
    assert CliRunner().invoke(app, exporting).exit_code == 1
    assert not exported.exists()
    assert not (site.data_dir / "report.dcm").exists()
    # Nor was anything deleted, or a key made, which would close an open service.
    with open_database(site, DataDir(site.data_dir).ledger) as database:
        assert not Keys(database).exist()
    with Archive(site) as archive:
        assert archive.ledger.counts() == {"done": 35}


def test_each_image_of_a_search_is_recorded_before_its_answer(site: Settings, indexed) -> None:
    images = [str(path) for path in indexed.files["ct"][:2]]
    both = ["--data-dir", str(site.data_dir), "--model", str(site.model)]
    result = CliRunner().invoke(app, ["search", *images, "nowhere.png", "--json", "-k", "3", *both])
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    first, second, failed = rows_of(site)
    for answer, row in zip(answers, (first, second), strict=False):
        assert row["images"] == [hit["id"] for hit in answer["hits"]]
        assert (row["status"], row["results"]) == (0, 3)
    assert (failed["status"], failed["outcome"], failed["images"]) == (1, "failed", [])


_KILLED = """
import os, signal, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
from api.cli.main import app
from api.security.keys import Keys

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

where, arguments = sys.argv[1], sys.argv[2:]
revoke = Keys.revoke
if where == "before":
    Keys.revoke = kill
if where == "uncommitted":
    @event.listens_for(Engine, "after_cursor_execute")
    def changed(connection, cursor, statement, *_):
        if statement.startswith("UPDATE keys"):
            kill()
if where == "after":
    Keys.revoke = lambda *given: (revoke(*given), kill())
app(["keys", "revoke", *arguments])
"""
"""`precedent keys revoke`, killed before it changes the key, before that is committed, or after."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killed", "holds"), [("before", True), ("uncommitted", True), ("after", False)]
)
def test_a_revocation_that_is_killed_is_whole_or_none(site: Settings, killed, holds) -> None:
    with open_database(site, DataDir(site.data_dir).ledger) as database:
        key, written = Keys(database).create("ward", [Scope.SEARCH])
    arguments = [key.id, "--data-dir", str(site.data_dir)]
    run = [sys.executable, "-c", _KILLED, killed, *arguments]
    died = subprocess.run(run, cwd=ROOT, check=False, capture_output=True, timeout=60)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert died.stdout == b""
    # The row came first: it names the key, and says that it was begun, not that it was done.
    (row,) = rows_of(site)
    assert (row["action"], row["status"]) == ("precedent keys revoke", 102)
    assert row["about"]["key"] == key.id
    headers = {"Authorization": f"Bearer {written}"}
    with LoopbackClient(create_service(site)) as client:
        assert client.get("/v1/facets", headers=headers).status_code == (200 if holds else 401)
    # The same command again brings it to its end, and says so.
    assert CliRunner().invoke(app, ["keys", "revoke", *arguments]).exit_code == 0
    end = [row for row in rows_of(site) if row["action"] == "precedent keys revoke"][-1]
    assert (end["status"], end["outcome"], end["about"]["key"]) == (0, "ok", key.id)
    with LoopbackClient(create_service(site)) as client:
        assert client.get("/v1/facets", headers=headers).status_code == 401
