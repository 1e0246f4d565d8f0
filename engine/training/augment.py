"""Augmentation: random changes of images, as other scanners and archives would show them.

Changes window, polarity, geometry, resolution and noise. Works on whole batches of tensors, so it
takes little time beside the network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["AugmentConfig", "augment"]

_Uniform = Callable[..., Tensor]
_TONE_PIECES = 6
_SMALL = (0.33, 0.45, 0.55, 0.67)


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Strength of each group; 0 switches it off.

    narrow: probability of a window that starts at a random quantile (up to 0.6) of the grey values
        and ends at another (from 0.75), so that grey backgrounds become black and bright tissue
        white, as in other archives.
    tone: probability of a random rising tone curve, as from lookup tables and other detectors.
    shade: probability of a smooth change of brightness over the image, as from MR coils.
    window: largest share by which the grey window is cut or widened at each end.
    gamma: exponent drawn from [1/(1+gamma), 1+gamma], log-uniformly.
    invert: probability that the polarity is reversed.
    rotate: largest rotation in degrees. scale: largest change of size, as a share. shift: largest
        shift, as a share of the side.
    flip: probability of a left-right flip; 0 by default, as it changes laterality.
    coarsen: probability of a lower resolution (down to a third), or a blur with it.
    noise: largest standard deviation of added noise, in grey values of [0, 1].
    border: probability of a black margin on some sides.
    marker: probability of a small bright block near an edge, as letters and rulers are.
    small: probability that an image has few pixels from the start, a third to two thirds of the
        side, as collections of thumbnails have: unlike with coarsen, each image its own number.
    """

    narrow: float = 0.4
    tone: float = 0.3
    shade: float = 0.2
    window: float = 0.25
    gamma: float = 0.8
    invert: float = 0.1
    rotate: float = 15.0
    scale: float = 0.3
    shift: float = 0.1
    flip: float = 0.0
    coarsen: float = 0.3
    noise: float = 0.05
    border: float = 0.15
    marker: float = 0.2
    small: float = 0.0


def augment(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """A random view of each image.

    Args:
        images: float (N, C, H, W) in [0, 1].
        generator: the only source of randomness.

    Returns:
        float32 of the same shape, in [0, 1].
    """
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        draw = torch.rand(n, *(shape or (1, 1, 1)), generator=generator)
        return low + (high - low) * draw

    def chosen(probability: float) -> Tensor:
        return uniform(0, 1) < probability

    x = images.float()
    if config.small:  # without it no number is drawn, and seeded views stay as they were
        x = torch.where(chosen(config.small), _reduced(x, uniform), x)
    x = _move(x, config, uniform)
    x = torch.where(chosen(config.coarsen), _coarsen(x, float(uniform(0.33, 0.8)[0])), x)
    x = torch.where(chosen(config.narrow), _narrow(x, uniform), x)
    x = torch.where(chosen(config.tone), _tone(x, uniform), x)
    x = torch.where(chosen(config.shade), _shade(x, uniform), x)
    low = uniform(-config.window, config.window)
    high = 1 + uniform(-config.window, config.window)
    x = ((x - low) / (high - low).clamp_min(0.1)).clamp(0, 1)
    spread = torch.tensor(1 + config.gamma).log().item()
    x = x.clamp_min(1e-4) ** uniform(-spread, spread).exp()
    x = torch.where(chosen(config.invert), 1 - x, x)
    noise = torch.randn(x.shape, generator=generator)
    x = (x + noise * uniform(0, config.noise)).clamp(0, 1)
    x = torch.where(chosen(config.marker), _mark(x, uniform), x)
    return torch.where(chosen(config.border), _border(x, uniform), x)


def _move(x: Tensor, config: AugmentConfig, uniform: _Uniform) -> Tensor:
    angle = uniform(-config.rotate, config.rotate, 1)[:, 0] * (pi / 180)
    zoom = 1 / (1 + uniform(-config.scale, config.scale, 1)[:, 0])
    aspect = 1 + uniform(-config.scale, config.scale, 1)[:, 0] / 3
    mirror = torch.where(uniform(0, 1, 1)[:, 0] < config.flip, -1.0, 1.0)
    shift = uniform(-2 * config.shift, 2 * config.shift, 2)
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([zoom * aspect * cos * mirror, -zoom * sin, shift[:, 0]], dim=1),
            torch.stack([zoom * aspect * sin * mirror, zoom * cos, shift[:, 1]], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _narrow(x: Tensor, uniform: _Uniform) -> Tensor:
    values = x.flatten(1)[:, ::7].sort(dim=1).values
    last = values.shape[1] - 1

    def quantile(share: Tensor) -> Tensor:
        return values.gather(1, (share * last).long())[:, :, None, None]

    # Squared, so that most windows saturate little.
    low, high = quantile(uniform(0, 0.6, 1)), quantile(1 - 0.25 * uniform(0, 1, 1) ** 2)
    return ((x - low) / (high - low).clamp_min(0.05)).clamp(0, 1)


def _tone(x: Tensor, uniform: _Uniform) -> Tensor:
    """Applies a rising tone curve of straight pieces between 0 and 1."""
    steps = uniform(0.05, 1, _TONE_PIECES) ** 2
    ends = steps.cumsum(dim=1) / steps.sum(dim=1, keepdim=True)
    knots = torch.cat([torch.zeros(len(x), 1), ends], dim=1)
    place = x.flatten(1) * _TONE_PIECES
    piece = place.long().clamp(max=_TONE_PIECES - 1)
    left, right = knots.gather(1, piece), knots.gather(1, piece + 1)
    return (left + (right - left) * (place - piece)).view_as(x)


def _shade(x: Tensor, uniform: _Uniform) -> Tensor:
    field = uniform(0.4, 1.3, 1, 3, 3)
    smooth = F.interpolate(field, size=x.shape[-2:], mode="bicubic", align_corners=True)
    return (x * smooth).clamp(0, 1)


def _mark(x: Tensor, uniform: _Uniform) -> Tensor:
    height, width = x.shape[-2:]
    rows = ((torch.arange(height) + 0.5) / height)[None, :, None]
    columns = ((torch.arange(width) + 0.5) / width)[None, None, :]
    # Somewhere within a sixth of an edge: one coordinate near it, the other anywhere.
    near, along = uniform(0, 1 / 6, 1, 1), uniform(0, 1, 1, 1)
    near = torch.where(uniform(0, 1, 1, 1) < 0.5, near, 1 - near)
    upright = uniform(0, 1, 1, 1) < 0.5
    y, x_place = torch.where(upright, along, near), torch.where(upright, near, along)
    half = uniform(0.01, 0.06, 2)[:, :, None, None]
    inside = ((rows - y).abs() < half[:, 0]) & ((columns - x_place).abs() < half[:, 1])
    return torch.where(inside[:, None], uniform(0.6, 1), x)


def _reduced(x: Tensor, uniform: _Uniform) -> Tensor:
    """Each image at one of a few numbers of pixels, enlarged again."""
    drawn = torch.bucketize(uniform(0, 1)[:, 0, 0, 0], torch.arange(1, len(_SMALL)) / len(_SMALL))
    reduced = x.clone()
    for number, factor in enumerate(_SMALL):
        if (of_these := drawn == number).any():
            reduced[of_these] = _coarsen(x[of_these], factor)
    return reduced


def _coarsen(x: Tensor, factor: float) -> Tensor:
    side = x.shape[-1]
    small = F.interpolate(x, size=max(8, round(side * factor)), mode="area")
    return F.interpolate(small, size=side, mode="bilinear", align_corners=False)


def _border(x: Tensor, uniform: _Uniform) -> Tensor:
    height, width = x.shape[-2:]
    margins = uniform(0, 0.2, 4)
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    keep_rows = (rows > margins[:, :1]) & (rows < 1 - margins[:, 1:2])
    keep_columns = (columns > margins[:, 2:3]) & (columns < 1 - margins[:, 3:])
    return x * (keep_rows[:, None, :, None] & keep_columns[:, None, None, :])
