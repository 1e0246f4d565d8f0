"""Decodes 12-bit JPEG by calling GDCM directly: through pydicom it decodes at most 8 bits."""

from importlib import import_module
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

__all__ = ["decode", "gdcm_installed"]


def gdcm_installed() -> bool:
    """Whether python-gdcm can be imported."""
    return find_spec("gdcm") is not None


def decode(
    frame: bytes, rows: int, columns: int, samples: int, photometric: str
) -> NDArray[np.uint16]:
    """The values of a JPEG frame (ISO 10918-1, process 4): uint16 (H, W) or (H, W, samples).

    Raises:
        ValueError: the decoded data does not have that size.
        Exception: whatever GDCM raises.
    """
    gdcm = import_module("gdcm")
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    meaning = gdcm.PhotometricInterpretation.GetPIType(photometric)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(meaning))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    image.SetPixelFormat(gdcm.PixelFormat(samples, 16, 12, 11, 0))
    # GDCM returns bytes as str with surrogate escapes.
    data = image.GetBuffer().encode("utf-8", "surrogateescape")
    shape = (rows, columns) if samples == 1 else (rows, columns, samples)
    return np.frombuffer(data, "<u2").reshape(shape).astype(np.uint16)
