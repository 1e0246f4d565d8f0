"""``precedent backup …``: what is restored is what was backed up, and nothing less is taken."""

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import run
from conftest import HOSTILE_LABEL, dicom, png, rings, stripes
from services.running import Running

from engine.errors import BackupError
from engine.search.query import Query
from engine.settings import Settings
from engine.store.base import Filter
from indexer.archive import Archive
from indexer.sources.folder import FolderSource


@pytest.fixture
def settings(indexed, tmp_path: Path) -> Settings:
    return indexed.copy(tmp_path / "source" / "data")


@pytest.fixture
def place(settings: Settings) -> list[str]:
    return ["--data-dir", str(settings.data_dir), "--model", str(settings.model)]


def told(*arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*arguments, "--json").splitlines()[-1])
    return found


def at(folder: Path, settings: Settings) -> Settings:
    """The settings of what was restored there: its model comes from the backup."""
    return settings.model_copy(update={"data_dir": folder, "model": None})


def answers(settings: Settings) -> str:
    """What is answered for each image, with scores, as one text; and every point."""
    with Archive(settings) as archive:
        points = [
            (one.id, one.record.known(), one.code.tobytes().hex(), one.z.tobytes().hex())
            for one in archive.store.scroll(Filter(), with_z=True)
            if one.z is not None
        ]
        found = [
            [(hit.id, hit.score) for hit in archive.engine.search_like(one[0], Query(20)).hits]
            for one in points
        ]
        names = sorted(path.name for path in archive.paths([one[0] for one in points]).values())
    return json.dumps([points, found, names])


def rows(folder: Path, file: str = "ledger.sqlite") -> dict[str, list[Any]]:
    with sqlite3.connect(folder / file) as opened:
        tables = [name for (name,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {name: opened.execute(f"SELECT * FROM {name}").fetchall() for name in sorted(tables)}
    opened.close()
    return found


def add(settings: Settings, number: int) -> None:
    """Indexes three more images."""
    folder = settings.data_dir.parent / f"more-{number}"
    folder.mkdir()
    for seed in range(3):
        (folder / f"{seed}.png").write_bytes(png(rings(500 + 10 * number + seed)))
    with Archive(settings) as archive:
        assert archive.index(FolderSource([folder])).indexed == 3


def test_what_is_restored_answers_as_before(settings, place, tmp_path):
    file, key = tmp_path / "full.backup", settings.data_dir / "pseudonym.key"
    run("keys", "create", "ward", "--data-dir", settings.data_dir)
    before = answers(settings)
    made = told("backup", "create", file, *place)
    assert made["counts"]["points"] == 35
    assert made["counts"]["instances"] == {"done": 35}
    assert (made["counts"]["keys"], made["secrets"], made["left_out"]) == (1, False, [])
    assert file.stat().st_mode & 0o777 == 0o600
    # What keeps patients apart is not written in plain.
    assert key.read_bytes() not in file.read_bytes()
    (checked,) = told("backup", "verify", file)["chains"]
    assert checked["counts"] == made["counts"]
    there = tmp_path / "other" / "data"
    there.parent.mkdir()
    with pytest.raises(BackupError, match=r"has not the key .*--pseudonym-key"):
        run("backup", "restore", file, "--data-dir", there)
    wrong = tmp_path / "wrong.key"
    wrong.write_bytes(os.urandom(32))
    with pytest.raises(BackupError, match=r"wrong\.key is another key"):
        run("backup", "restore", file, "--pseudonym-key", wrong, "--data-dir", there)
    assert [*there.parent.iterdir()] == []
    restored = told("backup", "restore", file, "--pseudonym-key", key, "--data-dir", there)
    assert restored["counts"] == made["counts"]
    assert [*there.parent.iterdir()] == [there]
    assert (there / "pseudonym.key").read_bytes() == key.read_bytes()
    assert answers(at(there, settings)) == before
    assert rows(there)["instances"] == rows(settings.data_dir)["instances"]
    run("audit", "verify", "--data-dir", there)
    with pytest.raises(BackupError, match="not empty"):
        run("backup", "restore", file, "--pseudonym-key", key, "--data-dir", there)
    (there / "mine").touch()
    forced = told(
        "backup", "restore", file, "--pseudonym-key", key, "--data-dir", there, "--force"
    )
    assert (Path(forced["before"]) / "mine").exists()
    assert answers(at(there, settings)) == before
