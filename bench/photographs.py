"""Crops of photographs, which show the detector "exposure" what else there is in the world.

Any folder of photographs serves that no benchmark asks about. Those of Debian's packages
lomiri-wallpapers-16.04, lomiri-wallpapers-20.04 and mate-backgrounds (CC BY, CC BY-SA, GPL-2+ and
Expat by picture) were used: ``apt-get download`` and ``dpkg-deb -x`` bring them. The gate keeps
features of the crops, not the pictures.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

__all__ = ["photograph_crops"]

_OF_EACH = 10
_SIDE = 900
_ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}


def photograph_crops(folder: Path, seed: int) -> list[NDArray[np.uint8]]:
    """Ten crops of each photograph below ``folder``, in grey; uint8 (H, W).

    Raises:
        SystemExit: there is none.
    """
    rng = np.random.default_rng(seed)
    crops: list[NDArray[np.uint8]] = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in _ENDINGS or not path.is_file():
            continue
        try:
            with Image.open(path) as shown:
                shown.thumbnail((_SIDE, _SIDE))
                pixels = np.asarray(shown.convert("L"))
        except (OSError, UnidentifiedImageError):
            continue
        crops += [_crop(pixels, rng) for _ in range(_OF_EACH)]
    if not crops:
        raise SystemExit(f"{folder} has no photograph; name a folder of JPEG, PNG or WebP files")
    return crops


def _crop(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    height, width = pixels.shape
    side = rng.uniform(0.25, 1) * min(height, width)
    h, w = round(side), min(width, round(side * rng.uniform(0.7, 1.5)))
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    return pixels[top : top + h, left : left + w].copy()
