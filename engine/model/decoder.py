"""The decoder: rebuilds a small grey image from the tower's deep map, for OOD detection.

It is trained on known images only, with a narrow bottleneck, so its error on foreign images is
larger. Source: Nan et al., Medical Image Analysis 2025, 103553. Two things are added to it: the
error is measured on the image's own area only, and compared with that of the image's coarse layout.
"""

import hashlib
import json
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from engine.errors import ModelError
from engine.files import write_atomically
from engine.model.config import from_dict, to_dict
from engine.model.invariance import image_mean

__all__ = [
    "DECODER",
    "FORMAT",
    "Decoder",
    "DecoderSize",
    "ReconstructionScores",
    "load_decoder",
    "reconstruction_scores",
    "reconstruction_target",
    "save_decoder",
]

DECODER = "decoder.safetensors"
FORMAT = "1"
_BLACK = 0.02  # of a grey range of 1: what JPEG leaves of black is black
_CONTRAST = 1e-3  # an image with less standard deviation than this shows nothing
_LAYOUT = 2
_LAYOUT_SLACK = 0.05  # no image is easier than this


@dataclass(frozen=True, slots=True)
class DecoderSize:
    """Widths of the decoder.

    bottleneck: channels to which the deep map is reduced. With fewer, a rebuilt image depends less
        on the image and more on what known images have in common.
    width: channels at the map's own size; halved with each doubling of the side, down to 16.
    resolution: side of the rebuilt image, in pixels. Finer detail is rebuilt only by chance, even
        in known images.
    """

    bottleneck: int = 8
    width: int = 64
    resolution: int = 16

    def __post_init__(self) -> None:
        if self.bottleneck < 1 or self.width < 1:
            raise ModelError(
                f"the decoder has bottleneck {self.bottleneck} and width {self.width}; "
                "use at least 1 channel each"
            )
        if self.resolution < 8:
            raise ModelError(
                f"the decoder's resolution is {self.resolution}; use at least 8 pixels"
            )


class Decoder(nn.Module):
    """Deep map → image, by interpolation and convolution.

    Args:
        deep: (C_d, H_d, W_d) of the tower's deep map.
        size: all widths.

    Attributes:
        fingerprint: 16 hex digits of a hash of the stored weights; None before they are stored.
            Scores of decoders with different fingerprints cannot be compared.
        made: how it was trained: ``training`` of :func:`save_decoder`.
    """

    def __init__(self, deep: tuple[int, int, int], size: DecoderSize) -> None:
        super().__init__()
        self.fingerprint: str | None = None
        self.made: dict[str, Any] = {}
        self.deep, self.size = tuple(deep), size
        self.bottleneck = nn.Sequential(
            nn.Conv2d(deep[0], size.bottleneck, 1), nn.GroupNorm(1, size.bottleneck)
        )
        self.enter = nn.Conv2d(size.bottleneck, size.width, 3, padding=1)
        # Halved from the target's side, so that maps of any size end exactly there.
        self.sides = [size.resolution]
        while (half := (self.sides[0] + 1) // 2) > max(deep[1:]):
            self.sides.insert(0, half)
        self.stages = nn.ModuleList()
        channels = size.width
        for i in range(len(self.sides)):
            wide = channels if i == 0 else max(min(16, channels), channels // 2)
            self.stages.append(_norm_conv(channels, wide))
            channels = wide
        self.leave = _norm_conv(channels, 1)

    def forward(self, deep: Tensor) -> Tensor:
        """Float (N, 1, R, R), standardised grey values, of maps (N, C_d, H_d, W_d)."""
        x = self.enter(self.bottleneck(deep))
        for side, stage in zip(self.sides, self.stages, strict=True):
            enlarged = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
            x = stage(enlarged)
        image: Tensor = self.leave(x)
        return image


def _norm_conv(channels: int, out: int) -> nn.Module:
    # GroupNorm, as it looks at one image alone: BatchNorm would mix known images' statistics.
    return nn.Sequential(
        nn.GroupNorm(gcd(8, channels), channels),
        nn.GELU(),
        nn.Conv2d(channels, out, 3, padding=1),
    )


class ReconstructionScores(NamedTuple):
    """Reconstruction errors of N images; float32 (N,) each, higher = worse.

    squared: mean squared error over the image's own area, in units of its variance there.
    pearson: 1 − Pearson's r over that area, in [0, 2]; 1 for an image without contrast.
    relative: ``pearson`` divided by the same error of the image's own 2 × 2 means, in [0, 40]. So
        an error counts for less in an image that is hard to rebuild in any case (input complexity,
        Serrà et al., ICLR 2020).
    """

    squared: Tensor
    pearson: Tensor
    relative: Tensor


def reconstruction_target(images: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """The image that the decoder is trained to rebuild, and the weight of each of its cells.

    An image's own area is the smallest upright rectangle around everything in it that is not black.
    Outside is the padding to a square, which any decoder rebuilds well; counting it would hide the
    error of the rest.

    Args:
        images: float (N, 1 or 3, S, S) in [0, 1], as the network sees them.
        resolution: side R of the target.

    Returns:
        Grey area means, standardised over the own area (zero outside, and everywhere in an image
        without contrast), since the deep map of a standardised input has no brightness; and the
        share of each cell that lies in the own area, in [0, 1]. Both float32 (N, 1, R, R).
    """
    grey = images.float().mean(dim=1, keepdim=True)
    own = _own_area(grey)
    weight = F.interpolate(own, size=(resolution, resolution), mode="area")
    means = F.interpolate(grey * own, size=(resolution, resolution), mode="area")
    return _standardise(means / weight.clamp_min(1e-6), weight), weight


def reconstruction_scores(images: Tensor, rebuilt: Tensor) -> ReconstructionScores:
    """The reconstruction errors of images.

    Args:
        images: float (N, 1 or 3, S, S) in [0, 1].
        rebuilt: float (N, 1, R, R), the decoder's output for them.
    """
    rebuilt = rebuilt.float()
    target, weight = reconstruction_target(images, rebuilt.shape[-1])
    squared = _mean((rebuilt - target) ** 2, weight)[:, 0, 0, 0]
    pearson = _one_minus_pearson(target, rebuilt, weight)
    easy = _one_minus_pearson(target, _layout(target, weight), weight)
    return ReconstructionScores(squared, pearson, pearson / (easy + _LAYOUT_SLACK))


def _own_area(grey: Tensor) -> Tensor:
    """1 inside the own area, else 0; float32 (N, 1, S, S). All of a black image is its own area."""
    lit = grey > _BLACK
    rows, columns = _span(lit.any(dim=3)), _span(lit.any(dim=2))
    own = rows[..., :, None] & columns[..., None, :]
    return (own | ~lit.any(dim=(2, 3), keepdim=True)).float()


def _span(lit: Tensor) -> Tensor:
    """True from the first to the last True, bool (…, S) → (…, S)."""
    seen = lit.cumsum(dim=-1) > 0
    to_come = lit.flip(-1).cumsum(dim=-1).flip(-1) > 0
    return seen & to_come


def _mean(x: Tensor, weight: Tensor) -> Tensor:
    share = 1e-6 / weight[0].numel()
    return image_mean(x * weight) / image_mean(weight).clamp_min(share)


def _standardise(x: Tensor, weight: Tensor) -> Tensor:
    """Zero mean and unit deviation where there is weight; zero elsewhere and without contrast."""
    centred = (x - _mean(x, weight)) * (weight > 0)
    deviation = _mean(centred**2, weight).sqrt()
    return torch.where(deviation < _CONTRAST, 0.0, centred / deviation.clamp_min(_CONTRAST))


def _layout(x: Tensor, weight: Tensor) -> Tensor:
    """2 × 2 weighted means, enlarged to the size of x."""
    sums, share = (
        F.interpolate(y, size=(_LAYOUT, _LAYOUT), mode="area") for y in (x * weight, weight)
    )
    means = sums / share.clamp_min(1e-6)
    return F.interpolate(means, size=x.shape[-2:], mode="bilinear", align_corners=False)


def _one_minus_pearson(target: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    r = _mean(_standardise(target, weight) * _standardise(other, weight), weight)
    return 1 - r[:, 0, 0, 0].clamp(-1, 1)


def save_decoder(
    directory: Path,
    decoder: Decoder,
    model: str,
    training: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Writes the decoder into a checkpoint folder.

    Args:
        model: fingerprint of the model whose deep map it takes; it is loaded for no other.
        training: how it was trained, for people to read.
        dtype: number format of the stored weights.
    """
    tensors = {
        name: value.detach().to(dtype).contiguous().cpu()
        for name, value in decoder.state_dict().items()
    }
    size, deep = json.dumps(to_dict(decoder.size)), json.dumps(decoder.deep)
    digest = _digest(tensors, model, size, deep)
    metadata = {
        "format": FORMAT,
        "model": model,
        "size": size,
        "deep": deep,
        "sha256": digest,
        "training": json.dumps(training),
    }
    write_atomically(directory / DECODER, save_tensors(tensors, metadata=metadata))


def load_decoder(directory: Path, model: str) -> Decoder | None:
    """The decoder of a checkpoint folder, in evaluation mode; None if the folder has none.

    Args:
        model: fingerprint of the model that it must have been trained for.

    Raises:
        ModelError: the file is damaged, or belongs to another model.
    """
    path = directory / DECODER
    if not path.is_file():
        return None
    way_out = "train the decoder again, or delete the file to do without its verdict"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["format"] != FORMAT:
            raise ModelError(
                f"{path} has format {metadata['format']}, this version reads {FORMAT}; "
                f"update precedent, or {way_out}"
            )
        bound_to, size, deep = metadata["model"], metadata["size"], metadata["deep"]
        digest = _digest(tensors, bound_to, size, deep)
        if digest != metadata["sha256"]:
            raise ModelError(f"{path} is damaged (its sha256 is {digest[:12]}…); {way_out}")
        if bound_to != model:
            raise ModelError(f"{path} was made for model {bound_to}, not {model}; {way_out}")
        decoder = Decoder(tuple(json.loads(deep)), from_dict(DecoderSize, json.loads(size)))
        decoder.load_state_dict({name: value.float() for name, value in tensors.items()})
        decoder.made = json.loads(metadata["training"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} is damaged ({error}); {way_out}") from None
    decoder.fingerprint = digest[:16]
    return decoder.eval()


def _digest(tensors: dict[str, Tensor], *words: str) -> str:
    """SHA-256, hex, of everything that the decoder's output depends on."""
    running = hashlib.sha256(repr((FORMAT, words)).encode())
    for name in sorted(tensors):
        value = tensors[name]
        running.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        running.update(value.contiguous().numpy().tobytes())
    return running.hexdigest()
