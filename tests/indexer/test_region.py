"""Regions: what is cut from a picture, and what is no region."""

import numpy as np
import pytest
from dicom_files import dataset, encode

from engine.errors import ImageRefused, QueryError
from engine.model.preprocess import Preprocess
from engine.settings import ImageLimits, ZipLimits
from indexer.imaging.frames import FramePolicy
from indexer.imaging.orientation import AS_STORED, Turn
from indexer.imaging.prepare import ReadTask, prepare, read_instance
from indexer.imaging.region import LEAST_SIDE, Region, WholePicture, parse_region


def touched(start: float, share: float, pixels: int) -> list[int]:
    """The pixels that a span has a share of, one by one."""
    found = []
    for number in range(pixels):
        low, high = number / pixels, (number + 1) / pixels
        if min(high, start + share) - max(low, start) > 1e-9:
            found.append(number)
    return found


def test_a_region_is_every_pixel_that_it_has_a_share_of() -> None:
    rng = np.random.default_rng(3)
    picture = rng.integers(0, 256, (301, 503, 3), dtype=np.uint8)
    for _ in range(50):
        x, y = rng.uniform(0, 0.7, 2).round(3)
        width, height = rng.uniform(0.2, 0.3, 2).round(3)
        rows, columns = touched(y, height, 301), touched(x, width, 503)
        expected = picture[np.ix_(rows, columns)]
        found = Region(float(x), float(y), float(width), float(height)).cut(picture)
        assert np.array_equal(found, expected)
    assert np.array_equal(Region(0, 0, 1, 1).cut(picture), picture)
    # Quarters of a picture of 400 pixels are 100 of them, whatever floats make of it.
    assert Region(0.1, 0.7, 0.25, 0.3).cut(np.zeros((400, 400), np.uint8)).shape == (120, 100)


def test_a_region_of_too_few_pixels_is_refused_with_their_number() -> None:
    picture = np.zeros((100, 200), np.uint8)
    assert Region(0, 0, 0.16, 0.32).cut(picture).shape == (LEAST_SIDE, LEAST_SIDE)
    with pytest.raises(ImageRefused, match="31 x 32 of the picture's 200 x 100 pixels"):
        Region(0, 0, 0.155, 0.32).cut(picture)


def test_what_is_no_region_is_refused_with_the_way_out() -> None:
    assert parse_region("0.25, 0.5,0.5,0.5") == Region(0.25, 0.5, 0.5, 0.5)
    # What a browser rounds is no pixel outside.
    assert parse_region("0.33337,0,0.66667,1") == Region(0.3334, 0, 0.6667, 1)
    assert str(parse_region("0.10,0,0.5,1")) == "0.1,0,0.5,1"
    for wrong in ("", "1,2,3", "a,b,c,d", "0,0,1,1,1", "0;0;1;1", "nan,0,1,x"):
        with pytest.raises(QueryError, match=r"four numbers, as in 0\.25"):
            parse_region(wrong)
    for outside in (
        *("-0.1,0,0.5,0.5", "0.6,0,0.5,0.5", "0,0,0,0.5", "0,0,0.5,-1", "nan,0,0.5,0.5"),
        *("0,0,inf,1", "0,0,1,1.01"),
    ):
        with pytest.raises(QueryError, match="not within the picture"):
            parse_region(outside)


def test_a_picture_is_kept_with_every_value_and_no_larger_than_it_may_be() -> None:
    rng = np.random.default_rng(5)
    for shape in ((40, 60), (40, 60, 3)):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        kept = WholePicture.of(pixels, Turn(transpose=True), 64)
        assert np.array_equal(kept.pixels, pixels)
        assert kept.turn == Turn(transpose=True)
        assert WholePicture.of(pixels, Turn(), 30).pixels.shape[:2] == (20, 30)


def test_a_region_lies_in_the_picture_as_stored_and_is_turned_after_it_was_cut() -> None:
    rng = np.random.default_rng(7)
    pixels = rng.integers(0, 256, (80, 120)).astype(np.uint16)
    # Rows run from the left to the right of the patient: the usual view is the other way round.
    content = encode(dataset(pixels, Modality="CT", ImageOrientationPatient=[-1, 0, 0, 0, 1, 0]))
    task = ReadTask(
        *(content, ImageLimits(), ZipLimits(), FramePolicy(limit=1), 64, Preprocess(32), b"k" * 32),
        region=Region(0, 0.5, 0.5, 0.5),
        whole_side=1000,
    )
    (frame,) = read_instance(task).frames
    assert frame.turn != AS_STORED
    (found,) = prepare(task).pictures
    cut = frame.pixels[40:, :60]
    assert np.array_equal(found.canvas, task.preprocess.canvas(frame.turn.applied(cut)))
    assert found.whole is not None
    assert np.array_equal(found.whole.pixels, frame.pixels)
    assert found.whole.turn == frame.turn
