"""``precedent backup …``: what is restored is what was backed up, and nothing less is taken."""

import json
import os
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from commands import run
from conftest import dicom, png, rings, stripes

from engine.errors import BackupError, QueryError
from engine.search.query import Query
from engine.settings import BackupSettings, Settings
from engine.store.base import Filter
from indexer.archive import Archive
from indexer.doctor.backup import check_backup
from indexer.doctor.examined import Examined
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
            [
                (hit.id, hit.similarity, hit.hamming)
                for hit in archive.engine.search_like(one[0], Query(20)).hits
            ]
            for one in points
        ]
        names = sorted(path.name for path in archive.paths([one[0] for one in points]).values())
    return json.dumps([points, found, names])


def rows(folder: Path, file: str = "ledger.sqlite") -> dict[str, list[Any]]:
    with sqlite3.connect(folder / file) as opened:
        tables = [
            name
            for (name,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        found = {
            name: opened.execute(f"SELECT * FROM {name}").fetchall() for name in sorted(tables)
        }
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
    with pytest.raises(QueryError, match=r"there already.*--force"):
        run("backup", "create", file, *place)
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
    forced = told("backup", "restore", file, "--pseudonym-key", key, "--data-dir", there, "--force")
    assert (Path(forced["before"]) / "mine").exists()
    assert answers(at(there, settings)) == before


def chain(settings: Settings, place: list[str], folder: Path) -> list[Path]:
    """A full backup and three increments, between which images come, go and change."""
    folder.mkdir()
    files = [folder / f"{number}.backup" for number in range(4)]
    run("backup", "create", files[0], *place)
    add(settings, 1)
    sizes = [told("backup", "create", files[1], "--since", files[0], *place)]
    run("delete", "--study", "1.2.4.1", "--yes", *place)
    sizes.append(told("backup", "create", files[2], "--since", files[1], *place))
    add(settings, 2)
    run("profile", "hash", "--quantised", *place)
    sizes.append(told("backup", "create", files[3], "--since", files[2], *place))
    # The model alone is larger than what has changed.
    assert all(one["stored_bytes"] < one["file_bytes"] / 10 for one in sizes)
    return files


@pytest.mark.slow
def test_a_full_backup_and_three_increments_are_the_source(settings, place, tmp_path):
    files = chain(settings, place, tmp_path / "backups")
    before, ledger = answers(settings), rows(settings.data_dir)
    (checked,) = told("backup", "verify", files[0].parent)["chains"]
    assert [one["number"] for one in checked["backups"]] == [0, 1, 2, 3]
    there, key = tmp_path / "there", settings.data_dir / "pseudonym.key"
    # Of the last one alone, the others are found beside it.
    run("backup", "restore", files[3], "--pseudonym-key", key, "--data-dir", there)
    assert answers(at(there, settings)) == before
    assert rows(there) == ledger
    thumbnails = sorted((path.name, path.read_bytes()) for path in there.glob("thumbnails/*/*"))
    source = settings.data_dir.glob("thumbnails/*/*")
    assert thumbnails == sorted((path.name, path.read_bytes()) for path in source)
    # Each of them is a state to go back to.
    first = tmp_path / "first"
    named = [files[1], files[0], "--pseudonym-key", key]
    assert told("backup", "restore", *named, "--data-dir", first)["counts"]["points"] == 38
    with Archive(at(first, settings)) as archive:
        assert archive.store.count(Filter()) == 38
    # What is restored is the beginning of the next chain.
    again = told("backup", "create", tmp_path / "next", "--since", files[3], "--data-dir", there)
    assert again["stored_bytes"] < again["file_bytes"] / 10


@pytest.mark.slow
def test_increments_of_another_backup_are_refused(settings, place, tmp_path):
    folder, key = tmp_path / "backups", settings.data_dir / "pseudonym.key"
    files = chain(settings, place, folder)
    other = tmp_path / "other.backup"
    run("backup", "create", other, *place)
    there = ["--pseudonym-key", key, "--data-dir", tmp_path / "there"]
    with pytest.raises(BackupError, match=r"1\.backup is increment 1 of another"):
        run("backup", "restore", other, files[1], *there)
    with pytest.raises(BackupError, match=r"2\.backup .*the one before it is missing"):
        run("backup", "restore", files[0], files[2], *there)
    with pytest.raises(BackupError, match=r"backups of 2 full ones"):
        run("backup", "restore", files[0], other, *there)
    fork = tmp_path / "fork.backup"
    run("backup", "create", fork, "--since", files[0], *place)
    with pytest.raises(BackupError, match="follow the same"):
        run("backup", "restore", *files, fork, *there)
    files[2].unlink()
    with pytest.raises(BackupError, match=r"3\.backup is an increment, and a backup that it needs"):
        run("backup", "restore", files[3], *there)
    assert not (tmp_path / "there").exists()


def flipped(file: Path, at: int, to: Path) -> Path:
    content = bytearray(file.read_bytes())
    content[at] ^= 0x20
    to.write_bytes(content)
    return to


@pytest.mark.slow
def test_one_flipped_byte_anywhere_is_found_and_named(settings, place, tmp_path):
    file, bad = tmp_path / "full.backup", tmp_path / "bad.backup"
    run("backup", "create", file, *place)
    content = file.read_bytes()
    assert run("backup", "verify", file)
    named = {
        b"SQLite format 3": "(ledger|audit).sqlite",
        b'{"path":"audit.sqlite"': "manifest",
        b'"all":"': "end.json|its last bytes|lies between",
        b"JFIF": "thumbnails/",
    }
    for begins, name in named.items():
        with pytest.raises(BackupError, match=name):
            run("backup", "verify", flipped(file, content.rindex(begins) + 8, bad))
    for at in [0, 20, 148, 155, 511, 600, 1500, *range(2048, len(content), len(content) // 16)]:
        with pytest.raises(BackupError):
            run("backup", "verify", flipped(file, at, bad))
    for at in range(1, 3000, 157):
        with pytest.raises(BackupError):
            run("backup", "verify", flipped(file, len(content) - at, bad))
    for cut in (0, 100, 512, len(content) // 2, len(content) - 1024, len(content) - 1):
        bad.write_bytes(content[:cut])
        with pytest.raises(BackupError):
            run("backup", "verify", bad)
    bad.write_bytes(content + b"\0")
    with pytest.raises(BackupError, match="its last bytes"):
        run("backup", "verify", bad)


def test_an_encrypted_backup_opens_with_its_key_alone(settings, place, tmp_path):
    pytest.importorskip("pyrage")
    file, bad = tmp_path / "full.age", tmp_path / "bad.age"
    ours, other = tmp_path / "ours.txt", tmp_path / "other.txt"
    public = run("backup", "key", ours).splitlines()[0]
    run("backup", "key", other)
    assert ours.stat().st_mode & 0o777 == 0o600
    with pytest.raises(BackupError, match="already"):
        run("backup", "key", ours)
    made = told("backup", "create", file, "--to", public, *place)
    assert (made["encrypted"], made["secrets"]) == (True, True)
    assert b"ledger.sqlite" not in file.read_bytes()
    there = tmp_path / "there"
    with pytest.raises(BackupError, match=r"encrypted; .*--identity"):
        run("backup", "verify", file)
    with pytest.raises(BackupError, match="not encrypted to this key"):
        run("backup", "restore", file, "--identity", other, "--data-dir", there)
    length = file.stat().st_size
    for where in (30, 400, length // 2, length - 5):
        with pytest.raises(BackupError):
            run("backup", "verify", flipped(file, where, bad), "--identity", ours)
    bad.write_bytes(file.read_bytes()[:-70_000])
    with pytest.raises(BackupError, match="cut short"):
        run("backup", "restore", bad, "--identity", ours, "--data-dir", there)
    assert not there.exists()
    secret = ours.read_text().splitlines()[-1]
    for option, command in (("--to", "create"), ("--identity", "verify")):
        with pytest.raises(BackupError, match="was given a secret key") as caught:
            run("backup", command, file, option, secret)
        assert secret not in str(caught.value)
    # Nobody here can read it, and yet an increment of it can be made.
    add(settings, 1)
    more = tmp_path / "more.age"
    told("backup", "create", more, "--since", file, "--to", public, *place)
    assert more.stat().st_size < length / 2
    run("backup", "restore", more, "--identity", ours, "--data-dir", there)
    key = settings.data_dir / "pseudonym.key"
    assert (there / "pseudonym.key").read_bytes() == key.read_bytes()
    assert (there / "pseudonym.key").stat().st_mode & 0o777 == 0o600
    assert answers(at(there, settings)) == answers(settings)
    with pytest.raises(BackupError, match=r"no note of it.*full backup"):
        run("backup", "create", tmp_path / "next", "--since", more, "--data-dir", there)


def test_a_server_or_a_database_of_its_own_is_refused_with_the_way_out(settings, place, tmp_path):
    file = tmp_path / "full.backup"
    for name, way_out in (("STORE__URL", "precedent snapshot"), ("LEDGER__URL", "pg_dump")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(f"PRECEDENT_{name}", "http://127.0.0.1:9")
            patch.setenv("PRECEDENT_AUDIT__ENABLED", "false")
            with pytest.raises(BackupError, match=way_out):
                run("backup", "create", file, *place)
    assert not file.exists()


def test_received_files_are_found_where_they_are_restored(settings, place, tmp_path):
    key = settings.data_dir / "pseudonym.key"
    received = settings.data_dir / "received" / "ab" / "cd" / "1.2.3.99.dcm"
    received.parent.mkdir(parents=True)
    received.write_bytes(dicom(stripes(77), 99, modality="CT", part="CHEST"))
    (settings.data_dir / "received" / "incoming").mkdir()
    (settings.data_dir / "received" / "incoming" / "half").write_bytes(b"half")
    (settings.data_dir / "holiday").mkdir()
    with Archive(settings) as archive:
        assert archive.index(FolderSource([received])).indexed == 1
    made = told("backup", "create", tmp_path / "with", *place)
    assert made["left_out"] == ["holiday"]
    run("backup", "create", tmp_path / "without", "--no-received", *place)
    there, bare = tmp_path / "there", tmp_path / "bare"
    for file, place_of_it in (("with", there), ("without", bare)):
        named = [tmp_path / file, "--pseudonym-key", key, "--data-dir", place_of_it]
        run("backup", "restore", *named)
    assert not (bare / "received").exists()
    found = there / "received" / "ab" / "cd" / received.name
    assert found.read_bytes() == received.read_bytes()
    assert found.stat().st_mtime_ns == received.stat().st_mtime_ns
    assert not (there / "received" / "incoming").exists()
    with Archive(at(there, settings)) as archive:
        again = archive.index(FolderSource([found]))
        assert (again.indexed, again.unchanged) == (0, 1)
        archive.delete_all({"sop": "1.2.3.99"})
    assert not found.exists()
    assert received.exists()


def test_doctor_tells_how_old_the_last_backup_is(settings, place, tmp_path):
    def levels(days: float | None, later: timedelta) -> list[str]:
        changed = settings.model_copy(update={"backup": BackupSettings(at_most_days=days)})
        examined = Examined(changed, clock=lambda: datetime.now(UTC) + later)
        return [one.level for one in check_backup(examined)]

    assert levels(None, timedelta()) == []
    assert levels(1, timedelta()) == ["warning"]
    run("backup", "create", tmp_path / "full.backup", *place)
    assert levels(1, timedelta()) == ["ok"]
    assert levels(1, timedelta(days=2)) == ["warning"]
    assert levels(None, timedelta(days=2)) == ["ok"]
    (settings.data_dir / "backup.json").write_text("{")
    assert levels(None, timedelta()) == ["warning"]
