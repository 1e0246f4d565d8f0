"""Draws small DICOM files whose headers differ in all that decides what is shown.

Modality, photometric interpretation, bits, sign, rescale and Modality LUT, window and VOI LUT,
padding, orientation, spacing, Presentation LUT Shape, functional groups and transfer syntax are
drawn with a seed. The picture is a phantom of 64 × 48 pixels; its stored values are kept, so that
what is right does not depend on any decoder.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from bench.drawn_colors import COLUMNS, ROWS, ColorDraw
from bench.drawn_encoding import NATIVE, encoded

__all__ = ["COLUMNS", "ROWS", "Drawn", "drawn"]

_OVERLAY = "overlay in an unused bit"
_ROOT = "2.25.3141592653589793"
_IMAGE = "1.2.840.10008.5.1.4.1.1."
_CLASSES = {
    "CT": "2",
    "MR": "4",
    "PT": "128",
    "NM": "20",
    "CR": "1",
    "DX": "1.1",
    "MG": "1.2",
    "XA": "12.1",
    "US": "6.1",
    "OT": "7",
}
_ENHANCED = {"CT": "2.1", "MR": "4.1", "PT": "130"}
_BITS = ((8, 8), (8, 16), (10, 16), (12, 16), (16, 16))
_COMPRESSED = (RLELossless, JPEG2000Lossless, JPEGLSLossless)
_ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "axial, feet first": (-1, 0, 0, 0, 1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
}


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A file. cells: (48, 64) or (48, 64, 3), the cells of frame 0 before compression, unused bits
    included. kinds: what of it decides what is shown."""

    name: str
    content: bytes
    cells: NDArray[Any]
    header: Dataset
    little_endian: bool
    kinds: tuple[str, ...]


def drawn(count: int, seed: int) -> Iterator[Drawn]:
    """``count`` files; a longer series begins with a shorter one of the same seed."""
    for number in range(count):
        yield _Draw(np.random.default_rng((seed, number)), f"{_ROOT}.{seed}.{number}").file(number)


class _Draw(ColorDraw):
    """Draws one file: its dataset, its cells and the kinds it is of."""

    def __init__(self, rng: np.random.Generator, uid: str) -> None:
        super().__init__(rng)
        self._modality = self._one(_CLASSES)
        self._enhanced = self._modality in _ENHANCED and self._chance(0.2)
        classes = _ENHANCED if self._enhanced else _CLASSES
        ds = self._ds
        ds.SOPClassUID = _IMAGE + classes[self._modality]
        ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = (
            f"{uid}.{part}" for part in (1, 2, 3)
        )
        ds.Modality = self._modality
        ds.Rows, ds.Columns = ROWS, COLUMNS
        self._color = self._modality in ("US", "OT") and self._chance(0.6)
        compressed = self._chance(0.35)
        self._syntax = self._one(_COMPRESSED if compressed else NATIVE)

    def file(self, number: int) -> Drawn:
        cells = self._color_cells() if self._color else self._grey_cells()
        self._geometry()
        self._kinds.append(f"transfer syntax: {self._syntax.name}")
        little = self._syntax != ExplicitVRBigEndian
        content = encoded(self._ds, cells, self._syntax, unused=_OVERLAY in self._kinds)
        return Drawn(
            f"{number:04}-{self._modality}.dcm",
            content,
            cells[0] if self._enhanced else cells,
            self._ds,
            little,
            tuple(self._kinds),
        )

    # Grey

    def _grey_cells(self) -> NDArray[Any]:
        ds, rng = self._ds, self._rng
        stored, allocated = self._one(_BITS)
        signed = self._modality in ("CT", "MR", "PT", "OT") and allocated == 16
        signed = signed and stored > 8 and self._chance(0.5)
        if signed and self._syntax == JPEGLSLossless:
            self._syntax = RLELossless
        first = self._modality in ("CR", "DX", "MG", "OT") and self._chance(0.5)
        ds.SamplesPerPixel = 1
        ds.PhotometricInterpretation = "MONOCHROME1" if first else "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = allocated, stored, stored - 1
        ds.PixelRepresentation = int(signed)
        self._kinds += [
            f"{ds.PhotometricInterpretation}",
            f"{stored} bits stored of {allocated}{', signed' if signed else ''}",
        ]
        low, high = (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if signed else (0, 2**stored - 1)
        if signed and self._modality == "CT":
            low = max(low, -1024)  # air
        # The lowest and the highest value are left for padding.
        bottom, top = low + 1, high - int(rng.integers(1, (high - low) // 4))
        frames = 2 if self._enhanced else 1
        pixels = np.stack(
            [bottom + np.round(self._phantom(9 * f) * (top - bottom)) for f in range(frames)]
        ).astype(np.int64)
        self._padding(pixels, signed, stored, first)
        self._transformations(pixels, signed)
        self._shape(first)
        cells = (pixels & (2**allocated - 1)).astype(f"u{allocated // 8}")
        if stored < allocated and self._chance(0.2):
            # An overlay in the bit above, the retired way (PS3.5 8.1.1); it takes the sign's place.
            self._kinds.append(_OVERLAY)
            used = np.uint16(2**stored - 1)
            stripes = np.indices(cells.shape).sum(axis=0) % 16 < 3
            cells = (cells & used) | (stripes.astype(np.uint16) << (allocated - 1))
        if self._enhanced:
            ds.NumberOfFrames = frames
            return cells
        only: NDArray[Any] = cells[0]
        return only

    def _padding(
        self, pixels: NDArray[np.int64], signed: bool, stored: int, white_is_low: bool
    ) -> None:
        """Pads the right margin, with one value or with a range (PS3.3 C.7.5.1.1.2)."""
        if not self._chance(0.3):
            return
        low = -(2 ** (stored - 1)) if signed else 0
        high = 2 ** (stored - 1) - 1 if signed else 2**stored - 1
        value = high if white_is_low else low
        pixels[..., -10:] = value
        vr = "SS" if signed else "US"
        self._ds.add_new("PixelPaddingValue", vr, value)
        if self._chance(0.5):
            # From the padding value some values inwards, none of which is in the picture.
            step = -1 if white_is_low else 1
            picture = pixels[..., :-10]
            nearest = int(picture.max() if white_is_low else picture.min())
            limit = nearest - step
            pixels[..., -5:] = limit
            self._ds.add_new("PixelPaddingRangeLimit", vr, limit)
            self._kinds.append("padding: a range")
        else:
            self._kinds.append("padding: one value")

    def _transformations(self, pixels: NDArray[np.int64], signed: bool) -> None:
        transformed = Dataset()
        window = Dataset()
        values = self._modality_of(transformed, pixels, signed)
        self._voi_of(window, values, transformed)
        ds = self._ds
        if not self._enhanced:
            ds.update(transformed)
            ds.update(window)
            return
        self._kinds.append("functional groups")
        where = self._one(("per frame", "shared"))
        frames = []
        for frame in range(2):
            group = Dataset()
            if where == "per frame":
                group.PixelValueTransformationSequence = Sequence([transformed])
                if len(window):
                    other = Dataset()
                    other.update(window)
                    if frame == 1 and "WindowCenter" in other:
                        other.WindowWidth = round(float(other.WindowWidth) * 2, 2)
                    group.FrameVOILUTSequence = Sequence([other])
            frames.append(group)
        shared = Dataset()
        if where == "shared":
            shared.PixelValueTransformationSequence = Sequence([transformed])
            if len(window):
                shared.FrameVOILUTSequence = Sequence([window])
        ds.SharedFunctionalGroupsSequence = Sequence([shared])
        ds.PerFrameFunctionalGroupsSequence = Sequence(frames)

    def _modality_of(
        self, into: Dataset, pixels: NDArray[np.int64], signed: bool
    ) -> NDArray[np.float64]:
        """Adds what the modality has, and returns what the window sees."""
        stored = int(self._ds.BitsStored)
        if self._modality == "XA":
            self._ds.PixelIntensityRelationship = relation = self._one(("LIN", "LOG", "DISP"))
        # That of angiography leads back from LOG or DISP; LIN has none (PS3.3 C.8.7.1).
        if self._modality == "XA" and relation == "LIN":
            return pixels.astype(float)
        if self._modality in ("XA", "CR", "OT") and not signed and self._chance(0.4):
            # Back to beam intensity, or what the modality means.
            count = 2**stored
            table = np.round(65535 * (np.arange(count) / (count - 1)) ** 2.5)
            into.ModalityLUTSequence = Sequence([self._table(table, 0, 16, "US", count)])
            into.ModalityLUTSequence[0].ModalityLUTType = "US"
            if self._modality == "XA":
                self._kinds.append("XA, Modality LUT to beam intensity")
                return pixels.astype(float)
            self._kinds.append("Modality LUT")
            return table[pixels]
        if self._modality == "CT":
            slope, intercept = 1.0, 0.0 if signed else -1024.0
        elif self._modality in ("PT", "NM"):
            slope, intercept = self._one((0.25, 0.5, 2.0)), 0.0
        elif self._modality in ("MR", "CR", "OT") and self._chance(0.5):
            slope, intercept = self._one(((1.0, 0.0), (2.0, -500.0), (-1.0, 100.0)))
        else:
            return pixels.astype(float)
        into.RescaleSlope, into.RescaleIntercept, into.RescaleType = slope, intercept, "US"
        if (slope, intercept) != (1.0, 0.0):
            self._kinds.append("rescale")
        return pixels * slope + intercept

    def _voi_of(self, into: Dataset, values: NDArray[np.float64], modality: Dataset) -> None:
        """Adds a VOI LUT or a window for ``values``, or none.

        modality: what made these values of the stored ones.
        """
        inside = values
        if "PixelPaddingValue" in self._ds:
            inside = values[..., :-10]
        low, high = float(inside.min()), float(inside.max())
        form = self._one(("", "LINEAR", "LINEAR_EXACT", "SIGMOID", "LUT", "LINEAR"))
        # A table maps whole numbers, and its first value has 16 bits.
        sixteen = values.min() >= -32768 and values.max() <= 65535
        if form == "LUT" and sixteen and np.array_equal(values, np.round(values)):
            self._voi_lut(into, values, self._lowest(modality) < 0)
            return
        if form in ("", "LUT"):
            self._kinds.append("no VOI")
            return
        share = self._rng.uniform(0.3, 1.2)
        width = round(max((high - low) * share, 16.0), 2)
        center = round(low + (high - low) * self._rng.uniform(0.35, 0.65), 2)
        into.WindowCenter, into.WindowWidth = center, width
        if not self._enhanced and self._chance(0.2):
            into.WindowCenter, into.WindowWidth = [center, center + 7], [width, 2 * width]
        if form != "LINEAR" or self._chance(0.3):
            into.VOILUTFunction = form
        self._kinds.append(f"window {form}")

    def _lowest(self, modality: Dataset) -> float:
        """The lowest value that may come out of the modality transformation."""
        ds = self._ds
        if "ModalityLUTSequence" in modality and ds.Modality != "XA":
            return 0
        stored = int(ds.BitsStored)
        low = -(2 ** (stored - 1)) if ds.PixelRepresentation == 1 else 0
        slope, intercept = (
            float(modality.get(name, default))
            for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
        )
        return min(end * slope + intercept for end in (low, low + 2**stored - 1))

    def _voi_lut(self, into: Dataset, values: NDArray[np.float64], negative: bool) -> None:
        """negative: values that come in may be, so that the first one is signed (PS3.3
        C.11.2.1.1)."""
        bits = self._one((8, 10, 12, 16))
        first = int(values.min())
        count = min(int(values.max()) - first + 1, 65536)
        steps = np.linspace(-3, 3, count)
        table = np.round((2**bits - 1) / (1 + np.exp(-steps)))
        table = np.round((table - table[0]) / (table[-1] - table[0]) * (2**bits - 1))
        vr, kind = "US", "VOI LUT, first value unsigned"
        if negative:
            vr, kind = "SS", "VOI LUT, first value signed"
            # In implicit VR nobody sees the difference, and writers write US in explicit VR, too.
            if self._chance(0.5):
                vr, kind, first = "US", f"{kind}, written as US", first & 0xFFFF
        into.VOILUTSequence = Sequence([self._table(table, first, bits, vr, count)])
        self._kinds.append(kind)

    def _table(
        self, entries: NDArray[np.float64], first: int, bits: int, vr: str, count: int
    ) -> Dataset:
        item = Dataset()
        # The number of entries is unsigned, whatever the VR (PS3.3 C.11.1.1).
        item.add_new("LUTDescriptor", vr, [count & 0xFFFF, first, bits])
        if bits == 8 and self._chance(0.5):
            # Packed in words (PS3.3 C.11.1.1), the first in the low byte.
            self._kinds.append("VOI LUT of bytes packed in words")
            packed = entries.astype("u1").tobytes()
            words = np.frombuffer(packed + b"\0" * (len(packed) % 2), "<u2")
        else:
            words = entries.astype("u2")
        order = ">u2" if self._syntax == ExplicitVRBigEndian else "<u2"
        item.add_new("LUTData", "OW", words.astype(order).tobytes())
        return item

    def _shape(self, first: bool) -> None:
        if not self._chance(0.4):
            return
        usual = "INVERSE" if first else "IDENTITY"
        shape = usual if self._chance(0.6) else self._one(("IDENTITY", "INVERSE"))
        self._ds.PresentationLUTShape = shape
        self._kinds.append(f"{self._ds.PhotometricInterpretation}, shape {shape}")

    # Geometry

    def _geometry(self) -> None:
        ds = self._ds
        if self._enhanced:
            for number, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
                position, orientation = Dataset(), Dataset()
                position.ImagePositionPatient = [0, 0, number]
                orientation.ImageOrientationPatient = list(_ORIENTATIONS["axial"])
                group.PlanePositionSequence = Sequence([position])
                group.PlaneOrientationSequence = Sequence([orientation])
        if self._modality in ("CT", "MR", "PT") and not self._enhanced:
            name = self._one(_ORIENTATIONS)
            ds.ImageOrientationPatient = list(_ORIENTATIONS[name])
            ds.ImagePositionPatient = [0, 0, 0]
            self._kinds.append(f"orientation: {name}")
        ratio = self._one(("", "square", "square", "2:1", "1:1.5"))
        if not ratio:
            return
        rows, columns = {"square": (0.5, 0.5), "2:1": (1.0, 0.5), "1:1.5": (0.5, 0.75)}[ratio]
        if self._enhanced:
            measures = Dataset()
            measures.PixelSpacing = [rows, columns]
            ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = Sequence([measures])
        elif self._modality in ("CR", "DX", "MG", "XA"):
            ds.ImagerPixelSpacing = [rows, columns]
        elif self._modality == "US" or self._chance(0.3):
            ds.PixelAspectRatio = [int(rows * 100), int(columns * 100)]
        else:
            ds.PixelSpacing = [rows, columns]
        if ratio != "square":
            self._kinds.append(f"pixels {ratio} high to wide")
