"""What to do: about files that are refused, and about questions that are foreign to the model."""

from dataclasses import dataclass

from api.http.routes.judging import DriftDocument
from engine.errors import RefusalReason
from engine.evaluation.intervals import wilson

__all__ = ["REFUSALS", "Advice", "DriftAdvice", "about_drift"]

_ENOUGH = 30
"""Fewer questions than this say nothing about the share of foreign ones."""


@dataclass(frozen=True, slots=True)
class Advice:
    """means: what it is. do: what to do about it."""

    means: str
    do: str


REFUSALS = {
    RefusalReason.EMPTY_FILE: Advice("the file has no bytes", "send it again from its source"),
    RefusalReason.NOT_AN_IMAGE: Advice(
        "neither DICOM nor NIfTI, PNG, JPEG, JPEG 2000, TIFF, WebP or BMP; or an archive that was "
        "not opened",
        "nothing; such files lie beside images",
    ),
    RefusalReason.UNREADABLE: Advice(
        "the file, member or server's instance cannot be got at, or its path is too long for the "
        "ledger",
        "permissions, the share, the server, shorter names; it is tried again by each run",
    ),
    RefusalReason.TRUNCATED: Advice(
        "it ends before what its header declares", "send it again from its source"
    ),
    RefusalReason.DAMAGED: Advice(
        "the content contradicts itself", "send it again; look at it with another viewer"
    ),
    RefusalReason.NO_PIXELS: Advice(
        "SR, PR, KO, PDF and the like; the detail names the SOP class", "nothing"
    ),
    RefusalReason.NOT_A_PICTURE: Advice(
        "segmentations, RT dose grids, parametric maps: pixels that are labels, doses or "
        "measurements; the detail names the SOP class",
        "nothing, or set indexing.take_derived and index with --retry-refused",
    ),
    RefusalReason.UNSUPPORTED_SYNTAX: Advice("no decoder for its compression", "convert it"),
    RefusalReason.UNSUPPORTED_PIXELS: Advice("a pixel layout that cannot be shown", "convert it"),
    RefusalReason.TOO_SMALL: Advice(
        "fewer than limits.min_side rows or columns", "nothing, or lower the limit"
    ),
    RefusalReason.TOO_LARGE: Advice(
        "above one of limits.* or zip.*, which the detail names",
        "raise that limit if the file is right",
    ),
    RefusalReason.NESTED_TOO_DEEP: Advice(
        "sequences in sequences beyond limits.max_nesting", "look at it: files are not like that"
    ),
    RefusalReason.TOO_SLOW: Advice(
        "not read within indexing.reader_seconds",
        "raise it, or give workers more cores; tried again by each run",
    ),
    RefusalReason.READER_DIED: Advice(
        "the decoder crashed or ran out of memory on it",
        "raise indexing.reader_memory_bytes; tried again by each run",
    ),
    RefusalReason.WORKER_DIED: Advice(
        "each worker that indexed it was killed or crashed, also with nothing else in hand",
        "look at it with another viewer; give workers more memory, then jobs retry --refused",
    ),
    RefusalReason.CONFLICTING_UID: Advice(
        "another file, which the detail names, has its SOP Instance UID and another picture; the "
        "same pixels in another encoding are a duplicate",
        "find out which is right, remove the other; with --delete-vanished the one that stays is "
        "taken in the same run",
    ),
}
"""By reason, in the words of the page on deployment."""


@dataclass(frozen=True, slots=True)
class DriftAdvice:
    """state: "none", "few", "expected", "unfamiliar" or "drifted". title, meaning: for a reader."""

    state: str
    title: str
    meaning: str


def about_drift(found: DriftDocument) -> DriftAdvice:
    """What the last questions say, in words."""
    if not found.recorded:
        return DriftAdvice(
            "none",
            "Not recorded.",
            "Verdicts are read from the audit log, and this service keeps none. The setting "
            "audit.enabled turns it on.",
        )
    if found.alpha is None:
        return DriftAdvice(
            "none",
            "Nothing is judged.",
            "The model has no calibration. precedent calibrate makes one of images that it knows.",
        )
    latest = found.latest
    if latest is None or latest.judged == 0:
        return DriftAdvice(
            "none", "No questions yet.", f"None with a verdict is recorded since {found.since}."
        )
    told = (
        f"{latest.foreign:,} of the last {latest.judged:,} were foreign, which is a share of "
        f"{_percent(latest.low)} to {_percent(latest.high)} (95 % interval); of known images up to "
        f"{_percent(found.alpha)} are called so."
    )
    if latest.judged < _ENOUGH:
        return DriftAdvice("few", "Too few questions to tell.", told)
    if latest.low > found.alpha:
        return DriftAdvice(
            "drifted",
            "More questions are foreign than there should be.",
            f"{told} Either people ask about images that the model has not learned, or its "
            "calibration does not fit your scanners.",
        )
    if found.level is not None:
        low, high = wilson(latest.foreign + latest.unfamiliar, latest.judged)
        if low > found.level:
            return DriftAdvice(
                "unfamiliar",
                "More questions are made in an unfamiliar way than there should be.",
                f"{latest.foreign + latest.unfamiliar:,} of the last {latest.judged:,} were "
                f"unfamiliar or foreign, which is a share of {_percent(low)} to {_percent(high)} "
                f"(95 % interval); of known images up to {_percent(found.level)} are called so. "
                "The calibration may not fit your scanners.",
            )
    return DriftAdvice("expected", "As it should be.", told)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
