"""Which frames of a multi-frame instance are shown, and with whose window."""

import io

import numpy as np
import pytest
from dicom_files import LIMITS, dataset, encode
from hypothesis import given, strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from engine.errors import ImageRefused, RefusalReason
from engine.settings import ImageLimits
from indexer.imaging.dicom import DicomImage, read_dicom
from indexer.imaging.frames import FramePolicy, frames_of_interest

KINDS = ("spread", "all", "nth", "middle", "key")
# Each frame is one grey, its number, under a white line.
NUMBERED = np.stack([np.full((16, 16), number, np.uint8) for number in range(100)])
NUMBERED[:, 0] = 255


def numbered(**elements) -> Dataset:
    return dataset(NUMBERED, WindowCenter=128, WindowWidth=256, **elements)


def image(made: Dataset, policy: FramePolicy | int, limits: ImageLimits = LIMITS) -> DicomImage:
    content = encode(made)
    return read_dicom(io.BytesIO(content), len(content), limits, policy)


def shown(made: Dataset, policy: FramePolicy | int) -> list[int]:
    """Numbers of the frames read; each must show its own number."""
    found = image(made, policy)
    assert found.frames_declared == 100
    numbers = [frame.number for frame in found.frames]
    assert [int(frame.pixels[5, 5]) for frame in found.frames] == numbers
    return numbers


@pytest.mark.parametrize(
    ("policy", "numbers"),
    [
        (FramePolicy(), [6, 18, 31, 43, 56, 68, 81, 93]),
        (FramePolicy("spread", limit=4), [12, 37, 62, 87]),
        (FramePolicy("spread", limit=1), [50]),
        (FramePolicy("all", limit=1000), list(range(100))),
        (FramePolicy("all", limit=5), [10, 30, 50, 70, 90]),
        (FramePolicy("nth", limit=1000, every=30), [0, 30, 60, 90]),
        (FramePolicy("nth", limit=2, every=30), [30, 90]),
        (FramePolicy("nth", limit=8, every=1000), [0]),
        (FramePolicy("middle", limit=8), [50]),
        (FramePolicy("key", limit=8), [50]),
        (4, [12, 37, 62, 87]),
    ],
)
def test_policies(policy, numbers):
    assert shown(numbered(), policy) == numbers


def test_key_frames_are_those_that_the_instance_names():
    key = FramePolicy("key", limit=8)
    # The standard counts frames from 1.
    assert shown(numbered(RepresentativeFrameNumber=8), key) == [7]
    assert shown(numbered(FrameNumbersOfInterest=[31, 3]), key) == [2, 30]
    both = numbered(RepresentativeFrameNumber=8, FrameNumbersOfInterest=[31, 3, 31])
    assert shown(both, key) == [2, 7, 30]
    assert shown(both, FramePolicy("key", limit=2)) == [2, 30]
    # The others do not look at them.
    assert shown(both, FramePolicy("middle")) == [50]


def test_key_frames_that_do_not_exist_are_passed_over():
    key = FramePolicy("key")
    assert shown(numbered(FrameNumbersOfInterest=[0, 101, 65535, 9]), key) == [8]
    assert shown(numbered(FrameNumbersOfInterest=[0, 101]), key) == [50]
    odd = numbered()
    odd.add_new("RepresentativeFrameNumber", "LO", "DOE^JANE")
    assert shown(odd, key) == [50]


def test_nobody_names_frames_of_an_empty_header():
    assert frames_of_interest(Dataset()) == []


@given(
    kind=st.sampled_from(KINDS),
    limit=st.integers(1, 50),
    every=st.integers(1, 50),
    declared=st.integers(1, 200),
    named=st.lists(st.integers(-3, 300), max_size=20),
)
def test_any_policy_gives_some_frames_in_order(kind, limit, every, declared, named):
    numbers = FramePolicy(kind, limit, every).choose(declared, named)
    assert 1 <= len(numbers) <= limit
    assert numbers == sorted(set(numbers))
    assert numbers[0] >= 0
    assert numbers[-1] < declared


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_one_frame_is_that_frame(kind):
    assert FramePolicy(kind).choose(1) == [0]


def test_frames_beyond_a_limit_of_memory_are_refused_before_they_are_decoded():
    limits = ImageLimits(max_decoded_bytes=16 * 16 * 20)
    assert len(image(numbered(), FramePolicy("all", limit=20), limits).frames) == 20
    with pytest.raises(ImageRefused) as caught:
        image(numbered(), FramePolicy("all", limit=21), limits)
    assert caught.value.reason is RefusalReason.TOO_LARGE


def window(center: float, width: float) -> Dataset:
    item = Dataset()
    item.WindowCenter, item.WindowWidth = center, width
    return item


def rescale(slope: float, intercept: float) -> Dataset:
    item = Dataset()
    item.RescaleSlope, item.RescaleIntercept, item.RescaleType = slope, intercept, "US"
    return item


def group(**sequences: Dataset) -> Dataset:
    made = Dataset()
    for keyword, item in sequences.items():
        setattr(made, f"{keyword}Sequence", Sequence([item]))
    return made


RAMP = np.tile(np.arange(0, 4000, 40, dtype=np.int16), (100, 1))


def test_every_frame_has_its_own_window_whatever_the_policy():
    groups = [group(FrameVOILUT=window(400 * number + 200, 400)) for number in range(10)]
    made = dataset(np.stack([RAMP] * 10), PerFrameFunctionalGroupsSequence=groups)
    # One window for all would show something else.
    made.WindowCenter, made.WindowWidth = 2000, 4000
    for policy in (FramePolicy("nth", every=4), FramePolicy("all", limit=10)):
        for frame in image(made, policy).frames:
            first = 400 * frame.number
            assert frame.pixels[0, RAMP[0] < first].max(initial=0) == 0
            assert frame.pixels[0, RAMP[0] >= first + 400].min(initial=255) == 255
            assert 120 <= frame.pixels[0, (first + 200) // 40] <= 136


def test_values_of_a_frame_come_before_shared_ones_and_these_before_the_headers():
    made = dataset(np.stack([RAMP, RAMP]), WindowCenter=9000, WindowWidth=100)
    made.SharedFunctionalGroupsSequence = [
        group(FrameVOILUT=window(2000, 1000), PixelValueTransformation=rescale(1, 0))
    ]
    made.PerFrameFunctionalGroupsSequence = [
        group(PixelValueTransformation=rescale(2, 0)),
        group(FrameVOILUT=window(3000, 1000)),
    ]
    first, second = image(made, FramePolicy("all")).frames
    # Twice the stored values, through the shared window from 1500 to 2500.
    assert first.pixels[0, RAMP[0] <= 740].max() == 0
    assert first.pixels[0, RAMP[0] >= 1260].min() == 255
    assert second.pixels[0, RAMP[0] <= 2500].max() == 0
    assert second.pixels[0, RAMP[0] >= 3520].min() == 255


def test_fewer_functional_groups_than_frames_are_no_harm():
    made = dataset(np.stack([RAMP] * 3), WindowCenter=2000, WindowWidth=1000)
    made.PerFrameFunctionalGroupsSequence = [group(FrameVOILUT=window(1000, 1000))]
    first, *others = image(made, FramePolicy("all")).frames
    assert first.pixels[0, 50] == 255
    for frame in others:
        assert 120 <= frame.pixels[0, 50] <= 136
