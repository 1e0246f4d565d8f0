"""Stored values come out of every kind of pixel data as the standard says they lie there."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from dicom_files import KEY, LIMITS, dataset, encode, read
from jpeg_streams import JFIF, adobe, blocks, lossless
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from engine.errors import ImageRefused, RefusalReason
from engine.model.preprocess import Preprocess
from engine.settings import ImageLimits, ZipLimits
from indexer.imaging.dicom import DicomImage, read_dicom
from indexer.imaging.frames import FramePolicy
from indexer.imaging.instance import Instance, UnreadableFrames
from indexer.imaging.partial import described
from indexer.imaging.prepare import ReadTask, prepare

SLOPE = np.add.outer(np.arange(32) * 90, np.arange(32) * 40).astype(np.uint16)
COLORS = np.stack([SLOPE // 16, SLOPE[::-1] // 16, SLOPE.T // 16], axis=-1).astype(np.uint8)
# One value for each block of 8 × 8 pixels.
COARSE = np.add.outer(np.arange(4) * 20, np.arange(4) * 40 + 10).astype(np.uint8)
COARSE_COLORS = np.stack([COARSE, COARSE[::-1], 255 - COARSE], axis=-1)
WHOLE_RANGE = {"WindowCenter": 128, "WindowWidth": 256}


def grown(values: np.ndarray) -> np.ndarray:
    return values.repeat(8, axis=0).repeat(8, axis=1)


def packed(made: Dataset, frames: list[bytes], offsets: tuple[int, ...] = ()) -> Dataset:
    """``made`` with one fragment a frame as its pixel data (PS3.5 A.4)."""
    pieces = [struct.pack(f"<{len(offsets)}L", *offsets), *frames]
    pieces = [piece + b"\0" * (len(piece) % 2) for piece in pieces]
    made.PixelData = b"".join(
        struct.pack("<HHL", 0xFFFE, 0xE000, len(piece)) + piece for piece in pieces
    ) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    return made


def shown(made: Dataset, syntax: UID = ExplicitVRLittleEndian) -> np.ndarray:
    return read(encode(made, syntax)).frames[0].pixels


def refusal(content: bytes, **options) -> ImageRefused:
    with pytest.raises(ImageRefused) as caught:
        read(content, **options)
    return caught.value


def written(made: Dataset, syntax: UID) -> list[bytes]:
    """The frames of ``made``, compressed."""
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.compress(syntax, generate_instance_uid=False)
    count = int(made.get("NumberOfFrames", 1))
    return list(generate_frames(made.PixelData, number_of_frames=count))


# JPEG (PS3.5 8.2.1, A.4.1).


@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_jpeg_without_loss_of_every_predictor_and_precision(predictor, bits, signed, capfd):
    values = np.add.outer(np.arange(32) * 70, np.arange(32) * 50) << bits >> 12
    values[3, 4], values[5, 6] = 0, (1 << bits) - 1
    container = np.uint8 if bits == 8 else np.uint16
    header = {
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(signed),
        "WindowCenter": 0 if signed else 1 << bits - 1,
        "WindowWidth": 1 << bits,
    }
    # Stored in two's complement of as many bits (PS3.5 8.1.1).
    plain = values.astype(container)
    if signed:
        plain = (values - ((values >> bits - 1) << bits)).astype(f"i{plain.itemsize}")
    expected = shown(dataset(plain, **header))
    assert len(np.unique(expected)) > 100
    made = packed(dataset(values.astype(container), **header), [lossless(values, bits, predictor)])
    syntax = JPEGLosslessSV1 if predictor == 1 else JPEGLossless
    assert np.array_equal(shown(made, syntax), expected)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("before", [b"", JFIF, adobe(0)], ids=["bare", "JFIF", "Adobe"])
def test_colours_without_loss_are_those_that_the_header_names(before):
    made = packed(dataset(COLORS), [lossless(COLORS, 8, before=before)])
    assert np.array_equal(shown(made, JPEGLossless), COLORS)


def test_stored_bits_above_those_in_use_are_no_part_of_a_value():
    # An overlay in bit 12, as the retired PS3.5 8.1.2 allowed; the precision covers it.
    plain = dataset(SLOPE, BitsStored=12, HighBit=11, WindowCenter=2000, WindowWidth=4000)
    covered = SLOPE | np.uint16(0x1000) * (SLOPE % 3 == 0)
    made = packed(
        dataset(SLOPE, BitsStored=12, HighBit=11, WindowCenter=2000, WindowWidth=4000),
        [lossless(covered, 16)],
    )
    assert np.array_equal(shown(made, JPEGLosslessSV1), shown(plain))


@pytest.mark.parametrize("process", [0xC1])
def test_jpeg_of_twelve_bits(process):
    values = (COARSE.astype(np.uint16) * 16).clip(0, 4095)
    header = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 2048, "WindowWidth": 4096}
    made = packed(dataset(grown(values), **header), [blocks(values, 12, process=process)])
    expected = shown(dataset(grown(values), **header))
    assert np.abs(shown(made, JPEGExtended12Bit).astype(int) - expected).max() <= 1


def test_a_frame_is_what_it_says_and_not_what_the_transfer_syntax_says():
    made = dataset(SLOPE, WindowCenter=2000, WindowWidth=4000)
    expected = shown(made)
    frame = lossless(SLOPE, 16)
    for syntax in (JPEGBaseline8Bit, JPEG2000Lossless, JPEGLSLossless, RLELossless):
        assert np.array_equal(shown(packed(made, [frame]), syntax), expected)
    content = encode(packed(made, [frame]), JPEGLossless)
    lie = content.replace(_meta_syntax(JPEGLossless), _meta_syntax(ExplicitVRLittleEndian))
    assert np.array_equal(read(lie).frames[0].pixels, expected)
    (frame,) = written(dataset(SLOPE), JPEG2000Lossless)
    assert np.array_equal(shown(packed(made, [frame]), JPEGLossless), expected)
    (frame,) = written(dataset(SLOPE), JPEGLSLossless)
    assert np.array_equal(shown(packed(made, [frame]), JPEG2000Lossless), expected)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, ExplicitVRLittleEndian])
def test_what_is_no_code_stream_is_damaged(syntax):
    content = encode(packed(dataset(SLOPE), [b"no code stream at all"]), JPEGBaseline8Bit)
    content = content.replace(_meta_syntax(JPEGBaseline8Bit), _meta_syntax(syntax))
    assert refusal(content).reason is RefusalReason.DAMAGED


RGB, YBR, OTHER = b"RGB", b"\x01\x02\x03", b"\x00\x01\x02"


@pytest.mark.parametrize(
    ("photometric", "ids", "before", "converted"),
    [
        # Without any marker the identifiers and the header say what the components are.
        ("RGB", RGB, b"", False),
        ("RGB", b"rgb", b"", False),
        ("RGB", YBR, b"", False),
        ("RGB", OTHER, b"", False),
        ("YBR_FULL_422", YBR, b"", True),
        ("YBR_FULL", OTHER, b"", True),
        ("YBR_FULL_422", RGB, b"", False),
        # Markers that agree.
        ("RGB", RGB, adobe(0), False),
        ("RGB", YBR, adobe(0), False),
        ("YBR_FULL_422", YBR, JFIF, True),
        ("YBR_FULL_422", YBR, adobe(1), True),
        ("YBR_FULL_422", YBR, JFIF + adobe(1), True),
        # Markers that contradict identifiers and header.
        ("RGB", RGB, JFIF, False),
        ("RGB", RGB, adobe(1), False),
        ("RGB", RGB, JFIF + adobe(1), False),
        ("RGB", YBR, JFIF + adobe(0), False),
        ("YBR_FULL_422", RGB, adobe(0), False),
        # Compressed by an encoder that converts, under a header of before.
        ("RGB", YBR, JFIF, True),
        ("RGB", YBR, adobe(1), True),
    ],
)
def test_what_the_components_of_jpeg_are(photometric, ids, before, converted):
    colors = COARSE_COLORS if not converted else _ybr(COARSE_COLORS)
    made = packed(dataset(grown(COARSE_COLORS)), [blocks(colors, ids=ids, before=before)])
    made.PhotometricInterpretation = photometric
    found = shown(made, JPEGBaseline8Bit).astype(int)
    assert np.abs(found - grown(COARSE_COLORS)).max() <= 2


def _ybr(colors: np.ndarray) -> np.ndarray:
    """YBR_FULL (PS3.3 C.7.6.3.1.2)."""
    red, green, blue = np.moveaxis(colors.astype(float), -1, 0)
    luminance = 0.2990 * red + 0.5870 * green + 0.1140 * blue
    difference_of_blue = -0.1687 * red - 0.3313 * green + 0.5 * blue + 128
    difference_of_red = 0.5 * red - 0.4187 * green - 0.0813 * blue + 128
    ybr = np.stack([luminance, difference_of_blue, difference_of_red], axis=-1)
    return np.rint(ybr).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEG2000Lossless, JPEGLSLossless])
def test_the_planar_configuration_of_compressed_colours_says_nothing(syntax):
    # PS3.5 8.2.1, 8.2.3, 8.2.4: how samples lie is the code stream's affair.
    if syntax == JPEGBaseline8Bit:
        frame, expected = blocks(COARSE_COLORS), grown(COARSE_COLORS)
    else:
        (frame,), expected = written(dataset(COLORS), syntax), COLORS
    made = packed(dataset(expected, PlanarConfiguration=1), [frame])
    assert np.abs(shown(made, syntax).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("stored", [8, 12, 16])
def test_jpeg_of_eight_bits_where_the_header_allocates_sixteen(stored):
    header = {"BitsStored": stored, "HighBit": stored - 1}
    made = packed(
        dataset(grown(COARSE).astype(np.uint16), **header, **WHOLE_RANGE), [blocks(COARSE)]
    )
    assert np.abs(shown(made, JPEGBaseline8Bit).astype(int) - grown(COARSE)).max() <= 1
    wide = packed(
        dataset(grown(COARSE_COLORS).astype(np.uint16), **header), [blocks(COARSE_COLORS)]
    )
    assert np.abs(shown(wide, JPEGBaseline8Bit).astype(int) - grown(COARSE_COLORS)).max() <= 1


def test_sixteen_bits_in_a_code_stream_where_the_header_allocates_eight():
    (frame,) = written(dataset(SLOPE), JPEG2000Lossless)
    made = packed(dataset(SLOPE.astype(np.uint8), WindowCenter=2000, WindowWidth=4000), [frame])
    plain = shown(dataset(SLOPE, WindowCenter=2000, WindowWidth=4000))
    assert np.array_equal(shown(made, JPEG2000Lossless), plain)
    # And then they count as what they are.
    limits = ImageLimits(max_decoded_bytes=32 * 32)
    refused = refusal(encode(made, JPEG2000Lossless), limits=limits)
    assert refused.reason is RefusalReason.TOO_LARGE


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1])
def test_rows_and_columns_exchanged_in_the_header(syntax):
    lying = np.repeat(SLOPE[:20], 2, axis=0).repeat(2, axis=1)
    window = {"WindowCenter": 2000, "WindowWidth": 4000}
    if syntax == JPEGLosslessSV1:
        frame = lossless(lying, 16)
    else:
        (frame,) = written(dataset(lying), syntax)
    made = packed(dataset(np.zeros((64, 40), np.uint16), **window), [frame])
    assert np.array_equal(shown(made, syntax), shown(dataset(lying, **window)))
    # Other numbers are no exchange.
    made.Rows = 63
    refused = refusal(encode(made, syntax))
    assert refused.reason is RefusalReason.DAMAGED
    assert "40 × 64 × 1 and the header declares 63 × 40 × 1" in refused.detail


def test_a_frame_without_an_end_is_truncated():
    frame = lossless(SLOPE, 16)
    for size in (len(frame) - 2, len(frame) // 2):
        made = packed(dataset(SLOPE), [frame[:size]])
        assert refusal(encode(made, JPEGLosslessSV1)).reason is RefusalReason.TRUNCATED
    # Padding behind the end is none.
    whole = packed(dataset(SLOPE), [frame + b"\0" * 2000])
    assert np.array_equal(shown(whole, JPEGLosslessSV1), shown(dataset(SLOPE)))


@pytest.mark.parametrize("zeros", [1, 2, 5])
def test_jpeg_ls_with_padding_before_its_end(zeros):
    for made in (dataset(SLOPE), dataset(SLOPE.astype(np.int16) - 1500), dataset(COLORS)):
        expected = shown(made)
        (frame,) = written(made, JPEGLSLossless)
        frame = frame.rstrip(b"\0")
        padded = packed(made, [frame[:-2] + b"\0" * zeros + frame[-2:]])
        found = read(encode(padded, JPEGLSLossless)).frames[0]
        assert np.array_equal(found.pixels, expected)
        assert found.decoder == "imagecodecs"


@pytest.mark.parametrize(
    ("syntax", "decoder"),
    [
        (ExplicitVRLittleEndian, "native"),
        (RLELossless, "pylibjpeg"),
        (JPEG2000Lossless, "pylibjpeg"),
        (JPEGLSLossless, "pyjpegls"),
        (JPEGLosslessSV1, "imagecodecs"),
        (JPEGBaseline8Bit, "pillow"),
    ],
)
def test_which_decoder_answered_is_noted(syntax, decoder):
    made = dataset(grown(COARSE))
    if syntax == JPEGLosslessSV1:
        packed(made, [lossless(grown(COARSE), 8)])
    elif syntax == JPEGBaseline8Bit:
        packed(made, [blocks(COARSE)])
    elif syntax.is_compressed:
        packed(made, written(dataset(grown(COARSE)), syntax))
    assert read(encode(made, syntax)).frames[0].decoder == decoder


# Uncompressed samples that share bytes (PS3.5 8.1.1 and annex D).


def as_words(data: bytes, syntax: UID) -> bytes:
    """Padded to whole words, whose bytes are exchanged in big endian (PS3.5 7.3)."""
    data += b"\0" * (len(data) % 2)
    swapped = syntax == ExplicitVRBigEndian
    return np.frombuffer(data, "<u2").astype(">u2").tobytes() if swapped else data


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize(("rows", "columns"), [(9, 9), (8, 8), (11, 13), (10, 15)])
def test_single_bits_of_frames_that_begin_amid_a_byte(rows, columns, syntax):
    bits = np.random.default_rng(0).random((5, rows, columns)) < 0.4
    made = dataset(bits.astype(np.uint8), BitsAllocated=1, BitsStored=1, HighBit=0)
    made.PixelData = as_words(np.packbits(bits.ravel(), bitorder="little").tobytes(), syntax)
    made["PixelData"].VR = "OW"
    found = read(encode(made, syntax)).frames
    assert [frame.number for frame in found] == list(range(5))
    for frame, expected in zip(found, bits, strict=True):
        assert np.array_equal(frame.pixels, expected * np.uint8(255))


def twelve_bits(values: np.ndarray) -> bytes:
    """The cells as one run of bits, the lowest of each first."""
    cells = (values.ravel()[:, np.newaxis] >> np.arange(12)) & 1
    return np.packbits(cells.astype(np.uint8).ravel(), bitorder="little").tobytes()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("size", [(32, 32), (9, 11), (15, 10)])
@pytest.mark.parametrize("signed", [False, True])
def test_twelve_bits_allocated(size, syntax, signed):
    rows, columns = size
    values = np.random.default_rng(1).integers(0, 4096, (3, rows, columns)).astype(np.uint16)
    header = {
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": int(signed),
        "WindowCenter": 0 if signed else 2048,
        "WindowWidth": 4096,
    }
    plain = values.view(np.int16) << 4 >> 4 if signed else values
    expected = [frame.pixels for frame in read(encode(dataset(plain, **header))).frames]
    made = dataset(values, **header)
    made.BitsAllocated = 12
    made.PixelData = as_words(twelve_bits(values), syntax)
    found = [frame.pixels for frame in read(encode(made, syntax)).frames]
    assert np.array_equal(np.stack(found), np.stack(expected))


def test_twelve_bits_allocated_and_sixteen_written():
    made = dataset(SLOPE, BitsAllocated=12, BitsStored=12, HighBit=11)
    assert np.array_equal(shown(made), shown(dataset(SLOPE, BitsStored=12, HighBit=11)))


def test_twelve_bits_allocated_and_compressed():
    header = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 2000, "WindowWidth": 4000}
    expected = shown(dataset(SLOPE, **header))
    for syntax in (RLELossless, JPEG2000Lossless):
        made = packed(dataset(SLOPE, **header), written(dataset(SLOPE, **header), syntax))
        made.BitsAllocated = 12
        assert np.array_equal(shown(made, syntax), expected)


# YBR_PARTIAL_422, with the equations of PS3.3-2011 C.7.6.3.1.2.


def _partial_422(colors: np.ndarray) -> np.ndarray:
    """Uint8 (H, W, 3) values of which neighbours in a row have the same chroma."""
    red, green, blue = np.moveaxis(colors.astype(float), -1, 0)
    luminance = 0.2568 * red + 0.5041 * green + 0.0979 * blue + 16
    difference_of_blue = -0.1482 * red - 0.2910 * green + 0.4392 * blue + 128
    difference_of_red = 0.4392 * red - 0.3678 * green - 0.0714 * blue + 128
    part = np.rint(np.stack([luminance, difference_of_blue, difference_of_red], axis=-1))
    part[:, 1::2, 1:] = part[:, ::2, 1:]
    return part.astype(np.uint8)


# Neighbours have one colour, so that nothing is lost.
PAIRS = COLORS[:, ::2].repeat(2, axis=1)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("frames", [1, 2])
def test_luminance_and_chroma_of_partial_range(whole, frames):
    part = _partial_422(PAIRS)
    # Two luminances, then the chroma that both have; or all three of each pixel.
    pairs = [part[:, ::2, 0], part[:, 1::2, 0], part[:, ::2, 1], part[:, ::2, 2]]
    data = (part if whole else np.stack(pairs, axis=-1)).tobytes()
    made = dataset(PAIRS, PhotometricInterpretation="YBR_PARTIAL_422")
    made.PixelData = data * frames
    made.NumberOfFrames = frames
    found = read(encode(made)).frames
    assert len(found) == frames
    for frame in found:
        assert np.abs(frame.pixels.astype(int) - PAIRS).max() <= 2


def test_partial_range_in_jpeg():
    part = _partial_422(COARSE_COLORS[:, :1].repeat(4, axis=1))
    made = packed(dataset(grown(part)), [blocks(part, ids=YBR)])
    made.PhotometricInterpretation = "YBR_PARTIAL_422"
    expected = grown(COARSE_COLORS[:, :1].repeat(4, axis=1))
    assert np.abs(shown(made, JPEGBaseline8Bit).astype(int) - expected).max() <= 2


def test_partial_range_of_more_bits_is_refused():
    made = dataset(COLORS.astype(np.uint16), PhotometricInterpretation="YBR_PARTIAL_422")
    assert refusal(encode(made)).reason is RefusalReason.UNSUPPORTED_PIXELS


# Uncompressed pixels under the name of a compression.


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLossless, JPEGBaseline8Bit, RLELossless])
def test_uncompressed_pixels_under_the_name_of_a_compression(syntax):
    for made in (dataset(SLOPE), dataset(COLORS), dataset(np.stack([SLOPE, SLOPE.T]))):
        lie = encode(made).replace(_meta_syntax(ExplicitVRLittleEndian), _meta_syntax(syntax))
        assert lie != encode(made)
        assert np.array_equal(read(lie).frames[-1].pixels, read(encode(made)).frames[-1].pixels)


@pytest.mark.parametrize("length", [-2, 2])
def test_uncompressed_pixels_under_that_name_that_do_not_fit_are_refused(length):
    made = dataset(SLOPE)
    made.PixelData = (made.PixelData + b"\0\0")[: len(made.PixelData) + length]
    lie = encode(made).replace(_meta_syntax(ExplicitVRLittleEndian), _meta_syntax(JPEG2000Lossless))
    refused = refusal(lie)
    assert refused.reason is RefusalReason.DAMAGED
    assert "uncompressed pixel data under the transfer syntax JPEG 2000" in refused.detail
    assert f"{2048 + length} bytes where the header declares 2048" in refused.detail


def _meta_syntax(uid: str) -> bytes:
    padded = uid.encode() + b"\0" * (len(uid) % 2)
    return struct.pack("<HH2sH", 0x0002, 0x0010, b"UI", len(padded)) + padded


# Instances of which only a part is there.

# Each frame is one grey, its number, under a white line.
NUMBERED = np.stack([np.full((16, 16), 2 * number, np.uint8) for number in range(20)])
NUMBERED[:, 0] = 255


def numbered() -> Dataset:
    return dataset(NUMBERED, **WHOLE_RANGE)


def image(content: bytes, policy: FramePolicy | int = 8) -> DicomImage:
    return read_dicom(io.BytesIO(content), len(content), LIMITS, policy)


def numbers(found: DicomImage | Instance) -> list[int]:
    """Of the frames read; each must show its own number."""
    for frame in found.frames:
        assert int(frame.pixels[5, 5]) == 2 * frame.number
    return [frame.number for frame in found.frames]


def left_out(found: DicomImage | Instance) -> list[tuple[int, int, str]]:
    return [(part.first, part.last, part.reason) for part in found.partial]


def test_a_whole_instance_is_not_partial():
    assert read(encode(numbered())).partial == ()


def test_uncompressed_frames_that_are_missing():
    made = numbered()
    made.PixelData = made.PixelData[: 256 * 10 + 100]
    found = image(encode(made))
    assert numbers(found) == [1, 3, 6, 8]
    assert found.frames_declared == 20
    assert left_out(found) == [(10, 19, "truncated")]
    assert found.partial[0].detail == "20 frames are declared and the file holds 10"


def test_a_file_that_breaks_off_in_a_later_frame():
    content = encode(numbered())
    found = image(content[: len(content) - 256 * 10 - 100])
    assert numbers(found) == [1, 3, 6, 8]
    assert left_out(found) == [(9, 19, "truncated")]


def test_a_file_that_breaks_off_in_its_only_frame_is_truncated():
    content = encode(dataset(SLOPE))
    refused = refusal(content[:-100])
    assert refused.reason is RefusalReason.TRUNCATED
    # Of several frames too, when not one of them is whole.
    made = numbered()
    made.PixelData = made.PixelData[:250]
    assert refusal(encode(made)).reason is RefusalReason.TRUNCATED


@pytest.mark.parametrize("left", [0, 1, 2, 7])
def test_a_file_that_breaks_off_at_the_start_of_a_fragment(left):
    """Too little of frame 12 is there to see that it is one; frame 11 is whole all the same."""
    frames = streams()
    content = encode(packed(numbered(), frames), JPEGBaseline8Bit)
    sizes = [8 + len(frame) + len(frame) % 2 for frame in frames]
    end = len(content) - 8 - sum(sizes[12:]) + 8 + left
    found = image(content[:end])
    assert numbers(found) == [1, 3, 6, 8, 11]
    assert left_out(found) == [(12, 19, "truncated")]


def streams() -> list[bytes]:
    return [blocks(NUMBERED[number, 1:3, :2]) for number in range(20)]


@pytest.mark.parametrize("table", [False, True])
def test_compressed_frames_that_are_missing(table):
    frames = streams()
    starts = np.cumsum([0] + [8 + len(frame) + len(frame) % 2 for frame in frames])[:20]
    made = packed(numbered(), frames[:10], tuple(starts.tolist()) if table else ())
    found = image(encode(made, JPEGBaseline8Bit))
    assert numbers(found) == [1, 3, 6, 8]
    assert left_out(found) == [(10, 19, "truncated")]


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("table", [False, True])
def test_a_file_that_breaks_off_in_compressed_frames(pieces, table):
    cut = [
        [frame[start : start + 60] for start in range(0, len(frame), 60)] if pieces > 1 else [frame]
        for frame in streams()
    ]
    sizes = [sum(8 + len(piece) + len(piece) % 2 for piece in frame) for frame in cut]
    starts = tuple(np.cumsum([0, *sizes])[:20].tolist())
    made = packed(numbered(), [piece for frame in cut for piece in frame], starts if table else ())
    content = encode(made, JPEGBaseline8Bit)
    # Amid the last piece of frame 12.
    end = len(content) - 8 - sum(sizes[13:]) - 20
    found = image(content[:end])
    assert numbers(found) == [1, 3, 6, 8, 11]
    assert left_out(found) == [(12, 19, "truncated")]


def test_a_compressed_single_frame_that_breaks_off_is_truncated():
    content = encode(packed(dataset(grown(COARSE)), [blocks(COARSE)]), JPEGBaseline8Bit)
    refused = refusal(content[:-40])
    assert refused.reason is RefusalReason.TRUNCATED
    assert "bytes before what it declares" in refused.detail


def test_one_broken_frame_among_many_is_left_out():
    frames = streams()
    frames[3] = frames[3][:-30] + b"\0" * 30
    frames[4] = b"\xff\xd8 nothing of a frame"
    found = image(encode(packed(numbered(), frames), JPEGBaseline8Bit))
    assert numbers(found) == [1, 6, 8, 11, 13, 16, 18]
    assert left_out(found) == [(3, 3, "truncated")]
    every = image(encode(packed(numbered(), frames), JPEGBaseline8Bit), FramePolicy("all", 99))
    assert numbers(every) == [*range(3), *range(5, 20)]
    assert left_out(every) == [(3, 3, "truncated"), (4, 4, "damaged")]
    assert "frame 4 cannot be decoded as JPEG Baseline" in every.partial[1].detail


def test_when_the_chosen_frame_is_broken_the_nearest_is_shown():
    frames = streams()
    frames[10] = frames[11] = b"\xff\xd8 nothing of a frame"
    content = encode(packed(numbered(), frames), JPEGBaseline8Bit)
    found = image(content, FramePolicy("middle"))
    assert numbers(found) == [9]
    assert left_out(found) == [(10, 10, "damaged")]
    # And of what is missing, the last that is there.
    some = encode(packed(numbered(), frames[:8]), JPEGBaseline8Bit)
    assert numbers(image(some, FramePolicy("middle"))) == [7]
    key = numbered()
    key.FrameNumbersOfInterest = [19, 20]
    assert numbers(
        image(encode(packed(key, frames[:8]), JPEGBaseline8Bit), FramePolicy("key"))
    ) == [
        6,
        7,
    ]


def test_an_instance_without_a_readable_frame_is_refused():
    nothing = [b"\xff\xd8 nothing of a frame"] * 20
    refused = refusal(encode(packed(numbered(), nothing), JPEGBaseline8Bit))
    assert refused.reason is RefusalReason.DAMAGED
    assert refused.detail.startswith("frame 1 cannot be decoded")
    refused = refusal(encode(packed(numbered(), nothing[:5]), JPEGBaseline8Bit))
    assert refused.reason is RefusalReason.TRUNCATED
    assert refused.detail == "20 frames are declared and the file holds 5"


def test_what_is_left_out_is_told_to_the_pipeline(tmp_path: Path):
    path = tmp_path / "movie.dcm"
    made = numbered()
    made.PixelData = made.PixelData[: 256 * 10]
    path.write_bytes(encode(made))
    task = ReadTask(path, LIMITS, ZipLimits(), 8, 32, Preprocess(), KEY)
    prepared = prepare(task)
    assert [picture.frame for picture in prepared.pictures] == [1, 3, 6, 8]
    assert [(part.first, part.last) for part in prepared.partial] == [(10, 19)]


def test_what_is_missing_is_told_in_a_short_line():
    damaged, truncated = RefusalReason.DAMAGED, RefusalReason.TRUNCATED
    broken = [UnreadableFrames(number, number, damaged, "") for number in (3, 4, 5)]
    assert described([]) is None
    assert described(broken) == "frames 3 to 5: damaged"
    rest = UnreadableFrames(6, 19, truncated, "")
    assert described([rest, *broken]) == "frames 3 to 5: damaged; frames 6 to 19: truncated"
    every_other = [UnreadableFrames(number, number, damaged, "") for number in range(0, 2000, 2)]
    line = described(every_other)
    assert line is not None
    assert line.startswith("frame 0: damaged; frame 2: damaged;")
    assert line.endswith("; and 992 more")


# Frames in fragments that are no code streams (PS3.5 A.4.11 and A.4.13).


def _as_they_are(made: Dataset, frames: list[bytes]) -> bytes:
    return encode(packed(made, frames), UID("1.2.840.10008.1.2.1.98"))


def _deflate(frame: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(frame) + packer.flush()


def _deflated(made: Dataset, frames: list[bytes]) -> bytes:
    return _called_deflated(made, [_deflate(frame) for frame in frames])


def _called_deflated(made: Dataset, streams: list[bytes]) -> bytes:
    """Written under another name: pydicom does not know this one."""
    content = _as_they_are(made, streams)
    there, wanted = map(_meta_syntax, ("1.2.840.10008.1.2.1.98", "1.2.840.10008.1.2.8.1"))
    assert content.count(there) == 1
    return content.replace(there, wanted)


@pytest.mark.parametrize("write", [_as_they_are, _deflated])
def test_frames_in_fragments_without_a_codec(write):
    frames = [frame.tobytes() for frame in NUMBERED]
    found = read(write(numbered(), frames))
    assert numbers(found) == [1, 3, 6, 8, 11, 13, 16, 18]
    assert found.partial == ()
    deep = dataset(SLOPE, BitsStored=12, HighBit=11)
    # Without a window the values are stretched; what lies above the stored bits is no part of them.
    wanted = shown(dataset(SLOPE, BitsStored=12, HighBit=11))
    (frame,) = read(write(deep, [(SLOPE | 0xF000).astype("<u2").tobytes()])).frames
    assert np.array_equal(frame.pixels, wanted)
    planes = dataset(COLORS, PlanarConfiguration=1)
    (frame,) = read(write(planes, [np.moveaxis(COLORS, -1, 0).tobytes()])).frames
    assert np.array_equal(frame.pixels, COLORS)


def test_fragments_under_the_name_of_a_syntax_without_any():
    """As long as the frame is: not compressed, whatever the writer did. Others are damaged."""
    content = encode(packed(dataset(SLOPE), [SLOPE.tobytes()]), UID("1.2.840.10008.1.2.1.98"))
    there, wanted = map(_meta_syntax, ("1.2.840.10008.1.2.1.98", ExplicitVRLittleEndian))
    (frame,) = read(content.replace(there, wanted)).frames
    assert np.array_equal(frame.pixels, shown(dataset(SLOPE)))


@pytest.mark.parametrize("write", [_as_they_are, _deflated])
def test_single_bits_in_fragments_begin_with_a_byte_each(write):
    """PS3.5 A.4.11: each frame in a fragment of its own; 9 × 7 bits leave one unused."""
    bits = np.stack([(np.add.outer(np.arange(9), np.arange(7)) // n) % 2 for n in (1, 2, 3)])
    made = dataset(bits.astype(np.uint8), BitsAllocated=1, BitsStored=1, HighBit=0)
    frames = [np.packbits(one.ravel(), bitorder="little").tobytes() for one in bits]
    limits = LIMITS.model_copy(update={"min_side": 4})
    found = read(write(made, frames), limits=limits).frames
    assert len(found) == 3
    for frame, wanted in zip(found, bits, strict=True):
        assert np.array_equal(frame.pixels, wanted * 255)


def test_a_deflated_frame_that_is_broken_or_short_is_left_out():
    frames = [_deflate(frame.tobytes()) for frame in NUMBERED]
    frames[1], frames[3] = b"\xff" * 20, _deflate(b"short")
    found = image(_called_deflated(numbered(), frames))
    assert left_out(found) == [(1, 1, "damaged"), (3, 3, "truncated")]


def test_a_deflated_frame_gives_no_more_than_its_header_declares():
    bomb = _deflate(SLOPE.tobytes() + bytes(200 * 2**20))
    content = _called_deflated(dataset(SLOPE), [bomb])
    tracemalloc.start()
    (frame,) = read(content).frames
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(frame.pixels, shown(dataset(SLOPE)))
    assert peak < 20 * 2**20
