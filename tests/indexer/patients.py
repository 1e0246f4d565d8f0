"""A small archive of patients with several studies, whose headers hold what must not leak."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from dicom_files import dataset, encode

from engine.settings import IndexingSettings, Settings
from indexer.archive import Archive
from indexer.sources.folder import FolderSource

__all__ = ["PATIENTS", "STUDIES", "Patient", "Study", "identifiers", "index_patients"]


@dataclass(frozen=True)
class Patient:
    id: str
    name: str
    born: str | None
    charset: str = "ISO_IR 192"


@dataclass(frozen=True)
class Study:
    number: int
    patient: Patient
    date: str

    @property
    def uid(self) -> str:
        return f"1.2.826.7700.{self.number}"

    @property
    def accession(self) -> str:
        return f"ACC{self.number:04}X"


ANNA = Patient("PAT-4711", "Müller^Anna", "19610312", "ISO_IR 100")
OTHERS = (
    Patient("ZZ-0815", "Grønbæk^Ole", "19440101"),
    Patient("QQ-9999", "Yamada^Tarou=山田^太郎=やまだ^たろう", None),
    Patient("RR-3141", "Smithson^Mary^Jane", "19991231"),
)
PATIENTS = (ANNA, *OTHERS)
STUDIES = (
    Study(1, ANNA, "20240510"),
    Study(2, ANNA, "20200131"),
    Study(3, ANNA, "20210115"),
    Study(4, ANNA, "20251224"),
    *(Study(5 + n, patient, f"20{19 + n}0607") for n, patient in enumerate(OTHERS)),
)
"""The first is what tests ask about; two are earlier ones of its patient, one is a later one."""
_SLICES = 3


def identifiers(study: Study) -> set[str]:
    """What of a study's headers must not be in a document of another patient."""
    patient = study.patient
    words = {word for part in patient.name.split("=") for word in part.split("^")}
    series = f"{study.uid}.1"
    uids = {study.uid, series, *(f"{series}.{n}" for n in range(_SLICES))}
    return {*words, *uids, patient.id, study.accession, *((patient.born,) if patient.born else ())}


def index_patients(root: Path, model: Path) -> Settings:
    """Indexes them, with the source named "clinic"; the settings."""
    folder = root / "images"
    folder.mkdir()
    for study in STUDIES:
        for number in range(_SLICES):
            path = folder / f"{study.number}-{number}.dcm"
            path.write_bytes(_slice(study, number))
    settings = Settings(
        data_dir=root / "data",
        model=model,
        indexing=IndexingSettings(readers=1, batch_size=8),
        sources={"clinic": {"kind": "folder", "paths": [folder]}},
    )
    with Archive(settings, create=True) as archive:
        report = archive.index(FolderSource([folder], name="clinic"))
    assert (report.indexed, report.refused) == (len(STUDIES) * _SLICES, {})
    return settings


def _slice(study: Study, number: int) -> bytes:
    rng = np.random.default_rng(study.number * 10 + number)
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    wave = 120 + 100 * np.sin(x * rng.uniform(0.1, 0.6) + y * rng.uniform(0.1, 0.6))
    patient = study.patient
    made = dataset(
        wave.astype(np.uint8),
        SpecificCharacterSet=patient.charset,
        PatientName=patient.name,
        PatientID=patient.id,
        StudyInstanceUID=study.uid,
        SeriesInstanceUID=f"{study.uid}.1",
        SOPInstanceUID=f"{study.uid}.1.{number}",
        StudyDate=study.date,
        StudyTime="101500",
        StudyID="7",
        AccessionNumber=study.accession,
        ReferringPhysicianName="",
        Modality="CT",
        BodyPartExamined="CHEST",
        InstanceNumber=number + 1,
        SeriesNumber=1,
    )
    if patient.born is not None:
        made.PatientBirthDate = patient.born
    return encode(made)
