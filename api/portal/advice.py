"""What to do about questions that are foreign to the model."""

from dataclasses import dataclass

from api.http.routes.judging import DriftDocument
from api.portal.catalogues import decimal, gettext, grouped, period as day
from engine.evaluation.intervals import wilson

__all__ = ["DriftAdvice", "about_drift"]

_ENOUGH = 30
"""Fewer questions than this say nothing about the share of foreign ones."""


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
