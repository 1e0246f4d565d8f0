"""Metrics of OOD detection: how well a score separates foreign images from known ones."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import QueryError

__all__ = ["Detection", "detection"]


@dataclass(frozen=True, slots=True)
class Detection:
    """Metrics in [0, 1], with the foreign images as positives.

    auroc: probability that a random foreign image scores higher than a random known one; a tie
        counts half.
    aupr: area under the precision–recall curve, as average precision; depends on the ratio of
        foreign to known images.
    fpr_at_95_tpr: share of known images with a score at or above the threshold that 95 % of the
        foreign ones reach.
    """

    auroc: float
    aupr: float
    fpr_at_95_tpr: float


def detection(known: NDArray[np.floating], foreign: NDArray[np.floating]) -> Detection:
    """The metrics of the scores of known images, float (N,), and of foreign images, float (M,).

    A higher score means more foreign.

    AUROC is the Mann–Whitney statistic (Hanley and McNeil, Radiology 1982); AUPR and
    FPR@95TPR are used as by Hendrycks and Gimpel, ICLR 2017.

    Raises:
        QueryError: one side is empty, or a score is not finite.
    """
    if not len(known) or not len(foreign):
        raise QueryError(f"{len(known)} known and {len(foreign)} foreign scores; give some of each")
    if not (np.isfinite(known).all() and np.isfinite(foreign).all()):
        raise QueryError("a score is not a finite number; look at the detector that gave it")
    levels, place = np.unique(np.concatenate([known, foreign]), return_inverse=True)
    # Known and foreign images at each level, from the highest on.
    of_known = np.bincount(place[: len(known)], minlength=len(levels))[::-1]
    of_foreign = np.bincount(place[len(known) :], minlength=len(levels))[::-1]
    false, true = of_known.cumsum(), of_foreign.cumsum()
    above = len(known) - false + of_known / 2  # known images below, ties half
    auroc = float((of_foreign * above).sum() / len(known) / len(foreign))
    precision = true / (true + false)
    aupr = float((precision * of_foreign).sum() / len(foreign))
    enough = int(np.argmax(true >= 0.95 * len(foreign)))
    return Detection(auroc, aupr, float(false[enough] / len(known)))
