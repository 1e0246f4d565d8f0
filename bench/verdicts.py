"""Says which of several pictures of a file are right, and by which section of the standard."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.reference_rendering import Departure
from bench.square_pixels import squared

__all__ = [
    "LOSSLESS",
    "LOSSY",
    "READERS",
    "Judged",
    "Outcome",
    "Tolerance",
    "compared",
    "judge",
    "kind_rows",
]

READERS = ("ours", "dcmtk", "gdcm")
_UNSEEN = 2
"""Grey levels of 255 that any pixel may be off: readers round, truncate, and round twice."""
_MAX_STEPS = 3
"""Most departures that are looked for together in one picture."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What still counts as the same picture: least Pearson's r, and most grey levels of 255 that
    pixels may be off on average (readers round, and truncate)."""

    r: float
    levels: float


LOSSLESS = Tolerance(0.9999, 1.5)
LOSSY = Tolerance(0.999, 3.0)
"""Decoders of lossy codes round in other places, and interpolate chroma in other ways."""
RESAMPLED = Tolerance(0.99, 4.0)
"""Pictures of which one has been given square pixels."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one reader did with a file.

    verdict: "right"; "departs", from the standard; "choice", where the standard leaves it open;
        "refused", with the reason in ``said``; "open", where nothing says what is right.
    r, levels: Pearson's r and mean absolute difference (of 255) to what is right.
    departures: the steps that explain a difference; empty = none of those that are known.
    """

    verdict: str
    r: float | None = None
    levels: float | None = None
    departures: tuple[Departure, ...] = ()
    said: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """A file, and what each reader did with it."""

    name: str
    source: str
    kinds: tuple[str, ...]
    outcomes: dict[str, Outcome] = field(default_factory=dict)


def compared(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> tuple[float, float]:
    """Pearson's r and the mean absolute difference of two pictures of one shape.

    r of two pictures without contrast is 1 if they are the same to a level or so, else 0.
    """
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    levels = float(np.abs(a - b).mean())
    a, b = a - a.mean(), b - b.mean()
    length = float(np.sqrt((a @ a) * (b @ b)))
    if length == 0:
        return float(levels <= LOSSLESS.levels), levels
    return float(a @ b) / length, levels


def _on_one_grid(
    picture: NDArray[np.uint8], right: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], bool]:
    """Both with as many axes, on the grid of ``picture``; and whether that took resampling."""
    if picture.ndim > right.ndim:
        right = np.repeat(right[..., None], 3, axis=2)
    elif picture.ndim < right.ndim:
        picture = np.repeat(picture[..., None], 3, axis=2)
    if picture.shape == right.shape:
        return picture, right, False
    height, width = picture.shape[:2]
    return picture, squared(right, (height, width)), True


def judge(
    picture: NDArray[np.uint8],
    right: Callable[[Collection[Departure]], NDArray[np.uint8]],
    tolerance: Tolerance = LOSSLESS,
    *,
    ratio: float = 1.0,
) -> Outcome:
    """Whether a picture is what the standard says, and if not, which steps explain it.

    Args:
        picture: uint8 (H, W) or (H, W, 3).
        right: what is right, or would be without some steps.
        ratio: height of a pixel to its width; a picture on another grid than the stored one has
            to have these proportions.
    """
    whole = right(())
    fits = _fits(picture, whole, tolerance, ratio)
    if fits.verdict == "right":
        return fits
    steps = _steps(right)
    for count in range(1, _MAX_STEPS + 1):
        for some in combinations(steps, count):
            if _fits(picture, right(some), tolerance, ratio).verdict == "right":
                free = not any(step.section for step in some)
                return Outcome("choice" if free else "departs", fits.r, fits.levels, some)
    return fits


def _steps(right: Callable[[Collection[Departure]], NDArray[np.uint8]]) -> list[Departure]:
    """The steps that matter in this file: those that change its picture by themselves, or once
    another of these is left out."""
    alone = {step: right((step,)) for step in Departure}
    first = [step for step in Departure if not np.array_equal(alone[step], right(()))]
    return [
        step
        for step in Departure
        if step in first or any(not np.array_equal(right((one, step)), alone[one]) for one in first)
    ]


def _fits(
    picture: NDArray[np.uint8], right: NDArray[np.uint8], tolerance: Tolerance, ratio: float
) -> Outcome:
    shape = right.shape[0] * ratio / right.shape[1]
    picture, right, resampled = _on_one_grid(picture, right)
    r, levels = compared(picture, right)
    said = ""
    if resampled:
        tolerance = RESAMPLED
        # Rounding to whole rows and columns.
        off = abs(picture.shape[0] / picture.shape[1] / shape - 1)
        if off > 1 / min(picture.shape[:2]):
            said = "the grid is neither the stored one nor that of square pixels"
    close = r >= tolerance.r and levels <= tolerance.levels
    if not resampled:
        # Where there is little contrast, rounding alone lowers r.
        apart = np.abs(picture.astype(np.int16) - right.astype(np.int16))
        close = close or bool(apart.max(initial=0) <= _UNSEEN)
    good = close and not said
    return Outcome("right" if good else "departs", r, levels, said=said)


def kind_rows(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """A row for each kind of file, in the order in which they first appear; a file counts in each
    of its kinds."""
    kinds = sorted({kind for one in judged for kind in one.kinds})
    return [_row(kind, [one for one in judged if kind in one.kinds]) for kind in kinds]


def _row(kind: str, judged: Sequence[Judged]) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": kind, "files": len(judged)}
    for reader in READERS:
        outcomes = [one.outcomes[reader] for one in judged if reader in one.outcomes]
        rs = [outcome.r for outcome in outcomes if outcome.r is not None]
        row[reader] = {
            "shown": sum(outcome.verdict != "refused" for outcome in outcomes),
            "right": sum(outcome.verdict == "right" for outcome in outcomes),
            "departs": sum(outcome.verdict == "departs" for outcome in outcomes),
            "choice": sum(outcome.verdict == "choice" for outcome in outcomes),
            "refused": sum(outcome.verdict == "refused" for outcome in outcomes),
            "median r": float(np.median(rs)) if rs else None,
            "worst r": min(rs) if rs else None,
            "why": _reasons(outcomes),
        }
    return row


def _reasons(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How often which departure explains a difference; "unexplained" where none does."""
    counted: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.verdict not in ("departs", "choice"):
            continue
        whys = [f"{step.does} ({step.section or 'free'})" for step in outcome.departures]
        for why in whys or [outcome.said or "unexplained"]:
            counted[why] = counted.get(why, 0) + 1
    return dict(sorted(counted.items(), key=lambda item: -item[1]))
