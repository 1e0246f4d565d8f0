"""Pictures of few different values are shown as pixel by pixel, only sooner."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from indexer.imaging.display import render_grey, robust_range, stored_range, stretch
from indexer.imaging.padding import Padding

SHAPE = (300, 260)


def noise(dtype: str, low: int, high: int) -> NDArray[Any]:
    return np.random.default_rng(0).integers(low, high, SHAPE, endpoint=True).astype(dtype)


STORED = [
    noise("<u2", 0, 4095),
    noise("<i2", -(2**15), 2**15 - 1),
    noise("<u2", 40_000, 2**16 - 1),
    noise(">i2", -1024, 3071),
    noise("u1", 0, 255),
    noise("i1", -128, 127),
    np.full(SHAPE, 7, dtype="<u2"),
    np.where(noise("u1", 0, 99) == 0, 60_000, 12).astype("<u2"),
]


def scope(**elements: object) -> list[Dataset]:
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return [made]


@pytest.mark.parametrize("stored", STORED, ids=lambda stored: str(stored.dtype))
@pytest.mark.parametrize("elements", [{}, {"RescaleSlope": -3, "RescaleIntercept": 11}])
@pytest.mark.parametrize("padding", [None, Padding(-1000, 12), Padding(-1e9, 1e9)])
def test_a_picture_is_the_same_as_value_by_value(
    stored: NDArray[Any], elements: dict[str, object], padding: Padding | None
) -> None:
    how = {"little_endian": True, "inverted": False, "padding": padding}
    possible = stored_range(stored, 16, signed=False)
    # Of 32 bits, the same numbers are too many to be counted.
    one_by_one = stored.astype(np.int32)
    found = render_grey(stored, scope(**elements), possible, **how)
    assert np.array_equal(found, render_grey(one_by_one, scope(**elements), possible, **how))
    assert np.array_equal(stretch(stored), stretch(one_by_one))


@pytest.mark.parametrize("count", [1, 2, 3, 100, 101, 12_345])
@pytest.mark.parametrize("slope", [1.0, -0.1, 1 / 3])
def test_percentiles_of_counted_values_are_those_of_all(count: int, slope: float) -> None:
    every = np.random.default_rng(count).integers(-50, 50, count) * slope
    values, counts = np.unique(every, return_counts=True)
    mixed = np.random.default_rng(1).permutation(len(values))
    assert robust_range(values[mixed], counts[mixed]) == robust_range(every)


def test_no_values_have_no_range() -> None:
    assert robust_range(np.empty(0), np.empty(0, dtype=np.intp)) == (0.0, 0.0)
