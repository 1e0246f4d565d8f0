"""The modality LUT of a frame: from stored values to those that windows are written for."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from indexer.imaging.header import items, number, text, value
from indexer.imaging.lookup import Inputs, LookupTable, table_of

__all__ = ["AIR", "MODALITY_KEYWORDS", "Modality", "first_table", "modality_of"]

MODALITY_KEYWORDS = (
    "ModalityLUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "PixelIntensityRelationship",
)
"""Keywords of the elements that :func:`modality_of` reads, beside those of every header."""

AIR = -1024.0
"""Hounsfield units. What is below is no tissue and no air, but what surrounds the picture."""

_CT = {f"1.2.840.10008.5.1.4.1.1.2{end}" for end in ("", ".1", ".2")}
_X_RAY = "1.2.840.10008.5.1.4.1.1.12."
_ANGIOGRAPHY = {f"{_X_RAY}{end}" for end in ("1", "2", "3")}
_ENHANCED_ANGIOGRAPHY = {f"{_X_RAY}{end}" for end in ("1.1", "2.1")}


@dataclass(frozen=True, slots=True)
class Modality:
    """The transformation of stored values, and what comes out of it.

    curve: float64 of any shape to float64 of the same shape.
    outputs: the range of its values, for what is stored.
    hounsfield: its values are Hounsfield units.
    """

    curve: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    outputs: Inputs
    hounsfield: bool = False

    @classmethod
    def none(cls, stored: Inputs) -> "Modality":
        """The one that leaves values within ``stored`` as they are."""
        return cls(lambda values: values, stored)


def modality_of(scopes: list[Dataset], stored: Inputs, *, little_endian: bool) -> Modality:
    """Modality LUT or rescale (PS3.3 C.11.1), as far as it is for display.

    Args:
        scopes: the datasets that describe the frame, the most specific first and the header last.
        stored: the range of stored values.
        little_endian: byte order of LUT data.
    """
    if _leads_back_to_the_beam(scopes):
        return Modality.none(stored)
    for scope in scopes:
        table = first_table(scope, "ModalityLUTSequence", stored, little_endian)
        if table is not None:
            return Modality(table.look_up, Inputs(0.0, float(table.entries.max()), signed=False))
        slope, intercept = number(scope, "RescaleSlope"), number(scope, "RescaleIntercept")
        # A slope of 0 would turn every image into one grey.
        if slope and intercept is not None:
            return _rescale(slope, intercept, stored, _is_hounsfield(scopes))
    # Slope and intercept are required of a CT image; without them its values can only be in
    # Hounsfield units when they are signed.
    return Modality(lambda values: values, stored, stored.signed and _is_hounsfield(scopes))


def first_table(
    scope: Dataset, keyword: str, inputs: Inputs, little_endian: bool
) -> LookupTable | None:
    """The table in the first item of the sequence ``keyword``; None when there is none."""
    tables = items(scope, keyword)
    if not tables:
        return None
    return table_of(tables[0], "LUTDescriptor", "LUTData", inputs, little_endian=little_endian)


def _rescale(slope: float, intercept: float, stored: Inputs, hounsfield: bool) -> Modality:
    low, high = sorted((stored.low * slope + intercept, stored.high * slope + intercept))
    # Hounsfield units count as signed, whatever is stored (PS3.3 C.11.2.1.1).
    outputs = Inputs(low, high, signed=hounsfield or low < 0)
    return Modality(lambda values: values * slope + intercept, outputs, hounsfield)


def _leads_back_to_the_beam(scopes: list[Dataset]) -> bool:
    """Whether the modality LUT of an angiogram is one to compute with: from the logarithm, or
    from what was scaled for display, back to the intensity of the beam (PS3.3 C.8.7.1.1.2 and
    C.8.19.6.4.1.1). One that does not say is taken for such, too: of linear values there is no
    way to lead back."""
    sop_class = text(scopes[-1], "SOPClassUID")
    relations = (text(scope, "PixelIntensityRelationship").upper() for scope in scopes)
    relation = next(filter(None, relations), "LOG" if sop_class in _ANGIOGRAPHY else "")
    return relation in ("LOG", "DISP") and sop_class in _ANGIOGRAPHY | _ENHANCED_ANGIOGRAPHY


def _is_hounsfield(scopes: list[Dataset]) -> bool:
    header = scopes[-1]
    if text(header, "SOPClassUID") not in _CT and text(header, "Modality").upper() != "CT":
        return False
    if any("LOCALIZER" in str(value(scope, "ImageType")) for scope in scopes):
        return False
    types = (text(scope, "RescaleType").upper() for scope in scopes)
    return next(filter(None, types), "HU") == "HU"
