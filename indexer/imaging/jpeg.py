"""Decodes JPEG frames (ISO 10918-1): with loss, 8 or 12 bits, and without, up to 16 bits."""

import io
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile

from indexer.imaging.codestream import CodeStream, end_of_image
from indexer.imaging.color import full_range_to_rgb, partial_range_to_rgb

__all__ = ["attempts"]

_RGB_IDENTIFIERS = (b"RGB", b"rgb")
_PARTIAL = ("YBR_PARTIAL_422", "YBR_PARTIAL_420")

Attempt = tuple[str, Callable[[], NDArray[Any]]]
"""The name of a decoder, and what asks it."""


def attempts(frame: bytes, stream: CodeStream, photometric: str) -> list[Attempt]:
    """The decoders to ask for ``frame``, in order. Each gives uint8 or uint16, (H, W) or
    (H, W, 3) RGB.

    Args:
        stream: the header of ``frame``; 1 or 3 samples per pixel.
        photometric: what the DICOM header says the samples are.
    """
    color = _color_space(stream, photometric) if stream.samples == 3 else ""
    pillow = ("pillow", lambda: _by_pillow(frame, stream, color))
    imagecodecs = ("imagecodecs", lambda: _by_imagecodecs(frame, stream, color))
    if stream.bits > 8:
        return [imagecodecs]
    return [pillow, imagecodecs] if stream.is_dct else [imagecodecs, pillow]


def _color_space(stream: CodeStream, photometric: str) -> str:
    """What the three components are: "RGB", "YBR" or "YBR partial".

    The header decides (PS3.5 8.2.1), unless the code stream shows that it was left as it was
    before compression: by identifiers or by a marker that encoders write for the colours that
    they were given.
    """
    declared = "YBR" if photometric.startswith("YBR") else "RGB"
    if stream.is_lossless_jpeg:
        # Converting loses bits, so the components are what was stored.
        return declared
    if stream.components in _RGB_IDENTIFIERS:
        # Nobody names luminance and chroma so by accident.
        return "YBR" if declared == "YBR" and stream.adobe == 1 else "RGB"
    if stream.adobe == 1:
        return "YBR"
    if stream.jfif and not (declared == "RGB" and stream.adobe == 0):
        # JFIF knows no other colours.
        return "YBR"
    return "YBR partial" if photometric in _PARTIAL else declared


def _by_pillow(frame: bytes, stream: CodeStream, color: str) -> NDArray[Any]:
    image = JpegImageFile(io.BytesIO(frame))
    if stream.samples == 3:
        # What to make of the components is not left to the library, which trusts markers.
        given = "YCbCr" if color == "YBR" and stream.is_dct else "RGB"
        image.tile = [image.tile[0]._replace(args=("RGB", given))]
        color = "RGB" if given == "YCbCr" else color
    shape = (stream.rows, stream.columns, 3)[: 2 + (stream.samples == 3)]
    return _as_rgb(np.frombuffer(image.tobytes(), np.uint8).reshape(shape), stream, color)


def _by_imagecodecs(frame: bytes, stream: CodeStream, color: str) -> NDArray[Any]:
    if end_of_image(frame) < 0:
        # The library fills up what is missing and says nothing.
        raise ValueError("truncated: there is no end-of-image marker")
    # Loaded when it is needed, as most archives do without.
    imagecodecs = import_module("imagecodecs")
    kept = "RGB" if stream.samples == 3 else None
    values = imagecodecs.jpeg8_decode(frame, colorspace=kept, outcolorspace=kept)
    shape = (stream.rows, stream.columns, 3)[: 2 + (stream.samples == 3)]
    return _as_rgb(values.reshape(shape), stream, color)


def _as_rgb(values: NDArray[Any], stream: CodeStream, color: str) -> NDArray[Any]:
    if color == "YBR":
        return full_range_to_rgb(values, stream.bits)
    return partial_range_to_rgb(values) if color == "YBR partial" else values
