"""Pictures of any shape become the canvas of the network, without torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.errors import ModelError
from engine.model.preprocess import Preprocess

ROOT = Path(__file__).parents[2]


def box(canvas: np.ndarray) -> tuple[int, int, int, int]:
    """Top, bottom, left, right (both past the end) of what is not black."""
    lit = canvas > 0 if canvas.ndim == 2 else canvas.any(axis=2)
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((64, 64), (0, 64, 0, 64)),
        ((40, 20), (0, 64, 16, 48)),
        ((20, 40), (16, 48, 0, 64)),
        ((600, 1200), (16, 48, 0, 64)),
        ((1, 500), (31, 32, 0, 64)),
        ((500, 1), (0, 64, 31, 32)),
        ((1, 1), (0, 64, 0, 64)),
    ],
)
def test_the_aspect_is_kept_and_the_image_centred(shape, expected):
    canvas = Preprocess(size=64).canvas(np.full(shape, 255, dtype=np.uint8))
    assert (canvas.shape, canvas.dtype) == ((64, 64), np.uint8)
    assert box(canvas) == expected
    top, bottom, left, right = expected
    assert (canvas[top:bottom, left:right] == 255).all()


def test_rows_stay_rows():
    pixels = np.zeros((30, 30), dtype=np.uint8)
    pixels[:10, :] = 200
    pixels[:, :3] = 100
    canvas = Preprocess(size=30).canvas(pixels)
    assert np.array_equal(canvas, pixels)


def test_scaling_down_averages_instead_of_skipping():
    stripes = np.zeros((256, 256), dtype=np.uint8)
    stripes[:, ::2] = 255
    canvas = Preprocess(size=64).canvas(stripes)
    assert abs(canvas[8:-8, 8:-8].astype(int) - 127).max() <= 4


def test_grey_becomes_three_equal_channels():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    grey = Preprocess(size=32).canvas(pixels)
    colour = Preprocess(size=32, colour=True).canvas(pixels)
    assert colour.shape == (32, 32, 3)
    assert np.array_equal(colour, np.repeat(grey[:, :, None], 3, axis=2))


def test_colour_becomes_luma_unless_kept():
    red = np.zeros((32, 32, 3), dtype=np.uint8)
    red[:, :, 0] = 200
    assert np.array_equal(Preprocess(size=32, colour=True).canvas(red), red)
    luma = Preprocess(size=32).canvas(red)
    assert luma.shape == (32, 32)
    assert abs(luma.astype(int) - round(0.299 * 200)).max() <= 1


@pytest.mark.parametrize("shape", [(33, 71), (71, 33, 3), (1, 90)])
@pytest.mark.parametrize("colour", [False, True])
def test_the_same_pixels_give_the_same_canvas_and_stay(shape, colour):
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    before = pixels.copy()
    one, two = (Preprocess(size=48, colour=colour).canvas(pixels) for _ in range(2))
    assert np.array_equal(one, two)
    assert np.array_equal(pixels, before)
    read_only = pixels.copy()
    read_only.flags.writeable = False
    strided = np.repeat(pixels, 2, axis=1)[:, ::2]
    assert np.array_equal(Preprocess(size=48, colour=colour).canvas(read_only), one)
    assert np.array_equal(Preprocess(size=48, colour=colour).canvas(strided), one)


@pytest.mark.parametrize(
    ("values", "named"), [({"size": 15}, "15"), ({"normalise": "histogram"}, "histogram")]
)
def test_settings_that_cannot_be_are_refused_by_value(values, named):
    with pytest.raises(ModelError, match=named):
        Preprocess(**values)


_IMPORT_ALL = """
import importlib, pkgutil, sys
import engine.model.preprocess, engine.settings, engine.records, engine.codes
import indexer.imaging
for module in pkgutil.walk_packages(indexer.imaging.__path__, "indexer.imaging."):
    importlib.import_module(module.name)
print([name for name in ("torch", "open_clip", "timm", "torchvision") if name in sys.modules])
"""


def test_reading_images_loads_no_neural_network():
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
