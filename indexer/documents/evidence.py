"""The data sets from which documents have patient and study, and by which they refer to images."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.util import find_spec
from threading import Lock

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

import engine
from engine.errors import DocumentError, PrecedentError
from engine.extras import install_command
from indexer.documents.content import Subject
from indexer.imaging.patient_header import COPIED
from indexer.imaging.quiet import hushed

__all__ = ["MAKER", "copy_patient_and_study", "encoded", "evidence_of", "making", "one_patient"]

MAKER = "Precedent"
# Type 2, or required by highdicom, which fails where they are absent.
_ALWAYS = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
_NEEDED = ("highdicom", "reportlab")
_making = Lock()


@contextmanager
def making() -> Iterator[None]:
    """For the block in which a document is made: values of headers are taken as they are, and no
    warning quotes them.

    Raises:
        DocumentError: the libraries are not installed, or cannot write what a header has.
    """
    hushed("pydicom")
    hushed("highdicom")
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise DocumentError(
            f"DICOM documents need {' and '.join(missing)}; {install_command('documents')}"
        )
    # Filters of warnings belong to the whole process.
    with _making, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except PrecedentError:
            raise
        except Exception as error:
            # What the libraries say quotes the header.
            raise DocumentError(
                "the header of an original has what no document can hold "
                f"({type(error).__name__}); correct it in the archive, and index it again"
            ) from None


def evidence_of(subject: Subject) -> Dataset:
    """The image as a document refers to it, with its patient and study; empty members are there."""
    made = Dataset()
    made.SpecificCharacterSet = "ISO_IR 192"
    for keyword in (*COPIED, "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID"):
        value = subject.header[keyword]
        if value or keyword in _ALWAYS:
            setattr(made, keyword, value)
    # highdicom looks for them in images.
    made.Rows = made.Columns = 1
    if subject.header.frames > 1:
        made.NumberOfFrames = subject.header.frames
    return made


def copy_patient_and_study(made: Dataset, source: Dataset) -> None:
    """Gives a document patient and study of an image, character set included."""
    made.SpecificCharacterSet = "ISO_IR 192"
    for keyword in COPIED:
        if keyword in source:
            setattr(made, keyword, getattr(source, keyword))
    made.Manufacturer = MAKER
    made.ManufacturerModelName = MAKER
    made.SoftwareVersions = engine.__version__


def one_patient(subjects: Sequence[Subject]) -> None:
    """Checks that all images are of one patient, by Patient ID and issuer.

    Raises:
        DocumentError: they are not.
    """
    if len({(one.header["PatientID"], one.header["IssuerOfPatientID"]) for one in subjects}) > 1:
        raise DocumentError(
            "the images are of several patients, and a document belongs to one; make one for each"
        )


def encoded(made: Dataset, at: datetime) -> bytes:
    """The document as a file in Explicit VR Little Endian."""
    made.InstanceCreationDate = at.strftime("%Y%m%d")
    made.InstanceCreationTime = at.strftime("%H%M%S")
    for library in made.get("ContributingEquipmentSequence", ()):
        library.ContributionDateTime = at.strftime("%Y%m%d%H%M%S")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = made.SOPClassUID
    meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    plain = Dataset(made)
    plain.file_meta = meta
    out = io.BytesIO()
    plain.save_as(out, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return out.getvalue()
