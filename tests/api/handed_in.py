"""Images that are handed in one by one: PNG and DICOM files that differ by a number."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

__all__ = ["picture_file", "pixels", "slice_file"]

_SIDE = 96


def pixels(number: int) -> NDArray[np.uint8]:
    """uint8 (96, 96): waves in a direction and of a length that the number chooses."""
    rng = np.random.default_rng(number)
    x, y = np.meshgrid(np.arange(_SIDE), np.arange(_SIDE))
    wave = np.sin((x * rng.uniform(-1, 1) + y) * rng.uniform(0.1, 0.6))
    return (127 + 90 * wave + rng.normal(0, 8, (_SIDE, _SIDE))).clip(0, 255).astype(np.uint8)


def picture_file(number: int) -> bytes:
    """A PNG file."""
    out = io.BytesIO()
    Image.fromarray(pixels(number)).save(out, "PNG")
    return out.getvalue()


def slice_file(number: int, *, shows: int | None = None, part: str = "CHEST") -> bytes:
    """A CT slice, the SOP Instance UID 1.2.7.NUMBER of the patient HANDED-IN-NUMBER; two slices are
    a series and study, 1.2.9.N and 1.2.8.N with N half of the number.

    shows: of which number the pixels are; None = of the same.
    """
    made = Dataset()
    made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    made.SOPInstanceUID = f"1.2.7.{number}"
    made.StudyInstanceUID = f"1.2.8.{number // 2}"
    made.SeriesInstanceUID = f"1.2.9.{number // 2}"
    made.PatientID = f"HANDED-IN-{number}"
    made.Modality = "CT"
    made.BodyPartExamined = part
    shown = pixels(number if shows is None else shows)
    made.Rows, made.Columns = shown.shape
    made.SamplesPerPixel = 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit = 7
    made.PixelRepresentation = 0
    made.PixelData = shown.tobytes()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out = io.BytesIO()
    made.save_as(out, enforce_file_format=True)
    return out.getvalue()
