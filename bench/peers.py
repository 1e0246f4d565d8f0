"""What other software makes of a DICOM file: dcmtk's pictures, and gdcm's stored values.

dcmtk (``dcmj2pnm``, and ``dcml2pnm`` for JPEG-LS) shows a frame itself. gdcm only decodes and
rescales from Python; the rest of the pipeline is :mod:`bench.reference_rendering`.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import JPEGLSTransferSyntaxes

from bench.reference_rendering import Rendering

__all__ = [
    "Decoded",
    "Unsupported",
    "by_dcmtk",
    "by_gdcm",
    "dcmtk_version",
    "gdcm_cells",
    "gdcm_version",
]

_PROGRAMS = ("dcmj2pnm", "dcml2pnm")
_SECONDS = 60.0


class Unsupported(Exception):
    """The software does not show this file; says why in its own words."""


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A frame by gdcm. cells: (H, W) or (H, W, 3). rescale: slope and intercept by which gdcm
    would multiply and shift. photometric: what the cells are after decoding."""

    cells: NDArray[Any]
    rescale: tuple[float, float]
    photometric: str


def dcmtk_version() -> str:
    """The version of dcmtk's programs; "" where they are not installed."""
    if not all(map(shutil.which, _PROGRAMS)):
        return ""
    said = subprocess.run([_PROGRAMS[0], "--version"], capture_output=True, text=True).stdout
    words = said.split()
    return words[words.index("dcmj2pnm") + 1] if "dcmj2pnm" in words else ""


def gdcm_version() -> str:
    """The version of python-gdcm; "" where it is not installed."""
    try:
        import gdcm
    except ImportError:
        return ""
    return str(gdcm.Version.GetVersion())


def by_dcmtk(path: Path, syntax: str, shown: Rendering | None, out: Path) -> NDArray[np.uint8]:
    """dcmtk's picture of the first frame: uint8 (H, W) or (H, W, 3), on the grid as stored.

    dcmtk is told which VOI to take: the header's first LUT or window, or, where there is none, the
    window that shows what the reference does.

    Args:
        shown: the reference by the elements that dcmtk reads; None = in colour, or unknown.
        out: a path for its output.

    Raises:
        Unsupported: it shows none.
    """
    voi = ["+Wm"]
    if shown is None or shown.pixels.ndim == 3:
        voi = []
    elif shown.voi == "lut":
        voi = ["+Wl", "1"]
    elif shown.voi == "window":
        voi = ["+Wi", "1"]
    elif shown.ends[1] > shown.ends[0]:
        # PS3.3 C.11.2.1.2.1, note 4: the window that selects the values from low to high.
        low, high = shown.ends
        voi = ["+Ww", repr((low + high + 1) / 2), repr(high - low + 1)]
    program = _PROGRAMS[syntax in JPEGLSTransferSyntaxes]
    command = [program, "--quiet", "--no-overlays", "--write-raw-pnm", *voi, str(path), str(out)]
    out.unlink(missing_ok=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise Unsupported(f"no picture within {_SECONDS:.0f} s") from None
    if done.returncode != 0 or not out.exists():
        raise Unsupported(_last_words(program, path))
    with Image.open(out) as image:
        return np.asarray(image)


def _last_words(program: str, path: Path) -> str:
    """Why there is no picture, without the path."""
    command = [program, "--no-output", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS).stderr
    lines = [line for line in said.splitlines() if line.startswith(("E:", "F:"))]
    return lines[-1][2:].strip().replace(str(path), "…") if lines else "it ends with an error"


def by_gdcm(path: Path, frame: int = 0) -> Decoded:
    """gdcm's cells of one frame.

    Raises:
        Unsupported: it decodes none.
    """
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    if not reader.Read():
        raise Unsupported("it reads no image")
    image = reader.GetImage()
    form = image.GetPixelFormat()
    kinds = {
        gdcm.PixelFormat.UINT8: "u1",
        gdcm.PixelFormat.INT8: "i1",
        gdcm.PixelFormat.UINT16: "u2",
        gdcm.PixelFormat.INT16: "i2",
        gdcm.PixelFormat.UINT12: "u2",
        gdcm.PixelFormat.INT12: "i2",
        gdcm.PixelFormat.UINT32: "u4",
        gdcm.PixelFormat.INT32: "i4",
        gdcm.PixelFormat.FLOAT32: "f4",
        gdcm.PixelFormat.FLOAT64: "f8",
    }
    kind = kinds.get(form.GetScalarType())
    if kind is None:
        raise Unsupported(f"cells of {form.GetScalarTypeAsString()}")
    # Bytes come as str with surrogate escapes.
    data = image.GetBuffer().encode("utf-8", "surrogateescape")
    columns, rows, *_ = image.GetDimensions()
    samples = form.GetSamplesPerPixel()
    planar = image.GetPlanarConfiguration()
    photometric = str(image.GetPhotometricInterpretation())
    shape = (rows, columns)
    if samples > 1:
        shape = (samples, rows, columns) if planar else (rows, columns, samples)
    cells = np.frombuffer(data, f"<{kind}")
    size = int(np.prod(shape))
    if len(cells) < size * (frame + 1):
        raise Unsupported(f"{len(cells)} cells instead of {size} a frame")
    cells = cells[size * frame : size * (frame + 1)].reshape(shape)
    if samples > 1 and planar:
        cells = np.moveaxis(cells, 0, -1)
    return Decoded(cells, (image.GetSlope(), image.GetIntercept()), photometric.strip())


def gdcm_cells(path: Path) -> Decoded | str:
    """gdcm's cells of the first frame; or why there are none."""
    try:
        return by_gdcm(path)
    except Unsupported as why:
        return str(why)
