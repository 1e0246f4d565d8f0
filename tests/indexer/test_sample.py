"""The synthetic archive: the same for a seed, readable throughout, and never in the way."""

import datetime
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from engine.errors import SettingsError
from indexer.sample import SampleReport, phantoms, write_queries, write_sample
from indexer.sample.encoding import Pixels, save, set_pixels
from indexer.sample.headers import Patient, Series, Study, new_dataset, uid
from indexer.sample.studies import PROTOCOLS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleReport:
    """One patient of every protocol."""
    directory = tmp_path_factory.mktemp("archive") / "sample"
    return write_sample(directory, seed=3, patients=len(PROTOCOLS), include_pydicom=False)


@pytest.fixture(scope="module")
def datasets(sample: SampleReport) -> dict[Path, Dataset]:
    paths = sorted((sample.directory / "synthetic").rglob("*.dcm"))
    return {path: pydicom.dcmread(path) for path in paths}


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = tmp_path / "first", tmp_path / "again", tmp_path / "other"
    for directory, seed in ((first, 7), (again, 7), (other, 8)):
        write_sample(directory, seed=seed, patients=2, include_pydicom=False)
    assert contents(first) == contents(again)
    here = {data for name, data in contents(first).items() if name.endswith(".dcm")}
    there = {data for name, data in contents(other).items() if name.endswith(".dcm")}
    assert not here & there


@pytest.mark.slow
def test_every_image_decodes_to_pixels_that_show_something(
    datasets: dict[Path, Dataset],
) -> None:
    for path, ds in datasets.items():
        if ds.Modality in ("SR", "DOC"):
            assert "PixelData" not in ds
            continue
        pixels = ds.pixel_array
        frames, samples = int(ds.get("NumberOfFrames", 1)), ds.SamplesPerPixel
        shape = (ds.Rows, ds.Columns, *((3,) if samples == 3 else ()))
        assert pixels.shape == ((frames, *shape) if frames > 1 else shape), path
        assert len(np.unique(pixels)) > 50, path


@pytest.mark.slow
def test_syntaxes_photometrics_and_kinds_of_objects_are_mixed(
    sample: SampleReport, datasets: dict[Path, Dataset]
) -> None:
    assert {UID(syntax) for syntax in sample.by_syntax} == {
        DeflatedExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        JPEG2000Lossless,
        JPEGBaseline8Bit,
        JPEGLSLossless,
        RLELossless,
    }
    assert set(sample.by_modality) == {"CR", "CT", "DOC", "DX", "MG", "MR", "SR", "US", "XA"}
    images = [ds for ds in datasets.values() if "PixelData" in ds]
    photometrics = Counter(ds.PhotometricInterpretation for ds in images)
    assert set(photometrics) == {"MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL_422"}
    films = {ds.Modality for ds in images if int(ds.get("NumberOfFrames", 1)) > 1}
    assert films == {"MR", "US", "XA"}
    assert {ds.PixelRepresentation for ds in images if ds.Modality == "CT"} == {0, 1}


def test_the_report_counts_what_lies_there(
    sample: SampleReport, datasets: dict[Path, Dataset]
) -> None:
    assert sample.instances == len(datasets) == sum(sample.by_modality.values())
    assert sample.studies == len({ds.StudyInstanceUID for ds in datasets.values()})
    assert sample.series == len({ds.SeriesInstanceUID for ds in datasets.values()})
    assert len({ds.SOPInstanceUID for ds in datasets.values()}) == len(datasets)
    assert sample.bytes == sum(path.stat().st_size for path in datasets)


def test_headers_are_complete_and_nobody_is_real(
    sample: SampleReport, datasets: dict[Path, Dataset]
) -> None:
    for path, ds in datasets.items():
        patient, study, series, _ = path.relative_to(sample.directory / "synthetic").parts
        assert ds.PatientID == patient
        assert patient.startswith("SAMPLE-")
        assert str(ds.PatientName) == f"Sample^Patient {patient.removeprefix('SAMPLE-')}"
        assert ds.StudyDate == study[:10].replace("-", "")
        assert str(ds.SeriesNumber) == series.split("-")[0]
        assert ds.Manufacturer == "Precedent phantom"
        assert ds.PatientSex in ("F", "M")
        years = (int(ds.StudyDate) - int(ds.PatientBirthDate)) // 10000
        assert ds.PatientAge == f"{years:03d}Y"
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        if "PixelData" in ds:
            assert ds.BodyPartExamined
        if ds.Modality in ("CR", "DX", "MG"):
            assert ds.ViewPosition


def test_ct_values_are_hounsfield_units_whatever_the_intercept(
    datasets: dict[Path, Dataset],
) -> None:
    slices = [ds for ds in datasets.values() if ds.Modality == "CT"]
    assert {int(ds.RescaleIntercept) for ds in slices} == {0, -1024}
    for ds in slices:
        hu = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        assert hu[:8, :8].mean() == pytest.approx(-1000, abs=30)
        assert hu.max() > 300


def test_inverted_radiographs_are_dark_where_the_others_are_bright(
    datasets: dict[Path, Dataset],
) -> None:
    hands = [ds for ds in datasets.values() if ds.SOPClassUID == ComputedRadiographyImageStorage]
    hands = [ds for ds in hands if ds.BodyPartExamined == "HAND"]
    assert {ds.PhotometricInterpretation for ds in hands} == {"MONOCHROME1"}
    assert {ds.Laterality for ds in hands} == {"L", "R"}
    for ds in hands:
        assert ds.pixel_array[:20].mean() > 3500  # the free beam


def test_neighbouring_slices_are_alike_and_patients_differ() -> None:
    def chest(seed: int, level: float) -> np.ndarray:
        return phantoms.chest_ct(np.random.default_rng(seed), (128, 128), level=level)

    here, near, stranger = chest(1, 0.40), chest(1, 0.43), chest(2, 0.40)
    assert np.abs(here - near).mean() < 0.5 * np.abs(here - stranger).mean()
    assert not np.array_equal(here, near)


LOSSLESS = (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)


@pytest.mark.parametrize(
    ("syntax", "kind"),
    [
        (syntax, kind)
        for syntax in LOSSLESS
        for kind in ("unsigned", "signed", "colour", "film")
        # JPEG-LS knows no signed samples; the sample stores none that way.
        if (syntax, kind) != (JPEGLSLossless, "signed")
    ],
)
def test_lossless_syntaxes_return_the_very_pixels(tmp_path: Path, syntax: UID, kind: str) -> None:
    rng = np.random.default_rng(5)
    photometric, bits, frames = "MONOCHROME2", 12, 1
    pixels: Pixels
    if kind == "unsigned":
        pixels = rng.integers(0, 4096, (33, 47)).astype(np.uint16)
    elif kind == "signed":
        pixels, bits = rng.integers(-1024, 3000, (33, 47)).astype(np.int16), 16
    elif kind == "colour":
        pixels, bits = rng.integers(0, 256, (33, 47, 3)).astype(np.uint8), 8
        photometric = "RGB"
    else:
        pixels, frames = rng.integers(0, 4096, (3, 33, 47)).astype(np.uint16), 3
    ds = blank()
    set_pixels(ds, pixels, syntax, photometric=photometric, bits=bits, frames=frames)
    save(ds, tmp_path / "image.dcm")
    read = pydicom.dcmread(tmp_path / "image.dcm")
    assert read.file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(read.pixel_array, pixels)


def test_jpeg_baseline_comes_close_and_says_that_it_is_lossy(tmp_path: Path) -> None:
    pixels = np.stack(
        [phantoms.ultrasound(np.random.default_rng(1), (96, 128), phase=p) for p in (0.1, 0.6)]
    )
    ds = blank()
    set_pixels(ds, pixels, JPEGBaseline8Bit, photometric="RGB", bits=8, frames=2)
    save(ds, tmp_path / "image.dcm")
    read = pydicom.dcmread(tmp_path / "image.dcm")
    assert (read.LossyImageCompression, read.PhotometricInterpretation) == ("01", "YBR_FULL_422")
    assert np.abs(read.pixel_array.astype(int) - pixels).mean() < 8


def blank() -> Dataset:
    born, today = datetime.date(1980, 1, 1), datetime.date(2021, 1, 4)
    patient = Patient("SAMPLE-000", "Sample^Patient 000", "F", born, anatomy=0, lesion=False)
    study = Study(patient, uid("study"), today, "Test", number=1, hour=8)
    return new_dataset(Series(study, 1, "OT", "HEAD", "Test"), uid("class"), 1)


def test_queries_are_of_patients_that_no_sample_holds(
    tmp_path: Path, datasets: dict[Path, Dataset]
) -> None:
    paths = write_queries(tmp_path / "queries", seed=3)
    assert 6 <= len(paths) <= 8
    archived = {ds.PatientID for ds in datasets.values()}
    studies = {ds.StudyInstanceUID for ds in datasets.values()}
    shown = [ds.PixelData for ds in datasets.values() if "PixelData" in ds]
    parts = set()
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert min(image.size) >= 128
            continue
        ds = pydicom.dcmread(path)
        assert ds.PatientID not in archived
        assert ds.StudyInstanceUID not in studies
        assert ds.PixelData not in shown
        assert ds.pixel_array.std() > 0
        parts.add((ds.Modality, ds.BodyPartExamined))
    assert len(parts) == sum(path.suffix == ".dcm" for path in paths)
    assert write_queries(tmp_path / "queries", seed=3) == paths
    assert sorted(p.name for p in (tmp_path / "queries").iterdir()) == sorted(p.name for p in paths)


def test_a_query_never_replaces_another_file(tmp_path: Path) -> None:
    (tmp_path / "query-chest-ct.dcm").write_bytes(b"mine")
    with pytest.raises(SettingsError, match="query-chest-ct"):
        write_queries(tmp_path)
    assert contents(tmp_path) == {"query-chest-ct.dcm": b"mine"}


def test_a_folder_of_others_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "scan.dcm").write_bytes(b"mine")
    with pytest.raises(SettingsError, match="not empty") as refusal:
        write_sample(tmp_path, patients=1)
    assert str(tmp_path) in str(refusal.value)
    assert contents(tmp_path) == {"scan.dcm": b"mine"}


def test_the_same_sample_is_recognised_and_any_other_refused(tmp_path: Path) -> None:
    directory = tmp_path / "sample"
    directory.mkdir()  # empty is as good as absent
    first = write_sample(directory, patients=1, include_pydicom=False)
    before = contents(directory)
    again = write_sample(directory, patients=1, include_pydicom=False)
    assert first.written == first.instances > 0
    assert again.written == 0
    assert again.by_modality == first.by_modality
    assert again.instances == first.instances
    with pytest.raises(SettingsError, match="other settings"):
        write_sample(directory, patients=1, seed=1, include_pydicom=False)
    next((directory / "synthetic").rglob("*.dcm")).write_bytes(b"changed")
    with pytest.raises(SettingsError, match="changed"):
        write_sample(directory, patients=1, include_pydicom=False)
    assert contents(directory).keys() == before.keys()


def test_the_files_that_pydicom_ships_come_along_unchanged(tmp_path: Path) -> None:
    report = write_sample(tmp_path / "sample", patients=1)
    shipped = Path(pydicom.__file__).parent / "data" / "test_files"
    copies = contents(report.directory / "pydicom")
    assert len(copies) == report.pydicom_files > 50
    assert copies["CT_small.dcm"] == (shipped / "CT_small.dcm").read_bytes()


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path) -> None:
    command = (
        "from pathlib import Path; from indexer.sample import write_sample; "
        f"write_sample(Path({str(tmp_path / 'sample')!r}), patients=999)"
    )
    process = subprocess.Popen([sys.executable, "-c", command], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not any(tmp_path.rglob("*.dcm")) and time.monotonic() < until:
            time.sleep(0.05)
        assert any(tmp_path.rglob("*.dcm"))
        assert not (tmp_path / "sample").exists()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) != 0
    finally:
        process.kill()
        process.wait()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("patients", [0, 1000])
def test_an_impossible_number_of_patients_is_refused(tmp_path: Path, patients: int) -> None:
    with pytest.raises(SettingsError, match=str(patients)):
        write_sample(tmp_path / "sample", patients=patients)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SettingsError, match="cannot write the sample"):
        write_sample(tmp_path / "file" / "sample", patients=1)


@pytest.mark.slow
def test_every_kind_of_image_is_there_often_enough_for_a_gate(tmp_path: Path) -> None:
    """Half of a kind is what an image of it is compared with, by its ten nearest."""
    report = write_sample(tmp_path / "sample", include_pydicom=False)
    kinds: Counter[str] = Counter()
    for path in report.directory.rglob("*.dcm"):
        kinds[path.parts[-3].split("-", 3)[3]] += 1
    assert set(kinds) == {protocol.name for protocol in PROTOCOLS}
    assert min(kinds.values()) >= 20
    # The first patients are those of a smaller sample, to the byte.
    small = write_sample(tmp_path / "small", patients=3, include_pydicom=False)
    for path in (small.directory / "synthetic").rglob("*.dcm"):
        same = report.directory / path.relative_to(small.directory)
        assert same.read_bytes() == path.read_bytes()


def test_another_sample_makes_room_where_that_is_asked_for(tmp_path: Path) -> None:
    directory = tmp_path / "sample"
    write_sample(directory, patients=1, include_pydicom=False)
    report = write_sample(directory, patients=2, include_pydicom=False, replace_other=True)
    assert report.written == report.instances
    assert report.patients == 2
    assert list(tmp_path.iterdir()) == [directory]
    again = write_sample(directory, patients=2, include_pydicom=False, replace_other=True)
    assert again.written == 0
    next((directory / "synthetic").rglob("*.dcm")).write_bytes(b"changed")
    before = contents(directory)
    with pytest.raises(SettingsError, match="changed"):
        write_sample(directory, patients=1, include_pydicom=False, replace_other=True)
    assert contents(directory) == before
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "scan.dcm").write_bytes(b"mine")
    with pytest.raises(SettingsError, match="not empty"):
        write_sample(tmp_path / "own", patients=1, replace_other=True)


def test_the_last_query_is_no_medical_image(tmp_path: Path) -> None:
    *_, path = write_queries(tmp_path, seed=3)
    with Image.open(path) as image:
        assert image.mode == "RGB"
        reds, _, blues = np.asarray(image).reshape(-1, 3).T.astype(int)
        assert np.abs(reds - blues).mean() > 20  # in colour, as no radiograph is
