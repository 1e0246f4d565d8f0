"""``precedent upgrade``, and what becomes of things that a later version stored."""

import contextlib
import io
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from safetensors.numpy import save_file
from sqlalchemy import text

from api.audit.log import open_log
from api.audit.schema import AUDIT
from api.cli.main import app
from engine.errors import PrecedentError
from engine.settings import Settings
from indexer.ledger.database import Database
from indexer.ledger.migrations import HEAD

PICTURE = "picture.png"


@dataclass(frozen=True)
class Place:
    """An archive that tests put later versions into, and take them out again."""

    settings: Settings
    images: Path

    @property
    def root(self) -> Path:
        return self.settings.data_dir

    @property
    def model(self) -> Path:
        assert self.settings.model is not None
        return self.settings.model

    def run(self, *arguments: str) -> tuple[int, str]:
        """The exit code of a command and what it prints; of an error, what it says."""
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(io.StringIO()) as printed,
        ):
            patch.setenv("PRECEDENT_MODEL", str(self.model))
            where = ["--data-dir", str(self.root)]
            try:
                code = app([*arguments, *where], standalone_mode=False)
            except PrecedentError as error:
                return 1, str(error)
        return code or 0, printed.getvalue()

    def stored(self) -> tuple[int, list[dict[str, Any]]]:
        code, printed = self.run("upgrade", "--json")
        return code, json.loads(printed)["stored"]


@pytest.fixture(scope="module")
def place(indexed, tmp_path_factory) -> Place:
    settings = indexed.copy(tmp_path_factory.mktemp("upgrade") / "data")
    open_log(settings).close()
    files = next(files for label, files in indexed.files.items() if label == "stripes")
    return Place(settings, files[0])


@contextmanager
def written(path: Path, content: bytes) -> Iterator[None]:
    """A file with this content, and then as it was."""
    before = path.read_bytes() if path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        yield
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)


@contextmanager
def revised(path: Path, table: str, newer: str) -> Iterator[None]:
    def write(revision: str) -> str:
        with closing(sqlite3.connect(path)) as connection, connection:
            (before,) = connection.execute(f"SELECT version_num FROM {table}").fetchone()
            connection.execute(f"UPDATE {table} SET version_num = ?", (revision,))
        return str(before)

    before = write(newer)
    try:
        yield
    finally:
        write(before)


def noted(path: Path, **changes: Any) -> Any:
    found = json.loads(path.read_bytes()) if path.exists() else {}
    return written(path, json.dumps({**found, **changes}).encode())


@contextmanager
def tensors(path: Path, version: str) -> Iterator[None]:
    before = path.read_bytes() if path.exists() else None
    save_file({"one": np.zeros(1, np.float32)}, path, metadata={"format": version})
    try:
        yield
    finally:
        path.unlink() if before is None else path.write_bytes(before)


@dataclass(frozen=True)
class Later:
    """A thing of a later version. thing: its name in the list. version: that it has, of which
    this release knows ``known``. command: an ordinary one that opens it."""

    thing: str
    version: str
    known: str
    plant: Callable[[Place], Any]
    command: tuple[str, ...]


SEARCH = ("search", PICTURE, "-k", "1")
ERASED = json.dumps(
    {"format": 2, "tenant": "default", "asked": {}, "begun_at": "", "known": {}, "before": {}}
).encode()
LATER = {
    "folder": Later(
        "data folder", "2", "1", lambda at: noted(at.root / "folder.json", format=2), ("info",)
    ),
    "index in force": Later(
        "index in force", "2", "1",
        lambda at: noted(at.root / "current.json", index="index", format=2), SEARCH,
    ),
    "index": Later(
        "index", "3", "2", lambda at: noted(at.root / "index/collection.json", format=3), SEARCH
    ),
    "ledger": Later(
        "ledger", "0999", HEAD,
        lambda at: revised(at.root / "ledger.sqlite", "alembic_version", "0999"), SEARCH,
    ),
    "audit log": Later(
        "audit log", "a9999", AUDIT.head,
        lambda at: revised(at.root / "audit.sqlite", "audit_version", "a9999"), SEARCH,
    ),
    "model": Later(
        "model", "2", "1", lambda at: noted(at.model / "manifest.json", format=2), SEARCH
    ),
    "calibration": Later(
        "calibration", "5", "3 and 4",
        lambda at: tensors(at.model / "calibration.safetensors", "5"), SEARCH,
    ),
    "decoder": Later(
        "decoder", "2", "1", lambda at: tensors(at.model / "decoder.safetensors", "2"), SEARCH
    ),
    "deletion": Later(
        "deletion under way", "2", "1",
        lambda at: written(at.root / "deletions/a.json", b'{"format": 2, "study": "1.2"}'),
        ("delete", "--study", "1.2", "--yes"),
    ),
    "erasure": Later(
        "erasure under way", "2", "1",
        lambda at: written(at.root / "erasures/under-way/a.json", ERASED), ("erase", "--resume"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", LATER)
def test_what_a_later_version_stored_is_refused_with_the_way_out(place, which) -> None:
    later = LATER[which]
    command = [str(place.images) if one == PICTURE else one for one in later.command]
    with later.plant(place):
        whole = contents(place.root)
        code, said = place.run(*command)
        assert code == 1
        before = contents(place.root)
        # The access that failed may be recorded.
        assert {name for name in before if before[name] != whole.get(name)} <= {"audit.sqlite"}
        assert later.version in said, said
        assert later.known in said, said
        assert "install that" in said or "update precedent" in said or "again" in said, said
        refused = [one for one in place.stored()[1] if one["outcome"] == "refused"]
        assert [(one["thing"], one["found"]) for one in refused] == [(later.thing, later.version)]
        assert place.run("upgrade")[0] == 1
        code, said = place.run("upgrade", "--apply")
        assert code == 1
        assert "nothing was changed" in said
        assert refused[0]["place"] in said
        assert contents(place.root) == before
    assert place.stored()[0] == 0


def contents(root: Path) -> dict[str, bytes]:
    """What may not change, of the files that are small or tell versions."""
    kinds = (".json", ".sqlite", ".key")
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.suffix in kinds
    }


def test_a_sending_of_a_later_version_is_left_alone(place, caplog) -> None:
    name = "0" * 32
    with noted(place.root / f"outbox/{name}.json", format=3):
        place.run("sendings", "list")
        refused = [one for one in place.stored()[1] if one["outcome"] == "refused"]
        assert [(one["thing"], one["found"]) for one in refused] == [("sending", "3")]


@pytest.mark.slow
def test_columns_of_a_later_version_are_made_again(place) -> None:
    asked = ("search", str(place.images), "-k", "5", "--json")
    before = json.loads(place.run(*asked)[1])["hits"]
    state = place.root / "index/columns/state.json"
    state.write_text(json.dumps({**json.loads(state.read_bytes()), "format": 2}))
    (columns,) = [one for one in place.stored()[1] if one["thing"] == "columns"]
    assert (columns["found"], columns["outcome"]) == ("2", "rebuilt")
    code, said = place.run("upgrade", "--apply")
    assert (code, said.split()[:2]) == (0, ["rebuilt", "columns"])
    assert json.loads(state.read_bytes())["format"] == 1
    assert json.loads(place.run(*asked)[1])["hits"] == before
    code, said = place.run("upgrade", "--apply")
    assert (code, "everything is as Precedent" in said) == (0, True)


def test_nothing_is_brought_up_while_a_process_is_at_the_archive(place) -> None:
    about = place.root / "folder.json"
    was = about.read_bytes()
    about.unlink()
    (folder,) = [one for one in place.stored()[1] if one["thing"] == "data folder"]
    assert folder["outcome"] == "migrated"
    (place.root / "index.pid").write_text("4711\nprecedent serve\n2031-01-01 00:00:00\n")
    with FileLock(place.root / "index.lock"):
        code, said = place.run("upgrade", "--apply")
        assert code == 1
        assert "pid 4711, `precedent serve`" in said
        assert not about.exists()
    assert place.run("upgrade", "--apply")[0] == 0
    assert json.loads(about.read_bytes())["format"] == json.loads(was)["format"]


def test_an_empty_folder_stays_empty(tmp_path, place) -> None:
    nothing = Place(place.settings.model_copy(update={"data_dir": tmp_path}), place.images)
    for option in ("--dry-run", "--apply"):
        assert nothing.run("upgrade", option)[0] == 0
    assert not any(tmp_path.iterdir())


def test_a_ledger_in_postgresql_is_listed_migrated_and_refused(
    place, postgres, monkeypatch
) -> None:
    url = postgres.create_database()
    monkeypatch.setenv("PRECEDENT_LEDGER__URL", url)

    def databases() -> list[tuple[str, str | None, str]]:
        names = ("ledger", "audit log")
        told = [one for one in place.stored()[1] if one["thing"] in names]
        assert not any("127.0.0.1" in one["place"] for one in told)
        return [(one["thing"], one["found"], one["outcome"]) for one in told]

    assert databases() == []
    with Database(url) as at_work, Database(url, AUDIT):
        assert databases() == [
            ("ledger", HEAD, "nothing"),
            ("audit log", AUDIT.head, "nothing"),
        ]
        with at_work.begin() as connection:
            connection.execute(text("DROP TABLE oidc_sessions"))
            connection.execute(text("UPDATE alembic_version SET version_num = '0008'"))
        assert databases()[0] == ("ledger", "0008", "migrated")
        # Services on other machines are seen by the connections that they keep.
        code, said = place.run("upgrade", "--apply")
        assert code == 1
        assert "other processes of Precedent (from 127.0.0.1 since " in said
    assert place.run("upgrade", "--apply")[0] == 0
    assert databases()[0] == ("ledger", HEAD, "nothing")
    with Database(url) as again, again.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0999'"))
    assert databases()[0] == ("ledger", "0999", "refused")
    code, said = place.run("upgrade", "--apply")
    assert (code, "0999" in said) == (1, True)
