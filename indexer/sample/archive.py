"""Writes the sample: a seeded synthetic DICOM archive, and queries to ask of it."""

import datetime
import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset

from engine.errors import SettingsError
from indexer.sample.documents import pdf, structured_report
from indexer.sample.encoding import save
from indexer.sample.headers import Patient, Series, Study, uid
from indexer.sample.landscape import landscape
from indexer.sample.studies import PROTOCOLS, Protocol

__all__ = ["MANIFEST", "SampleReport", "write_queries", "write_sample"]

MANIFEST = ".precedent-sample.json"
"""The file at the root of a sample that tells it from other folders."""

_FORMAT = 2  # goes up when the same seed would give other files
_MAX_PATIENTS = 999
_ARCHIVE, _QUERIES = 0, 1  # streams of randomness, so that no query is of an indexed patient

# The first patients have each kind of study in turn, the others those of which that gives too few
# images for how much they vary: an OOD gate compares an image with its ten nearest, and half of the
# patients are all that its reference has.
_EVERY_KIND = 40
_FEW = (
    *("xr-hand", "mr-heart", "xr-knee", "mg-breast"),
    *("xr-hand", "mr-heart", "us-heart", "xa-heart"),
)

_QUERY_PLAN = (
    # number of the patient, file name, protocol, and which of its images
    (1, "query-chest-ct.dcm", "ct-chest", 4),
    (2, "query-head-ct.dcm", "ct-head", 4),
    (4, "query-chest-xray.dcm", "xr-chest", 0),
    (5, "query-hand-xray.dcm", "xr-hand", 0),
    (6, "query-knee-xray.png", "xr-knee", 0),
    (7, "query-breast-mr.dcm", "mr-breast", 4),
    (8, "query-cardiac-mr.png", "mr-heart", 2),
)
_FOREIGN = (9, "query-landscape.png")


@dataclass(frozen=True, slots=True)
class SampleReport:
    """What a sample holds.

    written: files written by this call; 0 when the same sample was there already.
    instances: synthetic DICOM files; ``by_modality`` and ``by_syntax`` (UID) count them.
    pydicom_files: copies of pydicom's test files. bytes: size of all files together.
    """

    directory: Path
    written: int
    patients: int
    studies: int
    series: int
    instances: int
    pydicom_files: int
    bytes: int
    by_modality: dict[str, int]
    by_syntax: dict[str, int]


def write_sample(
    directory: Path,
    *,
    seed: int = 0,
    patients: int = 88,
    include_pydicom: bool = True,
    replace_other: bool = False,
) -> SampleReport:
    """Writes the sample into a directory that is new or empty; returns what it holds.

    ``directory/synthetic/<PatientID>/<study>/<series>/<n>.dcm`` and, if asked for,
    ``directory/pydicom/…``. The same arguments give the same bytes. All is written beside
    the directory and renamed in at the end: an interrupted run leaves nothing under its name.

    Args:
        directory: its parents are made as needed.
        seed: of everything that is random.
        patients: 1 to 999; from 12 on, every kind of study occurs.
        include_pydicom: whether to copy the files that pydicom ships for its own tests.
        replace_other: another sample may be there, as long as nobody has changed it; this one
            takes its place.

    Raises:
        SettingsError: the number of patients is out of range, the directory holds something
            else than this very sample, or it cannot be written.
    """
    if not 1 <= patients <= _MAX_PATIENTS:
        raise SettingsError(f"a sample has 1 to {_MAX_PATIENTS} patients, not {patients}")
    asked = {
        "format": _FORMAT,
        "seed": seed,
        "patients": patients,
        "include_pydicom": include_pydicom,
    }
    directory = directory.absolute()
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            there = _existing(directory, asked, replace_other)
            if there is not None:
                return there
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{directory.name}-", dir=directory.parent
        ) as temporary:
            new = Path(temporary) / "sample"
            report = _write(new, directory, asked)
            if directory.exists():
                directory.rename(Path(temporary) / "before")
            new.rename(directory)
    except OSError as error:
        raise SettingsError(
            f"cannot write the sample to {directory}: {error.strerror or error}; "
            "name a directory that is new, on a disk with room and yours to write"
        ) from error
    return report


def write_queries(directory: Path, *, seed: int = 0) -> tuple[Path, ...]:
    """Writes images to search with, of patients that no sample holds, and a drawn landscape.

    The landscape, which is no medical image, is the last of the paths.

    Args:
        directory: where the files go; made as needed.
        seed: use the sample's: its patients and these are drawn from separate streams.

    Raises:
        SettingsError: a file of this name but of other content is there, or it cannot be
            written.
    """
    paths = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".queries-", dir=directory) as temporary:
            for new in _write_queries(Path(temporary), seed):
                path = directory / new.name
                if path.exists():
                    if path.read_bytes() != new.read_bytes():
                        raise SettingsError(
                            f"{path} exists and is another file; remove it, or name another "
                            "directory for the queries"
                        )
                else:
                    new.rename(path)
                paths.append(path)
    except OSError as error:
        raise SettingsError(
            f"cannot write the queries to {directory}: {error.strerror or error}; "
            "name a directory on a disk with room and yours to write"
        ) from error
    return tuple(paths)


def _write_queries(directory: Path, seed: int) -> Iterator[Path]:
    for number, name, protocol_name, index in _QUERY_PLAN:
        protocol = _protocol(protocol_name)
        rng = np.random.default_rng((_QUERIES, seed, number))
        patient = _patient(rng, f"Q{number:02d}", f"Sample^Query {number:02d}", protocol)
        study = _study(rng, patient, 1, protocol, seed)
        image = next(islice(protocol.build(study), index, None)).dataset
        path = directory / name
        if path.suffix == ".png":
            _save_png(image, path)
        else:
            save(image, path)
        yield path
    number, name = _FOREIGN
    drawn = landscape(np.random.default_rng((_QUERIES, seed, number)))
    Image.fromarray(drawn).save(directory / name, "PNG")
    yield directory / name


def _write(new: Path, directory: Path, asked: dict[str, int]) -> SampleReport:
    seed, patients = asked["seed"], asked["patients"]
    modalities: Counter[str] = Counter()
    syntaxes: Counter[str] = Counter()
    studies, series = set(), set()
    for number in range(1, patients + 1):
        for path, dataset in _patient_files(seed, number):
            save(dataset, new / "synthetic" / path)
            modalities[dataset.Modality] += 1
            syntaxes[str(dataset.file_meta.TransferSyntaxUID)] += 1
            studies.add(dataset.StudyInstanceUID)
            series.add(dataset.SeriesInstanceUID)
    copied = _copy_pydicom(new / "pydicom") if asked["include_pydicom"] else 0
    files = {name: _sha256(path) for name, path in _files(new).items()}
    report = SampleReport(
        directory=directory,
        written=len(files),
        patients=patients,
        studies=len(studies),
        series=len(series),
        instances=sum(modalities.values()),
        pydicom_files=copied,
        bytes=sum((new / path).stat().st_size for path in files),
        by_modality=dict(sorted(modalities.items())),
        by_syntax=dict(sorted(syntaxes.items())),
    )
    counts = {k: v for k, v in asdict(report).items() if k not in ("directory", "written")}
    manifest = {"asked": asked, "report": counts, "files": files}
    (new / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", "utf-8")
    return report


def _existing(directory: Path, asked: dict[str, int], replace_other: bool) -> SampleReport | None:
    """The report of a sample that is there already; any doubt is an error.

    None when it is another one, unchanged, which may be replaced.
    """
    way_out = "name a new directory, or remove this one first"
    try:
        manifest = json.loads((directory / MANIFEST).read_text("utf-8"))
        same, files = manifest["asked"] == asked, dict(manifest["files"])
        report = SampleReport(directory=directory, written=0, **manifest["report"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"{directory} is not empty and holds no sample; nothing is overwritten: {way_out}"
        ) from error
    if not same and not replace_other:
        raise SettingsError(
            f"{directory} holds a sample made with other settings "
            f"({manifest['asked']}, asked for {asked}): {way_out}"
        )
    found = _files(directory)
    del found[MANIFEST]
    if found.keys() != files.keys() or any(_sha256(found[k]) != files[k] for k in files):
        raise SettingsError(f"{directory} holds a sample that was changed since: {way_out}")
    return report if same else None


def _patient_files(seed: int, number: int) -> Iterator[tuple[PurePosixPath, Dataset]]:
    """What one patient of the archive has: a first study, and mostly a later one."""
    if number <= _EVERY_KIND:
        first = PROTOCOLS[(number - 1) % len(PROTOCOLS)]
    else:
        first = _protocol(_FEW[(number - _EVERY_KIND - 1) % len(_FEW)])
    rng = np.random.default_rng((_ARCHIVE, seed, number))
    patient = _patient(rng, f"{number:03d}", f"Sample^Patient {number:03d}", first)
    plan = [first]
    # Five has no divisor in common with either number of kinds: each gets its follow-ups.
    if number % 5 == 3:
        plan.append(first)
    elif number % 5 in (1, 4):
        plan.append(_protocol("xr-chest"))
    visits: list[Study] = []
    for count, protocol in enumerate(plan, start=1):
        study = _study(rng, patient, count, protocol, seed)
        if visits:
            later = visits[-1].date + datetime.timedelta(days=int(rng.integers(40, 500)))
            study = replace(study, date=later)
        visits.append(study)
        folder = PurePosixPath(patient.id, f"{study.date.isoformat()}-{protocol.name}")
        last = 0
        for instance in protocol.build(study):
            yield folder / _file_name(instance.series, instance.dataset), instance.dataset
            last = max(last, instance.series.number)
        for document, owner in ((structured_report, 1), (pdf, 2)):
            if number == owner and count == 1:
                series, dataset = document(study, last + 1)
                yield folder / _file_name(series, dataset), dataset


def _protocol(name: str) -> Protocol:
    return next(protocol for protocol in PROTOCOLS if protocol.name == name)


def _file_name(series: Series, dataset: Dataset) -> PurePosixPath:
    words = "".join(c if c.isalnum() else " " for c in series.description.lower()).split()
    folder = "-".join([str(series.number), *words])
    return PurePosixPath(folder, f"{int(dataset.InstanceNumber):03d}.dcm")


def _patient(rng: np.random.Generator, label: str, name: str, protocol: Protocol) -> Patient:
    age = int(rng.integers(protocol.ages[0], protocol.ages[1] + 1))
    birth = datetime.date(2020 - age, 1, 1) + datetime.timedelta(days=int(rng.integers(365)))
    return Patient(
        id=f"SAMPLE-{label}",
        name=name,
        sex=protocol.sex or str(rng.choice(["F", "M"])),
        birth=birth,
        anatomy=int(rng.integers(2**32)),
        lesion=bool(rng.random() < 0.35),
    )


def _study(
    rng: np.random.Generator, patient: Patient, number: int, protocol: Protocol, seed: int
) -> Study:
    date = datetime.date(2021, 1, 4) + datetime.timedelta(days=int(rng.integers(1000)))
    return Study(
        patient=patient,
        uid=uid(seed, patient.id, "study", number),
        date=date,
        description=protocol.description,
        number=number,
        hour=int(rng.integers(7, 19)),
    )


def _copy_pydicom(target: Path) -> int:
    """Copies what the installed pydicom ships for its tests; nothing is downloaded."""
    source = Path(pydicom.__file__).parent / "data" / "test_files"
    copied = 0
    for name, path in _files(source).items():
        if path.suffix not in (".py", ".pyc"):
            copy = target / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            copied += 1
    return copied


def _save_png(dataset: Dataset, path: Path) -> None:
    pixels = dataset.pixel_array.astype(np.float32)
    low, high = np.percentile(pixels, (0.5, 99.5))
    grey = np.clip((pixels - low) / max(float(high - low), 1.0), 0, 1) * 255
    Image.fromarray(np.rint(grey).astype(np.uint8)).save(path, "PNG")


def _files(directory: Path) -> dict[str, Path]:
    """Finds the files below a directory; each key is the path in it, with slashes."""
    paths = sorted(directory.rglob("*"))
    return {p.relative_to(directory).as_posix(): p for p in paths if p.is_file()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
