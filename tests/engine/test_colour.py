"""How much of a picture is in colour."""

import io

import numpy as np
import pytest
from PIL import Image

from engine.model.colour import coloured_share


def grey(side: int = 64) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)
    return np.repeat(values[..., None], 3, axis=2)


def test_grey_pictures_have_none():
    assert coloured_share(grey()[..., 0]) == 0
    assert coloured_share(grey()) == 0
    assert coloured_share(np.zeros((0, 5, 3), np.uint8)) == 0


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_what_jpeg_leaves_in_grey_pictures_is_none(quality):
    stored = io.BytesIO()
    Image.fromarray(grey(128)).save(stored, "JPEG", quality=quality)
    assert coloured_share(np.asarray(Image.open(stored).convert("RGB"))) < 0.01


@pytest.mark.parametrize(("side", "share"), [(64, 0.25), (64, 1.0), (2000, 0.5)])
def test_it_is_the_share_of_pixels_in_colour(side, share):
    pixels = grey(side)
    pixels[: int(share * side)] = (180, 60, 40)
    assert coloured_share(pixels) == pytest.approx(share, abs=0.01)
