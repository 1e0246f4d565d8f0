"""Limits hold at their edges, before anything is decoded."""

import pytest

from engine.errors import ImageRefused, RefusalReason
from engine.settings import ImageLimits
from indexer.files.limits import check_declared, check_file_size, check_held, declared_bytes

LIMITS = ImageLimits(
    max_file_bytes=1000, max_pixels=400, max_frames=10, max_decoded_bytes=1600, min_side=8
)


def reason(call, *arguments):
    with pytest.raises(ImageRefused) as caught:
        call(*arguments)
    return caught.value.reason


@pytest.mark.parametrize(
    ("rows", "columns", "frames", "samples", "bits", "decoded"),
    [
        (20, 20, 1, 1, 16, 1),
        (8, 50, 10, 1, 16, 2),
        (20, 20, 10, 1, 8, 4),
        (20, 20, 1, 1, 32, 1),
        (20, 20, 10, 1, 1, 10),
    ],
)
def test_an_image_at_the_limit_passes(rows, columns, frames, samples, bits, decoded):
    check_declared(rows, columns, frames, samples, bits, LIMITS, decoded)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((7, 20, 1, 1, 8, LIMITS), RefusalReason.TOO_SMALL),
        ((20, 0, 1, 1, 8, LIMITS), RefusalReason.TOO_SMALL),
        ((20, 21, 1, 1, 8, LIMITS), RefusalReason.TOO_LARGE),
        ((20, 20, 11, 1, 8, LIMITS), RefusalReason.TOO_LARGE),
        ((20, 20, 1, 3, 16, LIMITS), RefusalReason.TOO_LARGE),
        ((20, 20, 5, 1, 8, LIMITS, 5), RefusalReason.TOO_LARGE),
    ],
)
def test_one_step_beyond_is_refused(arguments, expected):
    assert reason(check_declared, *arguments) is expected


def test_file_sizes():
    check_file_size(1000, LIMITS)
    assert reason(check_file_size, 0, LIMITS) is RefusalReason.EMPTY_FILE
    assert reason(check_file_size, 1001, LIMITS) is RefusalReason.TOO_LARGE


def test_pixels_must_be_there():
    check_held(100, 100)
    assert reason(check_held, 100, 99) is RefusalReason.TRUNCATED


def test_single_bits_are_packed_across_frames():
    assert declared_bytes(3, 3, 3, 1, 1) == 4
