"""Puts pixels into a DICOM data set in one of the transfer syntaxes we can write."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

__all__ = ["Pixels", "save", "set_pixels"]

Pixels = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.int16]

_JPEG_QUALITY = 90


def set_pixels(
    ds: Dataset, pixels: Pixels, syntax: UID, *, photometric: str, bits: int, frames: int = 1
) -> None:
    """Fills the image pixel module of a data set, and compresses where the syntax does.

    Args:
        ds: has its SOP instance UID and its file meta information.
        pixels: (H, W), (H, W, 3), or with a leading axis of frames. uint8, uint16 or int16.
        syntax: the transfer syntax. JPEG baseline is lossy and takes uint8 RGB or grey.
        photometric: MONOCHROME1, MONOCHROME2 or RGB.
        bits: bits stored.
        frames: above 1, the first axis counts frames.
    """
    colour = photometric == "RGB"
    rows, columns = pixels.shape[1:3] if frames > 1 else pixels.shape[:2]
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = photometric
    if colour:
        ds.PlanarConfiguration = 0
    if frames > 1:
        ds.NumberOfFrames = frames
    ds.Rows, ds.Columns = int(rows), int(columns)
    ds.BitsAllocated = pixels.dtype.itemsize * 8
    ds.BitsStored, ds.HighBit = bits, bits - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.file_meta.TransferSyntaxUID = syntax
    vr = "OB" if pixels.dtype.itemsize == 1 else "OW"
    if syntax == JPEGBaseline8Bit:
        _set_jpeg(ds, pixels, frames)
    elif syntax.is_compressed and not syntax.is_deflated:
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.add_new("PixelData", vr, pixels.astype(pixels.dtype.newbyteorder("<")).tobytes())
        ds.compress(syntax, generate_instance_uid=False)
    else:
        # A writer passes pixel data through as they are: their byte order is ours to set.
        little = pixels.dtype.newbyteorder("<")
        order = pixels.dtype.newbyteorder(">") if syntax == ExplicitVRBigEndian else little
        data = pixels.astype(order).tobytes()
        ds.add_new("PixelData", vr, data + b"\0" * (len(data) % 2))


def save(ds: Dataset, path: Path) -> None:
    """Writes the data set as a DICOM file with preamble; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


def _set_jpeg(ds: Dataset, pixels: Pixels, frames: int) -> None:
    encoded = []
    for frame in pixels if frames > 1 else pixels[None]:
        stream = io.BytesIO()
        Image.fromarray(frame).save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling="4:2:2")
        encoded.append(stream.getvalue())
    if ds.SamplesPerPixel == 3:
        ds.PhotometricInterpretation = "YBR_FULL_422"
    ds.LossyImageCompression = "01"
    ratio = pixels.nbytes / sum(len(part) for part in encoded)
    ds.LossyImageCompressionRatio = round(ratio, 2)
    ds.LossyImageCompressionMethod = "ISO_10918_1"
    ds.add_new("PixelData", "OB", encapsulate(encoded))
    ds["PixelData"].is_undefined_length = True
