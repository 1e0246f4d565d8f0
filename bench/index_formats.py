"""Makes archives in five formats for the indexing benchmark, from a folder of grey pictures.

A picture becomes a CT slice of 512 × 512 pixels of twelve bits: scaled up, with seeded noise like a
scanner's, without which lossless codecs would compress it far too well. Only a limited number of
pictures is encoded; further files repeat these with other UIDs, so that every file becomes a point
of its own and is decoded in full.
"""

import datetime
import io
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from indexer.sample import headers
from indexer.sample.encoding import set_pixels

__all__ = ["DISTINCT", "FORMATS", "SIDE", "SPOKEN", "spread", "values", "write_archive"]

FORMATS: dict[str, UID | None] = {
    "DICOM, JPEG 2000 lossless": JPEG2000Lossless,
    "DICOM, JPEG-LS lossless": JPEGLSLossless,
    "DICOM, RLE": RLELossless,
    "JPEG": None,
    "DICOM, uncompressed": ExplicitVRLittleEndian,
}
"""Transfer syntaxes by name; None = files of eight bits without any header."""

SPOKEN = dict(zip(FORMATS, ("jpeg-2000", "jpeg-ls", "rle", "jpeg", "uncompressed"), strict=True))
"""The name of each format in `precedent plan --format`."""

SIDE = 512
DISTINCT = 256
"""Most pictures that are encoded for a format; further files repeat them."""

_MOST = 4095
_NOISE = 10.0  # of _MOST; lossless codecs halve or third such files, as they do CT
_QUALITY = 90
_UID_DIGITS = 30
_PLACEHOLDER = "2.25." + "9" * _UID_DIGITS
_COMMENT = b"\xff\xfe"  # JPEG marker COM, ISO 10918-1 table B.1
_NUMBER = b"%012d"


def spread(items: Sequence[Path], count: int) -> list[Path]:
    """``count`` evenly spaced items; all of them if there are fewer."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def write_archive(
    folder: Path,
    name: str,
    pictures: Sequence[Path],
    count: int,
    *,
    side: int | None = SIDE,
    distinct: int = DISTINCT,
) -> list[Path]:
    """Writes ``count`` files of a format and returns their paths, in order.

    Args:
        folder: is created.
        name: key of FORMATS.
        pictures: files of grey images of any size.
        side: side of the square to which they are scaled, in pixels; None = keep their size.
        distinct: most pictures that are encoded; further files repeat them.
    """
    folder.mkdir(parents=True)
    syntax = FORMATS[name]
    encode = _jpeg if syntax is None else partial(_dicom, syntax=syntax)
    chosen = spread(pictures, min(count, distinct))
    encoded = [
        encode(values(path, side, number), number=number) for number, path in enumerate(chosen)
    ]
    suffix = ".jpg" if syntax is None else ".dcm"
    written = []
    for number, content in enumerate(_numbered(encoded, count, is_dicom=syntax is not None)):
        path = folder / f"{number:06d}{suffix}"
        path.write_bytes(content)
        written.append(path)
    return written


def values(path: Path, side: int | None, seed: int) -> NDArray[np.uint16]:
    """A picture as uint16 (H, W) of 0 … 4095, scaled to ``side`` × ``side``, with seeded noise."""
    with Image.open(path) as image:
        grey = image.convert("L")
    if side is not None:
        grey = grey.resize((side, side), Image.Resampling.BICUBIC)
    signal = np.asarray(grey, dtype=np.float64) * (_MOST / 255)
    noise = np.random.default_rng(seed).normal(0.0, _NOISE, signal.shape)
    made: NDArray[np.uint16] = np.clip(np.rint(signal + noise), 0, _MOST).astype(np.uint16)
    return made


def _dicom(pixels: NDArray[np.uint16], *, number: int, syntax: UID) -> bytes:
    """A CT slice as a DICOM file with a header like a scanner's, and a placeholder as its UID."""
    born = datetime.date(1950, 1, 1)
    patient = headers.Patient(f"B{number // 50}", "Bench^Mark", "O", born, 0, False)
    day = datetime.date(2020, 1, 1)
    study = headers.Study(patient, headers.uid("bench", number // 50), day, "Chest CT", 1, 9)
    ds = headers.new_dataset(headers.Series(study, 1, "CT", "CHEST", "Chest"), CTImageStorage, 1)
    headers.image_plane(ds, -5.0 * number, 5.0, 360.0, pixels.shape[1])
    headers.ct(ds, [(_MOST // 2 - 1024, _MOST, "")], -1024, "STANDARD")
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(_PLACEHOLDER)
    set_pixels(ds, pixels, syntax, photometric="MONOCHROME2", bits=12)
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def _jpeg(pixels: NDArray[np.uint16], *, number: int) -> bytes:  # noqa: ARG001 - has no header
    out = io.BytesIO()
    Image.fromarray((pixels >> 4).astype(np.uint8)).save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def _numbered(encoded: Sequence[bytes], count: int, *, is_dicom: bool) -> Iterator[bytes]:
    """``count`` files with these contents in turn, each with a number of its own in its header."""
    for number in range(count):
        content = encoded[number % len(encoded)]
        if is_dicom:
            uid = f"2.25.{10 ** (_UID_DIGITS - 1) + number}"
            if content.count(_PLACEHOLDER.encode()) != 2:  # the file meta has it as well
                raise RuntimeError("the UID to be replaced is not where it was put")
            yield content.replace(_PLACEHOLDER.encode(), uid.encode())
        else:
            body = _NUMBER % number
            comment = _COMMENT + (len(body) + 2).to_bytes(2, "big") + body
            yield content[:2] + comment + content[2:]
