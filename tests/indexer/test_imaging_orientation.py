"""How a picture lies against the usual view (PS3.3 C.7.6.1.1.1 and C.7.6.2.1.1)."""

import itertools
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from indexer.imaging.orientation import AS_STORED, Turn, turn_of
from indexer.imaging.scopes import Scopes

LEFT, BACK, HEAD = np.eye(3)
"""x, y and z of the patient-based coordinate system."""
USUAL = {"axial": (LEFT, BACK), "coronal": (LEFT, -HEAD), "sagittal": (BACK, -HEAD)}


def header(modality: str = "CT", **values: Any) -> Dataset:
    made = Dataset()
    made.Modality = modality
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def cosines(rows: Any, columns: Any) -> list[float]:
    return [float(part) for part in (*rows, *columns)]


def volume() -> np.ndarray:
    """A body in which no two places are alike: uint8, indexed by x, y, z."""
    return np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)


def slice_along(body: np.ndarray, rows: Any, columns: Any) -> np.ndarray:
    """The picture of the body's first slice whose rows and columns run in these directions."""
    axes = [int(np.argmax(np.abs(direction))) for direction in (rows, columns)]
    (through,) = {0, 1, 2} - set(axes)
    picture = np.moveaxis(body.take(0, axis=through), 0, 0)
    if axes[1] > axes[0]:  # its first index is the axis of the rows
        picture = picture.T
    if rows[axes[0]] < 0:
        picture = picture[:, ::-1]
    if columns[axes[1]] < 0:
        picture = picture[::-1]
    return picture


@pytest.mark.parametrize("plane", USUAL)
@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_a_slice_lies_the_same_however_it_is_stored(plane: str, modality: str) -> None:
    usual = slice_along(volume(), *USUAL[plane])
    directions = itertools.permutations(USUAL[plane])
    stored = set()
    for (rows, columns), one, other in itertools.product(directions, (1, -1), (1, -1)):
        lies = cosines(one * rows, other * columns)
        turn = turn_of(Scopes(header(modality, ImageOrientationPatient=lies)).of(0))
        picture = slice_along(volume(), one * rows, other * columns)
        assert np.array_equal(turn.applied(picture), usual), lies
        stored.add(turn)
    assert len(stored) == 8
    assert AS_STORED in stored


def test_colour_is_turned_as_grey() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    colour = np.repeat(grey[..., None], 3, axis=2)
    for turn in itertools.starmap(Turn, itertools.product((False, True), repeat=3)):
        assert np.array_equal(turn.applied(colour)[..., 0], turn.applied(grey))


def test_nearly_straight_is_straight_and_oblique_stays() -> None:
    def tilted(degrees: float) -> Turn:
        a = np.radians(degrees)
        rows = -np.cos(a) * LEFT + np.sin(a) * BACK
        return turn_of(Scopes(header(ImageOrientationPatient=cosines(rows, HEAD))).of(0))

    assert tilted(30) == Turn(left_right=True, up_down=True)
    assert tilted(45) == AS_STORED


def test_each_frame_of_an_enhanced_image_has_its_own() -> None:
    def plane(rows: Any, columns: Any) -> Dataset:
        group, inner = Dataset(), Dataset()
        inner.ImageOrientationPatient = cosines(rows, columns)
        group.PlaneOrientationSequence = Sequence([inner])
        return group

    made = header("MR", SharedFunctionalGroupsSequence=Sequence([plane(LEFT, -BACK)]))
    assert turn_of(Scopes(made).of(0)) == turn_of(Scopes(made).of(7)) == Turn(up_down=True)
    made.PerFrameFunctionalGroupsSequence = Sequence([plane(LEFT, BACK), plane(-LEFT, BACK)])
    assert turn_of(Scopes(made).of(0)) == AS_STORED
    assert turn_of(Scopes(made).of(1)) == Turn(left_right=True)
    # One frame more than there are groups: what all frames share.
    assert turn_of(Scopes(made).of(2)) == Turn(up_down=True)


@pytest.mark.parametrize(
    ("letters", "turn"),
    [
        (["L", "F"], AS_STORED),
        (["R", "F"], Turn(left_right=True)),
        (["L", "H"], Turn(up_down=True)),
        (["R", "H"], Turn(left_right=True, up_down=True)),
        (["P", "F"], AS_STORED),
        (["A", "F"], Turn(left_right=True)),
        (["LA", "FP"], AS_STORED),
        # Lying on its side, or seen from above: no usual view is known.
        (["F", "L"], AS_STORED),
        (["A", "R"], AS_STORED),
    ],
)
def test_projections_are_mirrored_where_they_say_how_they_lie(letters: Any, turn: Turn) -> None:
    assert turn_of(Scopes(header("DX", PatientOrientation=letters)).of(0)) == turn
    assert turn_of(Scopes(header("MG", PatientOrientation=letters)).of(0)) == AS_STORED


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"ImageOrientationPatient": [1, 0, 0]},
        {"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]},
        {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
        {"PatientOrientation": ["R", "H"]},
    ],
)
def test_a_slice_that_does_not_say_how_it_lies_stays(values: dict[str, Any]) -> None:
    assert turn_of(Scopes(header("CT", **values)).of(0)) == AS_STORED


@pytest.mark.parametrize("letters", [[], ["R"], "", ["X", "Y"], ["R", "R"]])
def test_letters_that_make_no_sense_are_none(letters: Any) -> None:
    assert turn_of(Scopes(header("CR", PatientOrientation=letters)).of(0)) == AS_STORED
