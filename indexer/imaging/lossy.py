"""What lossy compression leaves of stored values, and what lossless compression keeps."""

from typing import Any

from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from indexer.imaging.header import text

__all__ = ["is_encapsulated", "is_lossy", "keeps_values", "within_bits_stored"]

_LOSSLESS = {
    *(RLELossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless),
    *(JPEG2000Lossless, HTJ2KLossless, HTJ2KLosslessRPCL),
    # Frames in fragments as they are, and deflated (PS3.5 A.4.11 and A.4.13).
    *(UID("1.2.840.10008.1.2.1.98"), UID("1.2.840.10008.1.2.8.1")),
}
# Lossy or not: the codestream decides.
_EITHER = {JPEG2000, HTJ2K}


def is_encapsulated(syntax: UID) -> bool:
    """Whether the frames of ``syntax`` lie in fragments."""
    # pydicom does not know the newest.
    return syntax in _LOSSLESS or syntax.is_encapsulated


def is_lossy(syntax: UID, header: Dataset) -> bool:
    """Whether stored values may have been moved by compression with loss: this one, or an earlier
    one that the header keeps on record (PS3.3 C.7.6.1.1.5)."""
    said = text(header, "LossyImageCompression")
    if said == "01" or syntax in _LOSSLESS or not syntax.is_encapsulated:
        return said == "01"
    return said != "00" or syntax not in _EITHER


def keeps_values(syntax: UID, header: Dataset) -> bool:
    """Whether the decoder for ``syntax`` returns the values that were compressed."""
    if syntax in _LOSSLESS or not syntax.is_encapsulated:
        return True
    return syntax in _EITHER and text(header, "LossyImageCompression") != "01"


def within_bits_stored(stored: NDArray[Any], bits: int, *, signed: bool) -> NDArray[Any]:
    """``stored`` (…), integers, without what lies above their ``bits`` low bits: no part of the
    picture (PS3.5 8.1.1), but perhaps an overlay, which compression without loss keeps."""
    unused = 8 * stored.dtype.itemsize - bits
    if unused <= 0 or stored.dtype.kind not in "iu":
        return stored
    values: NDArray[Any] = stored.view(f"{'i' if signed else 'u'}{stored.dtype.itemsize}")
    # Shifted up and down again: the way down repeats the sign.
    found: NDArray[Any] = (values << unused) >> unused if signed else values & (2**bits - 1)
    return found
