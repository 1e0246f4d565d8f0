"""Where two canvases look alike: what is marked is what the similarity rests on."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from engine.errors import ModelError
from engine.model.encoder import Encoder, centre_and_normalise
from engine.search.alike import CELLS, AlikeMap, alike_map, take_out


def blocks(canvases: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """An encoder that is a sum over places: the mean of each cell."""
    cells = [np.asarray(Image.fromarray(one).resize((CELLS, CELLS), 4)) for one in canvases]
    return centre_and_normalise(np.stack(cells).reshape(len(cells), -1).astype(np.float32))


def test_what_two_pictures_have_in_common_is_marked() -> None:
    first, second = (np.full((96, 96), 60, np.uint8) for _ in range(2))
    for one in (first, second):
        one[24:48, 48:72] = 250
    first[72:84, 12:24] = 200
    second[0:12, 72:84] = 200
    common = np.zeros((CELLS, CELLS), bool)
    common[2:4, 4:6] = True
    for one, other, own in ((first, second, (6, 1)), (second, first, (0, 6))):
        found = alike_map(blocks, one, other)
        assert found.marked[common].all()
        assert found.weights[common].mean() > 3 * np.abs(found.weights[~common]).mean()
        # What only one of them has makes it less like the other.
        assert found.weights[own] < 0


def test_a_map_is_of_how_much_less_similar_two_images_are_then(encoder: Encoder) -> None:
    first, second = np.random.default_rng(0).integers(0, 256, (2, 48, 48), dtype=np.uint8)

    def encode(canvases: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return encoder.encode(canvases).z

    def similarity(one: NDArray[np.uint8]) -> float:
        z = encode([one, second])
        return float(z[0] @ z[1])

    found = alike_map(encode, first, second)
    assert found.similarity == pytest.approx(similarity(first), abs=1e-6)
    drops = np.zeros((CELLS, CELLS))
    times = np.zeros((CELLS, CELLS))
    for row in range(CELLS - 1):
        for column in range(CELLS - 1):
            square = np.zeros((CELLS, CELLS), bool)
            square[row : row + 2, column : column + 2] = True
            drops[square] += found.similarity - similarity(take_out(first, square))
            times += square
    assert found.weights == pytest.approx(drops / times, abs=1e-5)
    with pytest.raises(ModelError, match="the model wants"):
        alike_map(encode, first, second[:24, :24])


def test_nothing_is_marked_where_nothing_counts() -> None:
    even = np.full((50, 50, 3), 7, np.uint8)
    cells = np.ones((CELLS, CELLS), bool)
    assert np.array_equal(take_out(even, cells), even)
    assert not AlikeMap(1.0, np.zeros((CELLS, CELLS), np.float32)).marked.any()


def test_taking_out_is_the_mean_around_in_these_cells_alone() -> None:
    canvas = np.random.default_rng(1).integers(0, 256, (50, 50), dtype=np.uint8)
    cells = np.zeros((CELLS, CELLS), bool)
    cells[3, 5] = True
    found = take_out(canvas, cells)
    changed = np.zeros((50, 50), bool)
    for row in range(50):
        for column in range(50):
            if (row * CELLS // 50, column * CELLS // 50) == (3, 5):
                changed[row, column] = True
                around = np.pad(canvas, 8, mode="edge")[row : row + 17, column : column + 17]
                assert abs(float(found[row, column]) - around.mean()) <= 0.5
    assert np.array_equal(found[~changed], canvas[~changed])
