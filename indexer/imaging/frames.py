"""Chooses which frames of a multi-frame instance are indexed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydicom.dataset import Dataset

from indexer.imaging.header import value

__all__ = ["FRAME_KEYWORDS", "FramePolicy", "frames_of_interest"]

FRAME_KEYWORDS = ("RepresentativeFrameNumber", "FrameNumbersOfInterest")
"""Keywords of the elements that :func:`frames_of_interest` reads."""


@dataclass(frozen=True, slots=True)
class FramePolicy:
    """Which frames of a multi-frame instance are indexed.

    kind: "spread" or "all" = all frames; "nth" = the first and every ``every``-th after it;
        "middle" = the middle one; "key" = those that the header names as representative or of
        interest, or the middle one when it names none; "given" = the one of this ``number``,
        counted from 0, or the last one if there are fewer.
    limit: the most frames to choose, whatever the kind; of more, evenly spaced ones are taken.
    derived: whether objects that are no pictures (not_pictures.py) have frames to be indexed.
    """

    kind: Literal["spread", "all", "nth", "middle", "key", "given"] = "spread"
    limit: int = 8
    every: int = 10
    derived: bool = False
    number: int = 0

    def choose(self, declared: int, named: Sequence[int] = ()) -> list[int]:
        """Numbers (from 0, ascending) of the chosen frames.

        Args:
            declared: how many frames the instance has.
            named: numbers of the frames that the instance names; see
                :func:`frames_of_interest`.
        """
        if self.kind == "given":
            return [min(self.number, declared - 1)]
        candidates: Sequence[int] = range(declared)
        if self.kind == "nth":
            candidates = range(0, declared, self.every)
        elif self.kind == "key":
            candidates = sorted({number for number in named if 0 <= number < declared})
        if self.kind == "middle" or not candidates:
            return [declared // 2]
        count = min(len(candidates), self.limit)
        # Split the candidates into equal parts and take the middle of each.
        return [
            candidates[(2 * part + 1) * len(candidates) // (2 * count)] for part in range(count)
        ]


def frames_of_interest(header: Dataset) -> list[int]:
    """Numbers, from 0, of the frames that the header names (PS3.3 C.7.6.9); they may be out of
    range.
    """
    numbers = []
    for keyword in FRAME_KEYWORDS:
        found = value(header, keyword)
        several = hasattr(found, "__iter__") and not isinstance(found, (str, bytes))
        numbers += [part - 1 for part in (found if several else [found]) if isinstance(part, int)]
    return numbers
