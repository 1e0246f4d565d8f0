"""Every DICOM file is read or refused for a reason that is true of it."""

import base64
import logging
import struct
import time
import tracemalloc
import warnings
import zlib
from collections import Counter
from contextlib import suppress

import numpy as np
import pytest
from dicom_files import (
    CT,
    KEY,
    LIMITS,
    SAMPLES,
    SECONDARY_CAPTURE,
    dataset,
    element,
    encode,
    image_elements,
    nested_defined,
    nested_undefined,
    part10,
    read,
)
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import (
    HTJ2K,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from engine.errors import ImageRefused, RefusalReason
from engine.records import content_point_id, dicom_point_id
from engine.settings import ImageLimits
from indexer.imaging.frames import FramePolicy
from indexer.imaging.read import Instance, read_image

PIXELS = np.arange(400, dtype=np.uint16).reshape(20, 20)
_FILES = sorted(path for path in SAMPLES.rglob("*") if path.is_file())


ANY_OBJECT = FramePolicy(derived=True)
"""Also of those that are no pictures: how they are decoded is the same."""


def outcome(path) -> Instance | ImageRefused:
    try:
        return read_image(path, LIMITS, frames_per_instance=ANY_OBJECT, pseudonym_key=KEY)
    except ImageRefused as refused:
        return refused


def refusal(content: bytes, **options) -> ImageRefused:
    with pytest.raises(ImageRefused) as caught:
        read(content, **options)
    return caught.value


def test_every_file_of_pydicom_is_read_or_refused(caplog, capfd):
    caplog.set_level(logging.DEBUG)
    reasons = Counter()
    for path in _FILES:
        found = outcome(path)
        if isinstance(found, ImageRefused):
            reasons[found.reason] += 1
            assert len(found.detail) > 10, path
        else:
            reasons["read"] += 1
            for frame in found.frames:
                assert frame.pixels.dtype == np.uint8
                assert frame.pixels.shape[2:] in ((), (3,))
                assert np.ptp(frame.pixels) > 0, path
    assert len(_FILES) > 150
    assert reasons["read"] > 80
    assert [record for record in caplog.records if record.name.startswith("pydicom")] == []
    assert capfd.readouterr() == ("", "")


READ = (
    *("CT_small.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_RLE.dcm"),
    *("MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm", "JPEG2000.dcm"),
    *("SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_rle_32bit.dcm", "SC_ybr_full_422_uncompressed.dcm"),
    *("image_dfl.dcm", "liver_1frame.dcm", "rtdose.dcm", "examples_palette.dcm"),
    *("examples_ybr_color.dcm", "examples_overlay.dcm", "badVR.dcm"),
    *("JPEGLSNearLossless_16.dcm", "zipMR.gz"),
)
REFUSED = {
    "rtplan.dcm": ("no-pixels", "RT Plan Storage"),
    "rtstruct.dcm": ("no-pixels", "RT Structure Set Storage"),
    "reportsi.dcm": ("no-pixels", "Basic Text SR Storage"),
    "waveform_ecg.dcm": ("no-pixels", "12-lead ECG Waveform Storage"),
    "dicomdirtests/DICOMDIR": ("no-pixels", "Media Storage Directory Storage"),
    "ExplVR_BigEndNoMeta.dcm": ("no-pixels", "RT Ion Plan Storage"),
    "test-SR.dcm": ("no-pixels", "Comprehensive SR Storage"),
    "no_meta_group_length.dcm": ("no-pixels", "RT Image Storage"),
    "MR_truncated.dcm": ("truncated", "8192"),
    "rtplan_truncated.dcm": ("truncated", "21 bytes"),
    "SC_rgb_small_odd.dcm": ("too-small", "3 × 3"),
    "README.txt": ("not-an-image", "neither DICOM nor NIfTI, PNG"),
    "test1.json": ("not-an-image", "neither"),
}


@pytest.mark.parametrize("name", READ)
def test_read(name):
    assert isinstance(outcome(SAMPLES / name), Instance)


@pytest.mark.parametrize(("name", "expected"), REFUSED.items())
def test_refused(name, expected):
    found = outcome(SAMPLES / name)
    reason, quoted = expected
    assert found.reason == reason
    assert quoted in found.detail


def test_compressions_of_one_image_look_alike():
    plain = outcome(SAMPLES / "MR_small.dcm").frames[0].pixels
    for name in ("RLE", "jp2klossless", "jpeg_ls_lossless", "bigendian", "implicit"):
        found = outcome(SAMPLES / f"MR_small_{name}.dcm").frames[0].pixels
        assert np.array_equal(found, plain), name


SLOPE = np.add.outer(np.arange(32) * 90, np.arange(32) * 40).astype(np.uint16)


def compress(made: Dataset, syntax: UID, **options) -> Dataset:
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.compress(syntax, generate_instance_uid=False, **options)
    return made


def compressed(made: Dataset, syntax: UID) -> bytes:
    """``made`` in any transfer syntax that there is an encoder for, or that needs none."""
    if syntax.is_encapsulated:
        compress(made, syntax)
    elif syntax == ExplicitVRBigEndian and made.BitsAllocated == 16:
        made.PixelData = np.frombuffer(made.PixelData, "<u2").astype(">u2").tobytes()
    return encode(made, syntax)


LOSSLESS = (
    *(ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian),
    *(RLELossless, JPEG2000Lossless, JPEGLSLossless),
)


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("signed", [False, True])
def test_a_transfer_syntax_without_loss_changes_nothing(syntax, signed):
    pixels = SLOPE.astype(np.int16) - 2000 if signed else SLOPE
    bits = {"BitsStored": 13, "HighBit": 12, "WindowCenter": -500 if signed else 1500}
    plain = read(encode(dataset(pixels, WindowWidth=3000, **bits)))
    # Whether JPEG-LS values are signed only the header says.
    found = read(compressed(dataset(pixels, WindowWidth=3000, **bits), syntax))
    assert np.array_equal(found.frames[0].pixels, plain.frames[0].pixels)
    assert np.ptp(plain.frames[0].pixels) == 255


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.keyword)
def test_colours_come_through_every_transfer_syntax_without_loss(syntax):
    colors = np.stack([SLOPE // 16, SLOPE[::-1] // 16, SLOPE.T // 16], axis=-1).astype(np.uint8)
    found = read(compressed(dataset(colors), syntax)).frames[0].pixels
    assert np.array_equal(found, colors)


def test_nearly_without_loss():
    made = dataset((SLOPE // 16).astype(np.uint8), WindowCenter=128, WindowWidth=256)
    compress(made, JPEGLSNearLossless, jls_error=3)
    found = read(encode(made, JPEGLSNearLossless)).frames[0].pixels
    assert np.abs(found - (SLOPE / 16)).max() <= 4


# 16 × 16 values of 16 bits, lossless, by OpenJPH.
_HTJ2K = base64.b64decode(
    "/0//UQApQAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB"
    "/1wAEyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAIEAAf+TwAAmbfcFB3QA"
    "AMAAE0AAEwDa/gIHdABG/gMHdADAABNAABOAbGwBgnQAIAf5AKNUAMAAFTAABVgymUz2qnECdQCCCxYs+MBCAey2AMAA"
    "K6AAFpCO4ziO4zjnynp6cIJ4AI4dHR0dHR0d/Yxge/Yxgey6AP/Z"
)


@pytest.mark.parametrize(
    "syntax", [HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL], ids=lambda uid: uid.keyword
)
def test_high_throughput_jpeg_2000(syntax):
    pixels = np.add.outer(np.arange(16) * 200, np.arange(16) * 40).astype(np.uint16)
    made = packed(dataset(pixels, WindowCenter=1800, WindowWidth=3600), [_HTJ2K])
    found = read(encode(made, syntax)).frames[0].pixels
    assert np.abs(found - pixels / 3600 * 255).max() <= 1


def packed(made: Dataset, fragments: list[bytes], offsets: list[int] | None = None) -> Dataset:
    """``made`` with these fragments as its pixel data, behind a table of ``offsets``."""
    table = struct.pack(f"<{len(offsets or ())}L", *(offsets or ()))
    items = [table, *(piece + b"\0" * (len(piece) % 2) for piece in fragments)]
    made.PixelData = b"".join(
        struct.pack("<HHL", 0xFFFE, 0xE000, len(item)) + item for item in items
    ) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    return made


def test_lossless_jpeg_of_another_encoder(capfd):
    content = (SAMPLES / "SC_rgb_jpeg_gdcm.dcm").read_bytes()
    plain = outcome(SAMPLES / "SC_rgb_rle.dcm").frames[0].pixels
    assert np.array_equal(read(content).frames[0].pixels, plain)
    # The same codestream under the transfer syntax that allows any predictor.
    other = content.replace(JPEGLosslessSV1.encode(), JPEGLossless.encode())
    assert np.array_equal(read(other).frames[0].pixels, plain)
    assert capfd.readouterr() == ("", "")


def test_jpeg_of_twelve_bits_of_other_encoders(capfd):
    # The same picture, compressed in another way.
    reference = outcome(SAMPLES / "JPEG2000.dcm").frames[0].pixels.astype(float)
    for name in ("JPGExtended.dcm", "JPEG-lossy.dcm"):
        found = outcome(SAMPLES / name).frames[0].pixels.astype(float)
        assert np.corrcoef(found.ravel(), reference.ravel())[0, 1] > 0.9
    content = (SAMPLES / "JPGExtended.dcm").read_bytes()
    assert refusal(content[: len(content) // 2]).reason is RefusalReason.TRUNCATED
    # Nothing behind the header but zeros.
    start = content.index(b"\xff\xda")
    damaged = content[: start + 20] + b"\0" * 400 + content[start + 420 :]
    with suppress(ImageRefused):
        read(damaged)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "named", ["SECRETNAME^JANE", "1.2.SECRETNAME", "1.2.840.10008.1.2.4.SECRET"]
)
def test_what_is_no_transfer_syntax_is_not_quoted(named):
    refused = refusal(
        part10(
            *image_elements(20, 20),
            element(0x7FE00010, b"OW", b"\0" * 800),
            syntax=named.encode().ljust(len(named) // 2 * 2 + 2, b"\0"),
        )
    )
    assert refused.reason is RefusalReason.UNSUPPORTED_SYNTAX
    assert "SECRET" not in refused.detail


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_implicit.dcm", "MR_small_RLE.dcm"])
def test_cut_anywhere_a_file_is_never_read_and_never_an_accident(name):
    content = (SAMPLES / name).read_bytes()
    # Past the pixels these files hold padding that nobody misses.
    end = len(content) - (len(content) - content.rindex(b"\xe0\x7f\x10\x00")) // 2
    for size in np.linspace(1, end, 60).astype(int):
        found = refusal(content[:size])
        assert found.reason in (
            RefusalReason.TRUNCATED,
            RefusalReason.NOT_AN_IMAGE,
            RefusalReason.NO_PIXELS,
        )


def test_any_flipped_byte_is_read_or_refused():
    rng = np.random.default_rng(0)
    for name in ("MR_small_RLE.dcm", "JPEG2000.dcm", "examples_palette.dcm", "rtdose.dcm"):
        content = bytearray((SAMPLES / name).read_bytes())
        header_end = min(len(content), 4000)
        for _ in range(60):
            damaged = content.copy()
            for position in rng.integers(0, header_end, 4):
                damaged[position] = rng.integers(256)
            # Anything else that is raised fails the test.
            with suppress(ImageRefused):
                read(bytes(damaged), frames=ANY_OBJECT)


@pytest.mark.parametrize(
    ("rows", "columns", "frames", "samples"),
    [(65535, 65535, 1, 1), (65535, 65535, 99_999, 3), (512, 512, 2_000_000_000, 1)],
)
def test_declared_terabytes_cost_nothing(tmp_path, rows, columns, frames, samples):
    path = tmp_path / "huge.dcm"
    pixels = element(0x7FE00010, b"OW", b"\0" * 64, length=0xFFFFFFF0)
    header = image_elements(rows, columns, frames, samples=samples)
    path.write_bytes(part10(*header, pixels))
    assert _cheaply(path).reason is RefusalReason.TOO_LARGE


@pytest.mark.parametrize(
    "lie",
    [
        element(0x00081030, b"UT", b"text", length=0xFFFFFFF0),
        element(0x00280010, b"UN", b"\0\2", length=0xFFFFFFF0),
        element(0x00283010, b"SQ", b"\0\2", length=0xFFFFFFF0),
        element(0x7FE00010, b"OW", b"\0" * 64, length=0xFFFFFFF0),
        element(0x7FE00010, b"OW", struct.pack("<HHL", 0xFFFE, 0xE000, 1 << 31), 0xFFFFFFFF),
    ],
)
def test_a_length_that_lies_costs_nothing(tmp_path, lie):
    path = tmp_path / "liar.dcm"
    path.write_bytes(part10(*image_elements(512, 512), lie))
    assert _cheaply(path).reason in (RefusalReason.TRUNCATED, RefusalReason.DAMAGED)


def _cheaply(path) -> ImageRefused:
    outcome(SAMPLES / "CT_small.dcm")
    tracemalloc.start()
    started = time.monotonic()
    found = outcome(path)
    spent = time.monotonic() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000
    assert spent < 1.0
    return found


@pytest.mark.parametrize("build", [nested_undefined, nested_defined])
@pytest.mark.parametrize("levels", [33, 500, 20_000])
def test_deep_nesting(build, levels):
    started = time.monotonic()
    assert refusal(build(levels)).reason is RefusalReason.NESTED_TOO_DEEP
    assert time.monotonic() - started < 2.0


@pytest.mark.parametrize("build", [nested_undefined, nested_defined])
def test_ordinary_nesting(build):
    assert refusal(build(32)).reason is RefusalReason.NO_PIXELS


@pytest.mark.parametrize("build", [nested_undefined, nested_defined])
def test_nesting_without_a_limit_still_ends_well(build):
    limits = ImageLimits(max_nesting=10**6)
    assert refusal(build(5_000), limits=limits).reason in (
        RefusalReason.NESTED_TOO_DEEP,
        RefusalReason.NO_PIXELS,
    )


def test_a_deflated_bomb():
    bomb = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    body = bomb.compress(b"".join(image_elements(512, 512))) + bomb.compress(b"\0" * 50_000_000)
    content = part10(body + bomb.flush(), syntax=b"1.2.840.10008.1.2.1.99")
    limits = ImageLimits(max_decoded_bytes=10_000_000)
    assert refusal(content, limits=limits).reason is RefusalReason.TOO_LARGE


def test_a_compressed_frame_larger_than_declared():
    content = (SAMPLES / "JPEG2000.dcm").read_bytes()
    size = content.index(b"\xff\x4f\xff\x51") + 8
    # Xsiz and Ysiz of the codestream: a gigapixel under a header of 1024 × 256.
    content = content[:size] + struct.pack(">LL", 40_000, 40_000) + content[size + 8 :]
    refused = refusal(content)
    assert refused.reason is RefusalReason.DAMAGED
    assert "40000 × 40000" in refused.detail


@pytest.mark.parametrize("length", [0, 1, 7, 106, 107, 1000])
def test_a_jp2_box_that_never_ends(length):
    boxes = b"\0\0\0\x0cjP  \r\n\x87\n" + struct.pack(">L", length) + b"ftyp" + b"\0" * 100
    made = dataset(np.zeros((20, 20), np.uint8))
    made.PixelData = encapsulate([boxes])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    assert refusal(encode(made, JPEG2000Lossless)).reason is RefusalReason.DAMAGED


def test_fewer_fragments_than_frames():
    made = dataset(np.zeros((5, 20, 20), np.uint8))
    made.PixelData = encapsulate([b"\xff\xd8\xff\xd9"] * 3)
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    refused = refusal(encode(made, JPEGBaseline8Bit))
    assert refused.reason is RefusalReason.TRUNCATED
    assert "5 frames" in refused.detail


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEG2000Lossless, RLELossless])
def test_compressed_nonsense(syntax):
    made = dataset(np.zeros((20, 20), np.uint8))
    made.PixelData = encapsulate([b"no picture at all" * 9])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    refused = refusal(encode(made, syntax))
    assert refused.reason is RefusalReason.DAMAGED
    assert "no picture" not in refused.detail


def test_a_jpeg_ls_frame_that_breaks_off_is_refused_at_once():
    whole = codestreams(JPEGLSLossless)[0].rstrip(b"\0")
    started = time.monotonic()
    for size in range(60, len(whole) - 2, 101):
        cut_off = packed(dataset(SLOPE), [whole[:size]])
        assert refusal(encode(cut_off, JPEGLSLossless)).reason is RefusalReason.TRUNCATED
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Rows": None}, RefusalReason.DAMAGED),
        ({"BitsAllocated": 24}, RefusalReason.UNSUPPORTED_PIXELS),
        ({"SamplesPerPixel": 4}, RefusalReason.UNSUPPORTED_PIXELS),
        ({"PhotometricInterpretation": "DOE JANE"}, RefusalReason.UNSUPPORTED_PIXELS),
        ({"PhotometricInterpretation": "HSV"}, RefusalReason.UNSUPPORTED_PIXELS),
        ({"PhotometricInterpretation": "RGB"}, RefusalReason.UNSUPPORTED_PIXELS),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, RefusalReason.DAMAGED),
        ({"PixelData": None}, RefusalReason.NO_PIXELS),
        ({"PixelData": b""}, RefusalReason.NO_PIXELS),
        ({"Columns": 21}, RefusalReason.TRUNCATED),
    ],
)
def test_headers_that_cannot_be_followed(elements, reason):
    refused = refusal(encode(dataset(PIXELS, **elements)))
    assert refused.reason is reason
    assert "DOE" not in refused.detail


@pytest.mark.parametrize("photometric", [None, "MONOCHROME2"])
def test_what_is_missing_and_harmless_is_assumed(photometric):
    made = dataset(PIXELS, PixelRepresentation=None, BitsStored=None, HighBit=None)
    made.NumberOfFrames = 0
    made.SamplesPerPixel = 1
    if photometric is None:
        del made.PhotometricInterpretation
    assert read(encode(made)).frames[0].pixels.shape == (20, 20)


def test_an_unknown_transfer_syntax_is_named():
    refused = refusal(
        encode(dataset(PIXELS)).replace(b"1.2.840.10008.1.2.1\0", b"1.2.3.4.5.6.7.8.9.0\0")
    )
    assert refused.reason is RefusalReason.UNSUPPORTED_SYNTAX
    assert "1.2.3.4.5.6.7.8.9.0" in refused.detail


def test_the_id_comes_from_the_uid_or_else_from_the_content():
    named = read(encode(dataset(PIXELS)))
    assert named.point_id(named.frames[0]) == dicom_point_id("1.2.3.4", 0)
    content = encode(dataset(np.stack([PIXELS, PIXELS])))
    nameless = read(content.replace(element(0x00080018, b"UI", b"1.2.3.4\0"), b""))
    assert nameless.record.sop is None
    ids = [nameless.point_id(frame) for frame in nameless.frames]
    assert ids[0] == content_point_id(nameless.content_sha256)
    assert len(set(ids)) == 2


def test_a_file_without_preamble():
    content = encode(dataset(PIXELS))
    assert read(content[132:]).record.sop == "1.2.3.4"
    meta = struct.unpack_from("<L", content, 140)[0]
    assert read(content[144 + meta :]).record.sop == "1.2.3.4"


@pytest.mark.parametrize("length", [0, 4, 70, 100_000, 0xFFFFFFFF])
def test_a_wrong_length_of_the_file_meta_information(length):
    content = encode(dataset(PIXELS))
    assert content[140:144] != struct.pack("<L", length)
    wrong = content[:140] + struct.pack("<L", length) + content[144:]
    assert np.array_equal(read(wrong).frames[0].pixels, read(content).frames[0].pixels)


def test_group_lengths_of_the_dataset_are_ignored():
    content = encode(dataset(PIXELS))
    image = content.index(struct.pack("<HH", 0x0028, 0x0002))
    length = element(0x00280000, b"UL", struct.pack("<L", 7))
    assert read(content[:image] + length + content[image:]).record.sop == "1.2.3.4"


def test_without_a_length_of_the_file_meta_information():
    content = encode(dataset(PIXELS))
    assert read(content[:132] + content[144:]).record.sop == "1.2.3.4"


@pytest.mark.parametrize(
    ("written", "named"),
    [
        (ExplicitVRLittleEndian, ImplicitVRLittleEndian),
        (ImplicitVRLittleEndian, ExplicitVRLittleEndian),
    ],
)
def test_a_dataset_that_is_not_written_as_its_transfer_syntax_says(written, named):
    content = encode(dataset(PIXELS), written)
    lie = content.replace(_meta_syntax(written), _meta_syntax(named))
    # The lengths differ by the two characters that tell the syntaxes apart.
    assert len(lie) != len(content)
    assert np.array_equal(read(lie).frames[0].pixels, read(content).frames[0].pixels)


def _meta_syntax(uid: str) -> bytes:
    return element(0x00020010, b"UI", uid.encode() + b"\0" * (len(uid) % 2))


def test_a_network_command_before_the_dataset():
    content = encode(dataset(PIXELS))
    meta = struct.unpack_from("<L", content, 140)[0]
    body = content[144 + meta :]
    field = struct.pack("<HHLH", 0x0000, 0x0100, 2, 1)
    command = struct.pack("<HHLL", 0, 0, 4, len(field)) + field
    for stored in (content[: 144 + meta] + command + body, command + body):
        assert read(stored).record.sop == "1.2.3.4"


# Three frames that differ, and how RLE and JPEG 2000 write them.
FRAMES = np.stack([SLOPE, SLOPE.T, SLOPE[::-1]])


def movie(**elements) -> Dataset:
    return dataset(FRAMES, WindowCenter=2000, WindowWidth=4000, **elements)


def codestreams(syntax: UID) -> list[bytes]:
    return list(generate_frames(compress(movie(), syntax).PixelData, number_of_frames=3))


def cut(frame: bytes, pieces: int) -> list[bytes]:
    size = (len(frame) // pieces + 2) // 2 * 2
    return [frame[start : start + size] for start in range(0, len(frame), size)]


def joined(frames: list[list[bytes]]) -> list[bytes]:
    return [piece for frame in frames for piece in frame]


def offsets_of(frames: list[list[bytes]]) -> list[int]:
    """Where each frame, given by its fragments, starts."""
    starts, position = [], 0
    for fragments in frames:
        starts.append(position)
        position += sum(8 + len(piece) + len(piece) % 2 for piece in fragments)
    return starts


def assert_frames_shown(made: Dataset, syntax: UID) -> None:
    expected = [frame.pixels for frame in read(encode(movie())).frames]
    found = [frame.pixels for frame in read(encode(made, syntax)).frames]
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


SEVERAL = (RLELossless, JPEG2000Lossless, JPEGLSLossless)


@pytest.mark.parametrize("syntax", SEVERAL, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("pieces", [1, 2, 5])
@pytest.mark.parametrize("table", ["right", "none", "wrong", "short", "beyond", "from elsewhere"])
def test_frames_in_several_fragments(syntax, pieces, table):
    frames = [cut(frame, pieces) for frame in codestreams(syntax)]
    right = offsets_of(frames)
    offsets = {
        "right": right,
        "none": None,
        "wrong": [0, 10, 20],
        "short": right[:2],
        "beyond": [0, right[1], 2**31],
        # Counted from the table, and not from what is behind it.
        "from elsewhere": [offset + 20 for offset in right],
    }[table]
    assert_frames_shown(packed(movie(), joined(frames), offsets), syntax)


@pytest.mark.parametrize("syntax", SEVERAL, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("lie", [None, "offsets", "lengths", "short", "huge"])
def test_an_extended_offset_table(syntax, lie):
    frames = codestreams(syntax)
    made = movie()
    made.PixelData, offsets, lengths = encapsulate_extended(frames)
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    made.ExtendedOffsetTable = {
        "offsets": struct.pack("<3Q", 0, 3, 5),
        "short": offsets[:8],
        "huge": struct.pack("<3Q", 0, 2**40, 2**63),
    }.get(lie, offsets)
    made.ExtendedOffsetTableLengths = (
        struct.pack("<3Q", 2**40, 1, 0) if lie == "lengths" else lengths
    )
    assert_frames_shown(made, syntax)


def test_an_extended_offset_table_over_fragments():
    frames = [cut(frame, 2) for frame in codestreams(RLELossless)]
    made = packed(movie(), joined(frames))
    made.ExtendedOffsetTable = struct.pack("<3Q", *offsets_of(frames))
    made.ExtendedOffsetTableLengths = struct.pack("<3Q", *(len(b"".join(f)) for f in frames))
    assert_frames_shown(made, RLELossless)


def test_an_empty_fragment_is_no_frame():
    frames = codestreams(JPEG2000Lossless)
    assert_frames_shown(packed(movie(), [*frames, b""]), JPEG2000Lossless)


def test_more_frames_in_the_file_than_declared():
    frames = codestreams(JPEG2000Lossless)
    one = packed(dataset(SLOPE, WindowCenter=2000, WindowWidth=4000), frames)
    found = read(encode(one, JPEG2000Lossless))
    assert found.frames_declared == len(found.frames) == 1
    assert np.array_equal(found.frames[0].pixels, read(encode(movie())).frames[0].pixels)


def test_of_several_frames_in_one_fragment_the_first_is_shown():
    # A fragment holds one frame at most (PS3.5 A.4), so the others are not where they should be.
    frames = codestreams(JPEG2000Lossless)
    found = read(encode(packed(movie(), [b"".join(frames)]), JPEG2000Lossless))
    assert [frame.number for frame in found.frames] == [0]
    assert np.array_equal(found.frames[0].pixels, read(encode(movie())).frames[0].pixels)
    (missing,) = found.partial
    assert (missing.first, missing.last, missing.reason) == (1, 2, RefusalReason.TRUNCATED)
    assert missing.detail == "3 frames are declared and the file holds 1"


def test_fragments_of_fewer_frames_than_declared():
    frames = codestreams(JPEG2000Lossless)
    fragments = [*cut(frames[0], 2), *cut(frames[1], 2)]
    found = read(encode(packed(movie(), fragments), JPEG2000Lossless))
    expected = read(encode(movie())).frames[:2]
    assert [frame.number for frame in found.frames] == [0, 1]
    for one, other in zip(found.frames, expected, strict=True):
        assert np.array_equal(one.pixels, other.pixels)
    assert [(missing.first, missing.last) for missing in found.partial] == [(2, 2)]


def test_fragments_of_which_nothing_tells_the_frames_are_refused():
    frames = codestreams(JPEG2000Lossless)
    fragments = [*cut(frames[0], 2), *cut(frames[1], 2)]
    fragments[0] = b"\0" * len(fragments[0])
    refused = refusal(encode(packed(movie(), fragments), JPEG2000Lossless))
    assert refused.reason is RefusalReason.DAMAGED
    assert "4 fragments belong to which of 3 frames" in refused.detail


def test_a_movie_of_many_frames_is_not_searched_anew_for_each():
    made = dataset(np.zeros((4000, 16, 16), np.uint8))
    still = compress(dataset(SLOPE[:16, :16].astype(np.uint8)), RLELossless)
    frame = next(generate_frames(still.PixelData, number_of_frames=1))
    content = encode(packed(made, [frame] * 4000), RLELossless)
    started = time.monotonic()
    found = read(content, frames=400)
    assert len(found.frames) == 400
    assert time.monotonic() - started < 5


# Modules and IODs: PS3.3 annex A.
NO_IMAGES = {
    "1.2.840.10008.5.1.4.1.1.88.33": "Comprehensive SR Storage",
    "1.2.840.10008.5.1.4.1.1.88.59": "Key Object Selection Document Storage",
    "1.2.840.10008.5.1.4.1.1.88.67": "X-Ray Radiation Dose SR Storage",
    "1.2.840.10008.5.1.4.1.1.11.1": "Grayscale Softcopy Presentation State Storage",
    "1.2.840.10008.5.1.4.1.1.104.1": "Encapsulated PDF Storage",
    "1.2.840.10008.5.1.4.1.1.104.2": "Encapsulated CDA Storage",
    "1.2.840.10008.5.1.4.1.1.481.3": "RT Structure Set Storage",
    "1.2.840.10008.5.1.4.1.1.481.5": "RT Plan Storage",
    "1.2.840.10008.5.1.4.1.1.9.1.1": "12-lead ECG Waveform Storage",
    "1.2.840.10008.5.1.4.1.1.66": "Raw Data Storage",
    "1.2.840.10008.5.1.4.1.1.66.1": "Spatial Registration Storage",
    "1.2.840.10008.5.1.4.1.1.4.2": "MR Spectroscopy Storage",
}


@pytest.mark.parametrize(("sop_class", "name"), NO_IMAGES.items())
def test_what_is_no_image_is_refused_by_the_name_of_its_class(sop_class, name):
    made = dataset(SOPClassUID=sop_class, PatientName="SECRETNAME^")
    made.EncapsulatedDocument = b"%PDF SECRETNAME^"
    refused = refusal(encode(made))
    assert refused.reason is RefusalReason.NO_PIXELS
    assert refused.detail == f"{name} without pixel data"


@pytest.mark.parametrize("sop_class", ["1.2.3.4.5", "SECRETNAME^", ""])
def test_a_class_that_nobody_knows_is_not_quoted(sop_class):
    content = part10(
        element(0x00080016, b"UI", sop_class.encode() + b"\0" * (len(sop_class) % 2)),
        element(0x00100010, b"PN", b"SECRETNAME^ "),
    )
    refused = refusal(content)
    assert refused.reason is RefusalReason.NO_PIXELS
    assert refused.detail in (
        "an unknown SOP class without pixel data",
        "a dataset without SOP class and without pixel data",
    )


@pytest.mark.parametrize(
    ("elements", "flagged"),
    [
        ({"SOPClassUID": SECONDARY_CAPTURE}, True),
        ({"SOPClassUID": SECONDARY_CAPTURE + ".1"}, True),
        ({"SOPClassUID": SECONDARY_CAPTURE + ".2"}, True),
        ({"SOPClassUID": SECONDARY_CAPTURE + ".3"}, True),
        ({"SOPClassUID": SECONDARY_CAPTURE + ".4"}, True),
        ({"SOPClassUID": SECONDARY_CAPTURE, "BurnedInAnnotation": "NO"}, False),
        ({"BurnedInAnnotation": "YES"}, True),
        ({"BurnedInAnnotation": "NO"}, False),
        # A class that only begins with the same digits.
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.4"}, None),
        # Screenshots stored among the images that they show.
        ({"SOPClassUID": CT, "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, True),
        ({"SOPClassUID": CT, "ConversionType": "WSD"}, True),
        ({"SOPClassUID": CT, "ImageType": ["DERIVED", "SECONDARY", "AXIAL"]}, None),
        # Radiographs made for reading are no screenshots.
        (
            {
                "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1",
                "PresentationIntentType": "FOR PRESENTATION",
                "ImageType": ["DERIVED", "PRIMARY"],
            },
            None,
        ),
        # A face that can be recognised is no writing.
        ({"RecognizableVisualFeatures": "YES"}, None),
    ],
)
def test_writing_in_the_picture_is_flagged(elements, flagged):
    assert read(encode(dataset(PIXELS, **elements))).record.burned_in is flagged


@pytest.mark.parametrize(
    "content",
    [
        b"Dear colleague, thank you for referring this patient. " * 20,
        b"\x08\x00\x05\x00" + b"CS\x0a\x00ISO_IR 100" + b"no more than this looks like DICOM",
        b"\0" * 5000,
        b"DICM" * 20,
        b"<html>" * 100,
    ],
)
def test_other_things_are_not_images(content):
    assert refusal(content).reason is RefusalReason.NOT_AN_IMAGE


def test_nothing_of_the_patient_is_logged_or_quoted(caplog, capfd):
    caplog.set_level(logging.DEBUG)
    content = part10(
        *image_elements(20, 20),
        element(0x00100010, b"PN", b"DOE^JANE" * 20),
        element(0x00100030, b"DA", b"DOE^JANE"),
        element(0x00101010, b"AS", b"DOE^JANE"),
        element(0x00280030, b"DS", b"DOE^JANE"),
        element(0x00281050, b"DS", b"DOE^JANE"),
    )
    assert "DOE" not in str(refusal(content))
    assert "DOE" not in caplog.text
    assert "DOE" not in "".join(capfd.readouterr())


def test_nothing_of_the_patient_is_in_a_warning(caplog):
    caplog.set_level(logging.DEBUG)
    names = [
        element(tag, vr, b"DOE^JANE" * 4)
        for tag, vr in (
            (0x0008_0018, b"UI"),
            (0x0008_0020, b"DA"),
            (0x0008_0060, b"CS"),
            (0x0010_0010, b"PN"),
            (0x0010_0030, b"DA"),
            (0x0010_1010, b"AS"),
            (0x0020_000D, b"UI"),
        )
    ]
    kind, *image = image_elements(20, 20)
    elements = [kind, *names, *image, element(0x7FE00010, b"OW", b"\0\1" * 400)]
    named = part10(*elements, syntax=b"DOE^JANE")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read(part10(*elements)).record.study is None
        # Without preamble too, when it is first to be told what the file is.
        assert read(b"".join(elements)).record.study is None
        for content in (named, named[132:]):
            assert refusal(content).reason is RefusalReason.UNSUPPORTED_SYNTAX
    assert caught == []
    assert "DOE" not in caplog.text
