"""The digest of display pixels: equal for equal pictures, another for any other."""

import numpy as np
import pytest

from indexer.imaging.fingerprint import pixels_digest
from indexer.imaging.instance import Frame


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)


def of(*pictures: np.ndarray) -> str:
    return pixels_digest(Frame(number, one) for number, one in enumerate(pictures))


@pytest.mark.parametrize("shape", [(8, 8), (90, 91), (128, 192), (64, 128, 3), (300, 257)])
def test_equal_pictures_have_it_in_common_however_they_lie_in_memory(shape):
    made = picture(*shape)
    turned = np.asfortranarray(made)
    doubled = np.repeat(made, 2, axis=0)[::2]
    assert of(made) == of(made.copy()) == of(turned) == of(doubled)
    assert len(of(made)) == 64


@pytest.mark.parametrize("shape", [(8, 8), (128, 192), (300, 257)])
def test_any_changed_pixel_changes_it(shape):
    made = picture(*shape)
    seen = {of(made)}
    places = np.random.default_rng(4).permutation(made.size)[:200]
    for place in places[:64]:
        other = made.copy()
        other.reshape(-1)[place] ^= 1
        seen.add(of(other))
    assert len(seen) == 1 + min(64, len(places))


def test_order_shape_and_number_matter():
    made, rows = picture(64, 256), picture(256, 256)
    moved = np.concatenate([rows[32:64], rows[:32], rows[64:]])
    assert of(rows) != of(moved)  # whole rows of the folding change places
    assert of(made) != of(made.reshape(256, 64))
    assert of(made, rows) != of(rows, made)
    assert of(made) != pixels_digest([Frame(1, made)])
    assert of(np.zeros((64, 256), np.uint8)) != of(np.zeros((128, 256), np.uint8))
