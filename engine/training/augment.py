"""Other people's scanners: random windows, polarity, geometry, resolution, noise.

Whole batches at once on tensors, so that it costs little beside the network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["AugmentConfig", "augment"]

_Uniform = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Strength of each group; 0 switches it off.

    narrow: probability of a window that starts at a random quantile (up to 0.6) of the
        grey values and ends at another (from 0.95): grey backgrounds become black, as
        other archives show them.
    window: share by which the grey window is cut or widened at each end.
    gamma: exponent drawn from [1/(1+gamma), 1+gamma], log-uniformly.
    invert: probability that the polarity is reversed.
    rotate: degrees, either way. scale: share, either way. shift: share of the side.
    flip: probability of a left-right flip. Off by default: it changes laterality.
    coarsen: probability of a lower resolution (down to a third), or a blur with it.
    noise: largest standard deviation of added noise, in grey values of [0, 1].
    border: probability of a black margin on some sides.
    """

    narrow: float = 0.5
    window: float = 0.25
    gamma: float = 0.8
    invert: float = 0.1
    rotate: float = 15.0
    scale: float = 0.25
    shift: float = 0.1
    flip: float = 0.0
    coarsen: float = 0.3
    noise: float = 0.06
    border: float = 0.15


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

    x = _move(images.float(), config, uniform)
    x = torch.where(chosen(config.coarsen), _coarsen(x, float(uniform(0.33, 0.8)[0])), x)
    x = torch.where(chosen(config.narrow), _narrow(x, uniform), x)
    low = uniform(-config.window, config.window)
    high = 1 + uniform(-config.window, config.window)
    x = ((x - low) / (high - low).clamp_min(0.1)).clamp(0, 1)
    spread = torch.tensor(1 + config.gamma).log().item()
    x = x.clamp_min(1e-4) ** uniform(-spread, spread).exp()
    x = torch.where(chosen(config.invert), 1 - x, x)
    noise = torch.randn(x.shape, generator=generator)
    x = (x + noise * uniform(0, config.noise)).clamp(0, 1)
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

    low, high = quantile(uniform(0, 0.6, 1)), quantile(uniform(0.95, 1, 1))
    return ((x - low) / (high - low).clamp_min(0.05)).clamp(0, 1)


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
