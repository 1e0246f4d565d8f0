"""An opened archive: what deleting takes away, how queries are read, and who may open it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dicom_files import dataset, encode, nested_undefined

from engine.errors import (
    FingerprintMismatch,
    ImageRefused,
    LedgerError,
    ModelError,
    RefusalReason,
    StoreLocked,
    StoreNotFound,
)
from engine.model.checkpoint import save_checkpoint
from engine.model.config import small_network
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess
from engine.search.query import Query
from engine.settings import Settings
from engine.store.base import Filter, Match
from indexer.archive import Archive

ROOT = Path(__file__).parents[2]
Draw = Callable[[int], bytes]

HOLD = """
import sys
from pathlib import Path
from engine.store.edge import EdgeStore
with EdgeStore.open(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def slice_of(study: int, series: int, number: int) -> bytes:
    rng = np.random.default_rng([study, series, number])
    pixels = rng.integers(0, 256, (48, 48), dtype=np.uint8)
    return encode(
        dataset(
            pixels,
            Modality="CT",
            PatientID=f"P{study // 2}",
            StudyInstanceUID=f"1.2.{study}",
            SeriesInstanceUID=f"1.2.{study}.{series}",
            SOPInstanceUID=f"1.2.{study}.{series}.{number}",
        )
    )


def write_studies(site: Any) -> None:
    for study in (1, 2, 3):
        for series in (1, 2):
            for number in (1, 2):
                name = f"{study}/{series}/{number}.dcm"
                site.write(name, slice_of(study, series, number))


def studies(site: Any) -> dict[str | None, int]:
    found = [point.record.study for point in site.points().values()]
    return {study: found.count(study) for study in set(found)}


def test_a_deleted_study_is_nowhere_and_the_others_stay(site: Any) -> None:
    write_studies(site)
    site.write("2/copy-under-another-name.dcm", slice_of(2, 1, 1))
    site.index()
    assert studies(site) == {"1.2.1": 4, "1.2.2": 4, "1.2.3": 4}
    with site.open() as archive:
        locators = archive.ledger.find(study="1.2.2")
        assert len(locators) == 5
        ids = {i for found in archive.ledger.points_of(locators).values() for i in found}
        assert archive.delete(locators) == 4
        # At once, in the archive that is open …
        assert archive.store.count(Filter(must=(Match("study", ("1.2.2",)),))) == 0
        assert archive.ledger.find(study="1.2.2") == []
        assert archive.ledger.points_of(locators) == {}
        assert archive.paths(sorted(ids)) == {}
        assert archive.ledger.counts() == {"done": 8}
    # … and for good.
    assert studies(site) == {"1.2.1": 4, "1.2.3": 4}
    assert set(site.thumbnails()) == set(site.points())
    assert not ids & set(site.thumbnails())
    ledger = b"".join(path.read_bytes() for path in site.settings.data_dir.glob("ledger.sqlite"))
    assert b"1.2.1.1.1" in ledger
    # Indexing their folder again brings them back.
    again = site.index()
    assert (again.indexed, again.unchanged) == (5, 8)
    assert studies(site) == {"1.2.1": 4, "1.2.2": 4, "1.2.3": 4}


def test_deleting_nothing_or_twice_is_no_error(site: Any) -> None:
    write_studies(site)
    site.index()
    with site.open() as archive:
        locators = archive.ledger.find(sop="1.2.1.1.1")
        assert archive.delete([]) == 0
        assert archive.delete(["file:///never/seen"]) == 0
        assert archive.delete(locators) == 1
        assert archive.delete(locators) == 0
    assert len(site.points()) == 11


def test_a_patient_is_found_by_the_pseudonym_only(site: Any) -> None:
    write_studies(site)
    site.index()
    patients = {point.record.patient for point in site.points().values()}
    assert len(patients) == 2
    with site.open() as archive:
        assert archive.ledger.find(patient="P1") == []
        found = [archive.ledger.find(patient=patient) for patient in patients]
        assert sorted(len(locators) for locators in found) == [4, 8]
        archive.delete(max(found, key=len))
    assert studies(site) == {"1.2.1": 4}


@pytest.fixture(scope="module")
def small(new_site: Callable[..., Any], draw: Draw) -> Any:
    site = new_site()
    for number in range(4):
        site.write(f"{number}.png", draw(number))
    site.index()
    return site


@pytest.mark.slow
def test_queries_are_read_in_order_and_bad_ones_refused(small: Any, draw: Draw) -> None:
    os.mkfifo(pipe := small.root / "pipe")
    images = [
        draw(7),
        b"",
        small.files / "2.png",
        small.files / "nowhere.png",
        nested_undefined(10_000),
        b"no image, says so",
        pipe,
        draw(8),
    ]
    with small.open() as archive, archive.query_reader(processes=2) as reader:
        read = reader.read(images)
        side = archive.manifest.preprocess.size
        assert [
            one.reason if isinstance(one, ImageRefused) else (one.canvas.shape, one.canvas.dtype)
            for one in read
        ] == [
            ((side, side), np.uint8),
            RefusalReason.EMPTY_FILE,
            ((side, side), np.uint8),
            RefusalReason.UNREADABLE,
            RefusalReason.NESTED_TOO_DEEP,
            RefusalReason.NOT_AN_IMAGE,
            RefusalReason.UNREADABLE,
            ((side, side), np.uint8),
        ]
        # The reader goes on after what it refused, and an upload is read as its file is.
        (again,) = reader.read([(small.files / "2.png").read_bytes()])
        assert np.array_equal(again.canvas, read[2].canvas)
        assert reader.read([]) == []
        (answer,) = archive.engine.search([again.canvas], Query(k=1, exact=True))
        (hit,) = answer.hits
        assert again.id_in("default") == hit.id
        assert archive.paths([hit.id]) == {hit.id: small.files / "2.png"}


@pytest.mark.slow
def test_a_query_says_of_study_and_patient_what_the_index_says(site: Any) -> None:
    write_studies(site)
    site.index()
    with site.open() as archive, archive.query_reader() as reader:
        (image,) = reader.read([site.files / "2" / "1" / "1.dcm"])
        (answer,) = archive.engine.search([image.canvas], Query(k=12), [image.record])
        point = archive.engine.image(image.id_in("default"))
        assert image.record.patient == point.record.patient
        assert (image.record.study, image.record.sop) == ("1.2.2", "1.2.2.1.1")
        assert len(answer.hits) == 12
        # Of the same patient, by a key that only the archive has: studies 2 and 3.
        for exclude, studies in (("study", {"1.2.1", "1.2.3"}), ("patient", {"1.2.1"})):
            query = Query(k=12, exclude=exclude)
            (answer,) = archive.engine.search([image.canvas], query, [image.record])
            assert {hit.record.study for hit in answer.hits} == studies


@pytest.mark.slow
def test_reading_a_query_leaves_no_trace(small: Any, draw: Draw) -> None:
    def ask() -> None:
        with small.open() as archive, archive.query_reader() as reader:
            (image,) = reader.read([draw(99)])
            archive.engine.search([image.canvas], Query())

    ask()  # the first to open the store after indexing makes its engine write a journal
    before = set(small.settings.data_dir.rglob("*")), small.thumbnails(), set(small.points())
    ask()
    after = set(small.settings.data_dir.rglob("*")), small.thumbnails(), set(small.points())
    assert after[1:] == before[1:]
    assert {path.name for path in after[0] ^ before[0]} <= {
        "ledger.sqlite-wal",
        "ledger.sqlite-shm",
    }


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config, preprocess = small_network(0, tower="timm:test_resnet"), Preprocess(size=64)
    network = HashingNetwork(config, preprocess).eval()
    directory = tmp_path_factory.mktemp("model")
    save_checkpoint(directory, network, config, preprocess, (), {})
    return directory


@pytest.mark.parametrize("create", [False, True], ids=["search", "index"])
def test_another_model_is_refused_and_harms_nothing(
    small: Any, other_model: Path, create: bool
) -> None:
    before = set(small.points())
    settings = small.settings.model_copy(update={"model": other_model})
    with pytest.raises(FingerprintMismatch) as caught:
        Archive(settings, create=create)
    message = str(caught.value)
    assert "\n" not in message
    assert "--model" in message
    with small.open() as archive:
        assert archive.manifest.fingerprint in message
        assert archive.ledger.counts() == {"done": 4}
    assert set(small.points()) == before


def test_a_second_process_is_told_who_has_the_index(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One that opens the store alone never answers others.
    monkeypatch.setattr("engine.store.sharing.store._PATIENCE_SECONDS", 0.0)
    index = small.settings.data_dir / "index"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(index)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for create in (False, True):
            with pytest.raises(StoreLocked) as caught:
                Archive(small.settings, create=create)
            message = str(caught.value)
            assert f"pid {holder.pid}" in message
            assert str(index) in message
            assert "\n" not in message
        holder.communicate("go\n", timeout=60)
    assert holder.returncode == 0
    with small.open() as archive:
        assert archive.store.count(Filter()) == 4


def test_a_killed_holder_leaves_the_index_free(small: Any) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(small.settings.data_dir / "index")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
        holder.communicate(timeout=60)
    with small.open() as archive:
        assert archive.store.count(Filter()) == 4


def test_where_there_is_no_index_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound, match=r"precedent index"):
        Archive(Settings(data_dir=tmp_path / "data"))
    assert list(tmp_path.iterdir()) == []


def test_where_there_is_no_model_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        Archive(Settings(data_dir=tmp_path / "data", model=tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in str(caught.value)


def test_a_damaged_ledger_frees_the_index_it_was_opened_with(site: Any, draw: Draw) -> None:
    site.write("1.png", draw(1))
    site.index()
    ledger = site.settings.data_dir / "ledger.sqlite"
    content = ledger.read_bytes()
    ledger.write_bytes(b"damaged " * 1000)
    with pytest.raises(LedgerError):
        site.open()
    ledger.write_bytes(content)
    with site.open() as archive:
        assert archive.store.count(Filter()) == 1
