"""``precedent erase``: no byte of it is left, all else is as it was; a signed report says so."""

import gzip
import hashlib
import hmac
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
import torch
from commands import run
from conftest import dicom as file_of, rings, stripes
from pydantic import SecretStr
from services.commands import CommandProcess
from services.loopback import LoopbackClient
from typer.testing import CliRunner

from api.cli.main import app
from api.service import create_service
from engine.errors import ErasureError, QueryError, StoreLocked
from engine.model.checkpoint import save_checkpoint
from engine.model.config import small_network
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess
from engine.records import dicom_point_id
from engine.settings import IndexingSettings, LedgerSettings, Settings
from engine.store.base import Filter, Match
from indexer.archive import Archive
from indexer.datadir.layout import DataDir
from indexer.documents.outbox import Outbox
from indexer.documents.plans import Listed, Plan
from indexer.documents.sendings import Sending, SendingFiles
from indexer.erasure.erasing import Erasing
from indexer.sources.folder import FolderSource
from indexer.sources.pushed.inbox import ReceivedSource

ROOT = "1.2.826.0.1.3680043.8.498"
GONE = "Q-7731"
"""The Patient ID of whom is erased."""
STUDY, SERIES, NAMED = f"{ROOT}.5200.77", f"{ROOT}.6200.77", f"{ROOT}.7200.77"
"""Others have other arcs: values of a row touch in SQLite, and are not to read like these."""


def slice_of(patient: str, number: int, pixels: Any, study: str, series: str) -> bytes:
    """A CT slice of a patient."""
    content = file_of(pixels, number, modality="CT", part="CHEST")
    made = pydicom.dcmread(io.BytesIO(content))
    made.PatientID, made.StudyInstanceUID, made.SeriesInstanceUID = patient, study, series
    arc = 7200 if patient == GONE else 7100
    made.SOPInstanceUID = f"{ROOT}.{arc}.{number}"
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.StudyDate = f"{2000 + number % 20}0401"
    out = io.BytesIO()
    made.save_as(out, enforce_file_format=True)
    return out.getvalue()


@dataclass
class Site:
    """An archive and what is known of whom is to be erased."""

    settings: Settings
    images: Path
    ids: list[str] = field(default_factory=list)
    secrets: dict[str, list[bytes]] = field(default_factory=dict)

    @property
    def place(self) -> list[str]:
        return ["--data-dir", str(self.settings.data_dir), "--model", str(self.settings.model)]

    def erase(self, *arguments: str) -> dict[str, Any]:
        return json.loads(run("erase", *arguments, "--yes", "--json", *self.place))

    def holding(self) -> dict[str, set[str]]:
        """Which files of the data folder have which of the secrets, by reading all of them."""
        found: dict[str, set[str]] = {}
        root = self.settings.data_dir
        for path in root.rglob("*"):
            name = str(path.relative_to(root))
            if name.startswith("audit."):
                continue  # that it is kept is told
            data = path.read_bytes().rstrip(b"\0") if path.is_file() else b""
            for kind, some in self.secrets.items():
                if any(one in data or one in os.fsencode(name) for one in some):
                    found.setdefault(name, set()).add(kind)
        return found

    def copy(self, to: Path) -> "Site":
        shutil.copytree(self.settings.data_dir, to, ignore=shutil.ignore_patterns("*.sock"))
        settings = self.settings.model_copy(update={"data_dir": to})
        return Site(settings, self.images, self.ids, self.secrets)


def answers(settings: Settings, contents: list[bytes], gone: list[str]) -> list[Any]:
    """What others' images are answered with, without what is to go."""
    with Archive(settings) as archive, LoopbackClient(create_service(archive=archive)) as client:
        found = []
        for content in contents:
            for choice in ({}, {"exact": "true"}, {"order": "hamming"}):
                data = {"k": 40, **choice}
                told = client.post("/v1/search", files={"file": content}, data=data).json()
                found.append([one for one in told["hits"] if one["id"] not in gone])
        return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """An archive of 16 images; three of them, in the folder of a name, are of one patient."""
    root = tmp_path_factory.mktemp("erase")
    torch.manual_seed(0)
    config, preprocess = small_network(0, tower="timm:test_resnet"), Preprocess(size=64)
    network = HashingNetwork(config, preprocess).eval()
    save_checkpoint(root / "model", network, config, preprocess, (), {})
    images = root / "images"
    for number in range(13):
        path = images / f"other/{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        study = f"{ROOT}.5100.{number // 2}"
        content = slice_of(f"OTHER-{number // 2}", number, stripes(number), study, study + ".1")
        path.write_bytes(content)
    for number in range(3):
        path = images / f"QUILLFEATHER_ANNA/{number}.dcm"
        path.parent.mkdir(exist_ok=True)
        series = SERIES if number < 2 else f"{SERIES}9"
        path.write_bytes(slice_of(GONE, 770 + number, rings(number), STUDY, series))
    reading = IndexingSettings(readers=1, batch_size=4)
    settings = Settings(data_dir=root / "data", model=root / "model", indexing=reading)
    with Archive(settings, create=True) as archive:
        assert archive.index(FolderSource([images])).indexed == 16
        archive.store.optimise()
        key = (settings.data_dir / "pseudonym.key").read_bytes()
        pseudonym = hmac.new(key, f"\0{GONE}".encode(), hashlib.sha256).hexdigest()[:32]
        ids = [dicom_point_id(f"{NAMED}{number}", 0) for number in range(3)]
        points = archive.store.get(ids, with_z=True)
        assert {point.record.patient for point in points} == {pseudonym}
    secrets = {
        "pseudonym": [pseudonym.encode(), bytes.fromhex(pseudonym)],
        "uids": [STUDY.encode(), SERIES.encode(), NAMED.encode()],
        "ids": [form for one in ids for form in (one.encode(), uuid.UUID(one).bytes)],
        "vectors": [point.z.tobytes()[:64] for point in points if point.z is not None],
        "paths": [b"QUILLFEATHER"],
    }
    return Site(settings, images, ids, secrets)


@pytest.fixture
def mine(site: Site, tmp_path: Path) -> Site:
    return site.copy(tmp_path / "data")


@pytest.fixture(scope="module")
def erased(site: Site, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """An archive from which the patient was erased, what its report says, which files had what
    before, and what others were answered before and after."""
    mine = site.copy(tmp_path_factory.mktemp("erased") / "data")
    contents = [(mine.images / f"other/{n}.dcm").read_bytes() for n in (1, 6)]
    # Of an earlier deletion without erasing the traces are there as well.
    before = answers(mine.settings, contents, mine.ids), mine.holding()
    told = mine.erase("--patient", GONE)
    return mine, told, before, answers(mine.settings, contents, mine.ids)


def test_no_byte_of_it_is_left(erased) -> None:
    mine, told, (_, held), _ = erased
    # The same search finds it before: in shard, columns, ledger and names of thumbnails.
    kinds = {kind for some in held.values() for kind in some}
    assert kinds == set(mine.secrets)
    assert held["ledger.sqlite"] | held.get("ledger.sqlite-wal", set()) >= {"pseudonym", "paths"}
    assert any(name.startswith("index/wal/") for name in held)
    assert any(name.startswith("index/segments/") for name in held)
    assert any(name.startswith("index/columns/") for name in held)
    assert sum(name.startswith("thumbnails/") for name in held) == 3
    assert mine.holding() == {}
    assert told["complete"] is True
    assert told["images"] == 3
    assert told["places"]["index: points"] == {"before": 3, "after": 0}
    assert told["places"]["ledger: instances"] == {"before": 3, "after": 0}
    assert told["places"]["thumbnails"] == {"before": 3, "after": 0}
    assert told["searched"]["found"] == []
    assert told["rewritten"]["ledger"] is True
    assert GONE not in json.dumps(told)


def test_the_others_are_answered_as_before(erased) -> None:
    before, after = erased[2][0], erased[3]
    assert json.dumps(after) == json.dumps(before)
    assert len(before[0]) == 13


def test_later_runs_leave_it_out(erased) -> None:
    mine = erased[0]
    with Archive(mine.settings) as archive:
        report = archive.index(FolderSource([mine.images]))
        assert (report.indexed, report.unchanged, report.deleted) == (0, 13, 3)
    # Whoever knows the place of a file cannot find it among the notes without the key.
    with sqlite3.connect(mine.settings.data_dir / "ledger.sqlite") as ledger:
        noted = {row[0] for row in ledger.execute("SELECT locator_sha256 FROM deleted")}
    ledger.close()
    assert len(noted) == 3
    for path in (mine.images / "QUILLFEATHER_ANNA").iterdir():
        assert hashlib.sha256(path.as_uri().encode()).hexdigest() not in noted
    assert mine.holding() == {}


def test_the_report_is_believed_only_as_it_was_signed(erased, tmp_path: Path) -> None:
    mine, told = erased[:2]
    report = Path(told["report"])
    key = mine.settings.data_dir / "erasure.key"
    assert report.stat().st_mode & 0o777 == key.stat().st_mode & 0o777 == 0o600
    assert "valid: signed by" in run("erase", "--verify", report, *mine.place)
    # By the public key alone, elsewhere; and about whom.
    elsewhere = ["--data-dir", tmp_path / "nowhere"]
    run("erase", "--verify", report, "--key", told["public_key"], *elsewhere)
    run("erase", "--verify", report, "--patient", GONE, *mine.place)
    with pytest.raises(ErasureError, match="something else"):
        run("erase", "--verify", report, "--patient", "OTHER-1", *mine.place)
    other = "A" * 43 + "="
    with pytest.raises(ErasureError, match="not by AAAA"):
        run("erase", "--verify", report, "--key", other, *elsewhere)
    with pytest.raises(ErasureError, match="has no key"):
        run("erase", "--verify", report, *elsewhere)
    content = report.read_bytes()
    changed = tmp_path / "changed.json"
    for at in range(0, len(content), 97):
        changed.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(ErasureError):
            run("erase", "--verify", changed, *mine.place)
    # The signature of another report does not fit either.
    document = json.loads(content)
    document["report"]["complete"] = False
    changed.write_text(json.dumps(document))
    with pytest.raises(ErasureError, match="changed after it was signed"):
        run("erase", "--verify", changed, *mine.place)


def test_the_audit_log_has_no_name_of_it(erased) -> None:
    mine = erased[0]
    found = run("audit", "search", "--data-dir", mine.settings.data_dir, "--json")
    rows = [json.loads(line) for line in found.splitlines()]
    begun = next(row for row in rows if row["action"] == "precedent erase" and row["status"] == 102)
    assert set(begun["about"]["erased"]) == {"patient"}
    assert STUDY not in json.dumps(begun)
    run("audit", "verify", "--data-dir", mine.settings.data_dir)


def test_it_asks_first_and_a_dry_run_changes_nothing(mine: Site) -> None:
    before = mine.holding()
    told = json.loads(run("erase", "--patient", GONE, "--dry-run", "--json", *mine.place))
    assert (told["studies"], told["series"], told["instances"], told["points"]) == (1, 2, 3, 3)
    with pytest.raises(QueryError, match="--yes"):
        run("erase", "--patient", GONE, *mine.place)
    with pytest.raises(QueryError, match="nothing was erased"):
        run("erase", "--patient", "nobody", "--yes", *mine.place)
    with pytest.raises(QueryError, match="say what to erase"):
        run("erase", "--yes", *mine.place)
    assert set(mine.holding()) >= set(before)
    with Archive(mine.settings) as archive:
        assert archive.store.count(Filter()) == 16


def test_a_series_goes_and_the_rest_of_its_study_stays(mine: Site) -> None:
    told = mine.erase("--series", SERIES)
    assert told["complete"] is True
    assert told["images"] == 2
    shared = {one["kind"] for one in told["searched"]["shared_with_what_stays"]}
    # The UID of the other series begins with that of this one, and is not taken for it.
    assert {"patient", "study"} <= shared
    assert "series" not in shared
    with Archive(mine.settings) as archive:
        of_study = Filter((Match("study", (STUDY,)),))
        assert [point.id for point in archive.store.scroll(of_study)] == [mine.ids[2]]
    gone = [form for one in mine.ids[:2] for form in (one.encode(), uuid.UUID(one).bytes)]
    mine = Site(mine.settings, mine.images, mine.ids, {"ids": gone})
    assert mine.holding() == {}


@pytest.mark.slow
def test_one_tenant_is_erased_and_the_other_has_the_same_uids(mine: Site) -> None:
    with Archive(mine.settings, tenant="north") as archive:
        assert archive.index(FolderSource([mine.images])).indexed == 16
    told = mine.erase("--patient", GONE)
    assert told["complete"] is True
    shared = {one["kind"] for one in told["searched"]["shared_with_what_stays"]}
    assert shared >= {"patient", "study", "sop", "vector"}
    assert "id" not in shared
    with Archive(mine.settings, tenant="north") as archive:
        of_it = Filter((Match("study", (STUDY,)),))
        assert archive.store.count(of_it) == archive.ledger.count(study=STUDY) == 3
        theirs = [point.id for point in archive.store.scroll(of_it)]
        assert all((archive.data_dir.thumbnails / i[:2] / f"{i}.jpg").exists() for i in theirs)
        assert archive.of("default").store.count(of_it) == 0
    own = [form for one in mine.ids for form in (one.encode(), uuid.UUID(one).bytes)]
    assert Site(mine.settings, mine.images, mine.ids, {"ids": own}).holding() == {}


def test_what_was_received_and_what_is_to_be_sent_goes_too(mine: Site) -> None:
    data_dir = DataDir(mine.settings.data_dir)
    received = data_dir.received / "3f" / "a0" / f"{NAMED}0.dcm"
    waiting = data_dir.received / "3f" / "a1" / f"{NAMED}5.dcm"
    for path in (received, waiting):
        path.parent.mkdir(parents=True)
    content = (mine.images / "QUILLFEATHER_ANNA/0.dcm").read_bytes()
    received.write_bytes(content)
    # It came, and was not indexed yet.
    waiting.write_bytes(content.replace(f"{NAMED}0".encode(), f"{NAMED}5".encode()))
    files = SendingFiles(data_dir.root / "outbox", 3600)
    for number, image in enumerate((mine.ids[1], dicom_point_id(f"{ROOT}.7100.3", 0))):
        plan = Plan.new("sr", image, [Listed(image, 0.5, 3)], datetime(2024, 1, 1))
        files.write(Sending(f"{number:032x}", "default", "pacs", (plan,), "waiting", (), 1.0, 1.0))
    # A kill left it while it was being written.
    left = data_dir.thumbnails / mine.ids[0][:2] / f".{mine.ids[0]}.jpg-a1b2c3"
    left.write_bytes(b"half of a picture")
    # Of an encrypted backup the names of its files are kept, which nobody finds as bytes.
    manifest = data_dir.root / "backups" / "1.gz"
    manifest.parent.mkdir()
    manifest.write_bytes(gzip.compress(f"thumbnails/{mine.ids[0]}.jpg".encode()))
    (data_dir.root / "backup.json").write_text('{"at": "2024-02-03T04:05:06+00:00"}')
    with Archive(mine.settings) as archive:
        archive.index(ReceivedSource([received]))
    told = mine.erase("--patient", GONE)
    assert told["complete"] is True, told
    assert told["last_backup"] == "2024-02-03T04:05:06+00:00"
    assert not manifest.exists()
    assert not received.exists()
    assert not waiting.exists()
    assert [one.id for one in Outbox(mine.settings).newest("default", 9)] == [f"{1:032x}"]
    assert mine.holding() == {}


@pytest.mark.slow
def test_a_copy_in_the_data_folder_is_named(mine: Site) -> None:
    copy = mine.settings.data_dir / "before.sqlite"
    copy.write_bytes(b"an old copy with " + mine.secrets["pseudonym"][0])
    asked = ["erase", "--patient", GONE, "--yes", "--json", *mine.place]
    assert CliRunner().invoke(app, asked, standalone_mode=False).return_value == 1
    report = max(DataDir(mine.settings.data_dir).erasures.glob("2*.json"))
    told = json.loads(report.read_bytes())["report"]
    assert told["complete"] is False
    found = [(one["file"], one["place"], one["kind"]) for one in told["searched"]["found"]]
    assert found == [("before.sqlite", "other", "patient")]
    copy.unlink()
    assert json.loads(run("erase", "--resume", "--json", *mine.place))["complete"] is True


def test_cut_short_it_goes_on(mine: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, Archive(mine.settings) as archive:
        patch.setattr(Archive, "rewrite", killed)
        with pytest.raises(KeyboardInterrupt):
            Erasing(archive).erase({"study": STUDY})
        assert archive.store.count(Filter()) == 13
    assert mine.holding()
    told = json.loads(run("erase", "--resume", "--json", *mine.place))
    assert told["complete"] is True
    assert told["places"]["index: points"] == {"before": 3, "after": 0}
    assert mine.holding() == {}
    assert "no erasure was cut short" in run("erase", "--resume", *mine.place)


def test_one_process_erases_at_a_time(mine: Site) -> None:
    with Archive(mine.settings) as archive:
        first = Erasing(archive)
        with first._notes.alone(), pytest.raises(StoreLocked, match="another process erases"):
            Erasing(archive).erase({"study": STUDY})


def test_rules_of_retention(mine: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QueryError, match="no rule of retention"):
        run("retention", *mine.place)
    rules = tmp_path / "precedent.toml"
    # The studies are of 2000 + number % 20.
    rules.write_text(
        "[retention.old]\nstudy_years = 15\n\n[retention.stale]\nindexed_days = 30\n\n"
        '[retention.north]\ntenant = "north"\nindexed_days = 0\n'
    )
    monkeypatch.setattr("api.cli.retention.datetime", _Year)
    listed = run("retention", "--json", *mine.place).splitlines()
    told = {one["rule"]: one for one in map(json.loads, listed)}
    assert (told["old"]["instances"], told["old"]["of"]) == (9, 16)  # 0 … 8 of 2000 … 2008
    assert told["stale"]["instances"] == told["north"]["instances"] == 0
    with pytest.raises(ErasureError, match=r"9 of 16 .* more than 20%"):
        run("retention", "--apply", *mine.place)
    with Archive(mine.settings) as archive:
        assert archive.store.count(Filter()) == 16
    done = run("retention", "--apply", "--at-most", "60%", "--rule", "old", "--json", *mine.place)
    (report,) = map(json.loads, done.splitlines())
    assert (report["complete"], report["images"]) == (True, 9)
    assert report["asked"] == {"rule": "old"}
    with Archive(mine.settings) as archive:
        years = archive.store.facets(["study_year"], Filter(), 99)["study_year"]
        assert min(years) == "2009"
        assert archive.store.count(Filter()) == archive.ledger.count() == 7
    # Names of the files of studies that went.
    gone = {"paths": [f"other/{n}.dcm".encode() for n in range(9)]}
    assert Site(mine.settings, mine.images, [], gone).holding() == {}
    assert "old: nothing to erase" in run("retention", "--apply", "--rule", "old", *mine.place)
    found = run("audit", "search", "--data-dir", mine.settings.data_dir, "--json").splitlines()
    rows = [json.loads(line) for line in found]
    assert {row["about"].get("rule") for row in rows if row["status"] == 102} == {"old"}


class _Year:
    """A clock of 2024."""

    @staticmethod
    def now(zone: Any) -> Any:
        return datetime.now(zone).replace(year=2024, month=6, day=1)


QUICK = {"OMP_NUM_THREADS": "1", "PRECEDENT_INDEXING__READERS": "1"}


def started(*arguments: object) -> CommandProcess:
    return CommandProcess([*map(str, arguments)], env={**os.environ, **QUICK},
                          start_new_session=True)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_any_moment_the_same_command_ends_it(site: Site, tmp_path: Path) -> None:
    contents = [(site.images / "other/1.dcm").read_bytes()]
    expected = answers(site.settings, contents, site.ids)
    whole = site.copy(tmp_path / "whole")
    command = ["erase", "--patient", GONE, "--yes", "--json"]
    begun = time.monotonic()
    out, errors = started(*command, *whole.place).communicate(timeout=300)
    seconds = time.monotonic() - begun
    assert json.loads(out)["complete"] is True, errors
    for number, share in enumerate((0.3, 0.5, 0.65, 0.8, 0.9)):
        one = site.copy(tmp_path / f"killed-{number}")
        process = started(*command, *one.place)
        time.sleep(share * seconds)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        # Whatever it was at: others are answered, and the same command ends it.
        assert answers(one.settings, contents, one.ids) == expected
        again = started(*command, *one.place)
        _, errors = again.communicate(timeout=300)
        assert one.holding() == {}, errors
        shutil.rmtree(one.settings.data_dir)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_running_service_goes_on_answering(site: Site, tmp_path: Path) -> None:
    mine = site.copy(tmp_path / "data")
    service = started("serve", "--port", "0", *mine.place)
    try:
        lines = iter(service.stdout)
        found = next(one for line in lines if (one := re.search(r"http://\S+/", line)))
        content = (mine.images / "other/1.dcm").read_bytes()

        def asked(client: httpx.Client) -> list[Any]:
            told = client.post("/v1/search", files={"file": content}, data={"k": "40"})
            assert told.status_code == 200
            return [one for one in told.json()["hits"] if one["id"] not in mine.ids]

        with httpx.Client(base_url=found[0], timeout=300) as client:
            for _ in range(3000):
                with suppress(httpx.TransportError):
                    if client.get("/healthz").status_code == 200:
                        break
                time.sleep(0.1)
            before = asked(client)
            assert len(before) == 13
            erasing = started("erase", "--patient", GONE, "--yes", "--json", *mine.place)
            rounds = 0
            while erasing.poll() is None:
                assert asked(client) == before
                rounds += 1
            out, errors = erasing.communicate(timeout=60)
            assert rounds > 1
            told = json.loads(out)
            assert told["complete"] is True, errors
            assert asked(client) == before
            for one in mine.ids:
                assert client.get(f"/v1/images/{one}").status_code == 404
        assert mine.holding() == {}
    finally:
        service.terminate()
        service.communicate(timeout=60)


@pytest.mark.slow
def test_with_a_ledger_in_postgresql(site: Site, tmp_path: Path, postgres) -> None:
    url = postgres.create_database()
    ledger = LedgerSettings(url=SecretStr(url))
    settings = site.settings.model_copy(update={"data_dir": tmp_path / "data", "ledger": ledger})
    shutil.copytree(site.settings.data_dir, settings.data_dir, ignore=shutil.ignore_patterns(
        "index", "ledger*", "audit*", "thumbnails"))  # fmt: skip
    with Archive(settings, create=True) as archive:
        assert archive.index(FolderSource([site.images])).indexed == 16
        told = Erasing(archive).erase({"study": STUDY}).told
    assert told["complete"] is True
    assert any(one["what"] == "PostgreSQL" for one in told["not_proven"])
    for table in ("instances", "points", "manifest", "deleted"):
        rows = postgres.execute(f"SELECT * FROM {table}", url)
        assert not any(
            form in repr(row).encode() for row in rows for some in site.secrets.values()
            for form in some
        )  # fmt: skip
    held = Site(settings, site.images, site.ids, site.secrets).holding()
    assert held == {}
    postgres.drop_database(url)
