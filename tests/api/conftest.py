"""A small archive, indexed for real, and clients of the service over it."""

import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from services.loopback import LoopbackClient

from api.service import create_service
from engine.model.checkpoint import save_checkpoint
from engine.model.config import small_network
from engine.model.encoder import Encoder
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess
from engine.ood.calibration import OodGate
from engine.ood.detectors import KnnDetector
from engine.records import Observations
from engine.settings import IndexingSettings, ServerSettings, Settings
from engine.store.base import Filter
from indexer.archive import Archive
from indexer.pipeline.run import index_archive
from indexer.sources.folder import FolderSource

HOSTILE_LABEL = "<script>alert(1)<script>"
MAX_UPLOAD = 200_000
SIDE = 96


@dataclass(frozen=True)
class Indexed:
    """An indexed archive that nobody has open. files: by folder, which is their label."""

    settings: Settings
    files: dict[str, list[Path]]

    def copy(self, to: Path) -> Settings:
        """The settings of a copy of it."""
        # Somebody may have it open: no file is made of their socket, and their accesses are theirs.
        apart = shutil.ignore_patterns("*.sock", "audit.sqlite*")
        shutil.copytree(self.settings.data_dir, to, ignore=apart)
        return self.settings.model_copy(update={"data_dir": to})


def stripes(seed: int) -> NDArray[np.uint8]:
    """uint8 (SIDE, SIDE)."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    wave = np.sin((x * rng.uniform(-1, 1) + y) * rng.uniform(0.1, 0.6))
    return (127 + 90 * wave + rng.normal(0, 8, (SIDE, SIDE))).clip(0, 255).astype(np.uint8)


def rings(seed: int) -> NDArray[np.uint8]:
    """uint8 (SIDE, SIDE)."""
    rng = np.random.default_rng(1000 + seed)
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    distance = np.hypot(x - rng.uniform(20, 76), y - rng.uniform(20, 76))
    wave = np.cos(distance * rng.uniform(0.1, 0.5))
    return (127 + 90 * wave + rng.normal(0, 8, (SIDE, SIDE))).clip(0, 255).astype(np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def dicom(pixels: NDArray[np.uint8], number: int, *, modality: str, part: str) -> bytes:
    made = Dataset()
    made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    made.SOPInstanceUID = f"1.2.3.{number}"
    made.StudyInstanceUID = f"1.2.4.{number // 2}"
    made.SeriesInstanceUID = f"1.2.5.{number // 2}"
    made.PatientName = "Hidden^Somebody"
    made.PatientID = f"HIDDEN-{number}"
    made.StudyDate = f"{2010 + number}0401"
    made.Modality = modality
    made.BodyPartExamined = part
    made.Rows, made.Columns = pixels.shape
    made.SamplesPerPixel = 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit = 7
    made.PixelRepresentation = 0
    made.PixelData = pixels.tobytes()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out = io.BytesIO()
    made.save_as(out, enforce_file_format=True)
    return out.getvalue()


@pytest.fixture(scope="package", autouse=True)
def one_reader() -> Iterator[None]:
    """Commands read their few files with one process, rather than start one for each core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRECEDENT_INDEXING__READERS", "1")
        yield


@pytest.fixture(scope="session")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Indexed:
    root = tmp_path_factory.mktemp("archive")
    contents = {
        "stripes": [png(stripes(seed)) for seed in range(14)],
        "rings": [png(rings(seed)) for seed in range(10)],
        HOSTILE_LABEL: [png(rings(100))],
        "ct": [dicom(stripes(50 + n), n, modality="CT", part="CHEST") for n in range(6)],
        "mr": [dicom(rings(50 + n), 10 + n, modality="MR", part="BRAIN") for n in range(4)],
    }
    files: dict[str, list[Path]] = {}
    for label, images in contents.items():
        folder = root / "images" / label
        folder.mkdir(parents=True)
        for number, content in enumerate(images):
            path = folder / f"{number:03}"
            path.write_bytes(content)
            files.setdefault(label, []).append(path)
    torch.manual_seed(0)
    # So small a network gains nothing from threads, which wait for each other on a busy machine.
    torch.set_num_threads(1)
    config, preprocess = small_network(0, tower="timm:test_resnet"), Preprocess(size=64)
    network = HashingNetwork(config, preprocess).eval()
    save_checkpoint(root / "model", network, config, preprocess, (), {})
    settings = Settings(
        data_dir=root / "data",
        model=root / "model",
        indexing=IndexingSettings(readers=1, batch_size=4),
        server=ServerSettings(max_upload_bytes=MAX_UPLOAD),
    )
    with Archive(settings, create=True) as archive:
        report = index_archive(
            FolderSource([root / "images"], label_from_folder=True),
            encoder=archive.encoder,
            store=archive.store,
            ledger=archive.ledger,
            data_dir=archive.data_dir,
            settings=settings,
        )
    assert (report.indexed, report.refused) == (35, {})
    return Indexed(settings, files)


@pytest.fixture(scope="session")
def archive(indexed: Indexed) -> Iterator[Archive]:
    with Archive(indexed.settings) as opened:
        yield opened


@pytest.fixture(scope="session")
def client(archive: Archive) -> Iterator[TestClient]:
    with LoopbackClient(create_service(archive=archive), follow_redirects=False) as opened:
        yield opened


@pytest.fixture
def id_of(archive: Archive) -> Callable[[Path], str]:
    """The point id of an indexed file."""
    by_path = {path: point_id for point_id, path in archive.paths(_all_ids(archive)).items()}
    return by_path.__getitem__


@pytest.fixture
def calibrated(indexed: Indexed, tmp_path: Path) -> Settings:
    """Of an archive whose gate was calibrated on 400 images."""
    model = tmp_path / "model"
    shutil.copytree(indexed.settings.model or Path(), model)
    fingerprint = Encoder.load(model).manifest.fingerprint
    rng = np.random.default_rng(0)
    z = rng.normal(size=(64, 256)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    reference = Observations(z, np.zeros((64, 8), np.uint8))
    scores = rng.normal(size=400).astype(np.float32)
    OodGate([KnnDetector(5).fit(reference)], {"knn": scores}).save(model, fingerprint)
    return indexed.copy(tmp_path / "data").model_copy(update={"model": model})


@pytest.fixture
def foreign_settings(indexed: Indexed, tmp_path: Path) -> Settings:
    """Those of an archive whose model knows nothing: every image is foreign to it."""
    model = tmp_path / "model"
    shutil.copytree(indexed.settings.model or Path(), model)
    fingerprint = Encoder.load(model).manifest.fingerprint
    reference = Observations(np.eye(64, 256, dtype=np.float32), np.zeros((64, 8), np.uint8))
    never = np.full(99, -1, dtype=np.float32)
    OodGate([KnnDetector(5).fit(reference)], {"knn": never}).save(model, fingerprint)
    return indexed.copy(tmp_path / "data").model_copy(update={"model": model})


@pytest.fixture
def foreign_client(foreign_settings: Settings) -> Iterator[TestClient]:
    with LoopbackClient(create_service(foreign_settings), follow_redirects=False) as opened:
        yield opened


@pytest.fixture
def refusing_client(foreign_settings: Settings) -> Iterator[TestClient]:
    """A service that gives no hits for foreign images, which all are."""
    search = foreign_settings.search.model_copy(update={"ood_policy": "refuse"})
    settings = foreign_settings.model_copy(update={"search": search})
    with LoopbackClient(create_service(settings), follow_redirects=False) as opened:
        yield opened


def _all_ids(archive: Archive) -> list[str]:
    return [point.id for point in archive.store.scroll(Filter())]
