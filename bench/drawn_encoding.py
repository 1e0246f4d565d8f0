"""Encodes a dataset and its cells as a DICOM file, uncompressed or losslessly compressed."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

__all__ = ["NATIVE", "encoded"]

NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
"""Transfer syntaxes without compression."""


def encoded(ds: Dataset, cells: NDArray[Any], syntax: UID, *, unused: bool) -> bytes:
    """The content of a file of ``ds`` with ``cells``, which are put into it.

    Args:
        cells: (H, W), (H, W, 3) or (N, H, W), as the header says; YBR_FULL_422 at full resolution.
        unused: bits of the cells above Bits Stored are not zero.
    """
    planes = cells
    if ds.PhotometricInterpretation == "YBR_FULL_422":
        rows, columns, _ = cells.shape
        pairs = cells.reshape(rows, columns // 2, 2, 3)
        planes = np.stack(
            [pairs[:, :, 0, 0], pairs[:, :, 1, 0], pairs[:, :, 0, 1], pairs[:, :, 0, 2]], -1
        )
    elif ds.get("PlanarConfiguration") == 1 and syntax in NATIVE:
        planes = np.moveaxis(cells, -1, 0)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    data = planes.astype(planes.dtype.newbyteorder(order)).tobytes()
    vr = "OW" if ds.BitsAllocated > 8 else "OB"
    ds.add_new("PixelData", vr, data + b"\0" * (len(data) % 2))
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = syntax
    if syntax not in NATIVE:
        _compress(ds, syntax, unused)
    out = io.BytesIO()
    dcmwrite(out, ds, enforce_file_format=True)
    return out.getvalue()


def _compress(ds: Dataset, syntax: UID, unused: bool) -> None:
    """Compresses cells whole, unused bits included, as archives do that only recompress."""
    keywords = ("BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration")
    header = {keyword: ds.get(keyword) for keyword in keywords}
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    # With fewer than 9 bits stored of 16, pydicom's RLE lacks the high bytes, which PS3.5 G.2 asks
    # for.
    if unused or (syntax == RLELossless and ds.BitsAllocated == 16):
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 15, 0
    if "PlanarConfiguration" in ds:
        ds.PlanarConfiguration = 0
    ds.compress(syntax, generate_instance_uid=False)
    for keyword, value in header.items():
        if value is not None:
            setattr(ds, keyword, value)
