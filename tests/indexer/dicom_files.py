"""DICOM and PNG files made for a test."""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from engine.settings import ImageLimits
from indexer.imaging.frames import FramePolicy
from indexer.imaging.read import Instance, read_image_bytes

SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"
CT = "1.2.840.10008.5.1.4.1.1.2"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
KEY = b"a key for tests"
LIMITS = ImageLimits()


def dataset(pixels: np.ndarray | None = None, **elements: Any) -> Dataset:
    """A CT slice of ``pixels`` ((H, W), (H, W, 3) or (N, H, W)) with ``elements`` on top."""
    made = Dataset()
    made.SOPClassUID = CT
    made.SOPInstanceUID = "1.2.3.4"
    if pixels is not None:
        color = pixels.ndim == 3 and pixels.shape[-1] == 3
        bits = 8 * pixels.dtype.itemsize
        height, width = pixels.shape[:2] if color else pixels.shape[-2:]
        made.Rows, made.Columns = height, width
        made.SamplesPerPixel = 3 if color else 1
        made.PhotometricInterpretation = "RGB" if color else "MONOCHROME2"
        if color:
            made.PlanarConfiguration = 0
        if pixels.ndim == 3 and not color:
            made.NumberOfFrames = len(pixels)
        made.BitsAllocated = made.BitsStored = bits
        made.HighBit = bits - 1
        made.PixelRepresentation = int(pixels.dtype.kind == "i")
        data = pixels.tobytes()
        made.PixelData = data + b"\0" * (len(data) % 2)
        made["PixelData"].VR = "OW" if bits > 8 else "OB"
    for keyword, value in elements.items():
        if value is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    return made


def encode(made: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """``made`` as the content of a DICOM file."""
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.file_meta.MediaStorageSOPClassUID = made.get("SOPClassUID", CT)
    made.file_meta.MediaStorageSOPInstanceUID = made.get("SOPInstanceUID", "1.2.3.4")
    out = io.BytesIO()
    pydicom.dcmwrite(out, made, enforce_file_format=True)
    return out.getvalue()


def read(
    content: bytes, *, limits: ImageLimits = LIMITS, frames: FramePolicy | int = 8
) -> Instance:
    return read_image_bytes(content, limits, frames_per_instance=frames, pseudonym_key=KEY)


def shown(pixels: np.ndarray | None = None, **elements: Any) -> np.ndarray:
    """What is displayed of the first frame of :func:`dataset`."""
    return read(encode(dataset(pixels, **elements))).frames[0].pixels


def element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """One explicit VR little endian element; ``length`` may lie about ``value``."""
    size = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
        return head + struct.pack("<HL", 0, size) + value
    return head + struct.pack("<H", size) + value


def part10(*elements: bytes, syntax: bytes = b"1.2.840.10008.1.2.1\0") -> bytes:
    """A file with preamble and meta information around elements made by hand."""
    meta = element(0x00020010, b"UI", syntax)
    group = element(0x00020000, b"UL", struct.pack("<L", len(meta)))
    return b"\0" * 128 + b"DICM" + group + meta + b"".join(elements)


def us(number: int) -> bytes:
    return struct.pack("<H", number)


def image_elements(
    rows: int, columns: int, frames: int = 1, bits: int = 16, samples: int = 1
) -> Iterator[bytes]:
    """The header of an image of any declared size."""
    photometric = b"MONOCHROME2 " if samples == 1 else b"RGB "
    yield element(0x00080016, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0")
    yield element(0x00280002, b"US", us(samples))
    yield element(0x00280004, b"CS", photometric)
    yield element(0x00280008, b"IS", str(frames).encode().ljust(len(str(frames)) // 2 * 2 + 2))
    yield element(0x00280010, b"US", us(rows))
    yield element(0x00280011, b"US", us(columns))
    yield element(0x00280100, b"US", us(bits))
    yield element(0x00280101, b"US", us(bits))
    yield element(0x00280102, b"US", us(bits - 1))
    yield element(0x00280103, b"US", us(0))


def nested_undefined(levels: int) -> bytes:
    """A file with ``levels`` sequences inside each other, all of undefined length."""
    start = struct.pack("<HH", 0x0040, 0xA730) + b"SQ\0\0" + b"\xff" * 4
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    end = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    return part10((start + item) * levels + end * levels)


def nested_defined(levels: int) -> bytes:
    """The same with every length written out."""
    parts = []
    for level in range(levels, 0, -1):
        inside = (level - 1) * 20
        head = struct.pack("<HH", 0x0040, 0xA730) + b"SQ\0\0" + struct.pack("<L", inside + 8)
        parts.append(head + struct.pack("<HHL", 0xFFFE, 0xE000, inside))
    return part10(*parts)


def png_of_zeros(width: int, height: int) -> bytes:
    """A black-and-white PNG, far smaller than what it unfolds to."""
    packer = zlib.compressobj(9)
    row = b"\0" * (1 + (width + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", checksum)

    head = struct.pack(">LLBBBBB", width, height, 1, 0, 0, 0, 0)
    ends = chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + ends
