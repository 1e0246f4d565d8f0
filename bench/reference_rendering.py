"""Renders stored values as the standard says, slowly, to compare readers with.

Written from PS3.3 and PS3.5 alone, in plain numpy and with nothing of ``indexer``; pydicom only
parses. Every step can be left out or done otherwise (:class:`Departure`): a reader's picture that
equals the one without a step tells which step, and so which section, it departs from.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

__all__ = ["Departure", "NoReference", "Rendering", "render", "unpacked"]

Values = NDArray[np.float64]
Curve = Callable[[Values], Values]

_ANGIOGRAPHY = (
    "1.2.840.10008.5.1.4.1.1.12.1",  # X-Ray Angiographic Image Storage
    "1.2.840.10008.5.1.4.1.1.12.2",  # X-Ray Radiofluoroscopic Image Storage
    "1.2.840.10008.5.1.4.1.1.12.3",  # X-Ray Angiographic Bi-Plane Image Storage (retired)
)
_COLORS = ("Red", "Green", "Blue")


class Departure(Enum):
    """A step of the standard that a reader may leave out or do otherwise: what it does instead,
    and the section that decides."""

    USED_DEPTH = "takes the bits that a VOI LUT uses for its depth", ""
    FLAT = "ignores a window that leaves fewer than 8 grey levels", ""
    AIR = "takes CT values below -1024 HU for padding", ""
    NEVER = "does not invert MONOCHROME1 with shape IDENTITY, which contradict each other", ""
    UNUSED_BITS = "keeps bits above Bits Stored", "PS3.5 8.1.1"
    FRAME_RESCALE = "ignores the rescale of functional groups", "PS3.3 C.7.6.16.2.9"
    FRAME_VOI = "ignores the window of functional groups", "PS3.3 C.7.6.16.2.10"
    MODALITY = "ignores the modality transformation", "PS3.3 C.11.1"
    WHOLE = "cuts what the rescale gives to whole numbers", "PS3.3 C.11.1.1.2"
    BEAM = "applies a Modality LUT that leads back to beam intensity", "PS3.3 C.8.7.1.1.2"
    FIRST_VALUE = "takes the VOI LUT's first value for unsigned", "PS3.3 C.11.2.1.1"
    VOI = "ignores the VOI LUT or window", "PS3.3 C.11.2"
    FUNCTION = "ignores VOI LUT Function", "PS3.3 C.11.2.1.3"
    HALF = "treats LINEAR and LINEAR_EXACT alike", "PS3.3 C.11.2.1.2.1 and C.11.2.1.3.2"
    PADDING = "shows padding as values", "PS3.3 C.7.5.1.1.2"
    PADDING_COUNTS = "counts padding as values where it stretches them", "PS3.3 C.7.5.1.1.2"
    SHAPE = "ignores Presentation LUT Shape", "PS3.3 C.11.6"
    TWICE = "inverts MONOCHROME1 with shape INVERSE twice", "PS3.3 C.8.11.3 and C.11.6"
    POLARITY = "does not invert MONOCHROME1", "PS3.3 C.7.6.3.1.2"
    COLOR_SPACE = "shows YBR as RGB", "PS3.3 C.7.6.3.1.2"
    PLANES = "takes decoded pixels for planes, or planes for pixels", "PS3.3 C.7.6.3.1.3"

    @property
    def does(self) -> str:
        return self.value[0]

    @property
    def section(self) -> str:
        """ "" = the standard does not forbid it, or nobody who follows it does well."""
        return self.value[1]


class NoReference(Exception):
    """The standard leaves open what is to be shown, or it is not written here."""


@dataclass(frozen=True, slots=True, eq=False)
class Rendering:
    """pixels: uint8 (H, W) or (H, W, 3), 0 = black. voi: "lut", "window", or "" where the header
    names none. ends: the modality values shown as black and white where it names none."""

    pixels: NDArray[np.uint8]
    voi: str = ""
    ends: tuple[float, float] = (0.0, 0.0)


def unpacked(words: NDArray[Any], header: Dataset) -> NDArray[Any]:
    """The stored values in ``words``, cells of Bits Allocated bits: integers of the same shape.

    PS3.5 8.1.1: a cell holds Bits Stored bits below and with High Bit; with Pixel Representation 1
    they are two's complement. What else is in the cell is no pixel.
    """
    if words.dtype.kind == "f":
        return words
    stored = int(header.BitsStored)
    shift = int(header.get("HighBit", stored - 1)) + 1 - stored
    bits = (words.astype(np.int64) >> max(shift, 0)) & (2**stored - 1)
    if header.get("PixelRepresentation", 0) == 1:
        bits = np.where(bits >= 2 ** (stored - 1), bits - 2**stored, bits)
    return bits


def render(
    cells: NDArray[Any],
    header: Dataset,
    frame: int = 0,
    *,
    little_endian: bool = True,
    without: Collection[Departure] = (),
    rescale: tuple[float, float] | None = None,
    ends: tuple[float, float] | None = None,
) -> Rendering:
    """The picture of one frame.

    Args:
        cells: (H, W) or (H, W, 3), the cells of the frame as decoded, before unused bits are taken
            off; samples of YBR_FULL_422 at full resolution.
        header: the whole dataset. little_endian: byte order of its LUT data.
        without: steps that are left out, or done otherwise.
        rescale: slope and intercept to take instead of those of the header.
        ends: modality values to show as black and white where the header names no VOI; None = the
            1st and the 99th percentile.

    Raises:
        NoReference: there is none for this photometric interpretation.
    """
    photometric = str(header.PhotometricInterpretation)
    stored = _whole(cells, header) if Departure.UNUSED_BITS in without else unpacked(cells, header)
    if photometric == "PALETTE COLOR":
        return Rendering(_palette(stored, header, little_endian))
    if photometric.startswith("MONOCHROME"):
        scopes = [*_groups(header, frame, frozenset(without)), header]
        return _grey(stored, header, scopes, little_endian, frozenset(without), rescale, ends)
    if Departure.PLANES in without:
        stored = np.moveaxis(np.ascontiguousarray(stored).reshape(3, *stored.shape[:2]), 0, -1)
    return Rendering(_color(stored, header, photometric, Departure.COLOR_SPACE in without))


def _whole(cells: NDArray[Any], header: Dataset) -> NDArray[Any]:
    """Whole cells as numbers."""
    if header.get("PixelRepresentation", 0) == 1 and cells.dtype.kind == "u":
        return cells.astype(f"i{cells.dtype.itemsize}")
    return cells


def _grey(
    stored: NDArray[Any],
    header: Dataset,
    scopes: list[Dataset],
    little_endian: bool,
    without: frozenset[Departure],
    rescale: tuple[float, float] | None,
    ends: tuple[float, float] | None,
) -> Rendering:
    """The grayscale pipeline (PS3.4 N.2): modality, VOI, presentation."""
    modality, lowest = _modality(scopes, header, little_endian, without)
    if rescale is not None:
        modality = _linear(*rescale)
    values = modality(stored.astype(np.float64))
    padding = _padding(stored, header)
    if Departure.AIR in without and header.get("Modality") == "CT" and (values >= -1024).any():
        padding |= values < -1024
    inside = values if Departure.PADDING_COUNTS in without else values[~padding]
    if Departure.WHOLE in without:
        values = np.trunc(values)
    voi, named = _voi(scopes, lowest, little_endian, without)
    if voi is not None and Departure.FLAT in without:
        darkest, lightest = np.clip(voi(np.percentile(inside, (1, 99))), 0, 1)
        voi = None if abs(lightest - darkest) * 255 < 8 else voi
    shown_ends = (0.0, 0.0)
    if voi is None:
        # The standard leaves open what is shown without a VOI.
        shown_ends = low, high = ends or _ends(inside)
        span = high - low
        shares = (values - low) / span if span > 0 else np.zeros(values.shape)
    else:
        shares = voi(values)
    shown = np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)
    if _inverted(header, without):
        shown = np.uint8(255) - shown
    if Departure.PADDING not in without:
        shown[padding] = 0
    return Rendering(shown, named, shown_ends)


def _ends(values: Values) -> tuple[float, float]:
    """1 % of the pixels at each end are black and white, or all between the lowest and highest."""
    low, high = (float(end) for end in np.percentile(values, (1, 99)))
    return (low, high) if low != high else (float(values.min()), float(values.max()))


def _groups(header: Dataset, frame: int, without: frozenset[Departure]) -> list[Dataset]:
    """Macros of a frame that transform values, its own before shared ones (PS3.3 C.7.6.16.2.9,
    C.7.6.16.2.10)."""
    found = []
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    for group in (*per_frame[frame : frame + 1], *shared[:1]):
        if Departure.FRAME_RESCALE not in without:
            found += list(group.get("PixelValueTransformationSequence") or [])[:1]
        if Departure.FRAME_VOI not in without:
            found += list(group.get("FrameVOILUTSequence") or [])[:1]
    return found


def _modality(
    scopes: list[Dataset],
    header: Dataset,
    little_endian: bool,
    without: frozenset[Departure],
) -> tuple[Curve, float]:
    """Modality LUT or rescale (PS3.3 C.11.1), and the lowest value that may come out of it."""
    signed = header.get("PixelRepresentation", 0) == 1
    bits = int(header.get("BitsStored", 16))
    lowest, highest = (
        (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0, 2.0**bits - 1)
    )
    if Departure.MODALITY in without:
        return lambda values: values, lowest
    for scope in scopes:
        tables = scope.get("ModalityLUTSequence") or []
        if tables:
            if _leads_back(header) and Departure.BEAM not in without:
                break
            table, first, _ = _lut(tables[0], little_endian, signed=signed)
            # PS3.3 C.11.1.1: what a Modality LUT gives is unsigned.
            return _by_table(table, first), 0.0
        slope, intercept = scope.get("RescaleSlope"), scope.get("RescaleIntercept")
        if slope is not None and intercept is not None:
            to = _linear(float(slope), float(intercept))
            return to, float(to(np.array([lowest, highest])).min())
    return lambda values: values, lowest


def _linear(slope: float, intercept: float) -> Curve:
    return lambda values: values * slope + intercept


def _leads_back(header: Dataset) -> bool:
    """Whether the Modality LUT of an angiographic image is there to compute with, not to show
    (PS3.3 C.8.7.1.1.2)."""
    return str(header.get("SOPClassUID", "")) in _ANGIOGRAPHY and header.get(
        "PixelIntensityRelationship", ""
    ) in ("LOG", "DISP")


def _lut(item: Dataset, little_endian: bool, *, signed: bool) -> tuple[Values, int, int]:
    """Entries, first value mapped and bits of an entry (PS3.3 C.11.1.1, C.11.2.1.1)."""
    count, first, bits = (int(part) & 0xFFFF for part in item.LUTDescriptor)
    count = count or 65536
    if signed and first >= 0x8000:
        first -= 0x10000
    return _entries(item.LUTData, count, bits, little_endian), first, bits


def _entries(data: Any, count: int, bits: int, little_endian: bool) -> Values:
    if not isinstance(data, bytes):
        return np.asarray(data, np.int64).reshape(-1)[:count].astype(float) % 65536
    words = np.frombuffer(data, "<u2" if little_endian else ">u2")
    if bits == 8 and len(words) < count:
        # Entries of 8 bits are packed in words, the first in the low byte (PS3.5 8.2, 7.3).
        words = np.frombuffer(words.astype("<u2").tobytes(), "u1")
    return words[:count].astype(float)


def _look_up(values: Values, table: Values, first: int) -> Values:
    """Values before the first and after the last one mapped take the entries at the ends."""
    index = np.clip(np.trunc(values - first), 0, len(table) - 1).astype(int)
    found: Values = table[index]
    return found


def _by_table(table: Values, first: int) -> Curve:
    return lambda values: _look_up(values, table, first)


def _voi(
    scopes: list[Dataset], lowest: float, little_endian: bool, without: frozenset[Departure]
) -> tuple[Curve | None, str]:
    """The first VOI LUT, or else the first window (PS3.3 C.11.2), as 0..1; and which it is."""
    if Departure.VOI in without:
        return None, ""
    for scope in scopes:
        tables = scope.get("VOILUTSequence") or []
        if tables:
            # PS3.3 C.11.2.1.1: SS where the values that come in may be negative.
            signed = lowest < 0 and Departure.FIRST_VALUE not in without
            table, first, bits = _lut(tables[0], little_endian, signed=signed)
            if Departure.USED_DEPTH in without:
                bits = int(table.max()).bit_length()
            return _by_table(table / (2.0**bits - 1), first), "lut"
        center, width = (_first(scope.get(name)) for name in ("WindowCenter", "WindowWidth"))
        if center is not None and width is not None:
            function = str(scope.get("VOILUTFunction") or "LINEAR")
            return _window(center, width, function, without), "window"
    return None, ""


def _first(found: Any) -> float | None:
    if found is None or found == "":
        return None
    several = not isinstance(found, (str, float, int)) and hasattr(found, "__len__")
    return float(found[0] if several else found)


def _window(c: float, w: float, function: str, without: frozenset[Departure]) -> Curve:
    if Departure.FUNCTION in without:
        function = "LINEAR"
    if Departure.HALF in without and function.startswith("LINEAR"):
        function = "LINEAR" if function == "LINEAR_EXACT" else "LINEAR_EXACT"
    if function == "SIGMOID":  # PS3.3 C.11.2.1.3.1
        return lambda x: 1 / (1 + np.exp(-4 * (x - c) / w))
    if function == "LINEAR_EXACT":  # PS3.3 C.11.2.1.3.2
        low, high = c - w / 2, c + w / 2
        return lambda x: np.where(x <= low, 0, np.where(x > high, 1, (x - c) / w + 0.5))
    # PS3.3 C.11.2.1.2.1
    low, high = c - 0.5 - (w - 1) / 2, c - 0.5 + (w - 1) / 2
    span = max(w - 1, 1e-9)
    return lambda x: np.where(x <= low, 0, np.where(x > high, 1, (x - (c - 0.5)) / span + 0.5))


def _padding(stored: NDArray[Any], header: Dataset) -> NDArray[np.bool_]:
    """Where stored values are padding (PS3.3 C.7.5.1.1.2); nowhere if they are everywhere."""
    value = header.get("PixelPaddingValue")
    if value is None or stored.dtype.kind == "f":
        return np.zeros(stored.shape, bool)
    ends = [_as_stored(value, header)]
    if header.get("PixelPaddingRangeLimit") is not None:
        ends.append(_as_stored(header.PixelPaddingRangeLimit, header))
    found: NDArray[np.bool_] = (stored >= min(ends)) & (stored <= max(ends))
    return np.zeros(stored.shape, bool) if found.all() else found


def _as_stored(value: Any, header: Dataset) -> int:
    """A value whose VR, US or SS, follows Pixel Representation."""
    number = int(value) & 0xFFFF
    signed = header.get("PixelRepresentation", 0) == 1
    return number - 0x10000 if signed and number >= 0x8000 else number


def _inverted(header: Dataset, without: frozenset[Departure]) -> bool:
    """PS3.3 C.7.6.3.1.2: the lowest value of MONOCHROME1 is white. Shape INVERSE says the same of
    it in other words (PS3.3 C.8.11.3), and inverts a picture that is not (PS3.3 C.11.6)."""
    first = header.PhotometricInterpretation == "MONOCHROME1"
    shape = "" if Departure.SHAPE in without else str(header.get("PresentationLUTShape") or "")
    if Departure.POLARITY in without or (Departure.NEVER in without and shape == "IDENTITY"):
        first = False
    inverse = shape == "INVERSE"
    return first != inverse if Departure.TWICE in without else first or inverse


def _palette(stored: NDArray[Any], header: Dataset, little_endian: bool) -> NDArray[np.uint8]:
    """PS3.3 C.7.6.3.1.5 and C.7.6.3.1.6."""
    signed = header.get("PixelRepresentation", 0) == 1
    planes = []
    for color in _COLORS:
        name = f"{color}PaletteColorLookupTable"
        if header.get(f"{name}Data") is None:
            raise NoReference("a segmented palette")
        count, first, bits = (int(part) & 0xFFFF for part in header.get(f"{name}Descriptor"))
        if signed and first >= 0x8000:
            first -= 0x10000
        table = _entries(header.get(f"{name}Data"), count or 65536, bits, little_endian)
        shown = _look_up(stored.astype(np.float64), table, first)
        # Of 16 bits the high byte is shown: 0xFFFF is white (PS3.3 C.7.6.3.1.6).
        planes.append(shown / (2**bits - 1))
    return np.rint(np.stack(planes, axis=-1) * 255).clip(0, 255).astype(np.uint8)


def _color(
    stored: NDArray[Any], header: Dataset, photometric: str, as_rgb: bool
) -> NDArray[np.uint8]:
    """PS3.3 C.7.6.3.1.2."""
    top = 2.0 ** int(header.BitsStored) - 1
    samples = stored.astype(np.float64)
    if photometric.startswith("YBR_FULL") and not as_rgb:
        middle = (top + 1) / 2
        y, b, r = samples[..., 0], samples[..., 1] - middle, samples[..., 2] - middle
        samples = np.stack([y + 1.402 * r, y - 0.344136 * b - 0.714136 * r, y + 1.772 * b], -1)
    elif photometric not in ("RGB", "YBR_RCT", "YBR_ICT") and not as_rgb:
        raise NoReference(f"the photometric interpretation {photometric}")
    return np.rint(np.clip(samples / top, 0, 1) * 255).astype(np.uint8)
