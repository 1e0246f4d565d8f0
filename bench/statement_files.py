"""A file of a transfer syntax, to see whether our reader has a decoder for it."""

import io

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID

# Tells pydicom of transfer syntaxes that are newer than its dictionary, by being imported.
from pynetdicom import ALL_TRANSFER_SYNTAXES

from engine.errors import ImageRefused
from engine.settings import ImageLimits
from indexer.imaging.read import read_image_bytes

__all__ = ["verdict_on"]

_SIDE = 16


def verdict_on(syntax: str) -> str:
    """What our reader says of an image in a transfer syntax: "read", or why it is refused.

    The pixels of compressed ones are no stream of any code: where there is a decoder they are
    damaged, and where there is none the transfer syntax is unsupported.
    """
    uid = UID(syntax)
    if uid not in ALL_TRANSFER_SYNTAXES:
        return "unknown"
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3.4"
    ds.Rows = ds.Columns = _SIDE
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = uid
    pixels = bytes(range(_SIDE)) * _SIDE
    ds.add_new("PixelData", "OB", encapsulate([pixels]) if uid.is_encapsulated else pixels)
    ds["PixelData"].is_undefined_length = uid.is_encapsulated
    out = io.BytesIO()
    dcmwrite(out, ds, enforce_file_format=True)
    try:
        read_image_bytes(
            out.getvalue(), ImageLimits(), frames_per_instance=1, pseudonym_key=b"statement"
        )
    except ImageRefused as refused:
        return refused.reason.value
    return "read"
