"""Taps: two intermediate maps of any image tower that open_clip can build."""

from typing import Any, cast

import open_clip
import timm
import torch
from torch import Tensor, nn

from engine.errors import ModelError
from engine.model.config import TowerConfig

__all__ = ["TappedTower"]

_TIMM = "timm:"
# open_clip builds image and text towers together; this text tower is thrown away at once.
_NO_TEXT = open_clip.CLIPTextCfg(context_length=2, vocab_size=2, width=8, heads=1, layers=1)


class TappedTower(nn.Module):
    """An image tower that answers with a shallow and a deep map.

    Args:
        config: which tower, and which two of its intermediates.
        image_size: side S of the square input, in pixels.
        pretrained: an open_clip pretrained tag or a local checkpoint file for a named
            open_clip tower; None = random weights.

    Attributes:
        shapes: ((C_s, H_s, W_s), (C_d, H_d, W_d)) for an input of image_size.

    Raises:
        ModelError: open_clip cannot build the tower, or it has no such intermediates.
    """

    def __init__(self, config: TowerConfig, image_size: int, pretrained: str | None = None) -> None:
        super().__init__()
        self.taps = list(config.taps)
        self.tower = _build(config, image_size, pretrained)
        self.shapes = self._probe(config, image_size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shallow (N, C_s, H_s, W_s) and deep (N, C_d, H_d, W_d) maps of x (N, 3, S, S)."""
        tower: Any = self.tower  # open_clip's towers share the method, not a type
        out = tower.forward_intermediates(
            x, indices=self.taps, stop_early=True, intermediates_only=True, output_fmt="NCHW"
        )
        shallow, deep = out["image_intermediates"]
        return shallow, deep

    @torch.no_grad()
    def _probe(
        self, config: TowerConfig, image_size: int
    ) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        training = self.training
        self.eval()
        try:
            shallow, deep = self(torch.zeros(1, 3, image_size, image_size))
        except (AssertionError, IndexError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"tower {config.name!r} gives no taps {config.taps} at {image_size} pixels "
                f"({error}); choose two of its intermediates and a size that it accepts"
            ) from None
        finally:
            self.train(training)
        return tuple(shallow.shape[1:]), tuple(deep.shape[1:])


def _build(config: TowerConfig, image_size: int, pretrained: str | None) -> nn.Module:
    if config.name.startswith(_TIMM):
        name = config.name.removeprefix(_TIMM)
        if not timm.is_model(name):
            raise ModelError(f"timm has no model {name!r}; timm.list_models() names them all")
        if pretrained is not None:
            raise ModelError(
                f"pretrained weights {pretrained!r} go with an open_clip tower, "
                f"not with {config.name!r}"
            )
        vision: dict[str, Any] = {
            "timm_model_name": name,
            "timm_pool": "avg",
            "timm_proj": "linear",
        }
        embed_dim = 16
    else:
        known = open_clip.get_model_config(config.name)
        if known is None:
            raise ModelError(
                f"open_clip has no model {config.name!r}; open_clip.list_models() names "
                "them all, and 'timm:NAME' takes any timm model"
            )
        if pretrained is not None:
            clip = open_clip.create_model(
                config.name, pretrained=pretrained, force_image_size=image_size
            )
            return cast(nn.Module, clip.visual)
        vision, embed_dim = known["vision_cfg"], known["embed_dim"]
    vision = {**vision, **config.vision, "image_size": image_size, "timm_model_pretrained": False}
    try:
        clip = open_clip.CLIP(embed_dim, open_clip.CLIPVisionCfg(**vision), _NO_TEXT)
    except (TypeError, ValueError, AssertionError) as error:
        raise ModelError(
            f"tower {config.name!r} cannot be built with vision={config.vision} ({error}); "
            "use fields of open_clip's CLIPVisionCfg"
        ) from None
    return cast(nn.Module, clip.visual)
