"""What an image looks like, beside the slow version of its formula."""

import numpy as np
import pytest

from engine.model.appearance import DIM, appearance


def drawn(count: int, side: int = 32) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 200, (count, 8, 8), dtype=np.uint8)
    fine = rng.integers(0, 40, (count, side, side), dtype=np.uint8)
    return list(coarse.repeat(side // 8, axis=1).repeat(side // 8, axis=2) + fine)


def naive(canvas: np.ndarray) -> np.ndarray:
    side = len(canvas)
    standard = (canvas - canvas.mean()) / canvas.std()
    fields = standard.reshape(16, side // 16, 16, side // 16).mean(axis=(1, 3))
    waves = np.fft.fftshift(np.fft.fft2(standard, norm="ortho"), axes=0)[:, : side // 2 + 1]
    power = np.abs(waves) ** 2
    spectrum = np.array(
        [
            [
                power[
                    i * side // 16 : (i + 1) * side // 16,
                    # Fields of a width that does not divide overlap by one.
                    j * power.shape[1] // 8 : -(-(j + 1) * power.shape[1] // 8),
                ].mean()
                for j in range(8)
            ]
            for i in range(16)
        ]
    )
    amplitude = np.log(spectrum.ravel() + 1e-4) / 2
    return np.concatenate([fields.ravel() / 16, 0.1 * (amplitude - amplitude.mean())])


def test_it_is_layout_and_spectrum() -> None:
    canvases = drawn(3)
    found = appearance(canvases)
    assert found.shape == (3, DIM)
    assert found.dtype == np.float32
    assert np.allclose(found, [naive(canvas) for canvas in canvases], atol=1e-5)


def test_brightness_and_contrast_do_not_count() -> None:
    (canvas,) = drawn(1)
    darker = (canvas // 2 + 20).astype(np.uint8)
    one, other = appearance([canvas, darker])
    assert np.linalg.norm(one - other) < 0.02
    assert np.linalg.norm(one - appearance([canvas.T])[0]) > 0.5


def test_grey_in_colour_is_grey() -> None:
    canvases = drawn(2)
    in_colour = [np.repeat(canvas[:, :, None], 3, axis=2) for canvas in canvases]
    assert np.allclose(appearance(in_colour), appearance(canvases), atol=1e-5)


def test_an_image_does_not_depend_on_those_beside_it() -> None:
    canvases = drawn(300, side=16)
    every = appearance(canvases)
    for i in (0, 255, 256, 299):
        assert every[i] == pytest.approx(appearance([canvases[i]])[0], abs=1e-5)


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_an_image_without_contrast_has_looks_too(grey: int) -> None:
    assert np.isfinite(appearance([np.full((32, 32), grey, np.uint8)])).all()


def test_no_images_no_looks() -> None:
    assert appearance([]).shape == (0, DIM)
