"""Draws the phantom, and images in colour of it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

from bench.drawn_encoding import NATIVE

__all__ = ["COLUMNS", "ROWS", "ColorDraw"]

ROWS, COLUMNS = 48, 64


class ColorDraw:
    """Draws one file: its dataset, the transfer syntax, and the kinds it is of; here with cells in
    colour."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._kinds: list[str] = []
        self._ds = Dataset()
        self._syntax: UID = ExplicitVRLittleEndian

    def _one(self, among: Any) -> Any:
        among = list(among)
        return among[int(self._rng.integers(len(among)))]

    def _chance(self, share: float) -> bool:
        return bool(self._rng.random() < share)

    def _phantom(self, shift: int = 0) -> NDArray[np.float64]:
        """0..1, (48, 64): slopes, a disc, a little noise; nothing in it is symmetric."""
        y, x = np.mgrid[:ROWS, :COLUMNS]
        disc = ((x - 22 - shift) ** 2 + (y - 30) ** 2) < 11**2
        out = 0.55 * x / (COLUMNS - 1) + 0.2 * y / (ROWS - 1) + 0.2 * disc
        return np.clip(out + self._rng.normal(0, 0.01, out.shape) + 0.02, 0, 1)

    def _color_cells(self) -> NDArray[Any]:
        ds = self._ds
        form = self._one(("RGB", "YBR_FULL", "YBR_FULL_422", "PALETTE COLOR"))
        self._kinds.append(form)
        ds.PhotometricInterpretation = form
        ds.PixelRepresentation = 0
        if form == "PALETTE COLOR":
            return self._palette_cells()
        ds.SamplesPerPixel = 3
        ds.BitsAllocated = ds.BitsStored = 8
        ds.HighBit = 7
        ds.PlanarConfiguration = 0
        rgb = np.stack([self._phantom(), 1 - self._phantom(12), self._phantom()[::-1]], -1)
        rgb[8:20, 8:20] = (0.95, 0.1, 0.15)
        cells = np.rint(rgb * 255)
        if form == "RGB":
            if self._syntax in NATIVE or self._chance(0.8):
                ds.PlanarConfiguration = self._one((0, 1))
            if self._syntax not in NATIVE and ds.PlanarConfiguration == 1:
                self._kinds.append("compressed, Planar Configuration 1 in the header")
        else:
            # PS3.3 C.7.6.3.1.2
            r, g, b = np.moveaxis(cells, -1, 0)
            cells = np.stack(
                [
                    0.299 * r + 0.587 * g + 0.114 * b,
                    128 - 0.168736 * r - 0.331264 * g + 0.5 * b,
                    128 + 0.5 * r - 0.418688 * g - 0.081312 * b,
                ],
                -1,
            )
            self._syntax = self._one(NATIVE)
            if form == "YBR_FULL_422":
                # One pair of colour values for two pixels, where the first of them is.
                cells[:, 1::2, 1:] = cells[:, 0::2, 1:]
        return np.rint(cells).clip(0, 255).astype("u1")

    def _palette_cells(self) -> NDArray[Any]:
        ds = self._ds
        allocated = self._one((8, 16))
        count = 256 if allocated == 8 else int(self._one((256, 1000, 4096)))
        ds.SamplesPerPixel = 1
        ds.BitsAllocated = ds.BitsStored = allocated
        ds.HighBit = allocated - 1
        first = int(self._one((0, 10)))
        bits = self._one((8, 16))
        order = ">u2" if self._syntax == ExplicitVRBigEndian else "<u2"
        steps = np.linspace(0, 1, count)
        for color, curve in (("Red", steps), ("Green", steps**2), ("Blue", 1 - steps)):
            name = f"{color}PaletteColorLookupTable"
            setattr(ds, f"{name}Descriptor", [count, first, bits])
            entries = np.round(curve * (2**bits - 1))
            if bits == 8:
                raw = entries.astype("u1").tobytes()
                words = np.frombuffer(raw + b"\0" * (len(raw) % 2), "<u2")
            else:
                words = entries.astype("u2")
            setattr(ds, f"{name}Data", words.astype(order).tobytes())
        self._kinds.append(f"palette of {bits} bits")
        top = min(first + count - 1, 2**allocated - 1)
        cells = np.round(self._phantom() * (top - first)) + first
        out: NDArray[Any] = cells.astype(f"u{allocated // 8}")
        return out
