"""Reads PNG and JPEG files as display pixels."""

import warnings
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin

from engine.errors import ImageRefused, RefusalReason
from engine.settings import ImageLimits
from indexer.files.limits import check_declared
from indexer.imaging.display import stretch
from indexer.imaging.quiet import hushed

__all__ = ["is_raster", "read_raster"]

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_ORIENTATION = 0x0112
# EXIF 2.32, 4.6.5.A: the transposition that undoes each orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def is_raster(start: bytes) -> bool:
    """Whether a file that starts with these bytes is PNG or JPEG."""
    return start.startswith((_PNG, _JPEG))


def read_raster(fp: BinaryIO, limits: ImageLimits) -> NDArray[np.uint8]:
    """The picture in a PNG or JPEG file: uint8 (H, W) grey or (H, W, 3) RGB.

    The EXIF orientation is applied, transparency is composited over black, 16-bit greys are
    stretched over their robust range, and three equal channels become one grey channel.

    Raises:
        ImageRefused: TOO_SMALL, TOO_LARGE, TRUNCATED or DAMAGED.
    """
    # Pillow logs metadata, and a description in it may name a patient.
    hushed("PIL")
    with warnings.catch_warnings(action="ignore"):
        return _read(fp, limits)


def _read(fp: BinaryIO, limits: ImageLimits) -> NDArray[np.uint8]:
    image = _open(fp)
    samples, bits = (1, 32) if image.mode.startswith("I") else (4, 8)
    check_declared(image.height, image.width, 1, samples, bits, limits)
    try:
        image.load()
    except (SyntaxError, OSError, ValueError) as error:
        raise _refusal(error) from None
    return _display(_upright(image))


def _open(fp: BinaryIO) -> ImageFile.ImageFile:
    """The opened file: header read, pixels not yet decoded.

    The two readers are called directly: Image.open would apply a size limit that is global to
    the process, where ours is an argument.
    """
    fp.seek(0)
    reader = PngImagePlugin.PngImageFile if fp.read(8) == _PNG else JpegImagePlugin.JpegImageFile
    fp.seek(0)
    try:
        return reader(fp)
    except (SyntaxError, OSError, ValueError) as error:
        raise _refusal(error) from None


def _refusal(error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:
        return error
    # Only Pillow's message tells truncated from damaged.
    if "truncated" in str(error).lower():
        return ImageRefused(RefusalReason.TRUNCATED, "the file ends before its last pixel")
    return ImageRefused(
        RefusalReason.DAMAGED, f"the PNG or JPEG decoder gave up ({type(error).__name__})"
    )


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:
        # A broken EXIF block must not make the picture unreadable.
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _display(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):
        return stretch(np.asarray(image))
    if image.mode == "1":
        image = image.convert("L")
    elif image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    pixels = np.asarray(image)
    if pixels.ndim == 3 and _is_grey(pixels):
        pixels = pixels[..., 0]
    return np.ascontiguousarray(pixels)


def _is_grey(pixels: NDArray[np.uint8]) -> bool:
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return np.array_equal(red, green) and np.array_equal(green, blue)
