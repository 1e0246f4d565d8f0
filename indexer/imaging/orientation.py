"""How a picture lies against the usual view of its plane: what has to be turned to show it so.

The usual views: axial with the patient's left on the right and the back below; coronal with the
patient's left on the right and the feet below; sagittal with the back on the right and the feet
below. Projections are only mirrored, and only where Patient Orientation says how they lie; those of
the breast stay, since they have a usual view for each side. Directions are those of the
patient-based coordinate system (PS3.3 C.7.6.1.1.1, C.7.6.2.1.1): x to the left, y to the
back, z to the head.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from indexer.imaging.header import text, value

__all__ = ["AS_STORED", "ORIENTATION_KEYWORDS", "Turn", "turn_of"]

ORIENTATION_KEYWORDS = ("ImageOrientationPatient", "PatientOrientation")
_IN_PLANES = {"CT", "MR", "PT"}
_UPRIGHT = 2
"""The axis from feet to head: projections whose columns lie along it are upright."""
_WITHIN = 0.8
"""Least cosine between a direction of the picture and an axis of the patient."""
_LETTERS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "H": (2, 1), "F": (2, -1)}
_USUAL = {
    frozenset({0, 1}): ((0, 1), (1, 1)),
    frozenset({0, 2}): ((0, 1), (2, -1)),
    frozenset({1, 2}): ((1, 1), (2, -1)),
}
"""Axes of a plane → the usual directions along the rows, to the right, and along the columns, down:
axis and sign."""

_Direction = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Turn:
    """What brings a picture into the usual view: rows and columns are exchanged first, if at all,
    then mirrored."""

    transpose: bool = False
    left_right: bool = False
    up_down: bool = False

    def applied(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The picture turned: uint8 (H, W) or (H, W, 3), with H and W exchanged if it is
        transposed."""
        if self.transpose:
            pixels = pixels.swapaxes(0, 1)
        if self.left_right:
            pixels = pixels[:, ::-1]
        if self.up_down:
            pixels = pixels[::-1]
        return np.ascontiguousarray(pixels)


AS_STORED = Turn()


def turn_of(scopes: list[Dataset]) -> Turn:
    """What turns a frame into the usual view; nothing for oblique planes, and where the header does
    not say how the picture lies.

    Args:
        scopes: the datasets that describe the frame, the most specific first and the header last.
    """
    header = scopes[-1]
    modality = text(header, "Modality")
    if modality in _IN_PLANES:
        directions = _by_cosines(_cosines(scopes))
        return AS_STORED if directions is None else _turn(*directions)
    directions = _by_letters(value(header, "PatientOrientation"))
    if directions is None or modality == "MG" or directions[1][0] != _UPRIGHT:
        return AS_STORED
    return _turn(*directions)


def _cosines(scopes: list[Dataset]) -> list[float] | None:
    """Image Orientation (Patient), the most specific one that makes sense; None = there is none."""
    for scope in scopes:
        try:
            found = [float(part) for part in value(scope, "ImageOrientationPatient") or ()]
        except (TypeError, ValueError):
            continue
        if len(found) == 6 and np.isfinite(found).all():
            return found
    return None


def _by_cosines(cosines: list[float] | None) -> tuple[_Direction, _Direction] | None:
    if cosines is None:
        return None
    found = []
    for direction in (cosines[:3], cosines[3:]):
        axis = int(np.argmax(np.abs(direction)))
        if abs(direction[axis]) < _WITHIN:
            return None
        found.append((axis, 1 if direction[axis] > 0 else -1))
    return found[0], found[1]


def _by_letters(written: Any) -> tuple[_Direction, _Direction] | None:
    """Directions by the first letters of Patient Orientation (PS3.3 C.7.6.1.1.1); the second letter
    of an oblique one says less."""
    try:
        rows, columns = (str(part).strip().upper()[:1] for part in written)
        return _LETTERS[rows], _LETTERS[columns]
    except (TypeError, ValueError, KeyError):
        return None


def _turn(rows: _Direction, columns: _Direction) -> Turn:
    usual = _USUAL.get(frozenset({rows[0], columns[0]}))
    if usual is None:  # both along one axis: the header makes no sense
        return AS_STORED
    transpose = rows[0] != usual[0][0]
    if transpose:
        rows, columns = columns, rows
    return Turn(transpose, rows[1] != usual[0][1], columns[1] != usual[1][1])
