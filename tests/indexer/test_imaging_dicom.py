"""Every DICOM file is read or refused for a reason that is true of it."""

import logging
import struct
import time
import tracemalloc
import zlib
from collections import Counter
from contextlib import suppress

import numpy as np
import pytest
from dicom_files import (
    KEY,
    LIMITS,
    SAMPLES,
    dataset,
    element,
    encode,
    image_elements,
    nested_defined,
    nested_undefined,
    part10,
    read,
)
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from engine.errors import ImageRefused, RefusalReason
from engine.records import content_point_id, dicom_point_id
from engine.settings import ImageLimits
from indexer.imaging.read import Instance, read_image

PIXELS = np.arange(400, dtype=np.uint16).reshape(20, 20)
_FILES = sorted(path for path in SAMPLES.rglob("*") if path.is_file())


def outcome(path) -> Instance | ImageRefused:
    try:
        return read_image(path, LIMITS, frames_per_instance=8, pseudonym_key=KEY)
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
    "JPEGLSNearLossless_16.dcm",
)
REFUSED = {
    "rtplan.dcm": ("no-pixels", "RT Plan Storage"),
    "rtstruct.dcm": ("no-pixels", "RT Structure Set Storage"),
    "reportsi.dcm": ("no-pixels", "Basic Text SR Storage"),
    "waveform_ecg.dcm": ("no-pixels", "12-lead ECG Waveform Storage"),
    "dicomdirtests/DICOMDIR": ("no-pixels", "Media Storage Directory Storage"),
    "ExplVR_BigEndNoMeta.dcm": ("no-pixels", "RT Ion Plan Storage"),
    "MR_truncated.dcm": ("truncated", "8192"),
    "rtplan_truncated.dcm": ("truncated", "21 bytes"),
    "SC_rgb_small_odd.dcm": ("too-small", "3 × 3"),
    "SC_rgb_jpeg_gdcm.dcm": ("unsupported-transfer-syntax", "JPEG Lossless"),
    "JPGExtended.dcm": ("unsupported-transfer-syntax", "JPEG Extended"),
    "README.txt": ("not-an-image", "neither DICOM nor PNG nor JPEG"),
    "zipMR.gz": ("not-an-image", "neither"),
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


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_implicit.dcm", "rtdose_rle.dcm"])
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
                read(bytes(damaged))


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


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Rows": None}, RefusalReason.DAMAGED),
        ({"BitsAllocated": 12}, RefusalReason.UNSUPPORTED_PIXELS),
        ({"SamplesPerPixel": 4}, RefusalReason.UNSUPPORTED_PIXELS),
        ({"PhotometricInterpretation": "DOE JANE"}, RefusalReason.UNSUPPORTED_PIXELS),
        ({"PhotometricInterpretation": "HSV"}, RefusalReason.UNSUPPORTED_PIXELS),
        ({"PhotometricInterpretation": "RGB"}, RefusalReason.UNSUPPORTED_PIXELS),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, RefusalReason.DAMAGED),
        ({"PixelData": None}, RefusalReason.NO_PIXELS),
        ({"PixelData": b""}, RefusalReason.NO_PIXELS),
        ({"NumberOfFrames": 2}, RefusalReason.TRUNCATED),
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
