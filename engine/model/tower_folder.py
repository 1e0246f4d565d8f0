"""The tower of a CLIP model in a folder, as open_clip saves one: its configuration beside its
weights. Models for medicine are published so, under names that open_clip itself does not know."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

from engine.errors import ModelError
from engine.model.backbone import DESCRIBED, TIMM
from engine.model.config import TowerConfig

__all__ = ["TowerFolder", "read_tower_folder"]

_WEIGHTS = (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)


@dataclass(frozen=True, slots=True)
class TowerFolder:
    """What a folder says of a tower.

    name, vision: as of :class:`TowerConfig`. weights: file of the whole model.
    mean, std: of the images that it learned with, RGB, of values in [0, 1]; None = not said.
    """

    name: str
    vision: dict[str, Any]
    weights: Path
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None

    def tower(self, taps: tuple[int, int]) -> TowerConfig:
        return TowerConfig(self.name, self.vision, taps)


def read_tower_folder(folder: Path) -> TowerFolder:
    """The tower of the model in this folder.

    Raises:
        ModelError: it has no configuration of open_clip's kind, or no weights.
    """
    path = folder / HF_CONFIG_NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        model = found["model_cfg"]
        vision, embed_dim = dict(model["vision_cfg"]), int(model["embed_dim"])
        told = found.get("preprocess_cfg") or {}
        mean, std = _three(told.get("mean")), _three(told.get("std"))
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read ({error.strerror}); give a folder as open_clip saves a model, "
            "or the name of a tower"
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"{path} is no configuration of a CLIP model ({type(error).__name__}: {error}); give a "
            "folder as open_clip saves a model"
        ) from None
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise ModelError(f"{folder} has no weights; put {' or '.join(_WEIGHTS)} into it")
    for made_anew in ("image_size", "timm_model_pretrained"):
        vision.pop(made_anew, None)
    if timm_name := vision.pop("timm_model_name", None):
        return TowerFolder(f"{TIMM}{timm_name}", vision, weights, mean, std)
    described = {"embed_dim": embed_dim, "quick_gelu": bool(model.get("quick_gelu", False))}
    return TowerFolder(DESCRIBED, {**described, **vision}, weights, mean, std)


def _three(values: Any) -> tuple[float, float, float] | None:
    if values is None:
        return None
    red, green, blue = (float(one) for one in values)
    return red, green, blue
