"""``precedent delete --source`` and ``--tenant``: everything goes, and nothing else."""

import dataclasses
import fcntl
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Indexed
from services.loopback import LoopbackClient
from typer.testing import CliRunner

from api.cli.main import app
from api.service import create_service
from engine.errors import JobError, QueryError
from engine.settings import Settings
from engine.store.base import Filter, Match
from indexer.archive import Archive
from indexer.datadir.deletions import Deletions
from indexer.datadir.layout import DataDir
from indexer.jobs.ledger import JobLedger
from indexer.jobs.records import JobOptions
from indexer.ledger.database import open_database
from indexer.ledger.instances import Ledger
from indexer.sources.folder import FolderSource
from indexer.sources.opening import SourceSpec
from indexer.sources.pushed.inbox import ReceivedSource


def run(settings: Settings, *arguments: str) -> Any:
    place = ["--data-dir", str(settings.data_dir), "--model", str(settings.model)]
    result = CliRunner().invoke(app, ["delete", *arguments, *place], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def clinic(store_root: Path) -> Path:
    """The folder of a source "clinic"."""
    return store_root / "clinic"


@pytest.fixture(scope="module")
def both(indexed, clinic: Path) -> Indexed:
    """An archive with four images of "clinic" besides those of "folder", one of them a copy."""
    settings = indexed.copy(clinic.parent / "data")
    clinic.mkdir()
    for number, path in enumerate((*indexed.files["ct"][:1], *indexed.files["mr"][:3])):
        content = path.read_bytes()
        # Other bytes of a file without one are another image.
        changed = content if number == 0 else content.replace(b"1.2.3.", b"1.2.9.")
        (clinic / f"{number}.dcm").write_bytes(changed)
    with Archive(settings) as archive:
        report = archive.index(FolderSource([clinic], name="clinic"))
    assert (report.indexed, report.duplicates) == (4, 1)
    return dataclasses.replace(indexed, settings=settings)


@pytest.fixture
def settings(both: Indexed, tmp_path: Path) -> Settings:
    """Of a copy of it."""
    return both.copy(tmp_path / "data")


def test_a_source_is_gone_from_everywhere(settings: Settings) -> None:
    of_it = Filter((Match("source", ("clinic",)),))
    with Archive(settings) as archive:
        gone = [point.id for point in archive.store.scroll(of_it)]
        locators = archive.ledger.find(source="clinic")
    assert (len(gone), len(locators)) == (3, 4)
    unasked = run(settings, "--source", "clinic")
    assert unasked.exit_code == 1
    told = run(settings, "--source", "clinic", "--yes", "--json")
    assert json.loads(told.stdout) == {"instances": 4, "points": 3}
    with Archive(settings) as archive, LoopbackClient(create_service(archive=archive)) as client:
        assert archive.store.count(of_it) == 0
        assert archive.store.count(Filter()) == 35  # the copy's image is that of a file that stays
        assert "clinic" not in archive.store.facets(["source"], Filter(), 100)["source"]
        assert archive.ledger.find(source="clinic") == []
        assert archive.ledger.points_of(locators) == {}
        assert archive.ledger.sources() == ["folder"]
        for one in gone:
            assert client.get(f"/v1/images/{one}").status_code == 404
            assert client.get(f"/v1/images/{one}/thumbnail").status_code == 404
    thumbnails = {path.stem for path in DataDir(settings.data_dir).thumbnails.rglob("*.jpg")}
    assert len(thumbnails) == 35
    assert not thumbnails & set(gone)
    ledger = (settings.data_dir / "ledger.sqlite").read_bytes()
    assert b"clinic/" not in ledger


def test_of_several_choices_what_fits_all_goes(settings: Settings) -> None:
    told = run(settings, "--source", "clinic", "--sop", "1.2.9.11", "--yes", "--json")
    assert json.loads(told.stdout) == {"instances": 1, "points": 1}
    nothing = r"nothing .* is of sop '1.2.9.12', source 'folder'; nothing was removed"
    with pytest.raises(QueryError, match=nothing):
        run(settings, "--source", "folder", "--sop", "1.2.9.12", "--yes", "--json")


def test_a_dry_run_says_what_would_go(settings: Settings) -> None:
    told = run(settings, "--source", "clinic", "--dry-run", "--json")
    assert json.loads(told.stdout) == {
        "dry_run": True,
        "studies": 3,
        "series": 3,
        "instances": 4,
        "points": 3,
    }
    said = run(settings, "--source", "clinic", "--dry-run")
    assert "would remove 3 studies, 3 series, 4 instances, 3 points" in said.stdout
    with Archive(settings) as archive:
        assert archive.ledger.count(source="clinic") == 4


def test_what_was_deleted_stays_out_until_it_is_asked_for(settings: Settings, clinic: Path) -> None:
    source = FolderSource([clinic], name="clinic")
    run(settings, "--sop", "1.2.9.11", "--yes")
    with Archive(settings) as archive:
        assert archive.ledger.count(source="clinic") == 3
        report = archive.index(source)
        assert (report.indexed, report.unchanged, report.deleted) == (0, 3, 1)
        assert archive.store.count(Filter((Match("sop", ("1.2.9.11",)),))) == 0
        report = archive.index(source, again=True)
        assert (report.indexed, report.deleted) == (4, 0)
        report = archive.index(source)
        assert (report.unchanged, report.deleted) == (4, 0)


def test_a_tenant_is_gone_from_everywhere(settings: Settings) -> None:
    told = run(settings, "--tenant", "default", "--yes", "--json")
    assert json.loads(told.stdout) == {"instances": 39, "points": 38}
    with Archive(settings) as archive:
        assert archive.store.count(Filter()) == 0
        assert archive.ledger.counts() == {}
        assert archive.engine.facets(Filter()).get("modality", {}) == {}
    assert list(DataDir(settings.data_dir).thumbnails.rglob("*.jpg")) == []


@pytest.mark.parametrize(
    ("option", "known"), [("--source", "clinic, folder"), ("--tenant", "default")]
)
def test_an_unknown_name_says_which_there_are(settings: Settings, option: str, known: str) -> None:
    with pytest.raises(QueryError, match=f"'clinik'; there are: {known}$"):
        run(settings, option, "clinik", "--yes")
    with Archive(settings) as archive:
        assert archive.ledger.counts() == {"done": 39}


def test_a_source_that_a_job_still_reads_is_not_deleted(settings: Settings) -> None:
    with open_database(settings, DataDir(settings.data_dir).ledger) as database:
        job = JobLedger(database.of("default")).submit(
            SourceSpec(name="clinic"), JobOptions(False, False, False), at="2024"
        )
        with pytest.raises(JobError, match=f"jobs cancel {job}`"):
            run(settings, "--source", "clinic", "--yes")
        JobLedger(database.of("default")).cancel(job, "2024")
    told = run(settings, "--source", "clinic", "--yes", "--json")
    assert json.loads(told.stdout)["instances"] == 4


def test_what_was_received_does_not_come_back(settings: Settings, indexed, clinic: Path) -> None:
    received = DataDir(settings.data_dir).received / "3f" / "a0" / "1.2.dcm"
    received.parent.mkdir(parents=True)
    content = indexed.files["ct"][1].read_bytes().replace(b"1.2.3.", b"1.2.7.")
    received.write_bytes(content)
    with Archive(settings) as archive:
        archive.index(ReceivedSource([received]))
    told = run(settings, "--source", "storescp", "--yes", "--json")
    assert json.loads(told.stdout) == {"instances": 1, "points": 1}
    assert not received.exists()
    # Files of others stay.
    told = run(settings, "--source", "clinic", "--yes", "--json")
    assert json.loads(told.stdout)["instances"] == 4
    assert len(list(clinic.iterdir())) == 4


def test_what_was_received_does_not_come_back_after_a_kill(
    settings: Settings, indexed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is deleted first: the ledger knows of the rest until that is gone."""
    received = DataDir(settings.data_dir).received / "3f" / "a0" / "1.2.dcm"
    received.parent.mkdir(parents=True)
    content = indexed.files["ct"][1].read_bytes().replace(b"1.2.3.", b"1.2.7.")
    received.write_bytes(content)
    forget = Ledger.forget

    def killed(self: Ledger, locators: Any) -> None:
        forget(self, locators)
        raise KeyboardInterrupt

    with Archive(settings) as archive:
        archive.index(ReceivedSource([received]))
        monkeypatch.setattr(Ledger, "forget", killed)
        with pytest.raises(KeyboardInterrupt):
            archive.delete_all({"source": "storescp"})
        monkeypatch.undo()
    with Archive(settings) as archive:
        assert archive.ledger.find(source="storescp") == []
        assert not received.exists()


def test_a_deletion_that_begins_is_not_taken_for_one_that_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deletions = Deletions(tmp_path)
    seen: list[dict[str, str]] = []
    flock = fcntl.flock

    def looked_at_before(handle: int, kind: int) -> None:
        if not kind & fcntl.LOCK_NB:
            seen.extend(deletions.left())
        flock(handle, kind)

    monkeypatch.setattr(fcntl, "flock", looked_at_before)
    with deletions.under_way({"study": "1.2"}):
        assert [*deletions.left()] == seen == []
    with pytest.raises(KeyboardInterrupt), deletions.under_way({"study": "1.2"}):
        raise KeyboardInterrupt
    assert [*deletions.left()] == [{"study": "1.2"}]
    assert [*deletions.left()] == []
