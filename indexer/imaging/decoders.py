"""Asks one decoder after the other for a compressed frame, until one has an answer."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.uid import (
    UID,
    JPEG2000Lossless,
    JPEG2000TransferSyntaxes,
    JPEGLSLossless,
    JPEGLSTransferSyntaxes,
)

from engine.errors import ImageRefused, RefusalReason
from indexer.imaging import jpeg
from indexer.imaging.codestream import CodeStream, end_of_image
from indexer.imaging.color import full_range_to_rgb
from indexer.imaging.native import low_bits
from indexer.imaging.quiet import silenced

__all__ = ["NOT_OF_THE_FRAME", "decoder_of", "decompress", "is_jpeg"]

NOT_OF_THE_FRAME = (MemoryError, RecursionError, KeyboardInterrupt, SystemExit)
"""What no decoder raises because a frame is damaged."""

# Listed, so that results do not depend on which other decoders are installed.
_PLUGINS = ("pylibjpeg", "pillow", "pydicom")
_JPEG_LS_PLUGINS = ("pyjpegls",)
# All of PS3.5 10.2 and 10.3, and the retired ones: what a frame is its own header says.
_JPEG = frozenset(f"1.2.840.10008.1.2.4.{process}" for process in (*range(50, 67), 70))
_END_OF_IMAGE = b"\xff\xd9"

_Attempt = tuple[str, Callable[[], NDArray[Any]]]


def is_jpeg(syntax: UID) -> bool:
    """Whether ``syntax`` is one of JPEG (ISO 10918-1), which :func:`decompress` decodes itself."""
    return syntax in _JPEG


def decoder_of(syntax: UID) -> Decoder:
    """pydicom's decoder for ``syntax``, which is none of :func:`is_jpeg`.

    Raises:
        ImageRefused: UNSUPPORTED_SYNTAX: there is none.
    """
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        # The value may be no valid UID, and is then not quoted.
        named = syntax.name if syntax.is_valid else "what is named as its transfer syntax"
        raise _undecodable(named) from None
    if not decoder.is_native and not _plugins(decoder):
        raise _undecodable(syntax.name)
    return decoder


def decompress(
    frame: bytes, stream: CodeStream | None, decoder: Decoder | None, options: Mapping[str, Any]
) -> tuple[NDArray[Any], str]:
    """The stored values of ``frame``, (H, W) or (H, W, 3) RGB, and the decoder that gave them.

    Args:
        stream: the header of ``frame``; None = it is no code stream with a header, as of RLE.
        decoder: of the transfer syntax that the file names; None = JPEG. Only where the frame
            does not show another codec.
        options: of the frame, as pydicom's decoders take them.

    Raises:
        BaseException: what the last decoder raised; some raise what is no Exception.
    """
    attempts: list[_Attempt] = []
    if stream is not None and (stream.is_dct or stream.is_lossless_jpeg):
        photometric = options["photometric_interpretation"]
        bits, signed = options["bits_stored"], bool(options["pixel_representation"])
        attempts = [
            (name, partial(_low_bits_of, ask, bits, signed))
            for name, ask in jpeg.attempts(frame, stream, photometric)
        ]
    elif (codec := _codec(stream, decoder)) is not None:
        attempts = _by_pydicom(frame, stream, codec, options)
    failed: BaseException = ValueError("the frame is no code stream of a known kind")
    with silenced():
        for name, ask in attempts:
            try:
                values = ask()
            except NOT_OF_THE_FRAME:
                raise
            except BaseException as error:
                failed = error
            else:
                return values, name
    raise failed


def _low_bits_of(ask: Callable[[], NDArray[Any]], bits: int, signed: bool) -> NDArray[Any]:
    return low_bits(ask(), bits, signed=signed)


def _codec(stream: CodeStream | None, named: Decoder | None) -> Decoder | None:
    """The decoder for what the frame is, whatever the file names; None = nothing tells."""
    if stream is None:
        return None if named is None or named.is_native else named
    family, usual = (
        (JPEGLSTransferSyntaxes, JPEGLSLossless)
        if stream.is_jpeg_ls
        else (JPEG2000TransferSyntaxes, JPEG2000Lossless)
    )
    return named if named is not None and named.UID in family else get_decoder(usual)


def _by_pydicom(
    frame: bytes, stream: CodeStream | None, decoder: Decoder, options: Mapping[str, Any]
) -> list[_Attempt]:
    whole = frame
    if stream is not None:
        # Samples may have more bits than the header allocates.
        bits = max(options["bits_allocated"], 8 * stream.bytes_per_sample)
        options = {**options, "bits_allocated": bits}
    if decoder.UID in JPEGLSTransferSyntaxes:
        # Without an end marker CharLS keeps searching truncated data for many seconds.
        frame += _END_OF_IMAGE
    source = encapsulate([frame], has_bot=False)
    attempts: list[_Attempt] = [
        (plugin, partial(_by_plugin, decoder, source, plugin, options))
        for plugin in _plugins(decoder)
    ]
    if stream is not None and stream.is_jpeg_ls:
        attempts += [
            ("imagecodecs", partial(_jpeg_ls, whole, stream, options, tidy=tidy))
            for tidy in (False, True)
        ]
    return attempts


def _plugins(decoder: Decoder) -> list[str]:
    listed = _JPEG_LS_PLUGINS if decoder.UID in JPEGLSTransferSyntaxes else _PLUGINS
    return [plugin for plugin in listed if plugin in decoder.available_plugins]


def _by_plugin(
    decoder: Decoder, source: bytes, plugin: str, options: Mapping[str, Any]
) -> NDArray[Any]:
    stored, _ = decoder.as_array(source, index=0, decoding_plugin=plugin, **options)
    return stored


def _jpeg_ls(
    frame: bytes, stream: CodeStream, options: Mapping[str, Any], *, tidy: bool
) -> NDArray[Any]:
    """JPEG-LS that pyjpegls refuses: its library is older, and stricter about what stands between
    the coded data and the end marker. ``tidy`` = without the zeros there."""
    end = end_of_image(frame)
    if end < 0:
        raise ValueError("truncated: there is no end-of-image marker")
    coded = frame[:end].rstrip(b"\0") if tidy else frame[:end]
    # Loaded when it is needed, as most archives do without.
    values = import_module("imagecodecs").jpegls_decode(coded + _END_OF_IMAGE)
    shape = (stream.rows, stream.columns, stream.samples)[: 2 + (stream.samples > 1)]
    values = np.asarray(values).reshape(shape)
    if options["photometric_interpretation"].startswith("YBR_FULL"):
        values = full_range_to_rgb(values, stream.bits)
    return low_bits(values, stream.bits, signed=bool(options["pixel_representation"]))


def _undecodable(named: str) -> ImageRefused:
    return ImageRefused(
        RefusalReason.UNSUPPORTED_SYNTAX,
        f"there is no decoder for {named}; convert the file to an uncompressed or JPEG 2000 "
        "transfer syntax",
    )
