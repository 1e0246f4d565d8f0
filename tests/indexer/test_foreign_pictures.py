"""Foreign images are what they say, and the same for the same seed."""

import numpy as np
import pytest

from indexer.sample.foreign import (
    DOCUMENTS,
    NOISE,
    SCENES,
    document_images,
    noise_images,
    scene_images,
)

MAKERS = {
    "noise": (noise_images, NOISE),
    "documents": (document_images, DOCUMENTS),
    "scenes": (scene_images, SCENES),
}


@pytest.fixture(params=MAKERS)
def maker(request):
    return MAKERS[request.param]


def test_images_are_seeded_and_longer_lists_begin_with_shorter_ones(maker):
    make, kinds = maker
    count = len(kinds) + 2
    images = make(count, 3)
    assert len(images) == count
    for image, again in zip(make(count + 1, 3), images, strict=False):
        assert np.array_equal(image, again)
    differ = [
        one.shape != other.shape or not np.array_equal(one, other)
        for one, other in zip(images, make(count, 4), strict=True)
    ]
    assert all(differ)


def test_images_are_grey_of_several_sizes_and_none_is_like_another(maker):
    make, kinds = maker
    images = make(3 * len(kinds), 0)
    for image in images:
        assert image.dtype == np.uint8
        assert image.ndim == 2
        assert min(image.shape) >= 96
        assert max(image.shape) <= 720
    assert len({image.shape for image in images}) > len(kinds)
    assert len({image.tobytes() for image in images}) == len(images)


def test_all_kinds_of_noise_but_the_constant_have_contrast():
    for image, kind in zip(noise_images(4 * len(NOISE), 1), 4 * list(NOISE), strict=True):
        if kind == "constant":
            assert image.std() == 0
        else:
            assert image.std() > 8, kind


@pytest.mark.slow
def test_pages_are_mostly_paper_with_dark_or_light_ink():
    pages = document_images(40, 2)
    inverted = 0
    for page, kind in zip(pages, 10 * list(DOCUMENTS), strict=True):
        paper = np.median(page)
        ink = np.abs(page.astype(float) - paper) > 60
        assert 0.004 < ink.mean() < 0.5, kind
        inverted += paper < 128
    assert 3 <= inverted <= 20
