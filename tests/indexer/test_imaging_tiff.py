"""TIFF, JPEG 2000, WebP and BMP files are shown as people see them, and read within limits."""

import io
import struct

import numpy as np
import pytest
from dicom_files import dataset, encode, read
from PIL import Image
from test_imaging_raster import RAMP, file_of, pixels_of, refusal

from engine.errors import ImageRefused, RefusalReason
from engine.settings import ImageLimits
from indexer.imaging.frames import FramePolicy

DEEP = np.tile(np.arange(1000, 2000, 10, dtype=np.uint16), (100, 1))


def tiff(
    *pages: np.ndarray, order: str = "<", big: bool = False, circle: bool = False, **fields: int
) -> bytes:
    """An uncompressed TIFF file of grey pages, written from TIFF 6.0; ``fields`` by tag name."""
    tags = {"subfile": 254, "photometric": 262, "orientation": 274, "width": 256, "height": 257}
    out = bytearray(b"II" if order == "<" else b"MM")
    number = "Q" if big else "L"
    out += struct.pack(order + "HHH", 43, 8, 0) if big else struct.pack(order + "H", 42)
    link = len(out)
    out += struct.pack(order + number, 0)
    first = None
    for page in pages:
        strip = len(out)
        out += page.astype(page.dtype.newbyteorder(order)).tobytes() + b"\0" * (-page.nbytes % 8)
        entries = {
            254: 0,
            256: page.shape[1],
            257: page.shape[0],
            258: 8 * page.dtype.itemsize,
            259: 1,
            262: 1,
            273: strip,
            277: 1,
            278: page.shape[0],
            279: page.nbytes,
            339: {"u": 1, "i": 2, "f": 3}[page.dtype.kind],
        } | {tags[name]: value for name, value in fields.items()}
        struct.pack_into(order + number, out, link, len(out))
        first = first or len(out)
        out += struct.pack(order + ("Q" if big else "H"), len(entries))
        for tag, value in sorted(entries.items()):
            out += struct.pack(order + "HH" + number + number, tag, 16 if big else 4, 1, value)
        link = len(out)
        out += struct.pack(order + number, 0)
    if circle:
        struct.pack_into(order + number, out, link, first)
    return bytes(out)


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_grey_of_sixteen_bits_is_stretched(order, big):
    shown = read(tiff(DEEP, order=order, big=big)).frames[0].pixels
    assert np.array_equal(shown, pixels_of(Image.fromarray(DEEP)))
    signed = read(tiff(DEEP.astype(np.int16) - 1500, order=order, big=big)).frames[0].pixels
    assert np.array_equal(signed, shown)


def test_floats_are_stretched_and_what_is_no_number_is_black():
    values = DEEP.astype(np.float32) / 1000
    plain = read(tiff(values)).frames[0].pixels
    assert np.abs(plain.astype(int) - pixels_of(Image.fromarray(DEEP))).max() <= 1
    values[0, :3] = np.nan, np.inf, -np.inf
    shown = read(tiff(values)).frames[0].pixels
    assert shown[0, :3].tolist() == [0, 0, 0]
    assert np.abs(shown[1:].astype(int) - plain[1:]).max() <= 3
    assert not read(tiff(np.full((9, 9), np.nan, np.float32))).frames[0].pixels.any()


def test_white_is_zero():
    """TIFF 6.0, PhotometricInterpretation 0."""
    assert np.array_equal(read(tiff(RAMP, photometric=0)).frames[0].pixels, 255 - RAMP)
    shown = read(tiff(DEEP, photometric=0)).frames[0].pixels
    assert np.array_equal(shown, 255 - read(tiff(DEEP)).frames[0].pixels)


def test_signed_bytes():
    """TIFF 6.0, section 19: sample format 2; the lowest value is black, as of unsigned ones."""
    signed = (RAMP.astype(int) - 128).astype(np.int8)
    assert np.array_equal(read(tiff(signed)).frames[0].pixels, RAMP)


def test_colours_of_sixteen_bits_in_planes_of_their_own_are_refused():
    """Pillow shows other pixels, without a word."""
    out = io.BytesIO()
    Image.fromarray(np.stack([RAMP] * 3, axis=-1)).save(out, "TIFF", tiffinfo={284: 2})
    content = out.getvalue()
    bits = struct.pack("<3H", 8, 8, 8)
    assert content.count(bits) == 1
    with pytest.raises(ImageRefused, match="16 bits in planes of their own") as caught:
        read(content.replace(bits, struct.pack("<3H", 16, 16, 16)))
    assert caught.value.reason is RefusalReason.UNSUPPORTED_PIXELS


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_as_orientation_says(orientation):
    """TIFF 6.0, Orientation."""
    sideways = {
        1: RAMP,
        2: RAMP[:, ::-1],
        3: RAMP[::-1, ::-1],
        4: RAMP[::-1],
        5: RAMP.T,
        6: np.rot90(RAMP, 1),
        7: np.rot90(RAMP, 2).T,
        8: np.rot90(RAMP, -1),
    }[orientation]
    content = tiff(np.ascontiguousarray(sideways), orientation=orientation)
    assert np.array_equal(read(content).frames[0].pixels, RAMP)


@pytest.mark.parametrize(
    "compression", ["raw", "tiff_lzw", "tiff_deflate", "packbits", "tiff_adobe_deflate", "jpeg"]
)
def test_compressions(compression):
    color = np.stack([RAMP, RAMP[::-1], 255 - RAMP], axis=-1)
    shown = pixels_of(Image.fromarray(color), "TIFF", compression=compression)
    assert np.abs(shown.astype(int) - color).mean() < (9 if compression == "jpeg" else 0.01)


def test_pages_are_frames():
    pages = [np.full((20, 30), 10 * number, np.uint8) for number in range(12)]
    content = tiff(*pages)
    spread = read(content, frames=4)
    assert spread.frames_declared == 12
    assert [frame.number for frame in spread.frames] == FramePolicy(limit=4).choose(12)
    for frame in read(content, frames=12).frames:
        assert (frame.pixels == 10 * frame.number).all()
    assert len({spread.point_id(frame) for frame in spread.frames}) == 4


def test_smaller_versions_and_masks_are_no_pages():
    """TIFF 6.0, NewSubfileType."""
    out = bytearray(tiff(RAMP, RAMP, RAMP))
    entry = struct.pack("<HHL", 254, 4, 1)
    second = out.index(entry, out.index(entry) + 1)
    out[second + 8] = 1
    assert read(bytes(out)).frames_declared == 2
    assert read(tiff(RAMP, RAMP, subfile=1)).frames_declared == 2


def test_pages_that_go_in_a_circle_end():
    assert read(tiff(RAMP, RAMP, circle=True)).frames_declared == 2


def test_too_many_pages():
    content = tiff(*[RAMP] * 5)
    assert refusal(content, limits=ImageLimits(max_frames=4)) is RefusalReason.TOO_LARGE


@pytest.mark.parametrize("kind", ["TIFF", "JPEG2000", "WEBP", "BMP"])
def test_declared_terabytes_cost_nothing(kind):
    if kind == "TIFF":
        content = tiff(RAMP, width=60_000, height=60_000)
    else:
        content = bytearray(file_of(Image.fromarray(RAMP), kind, **LOSSLESS[kind]))
        at, form = {
            "JPEG2000": (content.find(b"\xff\x4f\xff\x51") + 8, ">LL"),
            "WEBP": (21, "<L"),
            "BMP": (18, "<LL"),
        }[kind]
        sizes = (60_000, 60_000) if kind != "WEBP" else (0x0FFFFFFF,)
        struct.pack_into(form, content, at, *sizes)
    with pytest.raises(ImageRefused) as caught:
        read(bytes(content))
    assert caught.value.reason is RefusalReason.TOO_LARGE


LOSSLESS = {
    "JPEG2000": {"irreversible": False},
    "WEBP": {"lossless": True},
    "BMP": {},
    "TIFF": {},
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_other_kinds(kind):
    color = np.stack([RAMP, RAMP[::-1], 255 - RAMP], axis=-1)
    for picture in (RAMP, color):
        content = file_of(Image.fromarray(picture), kind, **LOSSLESS[kind])
        found = read(content)
        assert np.array_equal(found.frames[0].pixels, picture)
        assert found.frames_declared == 1
        assert found.point_id(found.frames[0])


def test_a_bare_jpeg_2000_codestream_of_sixteen_bits():
    content = file_of(Image.fromarray(DEEP), "JPEG2000", no_jp2=True)
    assert content.startswith(b"\xff\x4f\xff\x51")
    assert np.array_equal(read(content).frames[0].pixels, pixels_of(Image.fromarray(DEEP)))


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_of_an_animation_the_first_picture(kind):
    pictures = [Image.fromarray(np.roll(RAMP, 5 * number, axis=1)) for number in range(3)]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = file_of(
        pictures[0], kind, save_all=True, append_images=pictures[1:], duration=100, **options
    )
    found = read(content)
    assert found.frames_declared == len(found.frames) == 1
    assert np.array_equal(found.frames[0].pixels, RAMP)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_cut_anywhere_it_is_refused(kind, capfd):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    content = file_of(Image.fromarray(noise), kind, **LOSSLESS[kind])
    end = len(content) - 40
    for size in np.linspace(30, end, 12).astype(int):
        reason = refusal(content[:size])
        assert reason in (RefusalReason.TRUNCATED, RefusalReason.DAMAGED)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("length", [0, 1, 7, 106, 107, 1000])
def test_a_jp2_box_that_never_ends(length):
    boxes = b"\0\0\0\x0cjP  \r\n\x87\n" + struct.pack(">L", length) + b"ftyp" + b"\0" * 100
    assert refusal(boxes) is RefusalReason.DAMAGED


def test_a_dicom_file_that_is_a_tiff_as_well():
    """PS3.10 7.1: the preamble may be that of another format."""
    content = encode(dataset(DEEP))
    dual = tiff(RAMP)[:128] + content[128:]
    assert np.array_equal(read(dual).frames[0].pixels, read(content).frames[0].pixels)


@pytest.mark.parametrize(
    "text", [b"BMW of the patient, parked outside" * 9, b"II", b"RIFF    WAVE"]
)
def test_texts_are_no_pictures(text):
    assert refusal(text) is RefusalReason.NOT_AN_IMAGE


def test_kinds_that_cannot_be_decoded_say_what_to_do():
    for content, way_out in (
        (tiff(DEEP.astype(np.float64)), "convert it to PNG"),
        (tiff(DEEP, order=">", big=True), "convert it to little endian"),
    ):
        with pytest.raises(ImageRefused) as caught:
            read(content)
        assert caught.value.reason is RefusalReason.UNSUPPORTED_PIXELS
        assert way_out in caught.value.detail


def said(content: bytes) -> str:
    """What is told of a file that may be damaged."""
    try:
        return repr(read(content).record)
    except ImageRefused as refused:
        return str(refused)


def test_no_text_of_a_file_is_told(capfd):
    picture = Image.fromarray(RAMP)
    out = io.BytesIO()
    picture.save(out, "TIFF", tiffinfo={270: "SECRETNAME^JANE", 305: "SECRETNAME"})
    content = out.getvalue()
    assert np.array_equal(read(content).frames[0].pixels, RAMP)
    for size in range(8, len(content), 97):
        assert "SECRET" not in said(content[:size])
    assert capfd.readouterr() == ("", "")
