"""Shows what can be shown of an instance some of whose frames are missing or broken."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from engine.errors import ImageRefused, RefusalReason
from indexer.imaging.instance import Frame, UnreadableFrames

__all__ = ["described", "readable_frames"]

_OF_THE_FRAME = (RefusalReason.TRUNCATED, RefusalReason.DAMAGED)
# How many frames are tried beside the chosen ones, when none of these can be shown.
_OTHERS = 16
# How many runs of unreadable frames are named.
_NAMED = 8


def readable_frames(
    chosen: Sequence[int],
    held: int,
    missing: tuple[UnreadableFrames, ...],
    shown: Callable[[int], Frame],
) -> tuple[tuple[Frame, ...], tuple[UnreadableFrames, ...]]:
    """The chosen frames that can be shown, in order, and which are missing or broken.

    If none of the chosen can be shown, the frames nearest to them are tried, up to as many as
    were chosen.

    Args:
        chosen: numbers of frames, ascending.
        held: how many frames the file holds, at least one; ``missing`` are those behind them.
        shown: the frame of a number.

    Raises:
        ImageRefused: TRUNCATED or DAMAGED, of the missing frames or the first that is broken,
            when no frame can be shown; what ``shown`` raises for another reason.
    """
    found: list[Frame] = []
    broken: dict[int, UnreadableFrames] = {}

    def attempt(number: int) -> None:
        try:
            found.append(shown(number))
        except ImageRefused as refused:
            if refused.reason not in _OF_THE_FRAME:
                raise
            broken[number] = UnreadableFrames(number, number, refused.reason, refused.detail)

    for number in chosen:
        if number < held:
            attempt(number)
    if not found and held > len(broken):
        for number in _nearest(chosen, held)[:_OTHERS]:
            attempt(number)
            if len(found) == len(chosen):
                break
    if not found:
        why = missing[0] if missing else next(iter(broken.values()))
        raise ImageRefused(why.reason, why.detail)
    found.sort(key=lambda frame: frame.number)
    return tuple(found), (*(broken[number] for number in sorted(broken)), *missing)


def described(unreadable: Sequence[UnreadableFrames]) -> str | None:
    """Which frames are missing or broken, in a line, as in "frame 3: damaged; frames 10 to 19:
    truncated"; None = none. Frames count from 0.

    Frames that follow each other are named together. The line is short however many there are.
    """
    runs: list[UnreadableFrames] = []
    for one in sorted(unreadable, key=lambda one: one.first):
        last = runs[-1] if runs else None
        if last is not None and (last.last + 1, last.reason) == (one.first, one.reason):
            runs[-1] = replace(last, last=one.last)
        else:
            runs.append(one)
    named = [str(one) for one in runs[:_NAMED]]
    if len(runs) > _NAMED:
        more = sum(one.last - one.first + 1 for one in runs[_NAMED:])
        named.append(f"and {more} more")
    return "; ".join(named) or None


def _nearest(chosen: Sequence[int], held: int) -> list[int]:
    """The other frames that are held, the nearest to a chosen one first."""
    others = np.setdiff1d(np.arange(held), chosen)
    after = np.searchsorted(chosen, others)
    right = np.take(chosen, np.minimum(after, len(chosen) - 1))
    left = np.take(chosen, np.maximum(after - 1, 0))
    distance = np.minimum(np.abs(right - others), np.abs(others - left))
    nearest: list[int] = others[np.argsort(distance, kind="stable")].tolist()
    return nearest
