"""Appearance features for OOD detection: coarse layout and spectrum of an image, not learned."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from engine.model.invariance import image_mean

__all__ = ["DIM", "appearance"]

_LAYOUT = (16, 16)
_SPECTRUM = (16, 8)
DIM = _LAYOUT[0] * _LAYOUT[1] + _SPECTRUM[0] * _SPECTRUM[1]
_BATCH = 256
_LEAST_SPREAD = 1e-3
# Added to the power, so that traces which JPEG and resampling leave in empty frequencies are lost.
_LEAST_POWER = 1e-4
# Natural logarithms of amplitude count a tenth, so that both parts weigh about the same.
_LOGARITHM = 0.1


@torch.inference_mode()
def appearance(canvases: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Layout (256 values) and spectrum (128 values) of N canvases: float32 (N, 384).

    Both are computed of grey values standardised to zero mean and unit variance, so that brightness
    and contrast do not matter. Layout: the means of a 16 × 16 grid of cells, divided by 16, so that
    its length is at most 1. Spectrum: a tenth of the logarithm of the root mean square amplitude in
    a 16 × 8 grid of cells of the frequency half-plane, minus the mean over the cells.

    Args:
        canvases: each uint8 (S, S), or (S, S, 3) in colour, S ≥ 16.
    """
    parts = [
        _of_batch(np.stack(canvases[start : start + _BATCH]))
        for start in range(0, len(canvases), _BATCH)
    ]
    return np.concatenate([np.empty((0, DIM), np.float32), *parts])


def _of_batch(canvases: NDArray[np.uint8]) -> NDArray[np.float32]:
    grey = torch.from_numpy(canvases).float() / 255
    if grey.ndim == 4:
        grey = grey.mean(dim=3)
    centred = grey - image_mean(grey)
    spread = image_mean(centred.square()).sqrt().clamp_min(_LEAST_SPREAD)
    standard = (centred / spread)[:, None]
    layout = interpolate(standard, _LAYOUT, mode="area").flatten(1) / _LAYOUT[0]
    found: NDArray[np.float32] = torch.cat([layout, _spectrum(standard)], dim=1).numpy()
    return found


def _spectrum(standard: Tensor) -> Tensor:
    waves = torch.fft.fftshift(torch.fft.rfft2(standard, norm="ortho"), dim=2)
    power = adaptive_avg_pool2d(waves.abs().square(), _SPECTRUM).flatten(1)
    amplitude = (power + _LEAST_POWER).log() / 2
    return _LOGARITHM * (amplitude - amplitude.mean(dim=1, keepdim=True))
