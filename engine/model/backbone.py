"""The image tower: any that open_clip can build, with two intermediate feature maps ("taps")."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import open_clip
import timm
import torch
from open_clip.model import resize_pos_embed
from torch import Tensor, nn

from engine.errors import ModelError
from engine.model.config import TowerConfig

__all__ = ["DESCRIBED", "HUB", "TIMM", "TappedTower", "read_weights", "tower_statistics"]

HUB = "hub"
"""Value of ``pretrained`` that stands for the weights that timm publishes for the tower."""

_T = TypeVar("_T")
TIMM = "timm:"
"""Begins the name of a tower that is a timm model."""
DESCRIBED = "clip"
"""Name of a tower that its ``vision`` describes by itself: fields of open_clip's CLIPVisionCfg, and
embed_dim and quick_gelu of the model."""
_REPOSITORY = "hf-hub:"
# A file with less than this share of the tower's values belongs to another tower. Members of a
# family, such as ResNet-18 to ResNet-152, share half of their values by name and shape, or more.
_LEAST_SHARE = 0.75
_Statistics = tuple[float, float, float]
# open_clip builds image and text towers together; this smallest text tower is discarded at once.
_NO_TEXT = open_clip.CLIPTextCfg(context_length=2, vocab_size=2, width=8, heads=1, layers=1)


class TappedTower(nn.Module):
    """An image tower that returns a shallow and a deep feature map.

    Args:
        config: which tower, and which two of its intermediate maps.
        image_size: side S of the square input, in pixels.
        pretrained: where the weights come from: a file with the weights of the tower or of a model
            that contains it (safetensors, or tensors saved by PyTorch); a tag of open_clip for
            the tower; :data:`HUB` for a timm tower; "hf-hub:OWNER/NAME", a repository that the
            user may read; None = random weights.

    Attributes:
        shapes: ((C_s, H_s, W_s), (C_d, H_d, W_d)) for an input of image_size.
        missing: names of tensors that the maps depend on and that ``pretrained`` lacks; they start
            at random.

    Raises:
        ModelError: open_clip cannot build the tower, the tower has no such intermediate maps, or
            ``pretrained`` cannot be read or fetched or belongs to another tower.
    """

    def __init__(self, config: TowerConfig, image_size: int, pretrained: str | None = None) -> None:
        super().__init__()
        self.taps = list(config.taps)
        self.tower, lacking = _build(config, image_size, pretrained)
        self.shapes = self._probe(config, image_size)
        self.missing = self._needed(lacking, image_size) if lacking else ()

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

    def _needed(self, lacking: tuple[str, ...], image_size: int) -> tuple[str, ...]:
        """Those of the trunk's tensors that the maps depend on.

        A head, a last norm or a counter of batches that a file lacks is no loss.
        """
        trunk = _trunk(self.tower)
        training = self.training
        self.eval()
        with torch.enable_grad():
            shallow, deep = self(torch.zeros(1, 3, image_size, image_size))
            (shallow.sum() + deep.sum()).backward()
        self.train(training)
        modules = {
            name.rpartition(".")[0]
            for name, value in trunk.named_parameters()
            if value.grad is not None
        }
        self.zero_grad(set_to_none=True)
        values = trunk.state_dict()
        return tuple(
            name
            for name in lacking
            if name.rpartition(".")[0] in modules and values[name].is_floating_point()
        )


def tower_statistics(
    config: TowerConfig, pretrained: str | None = None
) -> tuple[_Statistics, _Statistics]:
    """Mean and standard deviation of the tower's training images: RGB, of values in [0, 1].

    For weights from a file, those that open_clip or timm declare for the tower, if all its
    published weights agree; otherwise those of OpenAI's CLIP.

    Raises:
        ModelError: there is no such tower.
    """
    vision, _, _ = _architecture(config)
    declared: set[tuple[Any, Any]]
    if config.name.startswith(TIMM) or (pretrained == HUB and vision.get("timm_model_name")):
        published = timm.get_pretrained_cfg(vision["timm_model_name"])
        declared = {(published.mean, published.std)} if published else set()
    else:
        named = open_clip.get_pretrained_cfg(config.name, pretrained or "")
        tags = open_clip.list_pretrained_tags_by_model(config.name)
        known = [named] if named else [open_clip.get_pretrained_cfg(config.name, t) for t in tags]
        declared = {(tuple(one["mean"]), tuple(one["std"])) for one in known}
    if len(declared) != 1:
        return open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    ((mean, std),) = declared
    return mean, std


def _architecture(config: TowerConfig) -> tuple[dict[str, Any], int, bool]:
    """open_clip's vision configuration of the tower, embedding size, and if it has QuickGELU."""
    if config.name.startswith(TIMM):
        name = config.name.removeprefix(TIMM)
        if not timm.is_model(name):
            raise ModelError(f"timm has no model {name!r}; timm.list_models() names them all")
        made_by_timm = {"timm_model_name": name, "timm_pool": "avg", "timm_proj": "linear"}
        return {**made_by_timm, **config.vision}, 16, False
    if config.name == DESCRIBED:
        if not config.vision:
            raise ModelError(
                f"tower {DESCRIBED!r} is described by the folder of a CLIP model; give that folder"
            )
        told = dict(config.vision)
        return told, told.pop("embed_dim", 16), told.pop("quick_gelu", False)
    # get_model_config would look for other names in the network and in folders.
    if config.name not in open_clip.list_models():
        raise ModelError(
            f"open_clip has no model {config.name!r}; open_clip.list_models() names "
            "them all, and 'timm:NAME' takes any timm model"
        )
    known = open_clip.get_model_config(config.name)
    vision = {**known["vision_cfg"], **config.vision}
    return vision, known["embed_dim"], known.get("quick_gelu", False)


def _build(
    config: TowerConfig, image_size: int, pretrained: str | None
) -> tuple[nn.Module, tuple[str, ...]]:
    """The tower, and the names of its tensors that ``pretrained`` lacks."""
    vision, embed_dim, quick_gelu = _architecture(config)
    vision = {**vision, "image_size": image_size, "timm_model_pretrained": False}
    try:
        clip = open_clip.CLIP(
            embed_dim, open_clip.CLIPVisionCfg(**vision), _NO_TEXT, quick_gelu=quick_gelu
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise ModelError(
            f"tower {config.name!r} cannot be built with vision={config.vision} ({error}); "
            "use fields of open_clip's CLIPVisionCfg"
        ) from None
    lacking: tuple[str, ...] = ()
    if pretrained is not None:
        weights = _published(config, vision, quick_gelu, pretrained)
        lacking = _take_over(clip, weights, config.name, pretrained)
    return cast(nn.Module, clip.visual), lacking


def _trunk(visual: nn.Module) -> nn.Module:
    """The tower without the modules that open_clip wraps around a timm model, which are in no file
    of timm's."""
    return cast(nn.Module, getattr(visual, "trunk", visual))


def _published(
    config: TowerConfig, vision: dict[str, Any], quick_gelu: bool, pretrained: str
) -> dict[str, Tensor]:
    """The tensors of ``pretrained``, under the names that they have there."""
    timm_name = vision.get("timm_model_name")
    if pretrained == HUB and timm_name:
        return _fetched(
            f"timm's weights of {timm_name!r}",
            lambda: timm.create_model(timm_name, pretrained=True).state_dict(),
        )
    if pretrained.startswith(_REPOSITORY):
        repository = pretrained.removeprefix(_REPOSITORY)
        if timm_name:
            return _fetched(
                pretrained,
                lambda: timm.models.load_state_dict_from_hf(repository, weights_only=True),
            )
        tag = {"hf_hub": f"{repository}/"}
    else:
        tag = open_clip.get_pretrained_cfg(config.name, pretrained)
        if tag and not timm_name and isinstance(vision["layers"], int):
            _check_activation(config.name, quick_gelu, pretrained, tag)
    if tag:
        return read_weights(Path(_fetched(pretrained, lambda: open_clip.download_pretrained(tag))))
    if not Path(pretrained).is_file():
        tags = [HUB] if timm_name else open_clip.list_pretrained_tags_by_model(config.name)
        others = f", or one of {', '.join(tags)}" if tags else ""
        raise ModelError(
            f"pretrained is {pretrained!r}, which is no file; for tower {config.name!r} give a "
            f"file of weights, {_REPOSITORY}OWNER/NAME{others}"
        )
    return read_weights(Path(pretrained))


def _check_activation(name: str, quick_gelu: bool, pretrained: str, tag: Mapping[str, Any]) -> None:
    """Raises ModelError if the tag was trained with another activation than the tower has.

    An activation has no weights, so no other check would find it.
    """
    if tag.get("quick_gelu", False) != quick_gelu:
        plain = name.removesuffix("-quickgelu")
        raise ModelError(
            f"{pretrained!r} was trained with another activation than tower {name!r} has; "
            f"use tower {plain if quick_gelu else plain + '-quickgelu'!r}"
        )


def _fetched(what: str, fetch: Callable[[], _T]) -> _T:
    try:
        return fetch()
    except Exception as error:  # of the hub's client, the HTTP client or the file system
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"{what} cannot be fetched ({type(error).__name__}: {reason}); without network or "
            "access, get the file by other means and give its path"
        ) from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights, by name.

    Raises:
        ModelError: it cannot be read as such.
    """
    try:
        # Also finds the state dict in a training checkpoint; only tensors are ever unpickled.
        found = timm.models.load_state_dict(str(path), weights_only=True)
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}
    except Exception as error:  # what a damaged file provokes depends on its bytes
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"{path} cannot be read as weights ({type(error).__name__}: {reason}); give a "
            ".safetensors file, or a state dict of tensors saved by PyTorch"
        ) from None


def _take_over(
    clip: Any, found: Mapping[str, Tensor], name: str, pretrained: str
) -> tuple[str, ...]:
    """Loads the tensors that belong to the tower, and returns the names of those that are missing.

    Raises:
        ModelError: they are less than three quarters of the tower's values.
    """
    tower = _trunk(clip.visual)
    own = tower.state_dict()
    named = _by_own_names(own, found)
    if (position := named.get("positional_embedding")) is not None:
        resized = {"visual.positional_embedding": position.float()}
        with suppress(RuntimeError):  # of a grid that is no square
            resize_pos_embed(resized, clip)
        named["positional_embedding"] = resized["visual.positional_embedding"]
    fitting = {name: value for name, value in named.items() if value.shape == own[name].shape}
    values = sum(value.numel() for value in fitting.values())
    share = values / sum(value.numel() for value in own.values())
    if share < _LEAST_SHARE:
        raise ModelError(
            f"{pretrained!r} is not of tower {name!r}: only {len(fitting)} of the tower's "
            f"{len(own)} tensors are in it with that shape, {share:.0%} of the values; name the "
            "tower that these weights are of"
        )
    tower.load_state_dict(fitting, strict=False)
    return tuple(name for name in own if name not in fitting)


def _by_own_names(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of ``found`` under the names of ``own``, their common prefix removed.

    The tower of a file may be called ``visual``, ``module.visual.trunk`` or anything else. The
    prefix under which most tensors fit in name and shape is taken.
    """
    prefixes = {name.removesuffix(mine) for mine in own for name in found if name.endswith(mine)}

    def fitting(prefix: str) -> int:
        return sum(
            value.shape == found[prefix + name].shape
            for name, value in own.items()
            if prefix + name in found
        )

    best = max(sorted(prefixes), key=fitting, default="")
    return {name: found[best + name] for name in own if best + name in found}
