"""A job over a DICOMweb server whose connections break off in the middle of answers, and which is
away altogether for a while: it ends with the same points, and every instance has its fate.

The server is a real Orthanc; what cuts it off is a proxy before it.
"""

from __future__ import annotations

import io
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from services.orthanc import Orthanc

from engine.model.checkpoint import save_checkpoint
from engine.model.config import small_network
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess
from engine.records import Point
from engine.settings import DicomWebSettings, IndexingSettings, JobSettings, Settings
from engine.store.base import Filter
from indexer.archive import Archive
from indexer.datadir.layout import DataDir
from indexer.jobs.ledger import JobLedger
from indexer.jobs.polling import serve
from indexer.jobs.records import JobOptions
from indexer.jobs.summary import JobSummary
from indexer.ledger.database import Database, open_database
from indexer.sources.opening import SourceSpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CT = "1.2.840.10008.5.1.4.1.1.2"
LOCAL = "127.0.0.1"
STUDIES, SERIES, SLICES = 4, 3, 12
AT = "2026-01-01T00:00:00+00:00"
PATIENCE_SECONDS = 200.0


class Proxy:
    """Passes connections on to a port, and cuts each off after a drawn number of bytes.

    troubled: whether it does. cut: how often it did.
    """

    def __init__(self, port: int, chance: random.Random, most_bytes: int) -> None:
        self._target = (LOCAL, port)
        self._chance = chance
        self._most_bytes = most_bytes
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self.port = 0
        self.cut = 0
        self.troubled = True

    def __enter__(self) -> Proxy:
        self.come()
        return self

    def __exit__(self, *_: object) -> None:
        self.go()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()

    @property
    def url(self) -> str:
        return f"http://{LOCAL}:{self.port}/dicom-web"

    def come(self) -> None:
        """Listens, on the same port as before."""
        self._listener = socket.create_server((LOCAL, self.port))
        self.port = self._listener.getsockname()[1]
        self._start(self._accept, self._listener)

    def go(self) -> None:
        """Connections are refused, and those that there are end at once."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            for connection in self._open:
                _reset(connection)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target, timeout=20)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open |= {client, server}
                budget = self._chance.randrange(self._most_bytes)
            self._start(self._pass_on, client, server, None)
            self._start(self._pass_on, server, client, budget)

    def _pass_on(self, source: socket.socket, sink: socket.socket, budget: int | None) -> None:
        try:
            while data := source.recv(4096):
                if budget is not None and self.troubled:
                    if len(data) > budget:
                        sink.sendall(data[:budget])
                        self.cut += 1
                        return
                    budget -= len(data)
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for one in (source, sink):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            if budget is not None:
                with self._lock:
                    self._open -= {source, sink}
                # The other direction has ended as well: both are shut down.
                for one in (source, sink):
                    one.close()


def _reset(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)


def image(study: int, series: int, number: int, rng: np.random.Generator) -> bytes:
    made = Dataset()
    made.SOPClassUID = CT
    made.StudyInstanceUID = f"1.2.826.0.2.{study + 1}"
    made.SeriesInstanceUID = f"{made.StudyInstanceUID}.{series + 1}"
    made.SOPInstanceUID = f"{made.SeriesInstanceUID}.{number + 1}"
    made.PatientID = f"P{study}"
    made.Modality = ["CT", "MR"][series % 2]
    if (study, series, number) != (1, 1, 1):  # a report, as it were
        made.Rows = made.Columns = 96
        made.SamplesPerPixel = 1
        made.PhotometricInterpretation = "MONOCHROME2"
        made.BitsAllocated = made.BitsStored = 16
        made.HighBit = 15
        made.PixelRepresentation = 0
        made.PixelData = rng.integers(0, 4000, (96, 96), np.uint16).tobytes()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out = io.BytesIO()
    made.save_as(out, enforce_file_format=True)
    return out.getvalue()


@pytest.fixture(scope="module")
def orthanc() -> Iterator[Orthanc]:
    rng = np.random.default_rng(5)
    with Orthanc() as running:
        running.upload(
            image(study, series, number, rng)
            for study in range(STUDIES)
            for series in range(SERIES)
            for number in range(SLICES)
        )
        yield running


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config, preprocess = small_network(0, tower="timm:test_resnet"), Preprocess(size=64)
    folder = tmp_path_factory.mktemp("model") / "model"
    save_checkpoint(folder, HashingNetwork(config, preprocess).eval(), config, preprocess, (), {})
    return folder


@dataclass
class Place:
    """An archive of the server's instances, and one job over it."""

    settings: Settings
    stop: threading.Event = field(default_factory=threading.Event)

    def submit(self) -> int:
        with self.database() as database:
            return JobLedger(database.of("default")).submit(
                SourceSpec(name="pacs"), JobOptions(), at=AT
            )

    def database(self) -> Database:
        DataDir(self.settings.data_dir).make()
        return open_database(self.settings, DataDir(self.settings.data_dir).ledger)

    def told(self, job: int) -> JobSummary:
        with self.database() as database:
            return JobLedger(database.of("default")).summary(job, time.time())

    def work(self) -> None:
        """Until there is nothing left to do."""
        serve(self.settings, until_idle=True, stopping=self.stop.is_set)

    def fates(self, job: int) -> dict[str, str]:
        """By SOP Instance UID."""
        with self.database() as database:
            found = list(JobLedger(database.of("default")).fates(job))
        by_uid = {one.locator.rpartition("/")[2]: one.fate for one in found}
        assert len(by_uid) == len(found)
        return by_uid

    def points(self) -> dict[str, Point]:
        with Archive(self.settings) as archive:
            return {point.id: point for point in archive.store.scroll(Filter(), with_z=True)}


def place(root: Path, model: Path, url: str, retrieve: str = "instance") -> Place:
    pacs = DicomWebSettings.model_validate(
        {
            "kind": "dicomweb",
            "url": url,
            "retrieve": retrieve,
            "max_connections": 3,
            "timeout_seconds": 5,
            "attempts": 3,
            "page": 5,
        }
    )
    return Place(
        Settings(
            data_dir=root / "data",
            model=model,
            pseudonym_key="k" * 32,
            indexing=IndexingSettings(readers=1, encoders=1, batch_size=1, commit_every=10),
            jobs=JobSettings(chunk=20, attempts=100, backoff_seconds=0.05, heartbeat_seconds=0.2),
            sources={"pacs": pacs},
        )
    )


@pytest.fixture(scope="module")
def undisturbed(
    orthanc: Orthanc, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Point], dict[str, str]]:
    alone = place(tmp_path_factory.mktemp("undisturbed"), model, orthanc.url)
    job = alone.submit()
    alone.work()
    fates = alone.fates(job)
    instances = STUDIES * SERIES * SLICES
    assert Counter(fates.values()) == {"indexed": instances - 1, "refused": 1}
    return alone.points(), fates


@pytest.mark.parametrize("retrieve", ["instance", "series"])
def test_a_job_over_a_line_that_breaks_off_ends_with_the_same_points(
    retrieve: str,
    orthanc: Orthanc,
    model: Path,
    tmp_path: Path,
    undisturbed: tuple[dict[str, Point], dict[str, str]],
) -> None:
    expected, fates = undisturbed
    with Proxy(orthanc.port, random.Random(retrieve), 120_000) as proxy:
        troubled = place(tmp_path, model, proxy.url, retrieve)
        job = troubled.submit()
        worker = threading.Thread(target=troubled.work)
        worker.start()
        try:
            ends = time.monotonic() + PATIENCE_SECONDS
            while troubled.told(job).done < len(fates) // 4:
                assert time.monotonic() < ends
                assert worker.is_alive()
                time.sleep(0.05)
            proxy.go()
            time.sleep(6)
            told = troubled.told(job)
            assert told.state == "running"
            assert told.done < len(fates)
            assert any("sources.pacs" in error for error in told.errors.values())
            proxy.come()
            worker.join(PATIENCE_SECONDS)
            assert not worker.is_alive()
        finally:
            troubled.stop.set()
            worker.join(60)
            troubled.stop.clear()
        assert proxy.cut > 5
        told = troubled.told(job)
        assert told.state == "finished"
        assert (told.discovered, told.done) == (len(fates), len(fates))
        # What the line kept back each time is refused, and had when it is asked for anew.
        proxy.troubled = False
        with troubled.database() as database:
            JobLedger(database.of("default")).retry(job, refused=True)
        troubled.work()
        assert troubled.told(job).state == "finished"
    assert troubled.fates(job) == fates
    points = troubled.points()
    assert points.keys() == expected.keys()
    for key, point in points.items():
        other = expected[key]
        assert point.record == other.record
        assert point.code.tobytes() == other.code.tobytes()
        assert point.z is not None
        assert np.array_equal(point.z, other.z)
    thumbnails = {path.stem for path in (tmp_path / "data" / "thumbnails").rglob("*.jpg")}
    assert thumbnails == set(expected)
