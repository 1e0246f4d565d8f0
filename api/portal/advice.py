"""What to do: about files that are refused, and about questions that are foreign to the model."""

from dataclasses import dataclass

from api.http.routes.judging import DriftDocument
from api.portal.catalogues import decimal, gettext, grouped, later, period as day
from engine.errors import RefusalReason
from engine.evaluation.intervals import wilson

__all__ = ["REFUSALS", "Advice", "DriftAdvice", "about_drift"]

_ENOUGH = 30
"""Fewer questions than this say nothing about the share of foreign ones."""


@dataclass(frozen=True, slots=True)
class Advice:
    """means: what it is. do: what to do about it; both as marked for the catalogues."""

    means: str
    do: str


REFUSALS = {
    RefusalReason.EMPTY_FILE: Advice(
        later("the file has no bytes"),
        later("send it again from its source"),
    ),
    RefusalReason.NOT_AN_IMAGE: Advice(
        later(
            "neither DICOM nor NIfTI, PNG, JPEG, JPEG 2000, TIFF, WebP or BMP; or an archive that"
            " was not opened"
        ),
        later("nothing; such files lie beside images"),
    ),
    RefusalReason.UNREADABLE: Advice(
        later(
            "the file, member or server's instance cannot be got at, or its path is too long for "
            "the ledger"
        ),
        later("permissions, the share, the server, shorter names; it is tried again by each run"),
    ),
    RefusalReason.TRUNCATED: Advice(
        later("it ends before what its header declares"),
        later("send it again from its source"),
    ),
    RefusalReason.DAMAGED: Advice(
        later("the content contradicts itself"),
        later("send it again; look at it with another viewer"),
    ),
    RefusalReason.NO_PIXELS: Advice(
        later("SR, PR, KO, PDF and the like; the detail names the SOP class"),
        later("nothing"),
    ),
    RefusalReason.NOT_A_PICTURE: Advice(
        later(
            "segmentations, RT dose grids, parametric maps: pixels that are labels, doses or "
            "measurements; the detail names the SOP class"
        ),
        later("nothing, or set indexing.take_derived and index with --retry-refused"),
    ),
    RefusalReason.UNSUPPORTED_SYNTAX: Advice(
        later("no decoder for its compression"),
        later("convert it"),
    ),
    RefusalReason.UNSUPPORTED_PIXELS: Advice(
        later("a pixel layout that cannot be shown"),
        later("convert it"),
    ),
    RefusalReason.TOO_SMALL: Advice(
        later("fewer than limits.min_side rows or columns"),
        later("nothing, or lower the limit"),
    ),
    RefusalReason.TOO_LARGE: Advice(
        later("above one of limits.* or zip.*, which the detail names"),
        later("raise that limit if the file is right"),
    ),
    RefusalReason.NESTED_TOO_DEEP: Advice(
        later("sequences in sequences beyond limits.max_nesting"),
        later("look at it: files are not like that"),
    ),
    RefusalReason.TOO_SLOW: Advice(
        later("not read within indexing.reader_seconds"),
        later("raise it, or give workers more cores; tried again by each run"),
    ),
    RefusalReason.READER_DIED: Advice(
        later("the decoder crashed or ran out of memory on it"),
        later("raise indexing.reader_memory_bytes; tried again by each run"),
    ),
    RefusalReason.WORKER_DIED: Advice(
        later("each worker that indexed it was killed or crashed, also with nothing else in hand"),
        later(
            "look at it with another viewer; give workers more memory, then jobs retry --refused"
        ),
    ),
    RefusalReason.CONFLICTING_UID: Advice(
        later(
            "another file, which the detail names, has its SOP Instance UID and another picture; "
            "the same pixels in another encoding are a duplicate"
        ),
        later(
            "find out which is right, remove the other; with --delete-vanished the one that stays"
            " is taken in the same run"
        ),
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
            gettext("Not recorded."),
            gettext(
                "Verdicts are read from the audit log, and this service keeps none. The setting "
                "audit.enabled turns it on."
            ),
        )
    if found.alpha is None:
        return DriftAdvice(
            "none",
            gettext("Nothing is judged."),
            gettext(
                "The model has no calibration. precedent calibrate makes one of images that it "
                "knows."
            ),
        )
    latest = found.latest
    if latest is None or latest.judged == 0:
        none = gettext("None with a verdict is recorded since %(day)s.")
        return DriftAdvice(
            "none", gettext("No questions yet."), none % {"day": day(found.since or "")}
        )
    told = gettext(
        "%(foreign)s of the last %(judged)s were foreign, which is a share of %(low)s to %(high)s "
        "(95 %% interval); of known images up to %(allowed)s are called so."
    ) % {
        "foreign": grouped(latest.foreign),
        "judged": grouped(latest.judged),
        "low": _percent(latest.low),
        "high": _percent(latest.high),
        "allowed": _percent(found.alpha),
    }
    if latest.judged < _ENOUGH:
        return DriftAdvice("few", gettext("Too few questions to tell."), told)
    if latest.low > found.alpha:
        why = gettext(
            "Either people ask about images that the model has not learned, or its calibration "
            "does not fit your scanners."
        )
        title = gettext("More questions are foreign than there should be.")
        return DriftAdvice("drifted", title, f"{told} {why}")
    if found.level is not None:
        count = latest.foreign + latest.unfamiliar
        low, high = wilson(count, latest.judged)
        if low > found.level:
            meaning = gettext(
                "%(count)s of the last %(judged)s were unfamiliar or foreign, which is a share of "
                "%(low)s to %(high)s (95 %% interval); of known images up to %(allowed)s are "
                "called so. The calibration may not fit your scanners."
            ) % {
                "count": grouped(count),
                "judged": grouped(latest.judged),
                "low": _percent(low),
                "high": _percent(high),
                "allowed": _percent(found.level),
            }
            title = gettext("More questions are made in an unfamiliar way than there should be.")
            return DriftAdvice("unfamiliar", title, meaning)
    return DriftAdvice("expected", gettext("As it should be."), told)


def _percent(share: float) -> str:
    return f"{decimal(100 * share, 1)} %"
