"""Reads PNG, JPEG, JPEG 2000, TIFF, WebP and BMP files as display pixels."""

import struct
import warnings
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from engine.errors import ImageRefused, RefusalReason
from engine.settings import ImageLimits
from indexer.files.limits import check_declared
from indexer.files.tiff import is_big_endian_bigtiff, tiff_pages
from indexer.imaging.codestream import code_stream
from indexer.imaging.display import stretch
from indexer.imaging.frames import FramePolicy
from indexer.imaging.instance import Frame, Pictures
from indexer.imaging.quiet import hushed, silenced

__all__ = ["is_raster", "read_raster", "stretched"]

_STARTS = {
    b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
    b"\0\0\0\x0cjP  \r\n\x87\n": Jpeg2KImagePlugin.Jpeg2KImageFile,
    b"\xff\x4f\xff\x51": Jpeg2KImagePlugin.Jpeg2KImageFile,
    b"II*\0": TiffImagePlugin.TiffImageFile,
    b"MM\0*": TiffImagePlugin.TiffImageFile,
    b"II+\0": TiffImagePlugin.TiffImageFile,
    b"MM\0+": TiffImagePlugin.TiffImageFile,
}
# Sizes of the header behind that of the file: "BM" alone may begin a text.
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
_TIFF_BITS = 258
_TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_TIFF_PLANES, _APART = 284, 2
_TIFF_FORMAT, _SIGNED = 339, 2
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
# What Pillow says of files that are in order, but of a kind that it does not know.
_UNSUPPORTED = ("unknown pixel mode", "unknown data organization", "not available", "unsupported")


def is_raster(fp: BinaryIO) -> bool:
    """Whether the content starts as a file that :func:`read_raster` reads."""
    return _reader(fp) is not None


def _reader(fp: BinaryIO) -> type[ImageFile.ImageFile] | None:
    fp.seek(0)
    start = fp.read(32)
    for signature, reader in _STARTS.items():
        if start.startswith(signature):
            return reader
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    if start.startswith(b"BM") and int.from_bytes(start[14:18], "little") in _BMP_HEADERS:
        return BmpImagePlugin.BmpImageFile
    return None


def read_raster(fp: BinaryIO, limits: ImageLimits, policy: FramePolicy) -> Pictures:
    """The pictures in a raster file: uint8 (H, W) grey or (H, W, 3) RGB each.

    The pages of a TIFF file are frames; of an animation the first picture is taken, which
    programs show that cannot animate. The orientation is applied, transparency is composited over
    black, greys of more than 8 bits are stretched over their robust range, and three equal
    channels become one grey channel.

    Raises:
        ImageRefused: TOO_SMALL, TOO_LARGE, TRUNCATED, DAMAGED or UNSUPPORTED_PIXELS.
    """
    # Pillow logs metadata, and a description in it may name a patient.
    hushed("PIL")
    reader = _reader(fp)
    if reader is None:
        raise ImageRefused(RefusalReason.NOT_AN_IMAGE, "no raster file")
    with warnings.catch_warnings(action="ignore"):
        if reader in (PngImagePlugin.PngImageFile, JpegImagePlugin.JpegImageFile):
            return _read(fp, reader, limits, policy)
        # Their decoders write about damage to stderr.
        with silenced():
            return _read(fp, reader, limits, policy)


def _read(
    fp: BinaryIO, reader: type[ImageFile.ImageFile], limits: ImageLimits, policy: FramePolicy
) -> Pictures:
    try:
        pages = tiff_pages(fp, limits) if reader is TiffImagePlugin.TiffImageFile else [0]
        numbers = policy.choose(len(pages))
        if reader is WebPImagePlugin.WebPImageFile:
            # Its reader takes memory for the whole picture at once.
            check_declared(*_webp_size(fp), 1, 4, 8, limits)
        elif reader is Jpeg2KImagePlugin.Jpeg2KImageFile:
            # Of the codestream: boxes before it may tell another size. Decoders are known to loop
            # forever over boxes that lead nowhere: this raises.
            fp.seek(0)
            if (size := code_stream(fp.read())) is not None:
                check_declared(size.rows, size.columns, 1, size.samples, 16, limits)
        elif reader is TiffImagePlugin.TiffImageFile and is_big_endian_bigtiff(fp):
            raise ImageRefused(
                RefusalReason.UNSUPPORTED_PIXELS,
                "a BigTIFF file in big endian; convert it to little endian, or to PNG",
            )
        fp.seek(0)
        # The readers are called directly: Image.open would apply a size limit that is global to
        # the process, where ours is an argument.
        image = reader(fp)
        return Pictures(
            tuple(
                Frame(number, _page(image, pages[number], len(pages), limits, len(numbers)))
                for number in numbers
            ),
            len(pages),
        )
    except (ImageRefused, MemoryError, RecursionError):
        raise
    except Exception as error:
        # What Pillow's readers raise depends on the bytes.
        raise _refusal(error, reader) from None


def _page(
    image: ImageFile.ImageFile, page: int, declared: int, limits: ImageLimits, at_once: int
) -> NDArray[np.uint8]:
    if page:
        image.seek(page)
    deep = image.mode.startswith(("I", "F"))
    samples, bits = (1, 32) if deep else (4, 8)
    check_declared(image.height, image.width, declared, samples, bits, limits, at_once)
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    cells = tags.get(_TIFF_BITS, ())
    if tags.get(_TIFF_PLANES) == _APART and len(cells) > 1 and max(cells) > 8:
        # Pillow takes the planes for bytes.
        raise ImageRefused(
            RefusalReason.UNSUPPORTED_PIXELS,
            f"a TIFF file of colours of {max(cells)} bits in planes of their own; "
            "convert it to PNG",
        )
    # Pillow inverts up to 8 bits, and takes signed bytes for unsigned ones.
    inverted = deep and tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
    signed = image.mode == "L" and tags.get(_TIFF_FORMAT) == (_SIGNED,)
    image.load()
    shown = _display(_upright(image))
    if signed:
        return shown ^ np.uint8(0x80)
    return np.uint8(255) - shown if inverted else shown


def _webp_size(fp: BinaryIO) -> tuple[int, int]:
    """Rows and columns that a WebP file declares (RFC 9649, 2.5 to 2.7)."""
    fp.seek(12)
    chunk = fp.read(18)
    kind, data = chunk[:4], chunk[8:]
    if kind == b"VP8X" and len(data) == 10:
        width, height = int.from_bytes(data[4:7], "little"), int.from_bytes(data[7:10], "little")
        return height + 1, width + 1
    if kind == b"VP8 " and data[3:6] == b"\x9d\x01\x2a" and len(data) == 10:
        width, height = struct.unpack_from("<2H", data, 6)
        return height & 0x3FFF, width & 0x3FFF
    if kind == b"VP8L" and data[:1] == b"\x2f" and len(data) == 10:
        bits = int.from_bytes(data[1:5], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    raise ImageRefused(RefusalReason.DAMAGED, "the WebP file declares no size")


def _refusal(error: Exception, reader: type[ImageFile.ImageFile]) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:
        return error
    # Only Pillow's message tells these apart.
    said = str(error).lower()
    if "truncated" in said:
        return ImageRefused(RefusalReason.TRUNCATED, "the file ends before its last pixel")
    named = _name(reader)
    if any(words in said for words in _UNSUPPORTED) or isinstance(error, KeyError):
        return ImageRefused(
            RefusalReason.UNSUPPORTED_PIXELS,
            f"a {named} file of a kind that cannot be decoded; convert it to PNG",
        )
    return ImageRefused(
        RefusalReason.DAMAGED, f"the {named} decoder gave up ({type(error).__name__})"
    )


def _name(reader: type[ImageFile.ImageFile]) -> str:
    return {"JPEG2000": "JPEG 2000", "WEBP": "WebP"}.get(str(reader.format), str(reader.format))


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:
        # A broken EXIF block must not make the picture unreadable.
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _display(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith(("I", "F")):
        return stretched(np.asarray(image))
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


def stretched(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """``values`` (H, W), integers or floats of any byte order, their robust range mapped to 0…255:
    uint8 (H, W). What is not finite is black."""
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind != "f":
        return stretch(values)
    finite = np.isfinite(values)
    if finite.all():
        return stretch(values)
    lowest = values[finite].min() if finite.any() else 0
    shown = stretch(np.where(finite, values, lowest))
    shown[~finite] = 0
    return shown


def _is_grey(pixels: NDArray[np.uint8]) -> bool:
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return np.array_equal(red, green) and np.array_equal(green, blue)
