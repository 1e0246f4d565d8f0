"""The whole network: image → blended feature, hash logits, class logits."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from engine.model.backbone import TappedTower
from engine.model.config import NetworkConfig
from engine.model.darf import Darf
from engine.model.hashing import HashHead
from engine.model.invariance import image_mean
from engine.model.preprocess import Preprocess

__all__ = ["HashingNetwork", "NetworkOutput"]


class NetworkOutput(NamedTuple):
    """Blended features z (N, D), hash logits h (N, B), and class logits (N, classes) or None."""

    z: Tensor
    h: Tensor
    logits: Tensor | None


class HashingNetwork(nn.Module):
    """Tower → DaRF → hash head and classifier.

    Args:
        config: all widths.
        preprocess: size of the input and how grey values are normalised.
        pretrained: weights of the tower, see :class:`TappedTower`.
    """

    def __init__(
        self, config: NetworkConfig, preprocess: Preprocess, pretrained: str | None = None
    ) -> None:
        super().__init__()
        self.normalise = InputNormalisation(preprocess)
        self.tower = TappedTower(config.tower, preprocess.size, pretrained)
        self.darf = Darf(*self.tower.shapes, config.darf)
        self.head = HashHead(config.darf.dim, config.head)
        self.classifier = nn.Linear(config.head.hidden, config.classes) if config.classes else None

    def forward(self, images: Tensor) -> NetworkOutput:
        """The output for float images (N, 1 or 3, S, S) in [0, 1]."""
        return self.fuse(*self.maps(images))

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Shallow and deep map of float images (N, 1 or 3, S, S) in [0, 1]."""
        shallow, deep = self.tower(self.normalise(images))
        return shallow, deep

    def fuse(self, shallow: Tensor, deep: Tensor) -> NetworkOutput:
        """The output of :meth:`forward`, given the maps that :meth:`maps` returned."""
        z = self.darf(shallow, deep)
        hidden, h = self.head(z)
        logits = None if self.classifier is None else self.classifier(hidden)
        return NetworkOutput(z, h, logits)


class InputNormalisation(nn.Module):
    """Grey values in [0, 1] → what the tower expects, three channels."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.per_image = preprocess.normalise == "standardise"
        for name, value in (("mean", preprocess.mean), ("std", preprocess.std)):
            self.register_buffer(name, torch.tensor(value).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Float (N, 1 or 3, S, S) → (N, 3, S, S)."""
        if self.per_image:
            centred = images - image_mean(images)
            std = image_mean(centred.square()).sqrt()
            # A constant image has no contrast to restore: it becomes zero, not infinite.
            return (centred / std.clamp_min(1e-3)).expand(-1, 3, -1, -1)
        return (images.expand(-1, 3, -1, -1) - self.mean) / self.std
