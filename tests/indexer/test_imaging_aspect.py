"""Pixels that are not square are shown in their proportions (PS3.3 C.7.6.3.1.7 and 10.7.1.3)."""

import io

import numpy as np
import pytest
from dicom_files import KEY, LIMITS, dataset, encode, read, shown
from PIL import Image
from pydicom.dataset import Dataset

from engine.model.preprocess import Preprocess
from engine.settings import ImageLimits, ZipLimits
from indexer.imaging.prepare import Prepared, ReadTask, prepare

PLANE = np.add.outer(np.arange(40) * 60, np.arange(60) * 20).astype(np.uint16)
WINDOW = {"WindowCenter": 1800, "WindowWidth": 3600}
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"


def size(**elements: object) -> tuple[int, ...]:
    return shown(PLANE, **WINDOW, **elements).shape


@pytest.mark.parametrize(
    "keyword",
    [
        "PixelSpacing",
        "ImagerPixelSpacing",
        "NominalScannedPixelSpacing",
        "PixelAspectRatio",
        "ImagePlanePixelSpacing",
    ],
)
def test_the_first_value_is_the_height_of_a_pixel(keyword):
    assert size(**{keyword: [2, 1]}) == (80, 60)
    assert size(**{keyword: [1, 2]}) == (40, 120)
    assert size(**{keyword: [3, 3]}) == (40, 60)


def test_a_halved_picture_looks_like_the_whole_one():
    whole = np.add.outer(np.arange(80) * 30, np.arange(60) * 20).astype(np.uint16)
    halved = ((whole[0::2].astype(int) + whole[1::2]) // 2).astype(np.uint16)
    found = shown(halved, **WINDOW, PixelSpacing=[0.5, 0.25])
    expected = shown(whole, **WINDOW, PixelSpacing=[0.25, 0.25])
    assert np.abs(found.astype(int) - expected).max() <= 3


def test_colours_keep_their_proportions():
    colors = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert shown(colors, PixelAspectRatio=[2, 1]).shape == (40, 30, 3)


def test_spacing_counts_before_pixel_aspect_ratio():
    """Which is for images without any spacing (PS3.3 table C.7-11c)."""
    assert size(PixelSpacing=[1, 1], PixelAspectRatio=[2, 1]) == (40, 60)
    assert size(ImagerPixelSpacing=[2, 1], PixelAspectRatio=[1, 2]) == (80, 60)
    # Calibrated spacing before that at the front of the detector (PS3.3 10.7.1.3).
    assert size(PixelSpacing=[2, 1], ImagerPixelSpacing=[1, 1]) == (80, 60)


@pytest.mark.parametrize("absurd", [[0, 1], [1, 0], [-1, 1], [100, 1], [1, 100], [1e300, 1e-300]])
def test_absurd_proportions_are_passed_over(absurd):
    assert size(PixelSpacing=absurd) == (40, 60)
    assert size(PixelSpacing=absurd, PixelAspectRatio=[2, 1]) == (80, 60)


@pytest.mark.parametrize("value", ["", "2", r"2\DOE^JANE", r"NaN\1", r"INF\1"])
def test_what_is_no_spacing_is_passed_over(value):
    made = dataset(PLANE, **WINDOW)
    made.add_new("PixelSpacing", "LO", value)
    assert read(encode(made)).frames[0].pixels.shape == PLANE.shape


def test_a_difference_that_nobody_sees_changes_nothing():
    plain = shown(PLANE, **WINDOW)
    assert np.array_equal(shown(PLANE, **WINDOW, PixelSpacing=[0.7, 0.701]), plain)


def measured(*spacings: list[float] | None) -> Dataset:
    """An enhanced image with Pixel Measures (PS3.3 C.7.6.16.2.1) of each frame."""
    groups = []
    for spacing in spacings:
        group = Dataset()
        if spacing is not None:
            measures = Dataset()
            measures.PixelSpacing = spacing
            group.PixelMeasuresSequence = [measures]
        groups.append(group)
    made = dataset(np.stack([PLANE] * len(spacings)), SOPClassUID=ENHANCED_MR, **WINDOW)
    made.PerFrameFunctionalGroupsSequence = groups
    return made


def test_each_frame_has_its_own_proportions():
    made = measured([2, 1], [1, 2], None)
    shared = Dataset()
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = [3, 1]
    made.SharedFunctionalGroupsSequence = [shared]
    frames = read(encode(made)).frames
    assert [frame.pixels.shape for frame in frames] == [(80, 60), (40, 120), (120, 60)]


def test_an_angiogram_says_it_in_its_pixel_data_properties():
    """PS3.3 C.8.19.6.4."""
    properties, shared = Dataset(), Dataset()
    properties.ImagerPixelSpacing = [2, 1]
    shared.FramePixelDataPropertiesSequence = [properties]
    made = dataset(PLANE, **WINDOW, SharedFunctionalGroupsSequence=[shared])
    made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.12.1.1"
    assert read(encode(made)).frames[0].pixels.shape == (80, 60)


@pytest.mark.parametrize(("spacing", "expected"), [([2, 1], (40, 30)), ([1, 2], (20, 60))])
@pytest.mark.parametrize(
    "limits", [ImageLimits(max_pixels=2400), ImageLimits(max_decoded_bytes=3 * 2400)]
)
def test_proportions_keep_within_the_limits(spacing, expected, limits):
    found = read(encode(dataset(PLANE, PixelSpacing=spacing)), limits=limits)
    assert found.frames[0].pixels.shape == expected


def prepared(content: bytes) -> Prepared:
    task = ReadTask(content, LIMITS, ZipLimits(), 8, 30, Preprocess(size=64), KEY)
    return prepare(task)


def test_canvas_and_thumbnail_are_of_square_pixels():
    picture = prepared(encode(dataset(PLANE, **WINDOW, PixelSpacing=[1.5, 1]))).pictures[0]
    assert Image.open(io.BytesIO(picture.thumbnail)).size == (30, 30)
    # Nothing but its black corner is as dark as the bars beside a picture that does not fill it.
    assert picture.canvas[:, -1].min() > 0
    assert picture.canvas[-1].min() > 0
