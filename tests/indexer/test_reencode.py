"""An archive encoded anew: the answers of a fresh index, whatever happened on the way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dicom_files import dataset, encode
from loopback_pacs import LoopbackPacs

from engine.errors import QueryError, SettingsError, SourceError, StoreError, StoreLocked
from engine.model.checkpoint import save_checkpoint
from engine.model.config import small_network
from engine.model.manifest import read_manifest
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess
from engine.search.query import Query
from engine.settings import DicomWebSettings, Settings
from engine.store.base import Filter
from engine.store.edge import EdgeStore
from indexer.archive import Archive
from indexer.datadir.layout import DataDir
from indexer.datadir.write_lock import exchanging, writing
from indexer.jobs.ledger import JobLedger
from indexer.jobs.records import JobOptions
from indexer.jobs.runner import JobRunner
from indexer.reencoding.reencode import drop_previous, go_back, reencode
from indexer.sources.folder import FolderSource
from indexer.sources.opening import SourceSpec
from indexer.sources.pushed.inbox import ReceivedSource

ROOT = Path(__file__).parents[2]
Draw = Callable[[int], bytes]


def model(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config, preprocess = small_network(0, tower="timm:test_resnet"), Preprocess(size=64)
    network = HashingNetwork(config, preprocess).eval()
    save_checkpoint(folder, network, config, preprocess, (), {})
    return folder


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("old"), 0)


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("new"), 1)


def slice_of(number: int, study: int = 1, seed: int = 0) -> bytes:
    pixels = np.random.default_rng([number, seed]).integers(0, 256, (48, 48), dtype=np.uint8)
    uids = {"StudyInstanceUID": f"1.2.{study}", "SOPInstanceUID": f"1.2.{study}.{number}"}
    return encode(dataset(pixels, Modality="CT", PatientID=f"P{study}", **uids))


@pytest.fixture
def archive(site: Any, old: Path, draw: Draw) -> Any:
    """PNG files, a copy of one, DICOM files, and files in a zip archive; 9 points."""
    site.settings = site.settings.model_copy(update={"model": old})
    for number in range(3):
        site.write(f"rings/{number}.png", draw(number))
    site.write("second/0.png", draw(0))
    for number in range(4):
        site.write(f"ct/{number}.dcm", slice_of(number))
    with zipfile.ZipFile(site.files / "more.zip", "w") as packed:
        packed.writestr("a/1.png", draw(11))
        packed.writestr("a/2.dcm", slice_of(9))
    site.index(labels=True)
    # From now on the data folder says which model it is.
    site.with_old = site.settings
    site.settings = site.settings.model_copy(update={"model": None})
    return site


def fresh(site: Any, model: Path) -> dict[str, tuple[object, ...]]:
    """What a fresh index of the same files has, but for when they were indexed."""
    settings = site.settings.model_copy(
        update={
            "data_dir": site.root / f"fresh-{time.monotonic_ns()}",
            "model": model,
            # Of the patients' pseudonyms.
            "pseudonym_key": None,
        }
    )
    settings.data_dir.mkdir()
    key = site.settings.data_dir / "pseudonym.key"
    (settings.data_dir / "pseudonym.key").write_bytes(key.read_bytes())
    with Archive(settings, create=True) as archive:
        archive.index(
            FolderSource([site.files], leave_out=site.settings.data_dir, label_from_folder=True)
        )
        return told(archive)


def told(archive: Archive) -> dict[str, tuple[object, ...]]:
    """All that the index says of each image, and what a search with it finds."""
    ids = sorted(point.id for point in archive.store.scroll(Filter()))
    points = {point.id: point for point in archive.store.get(ids, with_z=True)}
    # Without AVX2, MKL's strict mode does not work, and the last digit may differ.
    to_the_bit = torch.backends.cpu.get_cpu_capability() != "DEFAULT"
    found: dict[str, tuple[object, ...]] = {}
    for point_id, point in points.items():
        assert point.z is not None
        z = point.z if to_the_bit else point.z.astype(np.float16)
        hits = archive.engine.search_like(point_id, Query(k=20, exact=True)).hits
        digits = 9 if to_the_bit else 5
        listed = tuple((hit.id, round(hit.similarity, digits), hit.hamming) for hit in hits)
        found[point_id] = (point.record, point.code.tobytes(), z.tobytes(), listed)
    return found


def contents(site: Any) -> dict[str, tuple[object, ...]]:
    with site.open() as archive:
        return told(archive)


@pytest.mark.slow
def test_it_ends_with_the_answers_of_a_fresh_index(archive: Any, old: Path, new: Path) -> None:
    thumbnails = archive.thumbnails()
    report = reencode(archive.with_old, new)
    fingerprint = read_manifest(new).fingerprint
    assert (report.model, report.index) == (fingerprint, f"index-{fingerprint}")
    assert (report.previous, report.encoded, report.left_out) == ("index", 9, 0)
    with archive.open() as opened:
        assert opened.manifest.fingerprint == fingerprint
        assert opened.ledger.counts() == {"done": 10}
    assert contents(archive) == fresh(archive, new)
    assert archive.thumbnails() == thumbnails
    # Indexing goes on with that model, and what was there is known.
    again = archive.index(labels=True)
    assert (again.indexed, again.unchanged) == (0, 10)


@pytest.mark.slow
def test_back_and_forth_reads_nothing_again(archive: Any, old: Path, new: Path) -> None:
    with Archive(archive.with_old) as opened:
        before = told(opened)
    time.sleep(1.1)  # what is indexed in the second of the exchange is read again
    reencode(archive.with_old, new)
    assert go_back(archive.settings).encoded == 0
    assert contents(archive) == before
    with archive.open() as opened:
        assert opened.manifest.fingerprint == read_manifest(old).fingerprint
    assert go_back(archive.settings).encoded == 0
    assert contents(archive) == fresh(archive, new)


@pytest.mark.slow
def test_going_back_takes_along_what_happened_since(
    archive: Any, old: Path, new: Path, draw: Draw
) -> None:
    time.sleep(1.1)
    reencode(archive.with_old, new)
    (archive.files / "rings" / "2.png").unlink()
    archive.write("rings/late.png", draw(70))
    archive.write("ct/1.dcm", slice_of(1, seed=5))  # corrected: the same UID, other content
    archive.index(labels=True, vanished_from=())
    report = go_back(archive.settings)
    assert (report.encoded, report.removed) == (2, 1)
    assert contents(archive) == fresh(archive, old)


@pytest.mark.slow
def test_what_changes_meanwhile_is_right_afterwards(
    archive: Any, old: Path, new: Path, draw: Draw
) -> None:
    """Indexing and deleting go on while it encodes."""
    changed = []

    def meanwhile(progress: Any) -> None:
        if changed or progress.points < 4:
            return
        changed.append(True)
        (archive.files / "rings" / "1.png").unlink()
        archive.write("rings/late.png", draw(70))
        archive.write("ct/1.dcm", slice_of(1, seed=5))
        archive.write("later/9.dcm", slice_of(2, study=7))
        time.sleep(1.1)
        with Archive(archive.with_old) as opened:
            source = FolderSource(
                [archive.files], leave_out=archive.settings.data_dir, label_from_folder=True
            )
            opened.index(source, vanished_from=())
            assert opened.delete(opened.ledger.find(sop="1.2.1.3")) == 1
        (archive.files / "ct" / "3.dcm").unlink()

    reencode(archive.with_old, new, progress=meanwhile)
    assert changed
    assert contents(archive) == fresh(archive, new)
    with archive.open() as opened:
        assert set(archive.thumbnails()) == {point.id for point in opened.store.scroll(Filter())}


@pytest.mark.slow
def test_a_served_index_answers_all_the_while(archive: Any, new: Path) -> None:
    """Another process has the index in force open, from the first image to the exchange."""
    with Archive(archive.with_old) as serving:
        before = told(serving)
        reencode(archive.with_old, new)
        assert told(serving) == before
        assert serving.is_replaced
        # It must not write to an index that nobody sees any more.
        with pytest.raises(StoreError, match="another index has come into force"):
            serving.index(FolderSource([archive.files]))
        with pytest.raises(StoreError, match="another index has come into force"):
            serving.delete(serving.ledger.find(study="1.2.1"))
        assert serving.ledger.counts() == {"done": 10}
        # Nor may what it answers from be removed under it.
        with pytest.raises(StoreLocked):
            drop_previous(archive.settings)
    assert contents(archive) == fresh(archive, new)


KILLED = """
import os, signal, sys
from pathlib import Path
from engine.settings import load_settings
from indexer.jobs.ledger import JobLedger
from indexer.jobs.records import JobOptions
from indexer.jobs.runner import JobRunner
from indexer.reencoding.reencode import reencode
def progress(now):
    if now.points >= int(sys.argv[3]):
        os.kill(os.getpid(), getattr(signal, sys.argv[4]))
small = {"readers": 1, "batch_size": 2}
settings = load_settings(data_dir=Path(sys.argv[1]), indexing=small, model=Path(sys.argv[5]))
reencode(settings, Path(sys.argv[2]), progress=progress)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGKILL", "SIGINT"])
def test_cut_short_it_goes_on(archive: Any, old: Path, new: Path, number: str) -> None:
    arguments = (archive.settings.data_dir, new, 2, number, old)
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == -getattr(signal, number), ran.stderr.decode()
    with Archive(archive.with_old) as opened:
        assert len(told(opened)) == 9
        assert not opened.is_replaced
    report = reencode(archive.with_old, new)
    assert 0 < report.encoded < 9
    assert contents(archive) == fresh(archive, new)


@pytest.mark.slow
def test_the_exchange_is_one_step_for_who_opens_the_archive(archive: Any, new: Path) -> None:
    """Whoever looks finds one index or the other, whole, and never another model's."""
    data_dir = DataDir(archive.settings.data_dir)
    seen, stop, failures = set(), threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            try:
                seen.add((data_dir.index.name, data_dir.index.is_dir()))
            except StoreError as error:
                failures.append(error)
            time.sleep(0.0005)  # else the other thread waits for this one

    looking = threading.Thread(target=look)
    looking.start()
    reencode(archive.with_old, new)
    for _ in range(3):
        go_back(archive.settings)
    stop.set()
    looking.join()
    assert failures == []
    assert seen == {("index", True), (f"index-{read_manifest(new).fingerprint}", True)}


@pytest.mark.slow
def test_what_cannot_be_read_stops_the_exchange_until_it_may_be_left_out(
    archive: Any, old: Path, new: Path, draw: Draw
) -> None:
    time.sleep(1.1)
    lost, other = archive.files / "rings" / "1.png", archive.files / "ct" / "0.dcm"
    content = lost.read_bytes()
    lost.unlink()
    other.write_bytes(slice_of(0, seed=9))  # changed, and not indexed since
    (archive.files / "rings" / "0.png").unlink()  # there is a copy
    with Archive(archive.with_old) as opened:
        before = told(opened)
    with pytest.raises(SourceError, match=r"2 instances .*changed 1, unreadable 2.*--leave-out"):
        reencode(archive.with_old, new)
    with Archive(archive.with_old) as opened:
        assert told(opened) == before
    report = reencode(archive.with_old, new, leave_out=True)
    assert (report.encoded, report.left_out) == (0, 2)
    assert len(contents(archive)) == 7
    assert set(archive.reasons()) == {lost, other}
    # The one before is what it was.
    report = go_back(archive.settings)
    assert (report.encoded, report.left_out) == (0, 0)
    assert contents(archive) == before
    assert archive.reasons() == {}
    # And what was left out comes back when it can be read.
    reencode(archive.settings, new, leave_out=True)
    lost.write_bytes(content)
    assert archive.index(labels=True).indexed == 2
    assert len(contents(archive)) == 9


def test_another_calibration_reads_nothing(archive: Any, old: Path, tmp_path: Path) -> None:
    calibrated = tmp_path / "calibrated"
    calibrated.mkdir()
    for path in old.iterdir():
        (calibrated / path.name).write_bytes(path.read_bytes())
    (calibrated / "MODEL_CARD.md").write_text("calibrated")
    for path in archive.files.rglob("*.*"):
        path.unlink()
    with Archive(archive.with_old) as serving:
        before = told(serving)
        report = reencode(archive.with_old, calibrated)
        assert (report.encoded, report.previous) == (0, None)
        assert serving.is_replaced
    assert contents(archive) == before
    fingerprint = read_manifest(old).fingerprint
    card = archive.settings.data_dir / "models" / fingerprint / "MODEL_CARD.md"
    assert card.read_text() == "calibrated"


@pytest.mark.slow
def test_the_one_before_is_kept_until_it_is_dropped(archive: Any, old: Path, new: Path) -> None:
    with pytest.raises(QueryError, match="reencode --model"):
        go_back(archive.settings)
    reencode(archive.with_old, new)
    folder = archive.settings.data_dir
    assert (folder / "index").is_dir()
    assert drop_previous(archive.settings) == ["index"]
    assert not (folder / "index").exists()
    assert [path.name for path in (folder / "models").iterdir()] == [read_manifest(new).fingerprint]
    assert drop_previous(archive.settings) == []
    with pytest.raises(QueryError, match="no earlier index"):
        go_back(archive.settings)
    assert contents(archive) == fresh(archive, new)


@pytest.mark.slow
def test_what_is_deleted_goes_from_the_kept_index_too(archive: Any, new: Path) -> None:
    reencode(archive.with_old, new)
    with archive.open() as opened:
        assert opened.delete(opened.ledger.find(study="1.2.1")) == 5
    drop = json.loads((archive.settings.data_dir / "current.json").read_bytes())
    assert drop["previous"]["index"] == "index"
    with EdgeStore.open(archive.settings.data_dir / "index") as store:
        assert {point.record.study for point in store.scroll(Filter())} == {None}
        assert store.count(Filter()) == 4


def test_one_at_a_time(archive: Any, new: Path) -> None:
    refused = []

    def second(_: object) -> None:
        if not refused:
            with pytest.raises(StoreLocked, match="another process") as caught:
                reencode(archive.with_old, new)
            refused.append(caught.value)

    reencode(archive.with_old, new, progress=second)
    assert refused


@pytest.mark.slow
def test_servers_and_received_instances_are_read_again(site: Any, old: Path, new: Path) -> None:
    with LoopbackPacs() as pacs:
        contents_of = [slice_of(number, study=3) for number in range(3)]
        for number, content in enumerate(contents_of):
            pacs.add("1.2.3", "1.2.3.4", f"1.2.3.{number}", content)
        named = {"pacs": DicomWebSettings(kind="dicomweb", url=pacs.url)}
        with_old = site.settings.model_copy(update={"model": old, "sources": named})
        received = DataDir(with_old.data_dir).received / "ab" / "cd" / "1.2.4.1.dcm"
        received.parent.mkdir(parents=True)
        received.write_bytes(slice_of(1, study=4))

        def filled(settings: Settings) -> dict[str, tuple[object, ...]]:
            with Archive(settings, create=True) as archive:
                archive.index(SourceSpec(name="pacs").open(settings))
                archive.index(ReceivedSource([received]))
                return told(archive)

        filled(with_old)
        with pytest.raises(SettingsError, match=r"no source 'pacs'.*\[sources\.pacs\]"):
            reencode(with_old.model_copy(update={"sources": {}}), new)
        assert reencode(with_old, new).encoded == 4
        site.settings = with_old.model_copy(update={"model": None})
        elsewhere = site.root / "fresh"
        elsewhere.mkdir()
        key = (with_old.data_dir / "pseudonym.key").read_bytes()
        (elsewhere / "pseudonym.key").write_bytes(key)
        fresh = with_old.model_copy(update={"data_dir": elsewhere, "model": new})
        assert contents(site) == filled(fresh)


@pytest.mark.slow
def test_a_worker_goes_on_with_the_new_index(archive: Any, new: Path, draw: Draw) -> None:
    """Also one that was started with the model before."""
    settings = archive.with_old

    def work(runner: JobRunner, ledger: JobLedger) -> str:
        spec = SourceSpec.asked([archive.files], None, labels="folder")
        job = ledger.submit(spec, JobOptions(False, False, False), at="2024")
        while due := runner.due(10):
            for one in due:
                runner.run(one.job, one.number)
        return ledger.summary(job, 0.0).state

    with archive.database() as database, JobRunner(settings, database, "worker") as runner:
        ledger = JobLedger(database.of("default"))
        archive.write("rings/3.png", draw(3))
        assert work(runner, ledger) == "finished"
        reencode(settings, new)
        archive.write("rings/4.png", draw(4))
        assert work(runner, ledger) == "finished"
    found = contents(archive)
    assert len(found) == 11
    assert found == fresh(archive, new)


# Who writes, and who exchanges


def test_an_exchange_waits_for_writers_and_lets_none_begin(tmp_path: Path) -> None:
    order: list[str] = []
    first = writing(tmp_path)
    first.__enter__()

    def exchange() -> None:
        with exchanging(tmp_path):
            order.append("exchange")
            time.sleep(0.3)
            order.append("exchanged")

    def write() -> None:
        with writing(tmp_path):
            order.append("write")

    with writing(tmp_path):  # they do not keep each other away
        order.append("both")
    threads = [threading.Thread(target=exchange)]
    threads[0].start()
    time.sleep(0.3)
    threads.append(threading.Thread(target=write))
    threads[1].start()
    time.sleep(0.3)
    assert order == ["both"]
    first.__exit__(None, None, None)
    for thread in threads:
        thread.join()
    assert order == ["both", "exchange", "exchanged", "write"]
