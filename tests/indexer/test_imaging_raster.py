"""PNG and JPEG files are shown as people see them."""

import io

import numpy as np
import pytest
from dicom_files import png_of_zeros, read
from PIL import Image

from engine.errors import ImageRefused, RefusalReason
from engine.records import ImageRecord, content_point_id
from engine.settings import ImageLimits

RAMP = np.tile(np.arange(32, dtype=np.uint8) * 8, (24, 1))


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels_of(image: Image.Image, kind: str = "PNG", **options) -> np.ndarray:
    return read(file_of(image, kind, **options)).frames[0].pixels


def refusal(content: bytes, **options) -> RefusalReason:
    with pytest.raises(ImageRefused) as caught:
        read(content, **options)
    return caught.value.reason


def test_grey_stays_grey():
    assert np.array_equal(pixels_of(Image.fromarray(RAMP)), RAMP)


def test_color_stays_color():
    color = np.stack([RAMP, RAMP[::-1], 255 - RAMP], axis=-1)
    assert np.array_equal(pixels_of(Image.fromarray(color)), color)


def test_three_equal_channels_are_one_grey():
    assert np.array_equal(pixels_of(Image.fromarray(np.stack([RAMP] * 3, axis=-1))), RAMP)


def test_jpeg():
    shown = pixels_of(Image.fromarray(RAMP), "JPEG", quality=95)
    assert shown.shape == RAMP.shape
    assert np.abs(shown.astype(int) - RAMP).max() < 16


def test_palette_becomes_its_colors():
    image = Image.fromarray((RAMP // 128).astype(np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    shown = pixels_of(image)
    assert shown[0, 0].tolist() == [255, 0, 0]
    assert shown[0, -1].tolist() == [0, 0, 255]


def test_transparency_shows_black():
    color = np.zeros((16, 16, 4), dtype=np.uint8)
    color[..., 0] = 200
    color[:8, :, 3] = 255
    shown = pixels_of(Image.fromarray(color))
    assert shown[0, 0].tolist() == [200, 0, 0]
    assert shown[-1, -1].tolist() == [0, 0, 0]


def test_sixteen_bits_are_stretched_and_an_outlier_does_not_darken_them():
    deep = np.tile(np.arange(1000, 2000, 10, dtype=np.uint16), (100, 1))
    deep[0, 0] = 65535
    shown = pixels_of(Image.fromarray(deep))
    assert shown[1, 0] == 0
    assert shown[1, -1] == 255
    assert 120 < shown[1, 50] < 136


def test_one_bit():
    shown = pixels_of(Image.fromarray(RAMP > 100))
    assert set(np.unique(shown)) == {0, 255}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_as_exif_says(orientation):
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
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = pixels_of(Image.fromarray(np.ascontiguousarray(sideways)), exif=exif.tobytes())
    assert np.array_equal(shown, RAMP)


def test_the_id_comes_from_the_content():
    instance = read(file_of(Image.fromarray(RAMP)))
    assert instance.record == ImageRecord()
    assert instance.frames_declared == 1
    assert instance.point_id(instance.frames[0]) == content_point_id(instance.content_sha256)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated(kind):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    content = file_of(Image.fromarray(noise), kind)
    assert refusal(content[: len(content) // 2]) is RefusalReason.TRUNCATED


def test_damaged():
    content = bytearray(file_of(Image.fromarray(RAMP)))
    content[content.index(b"IDAT") + 6] ^= 0xFF
    assert refusal(bytes(content)) in (RefusalReason.DAMAGED, RefusalReason.TRUNCATED)
    assert refusal(b"\x89PNG\r\n\x1a\nnothing more") is RefusalReason.DAMAGED


def test_a_single_pixel_is_no_picture():
    assert refusal(file_of(Image.new("L", (1, 1)))) is RefusalReason.TOO_SMALL


def test_a_bomb_is_refused_by_its_header():
    bomb = png_of_zeros(30_000, 30_000)
    assert len(bomb) < 200_000
    assert refusal(bomb) is RefusalReason.TOO_LARGE


def test_the_limit_is_ours_alone():
    large = png_of_zeros(14_000, 14_000)
    assert refusal(large) is RefusalReason.TOO_LARGE
    assert refusal(png_of_zeros(100, 100), limits=ImageLimits(max_pixels=9_999)) is (
        RefusalReason.TOO_LARGE
    )
