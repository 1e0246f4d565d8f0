"""Reads NIfTI-1 and NIfTI-2 files as axial slices, as radiologists look at them.

The patient's right is on the left of a picture and anterior at its top. Slices are numbered from
inferior to superior, and those of a later volume come after those of an earlier one. Of the header
only sizes, number types, scaling and orientation are looked at: its texts may name a patient.
"""

from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.errors import ImageRefused, RefusalReason
from engine.extras import install_command
from engine.settings import ImageLimits
from indexer.files.limits import check_declared, check_held
from indexer.imaging.frames import FramePolicy
from indexer.imaging.instance import Frame, Pictures
from indexer.imaging.quiet import hushed
from indexer.imaging.raster import stretched

__all__ = ["is_nifti", "read_nifti"]

_BYTES_1, _BYTES_2 = 348, 540
_MAGIC_1, _MAGIC_2 = (b"n+1\0", b"ni1\0"), (b"n+2\0", b"ni2\0")
_PAIRS = (b"ni1\0", b"ni2\0")
_RIGHT, _ANTERIOR, _SUPERIOR = 0, 1, 2
# Where a header does not tell, a volume is taken to lie as the standard space does.
_AS_STORED = ((_RIGHT, 1), (_ANTERIOR, 1), (_SUPERIOR, 1))
_SQUARE = 0.01
_LONGEST = 20


def is_nifti(fp: BinaryIO) -> bool:
    """Whether the content starts with a NIfTI header."""
    return _magic(fp) is not None


def _magic(fp: BinaryIO) -> bytes | None:
    fp.seek(0)
    start = fp.read(_BYTES_1)
    if len(start) < _BYTES_1:
        return None
    sizes = {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
    if _BYTES_1 in sizes and start[344:] in _MAGIC_1:
        return start[344:]
    return start[4:8] if _BYTES_2 in sizes and start[4:8] in _MAGIC_2 else None


@dataclass(frozen=True, slots=True)
class _Volume:
    """The geometry of a NIfTI file.

    shape: voxels along the three axes, and volumes. axes: for each axis of the file, the direction
    it lies along and 1, or -1 if it points the other way. zooms: size of a voxel along each.
    """

    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    offset: int
    axes: tuple[tuple[int, int], ...]
    zooms: tuple[float, ...]
    slope: float
    intercept: float

    def axis(self, direction: int) -> int:
        return next(axis for axis in range(3) if self.axes[axis][0] == direction)

    def length(self, direction: int) -> int:
        return self.shape[self.axis(direction)]

    def points_on(self, direction: int) -> bool:
        return self.axes[self.axis(direction)][1] > 0


def read_nifti(fp: BinaryIO, size: int, limits: ImageLimits, policy: FramePolicy) -> Pictures:
    """The chosen axial slices of the NIfTI file ``fp`` of ``size`` bytes: uint8 (H, W), the robust
    range of each slice mapped to 0…255, or (H, W, 3) RGB as stored.

    Raises:
        ImageRefused: UNREADABLE: nibabel is not installed, or the file is half of a pair.
            UNSUPPORTED_PIXELS, DAMAGED, TRUNCATED, TOO_SMALL or TOO_LARGE.
    """
    if _magic(fp) in _PAIRS:
        raise ImageRefused(
            RefusalReason.UNREADABLE,
            "a NIfTI header whose voxels are in another file; convert the pair to one .nii file",
        )
    volume = _volume(fp)
    rows, columns = volume.length(_ANTERIOR), volume.length(_RIGHT)
    slices, volumes = volume.length(_SUPERIOR), volume.shape[3]
    numbers = policy.choose(slices * volumes)
    samples = len(volume.dtype.names or "1")
    check_declared(rows, columns, slices * volumes, samples, 64, limits, len(numbers))
    whole = int(np.prod(volume.shape[:3], dtype=object)) * volume.dtype.itemsize
    check_held(whole * volumes, size - volume.offset)
    if volume.axis(_SUPERIOR) != 2 and whole > limits.max_decoded_bytes:
        raise ImageRefused(
            RefusalReason.TOO_LARGE,
            f"its slices lie across a volume of {whole} bytes; limits.max_decoded_bytes allows "
            f"{limits.max_decoded_bytes}",
        )
    return Pictures(
        tuple(
            Frame(number, _picture(_plane(fp, volume, *divmod(number, slices)), volume, limits))
            for number in numbers
        ),
        slices * volumes,
    )


def _volume(fp: BinaryIO) -> _Volume:
    try:
        import nibabel
    except ImportError:
        raise ImageRefused(
            RefusalReason.UNREADABLE,
            f"NIfTI files need another package: `{install_command('nifti')}`",
        ) from None
    # It logs what it finds wrong with headers.
    hushed("nibabel")
    hushed("nibabel.global")
    kind = nibabel.Nifti1Header if _magic(fp) in _MAGIC_1 else nibabel.Nifti2Header
    fp.seek(0)
    try:
        header = kind.from_fileobj(fp)
        shape = _shape([int(number) for number in header["dim"]])
        dtype = header.get_data_dtype()
        offset = int(header.get_data_offset())
        affine = header.get_best_affine()
        zooms = tuple(abs(float(zoom)) for zoom in header["pixdim"][1:4])
        if offset < header.sizeof_hdr:
            raise ValueError(offset)
    except ImageRefused:
        raise
    except Exception as error:
        # What nibabel raises depends on the bytes.
        raise ImageRefused(
            RefusalReason.DAMAGED, f"the NIfTI header makes no sense ({type(error).__name__})"
        ) from None
    if dtype.kind not in "iuf" and dtype.names not in (("R", "G", "B"), ("R", "G", "B", "A")):
        raise ImageRefused(
            RefusalReason.UNSUPPORTED_PIXELS,
            f"the NIfTI file holds {'complex' if dtype.kind == 'c' else 'unknown'} numbers; "
            "convert it to real ones",
        )
    axes = _AS_STORED
    if np.isfinite(affine).all():
        found = nibabel.orientations.io_orientation(affine)
        if np.isfinite(found).all():
            axes = tuple((int(axis), int(sign)) for axis, sign in found)  # type: ignore[assignment]
    try:
        slope, intercept = header.get_slope_inter()
    except Exception:
        # Nonsense: as if there were none.
        slope, intercept = None, None
    return _Volume(shape, dtype, offset, axes, zooms, slope or 1.0, intercept or 0.0)


def _shape(dim: list[int]) -> tuple[int, int, int, int]:
    """Voxels along the three axes, and volumes. ``dim`` begins with the number of dimensions."""
    lengths = dim[1 : dim[0] + 1]
    if not 2 <= dim[0] <= 7 or min(lengths) < 1:
        raise ImageRefused(RefusalReason.DAMAGED, f"the NIfTI header declares the dimensions {dim}")
    if any(length != 1 for length in lengths[4:]):
        raise ImageRefused(
            RefusalReason.UNSUPPORTED_PIXELS,
            f"the NIfTI file has {len(lengths)} dimensions, and not more than 4 can be shown; "
            "convert it to several files",
        )
    first, second, third, fourth = (*lengths, 1, 1)[:4]
    return first, second, third, fourth


def _plane(fp: BinaryIO, volume: _Volume, number: int, slice_: int) -> NDArray[Any]:
    """A slice, from the inferior one on, as it is stored: (columns, rows) or (rows, columns),
    whichever axis comes first."""
    axis = volume.axis(_SUPERIOR)
    if not volume.points_on(_SUPERIOR):
        slice_ = volume.shape[axis] - 1 - slice_
    first, second, third = volume.shape[:3]
    before = first * second * third * number
    # The first axis varies fastest.
    if axis == 2:
        values = _values(fp, volume, before + first * second * slice_, first * second)
        return values.reshape((first, second), order="F")
    values = _values(fp, volume, before, first * second * third)
    block = values.reshape((first, second, third), order="F")
    plane: NDArray[Any] = block.take(slice_, axis)
    return plane


def _values(fp: BinaryIO, volume: _Volume, start: int, count: int) -> NDArray[Any]:
    fp.seek(volume.offset + start * volume.dtype.itemsize)
    return np.frombuffer(fp.read(count * volume.dtype.itemsize), volume.dtype)


def _picture(plane: NDArray[Any], volume: _Volume, limits: ImageLimits) -> NDArray[np.uint8]:
    if volume.axis(_RIGHT) < volume.axis(_ANTERIOR):
        plane = plane.T
    # Now rows lie from back to front and columns from left to right, or the other way.
    plane = plane[:: -1 if volume.points_on(_ANTERIOR) else 1]
    plane = plane[:, :: -1 if volume.points_on(_RIGHT) else 1]
    if plane.dtype.names:
        shown = np.stack([plane[name] for name in ("R", "G", "B")], axis=-1).astype(np.uint8)
    elif (volume.slope, volume.intercept) == (1.0, 0.0):
        shown = stretched(plane)
    else:
        with np.errstate(all="ignore"):
            shown = stretched(plane.astype(np.float64) * volume.slope + volume.intercept)
    return _square(np.ascontiguousarray(shown), volume, limits)


def _square(shown: NDArray[np.uint8], volume: _Volume, limits: ImageLimits) -> NDArray[np.uint8]:
    """``shown`` with as many more rows, or columns, as make its pixels square."""
    height, width = (volume.zooms[volume.axis(one)] for one in (_ANTERIOR, _RIGHT))
    if not (np.isfinite((height, width)).all() and height > 0 and width > 0):
        return shown
    ratio = height / width
    if abs(ratio - 1) < _SQUARE or not 1 / _LONGEST <= ratio <= _LONGEST:
        return shown
    rows, columns = shown.shape[:2]
    if ratio > 1:
        rows = round(rows * ratio)
    else:
        columns = round(columns / ratio)
    check_declared(rows, columns, 1, 3, 8, limits)
    image = Image.fromarray(shown).resize((columns, rows), Image.Resampling.BILINEAR)
    return np.asarray(image)
