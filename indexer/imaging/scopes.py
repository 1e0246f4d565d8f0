"""Which datasets of a header describe a frame: functional groups (PS3.3 C.7.6.16) and the rest."""

from pydicom.dataset import Dataset

from indexer.imaging.header import items

__all__ = ["Scopes"]

# The macros with elements that a picture depends on.
_MACROS = (
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "PixelMeasuresSequence",
    "PlaneOrientationSequence",
    "FramePixelDataPropertiesSequence",
    "ImageDataTypeSequence",
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
    "PETFrameTypeSequence",
)


class Scopes:
    """The datasets of ``header`` to look for the elements of a frame in."""

    def __init__(self, header: Dataset) -> None:
        self._header = header
        self._shared = items(header, "SharedFunctionalGroupsSequence")[:1]
        self._per_frame = items(header, "PerFrameFunctionalGroupsSequence")

    def of(self, number: int) -> list[Dataset]:
        """Those of frame ``number`` (from 0): its functional groups, the shared ones, and last
        the header."""
        scopes: list[Dataset] = []
        for group in (*self._per_frame[number : number + 1], *self._shared):
            for macro in _MACROS:
                scopes += items(group, macro)[:1]
        return [*scopes, self._header]
