"""The files that readers are compared on, with the cells of their first frame where they are known
without a decoder."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from bench.drawn_headers import drawn

__all__ = ["Sample", "drawn_samples", "folder_samples", "known_cells", "pydicom_samples"]

_PIXELS = {"PixelData": "", "FloatPixelData": "<f4", "DoubleFloatPixelData": "<f8"}


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A file to compare readers on.

    cells: of the first frame, (H, W) or (H, W, 3); None = compressed. syntax: UID of the transfer
        syntax.
    """

    name: str
    source: str
    path: Path
    header: Dataset
    syntax: str
    kinds: tuple[str, ...]
    cells: NDArray[Any] | None

    @property
    def little_endian(self) -> bool:
        return self.syntax != pydicom.uid.ExplicitVRBigEndian

    @property
    def is_lossy(self) -> bool:
        return self.syntax in _LOSSY


_LOSSY = {
    pydicom.uid.JPEGBaseline8Bit,
    pydicom.uid.JPEGExtended12Bit,
    pydicom.uid.JPEGLSNearLossless,
    pydicom.uid.JPEG2000,
}


def drawn_samples(count: int, seed: int, folder: Path) -> Iterator[Sample]:
    """Files with drawn headers, written to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in drawn(count, seed):
        path = folder / one.name
        path.write_bytes(one.content)
        syntax = str(one.header.file_meta.TransferSyntaxUID)
        yield Sample(one.name, "drawn", path, one.header, syntax, one.kinds, one.cells)


def pydicom_samples() -> Iterator[Sample]:
    """The images among the test files that pydicom brings along."""
    return folder_samples(Path(pydicom.__file__).parent / "data" / "test_files", "pydicom")


def folder_samples(folder: Path, source: str) -> Iterator[Sample]:
    """The DICOM files below ``folder`` that declare rows, columns and pixels."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        sample = _sample(path, str(path.relative_to(folder)), source)
        if sample is not None:
            yield sample


def _sample(path: Path, name: str, source: str) -> Sample | None:
    try:
        header = pydicom.dcmread(path, force=True)
        pixels = next((keyword for keyword in _PIXELS if keyword in header), None)
        if pixels is None or not header.get("Rows") or not header.get("Columns"):
            return None
        meta = getattr(header, "file_meta", Dataset())
        syntax = str(meta.get("TransferSyntaxUID") or _syntax_of(header))
        photometric = str(header.get("PhotometricInterpretation", "no photometric interpretation"))
    except Exception:
        # Not what the standard calls a file: readers that show it have nothing to agree with.
        return None
    named = pydicom.uid.UID(syntax).name
    try:
        cells = known_cells(header, syntax, pixels)
    except (ValueError, AttributeError, TypeError):
        cells = None
    return Sample(name, source, path, header, syntax, (f"{named}, {photometric}",), cells)


def _syntax_of(header: Dataset) -> str:
    """The transfer syntax as which pydicom read a file that names none."""
    implicit, little = header.original_encoding
    if implicit:
        return str(pydicom.uid.ImplicitVRLittleEndian)
    plain = pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
    return str(plain)


def known_cells(header: Dataset, syntax: str, keyword: str = "PixelData") -> NDArray[Any] | None:
    """The cells of the first frame of pixel data that is uncompressed (PS3.5 8.1) or RLE (PS3.5
    annex G): (H, W) or (H, W, 3); None = it is compressed otherwise.

    Raises:
        ValueError: there are fewer than the header declares.
    """
    if syntax == pydicom.uid.RLELossless:
        return _run_lengths(header)
    if pydicom.uid.UID(syntax).is_compressed and syntax != (
        pydicom.uid.DeflatedExplicitVRLittleEndian
    ):
        return None
    data = header[keyword].value
    little = syntax != pydicom.uid.ExplicitVRBigEndian
    rows, columns = int(header.Rows), int(header.Columns)
    samples = int(header.get("SamplesPerPixel", 1))
    order = "<" if little else ">"
    if keyword != "PixelData":
        dtype = np.dtype(_PIXELS[keyword]).newbyteorder(order)
        return np.frombuffer(data, dtype, rows * columns).reshape(rows, columns)
    bits = int(header.BitsAllocated)
    if bits == 1:
        # PS3.5 8.1.1 and annex D: the first pixel is the lowest bit.
        unpacked = np.unpackbits(np.frombuffer(data, "u1"), bitorder="little")
        return unpacked[: rows * columns].reshape(rows, columns)
    if bits == 8 and not little and header[keyword].VR == "OW":
        # PS3.5 7.3: bytes in words are swapped with them.
        data = np.frombuffer(data, ">u2").astype("<u2").tobytes()
    cells = np.frombuffer(data, f"{order}u{bits // 8}")
    if header.PhotometricInterpretation == "YBR_FULL_422" and len(cells) < rows * columns * 3:
        return _full_chroma(cells[: rows * columns * 2].reshape(rows, columns // 2, 4))
    cells = cells[: rows * columns * samples]
    if samples == 1:
        return cells.reshape(rows, columns)
    if header.get("PlanarConfiguration", 0) == 1:
        return np.moveaxis(cells.reshape(samples, rows, columns), 0, -1)
    return cells.reshape(rows, columns, samples)


def _full_chroma(pairs: NDArray[Any]) -> NDArray[Any]:
    """Y, Y, CB, CR of two pixels (PS3.3 C.7.6.3.1.2) as three samples of each."""
    rows, half, _ = pairs.shape
    out = np.empty((rows, half, 2, 3), pairs.dtype)
    out[..., 0] = pairs[..., :2]
    out[..., 1:] = pairs[:, :, None, 2:]
    return out.reshape(rows, 2 * half, 3)


def _run_lengths(header: Dataset) -> NDArray[Any]:
    """The first frame of RLE (PS3.5 annex G): a segment for each byte of each sample, the high
    bytes of a sample first."""
    frames = int(header.get("NumberOfFrames") or 1)
    frame = next(pydicom.encaps.generate_frames(header.PixelData, number_of_frames=frames))
    rows, columns = int(header.Rows), int(header.Columns)
    samples, size = int(header.get("SamplesPerPixel", 1)), int(header.BitsAllocated) // 8
    count, *offsets = np.frombuffer(frame[:64], "<u4").tolist()
    if count != samples * size:
        raise ValueError(f"{count} segments for {samples} samples of {size} bytes")
    ends = [*offsets[1:count], len(frame)]
    planes = [
        _unpacked_bits(frame[start:end], rows * columns)
        for start, end in zip(offsets[:count], ends, strict=True)
    ]
    cells = np.stack(planes, axis=-1).reshape(rows, columns, samples, size)
    whole = np.ascontiguousarray(cells).view(f">u{size}").reshape(rows, columns, samples)
    native = whole.astype(f"u{size}")
    return native[..., 0] if samples == 1 else native


def _unpacked_bits(segment: bytes, count: int) -> NDArray[np.uint8]:
    """``count`` bytes of a segment (PS3.5 G.3.2).

    Raises:
        ValueError: the segment has fewer.
    """
    out = bytearray()
    at = 0
    while len(out) < count and at + 1 < len(segment):
        head = segment[at]
        if head < 128:
            out += segment[at + 1 : at + 2 + head]
            at += 2 + head
        else:
            if head > 128:
                out += segment[at + 1 : at + 2] * (257 - head)
            at += 2 if head > 128 else 1
    return np.frombuffer(bytes(out[:count]), "u1", count)
