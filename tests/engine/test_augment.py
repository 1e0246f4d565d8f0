"""Views of an image: seeded, in range, and each strength does what it says."""

from dataclasses import replace

import pytest
import torch

from engine.training.augment import AugmentConfig, augment

STILL = AugmentConfig(
    narrow=0, tone=0, shade=0, window=0, gamma=0, invert=0, rotate=0, scale=0, shift=0, flip=0,
    coarsen=0, noise=0, border=0, marker=0,
)  # fmt: skip


def pictures(count: int = 6, channels: int = 1) -> torch.Tensor:
    return torch.rand(count, channels, 32, 32, generator=torch.Generator().manual_seed(0))


def augmented(images: torch.Tensor, config: AugmentConfig, seed: int = 0) -> torch.Tensor:
    return augment(images, config, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_seeded_images_of_the_same_shape(channels):
    images = pictures(channels=channels)
    before = images.clone()
    one = augmented(images, AugmentConfig())
    assert one.shape == images.shape
    assert one.dtype == torch.float32
    assert one.min() >= 0
    assert one.max() <= 1
    assert torch.equal(one, augmented(images, AugmentConfig()))
    other = augmented(images, AugmentConfig(), seed=1)
    assert ((one - other).abs().amax(dim=(1, 2, 3)) > 0.05).all()
    assert torch.equal(images, before)


def test_without_strength_nothing_changes():
    assert torch.allclose(augmented(pictures(), STILL), pictures(), atol=2e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"narrow": 1},
        {"tone": 1},
        {"shade": 1},
        {"window": 0.25},
        {"gamma": 0.8},
        {"invert": 1},
        {"rotate": 15},
        {"scale": 0.25},
        {"shift": 0.2},
        {"flip": 1},
        {"coarsen": 1},
        {"noise": 0.2},
        {"border": 1},
        {"marker": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_strength_does_something(change):
    moved = (augmented(pictures(), replace(STILL, **change)) - pictures()).abs()
    assert moved.amax(dim=(1, 2, 3)).median() > 0.02


def test_flips_mirror_and_inversions_invert():
    images = pictures()
    flipped = augmented(images, replace(STILL, flip=1))
    assert torch.allclose(flipped, images.flip(3), atol=2e-4)
    inverted = augmented(images, replace(STILL, invert=1))
    assert torch.allclose(inverted, 1 - images, atol=2e-4)


def test_laterality_is_kept_by_default():
    half = torch.zeros(64, 1, 32, 32)
    half[:, :, :, :16] = 1
    gentle = replace(AugmentConfig(), invert=0, border=0, marker=0, shade=0, narrow=0)
    views = augmented(half, gentle)
    left, right = views[..., :16].mean(dim=(1, 2, 3)), views[..., 16:].mean(dim=(1, 2, 3))
    assert (left > right).all()


def test_a_tone_curve_keeps_the_order_of_grey_values():
    ramp = torch.linspace(0, 1, 32 * 32).reshape(1, 1, 32, 32).repeat(8, 1, 1, 1)
    curved = augmented(ramp, replace(STILL, tone=1)).flatten(1)
    assert (curved.diff(dim=1) >= -1e-6).all()
    assert curved[:, 0].max() < 2e-3  # gamma's floor
    assert torch.allclose(curved[:, -1], torch.ones(8))


def test_shading_is_smooth():
    flat = torch.full((8, 1, 32, 32), 0.5)
    shaded = augmented(flat, replace(STILL, shade=1))
    assert shaded.std(dim=(1, 2, 3)).min() > 0.01
    assert shaded.diff(dim=3).abs().max() < 0.05


def test_a_marker_is_one_small_bright_block_near_an_edge():
    dark = torch.zeros(32, 1, 64, 64)
    bright = augmented(dark, replace(STILL, marker=1))[:, 0] > 0.5
    for image in bright:
        rows, columns = image.any(dim=1).nonzero().flatten(), image.any(dim=0).nonzero().flatten()
        height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert image.sum() == height * width
        assert max(height, width) <= 8
        assert min(rows[0], columns[0], 63 - rows[-1], 63 - columns[-1]) <= 11


def test_narrow_windows_blacken_a_grey_background():
    images = torch.full((64, 1, 32, 32), 0.4)
    images[:, :, 8:24, 8:24] = torch.linspace(0.5, 1, 16)
    narrowed = augmented(images, replace(STILL, narrow=1))
    assert (narrowed[:, 0, 0, 0] < 0.01).float().mean() > 0.9
    assert (narrowed.amax(dim=(1, 2, 3)) > 0.99).all()
