"""What our reader makes of a file, as called in a process of its own: without a neural network."""

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.errors import ImageRefused
from engine.model.preprocess import Preprocess
from engine.settings import ImageLimits, ZipLimits
from indexer.imaging.frames import FramePolicy
from indexer.imaging.prepare import ReadTask, prepare
from indexer.imaging.read import read_image

__all__ = ["our_proportions", "ours"]

_FIRST_FRAME = FramePolicy("nth", limit=1, every=10**9)
_KEY = b"conformance"
_THUMBNAIL_SIDE = 256


def ours(path: Path) -> NDArray[np.uint8] | str:
    """Our picture of the first frame, uint8 (H, W) or (H, W, 3); or why it is refused."""
    try:
        instance = read_image(
            path, ImageLimits(), frames_per_instance=_FIRST_FRAME, pseudonym_key=_KEY
        )
    except ImageRefused as refused:
        return refused.reason.value
    return instance.frames[0].pixels


def our_proportions(path: Path) -> float | str:
    """Height to width of the first frame's thumbnail; or why the file is refused."""
    task = ReadTask(
        image=path,
        limits=ImageLimits(),
        zip_limits=ZipLimits(),
        frames=_FIRST_FRAME,
        thumbnail_side=_THUMBNAIL_SIDE,
        preprocess=Preprocess(size=64),
        pseudonym_key=_KEY,
    )
    try:
        prepared = prepare(task)
    except ImageRefused as refused:
        return refused.reason.value
    with Image.open(BytesIO(prepared.pictures[0].thumbnail)) as image:
        return image.height / image.width
