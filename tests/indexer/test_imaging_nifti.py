"""NIfTI volumes are shown as axial slices, as radiologists look at them."""

import gzip
import struct
import sys

import numpy as np
import pytest
from dicom_files import read
from test_imaging_tiff import said

from engine.errors import ImageRefused, RefusalReason
from engine.settings import ImageLimits

CODES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "c8": 32, "f8": 64, "i1": 256, "u2": 512, "u4": 768}
# Voxel sizes of 1 mm, along the patient's right, anterior and superior.
RAS = np.eye(4)


def nifti(
    values: np.ndarray,
    affine: np.ndarray = RAS,
    *,
    version: int = 1,
    order: str = "<",
    scaling: tuple[float, float] = (0.0, 0.0),
    zooms: tuple[float, ...] = (1.0, 1.0, 1.0),
    code: int | None = None,
    dim: tuple[int, ...] | None = None,
    magic: bytes | None = None,
) -> bytes:
    """A single .nii file, written field by field from nifti1.h or nifti2.h."""
    rgb = values.ndim > 3 and values.shape[-1] == 3 and code == 128
    shape = values.shape[:-1] if rgb else values.shape
    dim = dim or (len(shape), *shape, *(1,) * (7 - len(shape)))
    code = code or CODES[values.dtype.str[1:]]
    bits = 24 if rgb else 8 * values.dtype.itemsize
    pixdim = (1.0, *zooms, *(1.0,) * (7 - len(zooms)))
    if version == 1:
        head = bytearray(352)
        struct.pack_into(order + "L", head, 0, 348)
        struct.pack_into(order + "8h", head, 40, *dim)
        struct.pack_into(order + "2h", head, 70, code, bits)
        struct.pack_into(order + "8f", head, 76, *pixdim)
        struct.pack_into(order + "3f", head, 108, 352, *scaling)
        head[148:160] = b"SECRETNAME^J"
        struct.pack_into(order + "2h", head, 252, 0, 1)
        struct.pack_into(order + "12f", head, 280, *affine[:3].ravel())
        head[344:348] = magic or b"n+1\0"
    else:
        head = bytearray(544)
        struct.pack_into(order + "L", head, 0, 540)
        head[4:12] = magic or b"n+2\0\r\n\x1a\n"
        struct.pack_into(order + "2h", head, 12, code, bits)
        struct.pack_into(order + "8q", head, 16, *dim)
        struct.pack_into(order + "8d", head, 104, *pixdim)
        struct.pack_into(order + "q2d", head, 168, 544, *scaling)
        struct.pack_into(order + "2l", head, 344, 0, 1)
        struct.pack_into(order + "12d", head, 400, *affine[:3].ravel())
    data = values.astype(values.dtype.newbyteorder(order))
    if rgb:
        return bytes(head) + np.moveaxis(data, -1, 0).tobytes(order="F")
    return bytes(head) + data.tobytes(order="F")


def volume(dtype: str = "i2") -> np.ndarray:
    """(20 to the right, 24 to the front, 10 upwards): brighter to the right and to the front."""
    x, y, z = np.mgrid[:20, :24, :10]
    return (2 * x + 3 * y + z).astype(dtype)


def expected(values: np.ndarray, number: int) -> np.ndarray:
    """Slice ``number`` of a volume in RAS+: right on the left, anterior at the top."""
    plane = values[::-1, ::-1, number].T.astype(float)
    low, high = np.percentile(plane, (1, 99))
    return np.rint(np.clip((plane - low) / (high - low), 0, 1) * 255)


def frames(content: bytes, count: int = 100) -> list[np.ndarray]:
    return [frame.pixels for frame in read(content, frames=count).frames]


def reason(content: bytes, **options) -> RefusalReason:
    with pytest.raises(ImageRefused) as caught:
        read(content, **options)
    assert "SECRET" not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_slices_lie_as_radiologists_look_at_them(version, order, dtype):
    values = volume(dtype)
    shown = frames(nifti(values, version=version, order=order))
    assert len(shown) == 10
    for number, picture in enumerate(shown):
        assert picture.shape == (24, 20)
        assert np.abs(picture - expected(values, number)).max() <= 1
        # Right is on the left of the picture, anterior at its top: both are bright.
        assert picture[0, 0] == 255
        assert picture[-1, -1] == 0


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1), (2, 1, 0)])
@pytest.mark.parametrize("flips", [(0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 1)])
def test_however_voxels_are_stored_the_pictures_are_the_same(axes, flips):
    """nifti1.h, method 3: the affine tells where the axes of the file point."""
    values = volume()
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    stored = values.transpose(axes)
    for axis, direction in enumerate(axes):
        sign = -1 if flips[axis] else 1
        affine[direction, axis] = sign
        if flips[axis]:
            stored = np.flip(stored, axis)
    found = frames(nifti(np.ascontiguousarray(stored), affine))
    for picture, right in zip(found, frames(nifti(values)), strict=True):
        assert np.array_equal(picture, right)


def test_frames_are_chosen_by_the_policy_and_volumes_follow_each_other():
    values = np.stack([volume(), volume()[::-1], volume()[:, ::-1]], axis=-1)
    content = nifti(np.ascontiguousarray(values))
    found = read(content, frames=30)
    assert found.frames_declared == 30
    for frame in found.frames:
        time, number = divmod(frame.number, 10)
        right = expected(values[..., time], number)
        assert np.abs(frame.pixels - right).max() <= 1
    assert [frame.number for frame in read(content, frames=3).frames] == [5, 15, 25]
    assert len({found.point_id(frame) for frame in found.frames}) == 30


def test_scaling_is_applied():
    """nifti1.h: scl_slope and scl_inter; a negative slope turns black and white round."""
    values = volume()
    plain = frames(nifti(values))[5]
    assert np.array_equal(frames(nifti(values, scaling=(2.0, -1000.0)))[5], plain)
    turned = frames(nifti(values, scaling=(-2.0, 10.0)))[5]
    assert np.abs(turned.astype(int) - (255 - plain.astype(int))).max() <= 1
    for nothing in ((0.0, 5.0), (float("nan"), 1.0)):
        assert np.array_equal(frames(nifti(values, scaling=nothing))[5], plain)


def test_pixels_are_shown_square():
    found = frames(nifti(volume(), np.diag((1.0, 2.0, 1.0, 1.0)), zooms=(1.0, 2.0, 1.0)))[0]
    assert found.shape == (48, 20)
    found = frames(nifti(volume(), np.diag((3.0, 1.0, 1.0, 1.0)), zooms=(3.0, 1.0, 1.0)))[0]
    assert found.shape == (24, 60)


def test_colors():
    """nifti1.h, DT_RGB24."""
    colors = np.zeros((16, 16, 3, 3), np.uint8)
    colors[..., 0], colors[:8, ..., 2] = 200, 90
    picture = frames(nifti(colors, code=128))[0]
    assert picture.shape == (16, 16, 3)
    # The first half lies to the left of the patient: on the right of the picture.
    assert picture[0, 0].tolist() == [200, 0, 0]
    assert picture[0, -1].tolist() == [200, 0, 90]


def test_packed(tmp_path):
    content = nifti(volume())
    packed = read(gzip.compress(content))
    assert packed.content_sha256 == read(content).content_sha256
    assert np.array_equal(packed.frames[0].pixels, read(content).frames[0].pixels)


def test_nothing_of_the_header_is_kept():
    assert "SECRET" not in repr(read(nifti(volume())).record)


def test_not_finite_voxels_are_black():
    values = volume("f4")
    values[0, 0, :] = np.nan
    picture = frames(nifti(values))[0]
    assert picture[-1, -1] == 0
    assert picture[0, 0] == 255


def test_absurd_dimensions_cost_nothing():
    large = (3, 32767, 32767, 32767, 1, 1, 1, 1)
    assert reason(nifti(volume(), dim=large)) is RefusalReason.TOO_LARGE
    long = (4, 20, 24, 32767, 32767, 1, 1, 1)
    assert reason(nifti(volume(), dim=long)) is RefusalReason.TOO_LARGE
    wide = (3, 2**40, 2**40, 2**40, 1, 1, 1, 1)
    assert reason(nifti(volume(), dim=wide, version=2)) is RefusalReason.TOO_LARGE
    for dim in ((3, -5, 20, 20, 1, 1, 1, 1), (3, 0, 20, 20, 1, 1, 1, 1), (9, *(20,) * 7)):
        assert reason(nifti(volume(), dim=dim)) is RefusalReason.DAMAGED
    assert reason(nifti(volume(), dim=(3, 200, 240, 10, 1, 1, 1, 1))) is RefusalReason.TRUNCATED
    tiny = (3, 4, 4, 300, 1, 1, 1, 1)
    assert reason(nifti(volume(), dim=tiny)) is RefusalReason.TOO_SMALL
    limits = ImageLimits(max_decoded_bytes=5000)
    assert reason(nifti(volume()), limits=limits) is RefusalReason.TOO_LARGE


def test_what_cannot_be_shown():
    assert reason(nifti(volume("c8"))) is RefusalReason.UNSUPPORTED_PIXELS
    assert reason(nifti(volume(), dim=(5, 20, 24, 5, 1, 2, 1, 1))) is (
        RefusalReason.UNSUPPORTED_PIXELS
    )
    assert reason(nifti(volume(), code=1234)) in (
        RefusalReason.UNSUPPORTED_PIXELS,
        RefusalReason.DAMAGED,
    )
    assert reason(nifti(volume(), magic=b"ni1\0")) is RefusalReason.UNREADABLE


@pytest.mark.parametrize("affine", [np.full((4, 4), np.nan), np.zeros((4, 4))])
def test_an_affine_that_tells_nothing(affine):
    assert len(frames(nifti(volume(), affine))) == 10


def test_without_the_extra_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ImageRefused) as caught:
        read(nifti(volume()))
    # A reason that is tried again by the next run.
    assert caught.value.reason is RefusalReason.UNREADABLE
    assert "pip install 'precedent-imaging[nifti]'" in caught.value.detail


def test_cut_and_damaged(capfd):
    content = nifti(volume())
    rng = np.random.default_rng(0)
    for size in range(0, len(content), 331):
        assert reason(content[:size] or b"x")
    for _ in range(200):
        damaged = bytearray(content)
        for position in rng.integers(0, 352, 4):
            damaged[position] = rng.integers(256)
        assert "SECRET" not in said(bytes(damaged))
    assert capfd.readouterr() == ("", "")
