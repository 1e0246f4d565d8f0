"""What a document is to say, without anything of a patient: enough to make it again.

A plan can be kept until its document has arrived. The patient's name and the rest of the header
are read from the source each time it is made.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Literal

from pydicom.uid import generate_uid

from engine.errors import DocumentError
from engine.records import Answer
from engine.search.recommend import Recommendation

__all__ = ["Kind", "Listed", "Plan", "Verdict", "listed_of", "plan_from", "plan_text", "verdict_of"]

Kind = Literal["sr", "pdf", "of-interest", "teaching"]


@dataclass(frozen=True, slots=True)
class Listed:
    """A hit. image: its id. similarity in [-1, 1]. hamming: differing bits."""

    image: str
    similarity: float
    hamming: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on the query. word: "known", "unfamiliar" or "foreign"."""

    word: str
    p: float
    alpha: float


@dataclass(frozen=True, slots=True)
class Plan:
    """One document, in one study.

    kind: a report as "sr" or "pdf"; key objects "of-interest" or for "teaching".
    image: id of the query's image, in whose study a report is written; of key objects, the first.
    hits: of a report, what it lists; of key objects, the images that they name.
    whole_study: the query was a whole study, rather than this image.
    verdict: None = there is none. model: its fingerprint. bits: of its codes. note: on the answer.
    sop, series: UIDs that the document gets, the same each time. made_at: local time, ISO 8601.
    """

    kind: Kind
    image: str
    hits: tuple[Listed, ...]
    sop: str
    series: str
    made_at: str
    model: str = ""
    bits: int = 0
    whole_study: bool = False
    verdict: Verdict | None = None
    note: str | None = None

    @classmethod
    def new(
        cls, kind: Kind, image: str, hits: Sequence[Listed], now: datetime, **more: Any
    ) -> "Plan":
        """A plan of a document that does not exist yet."""
        return cls(
            kind,
            image,
            tuple(map(_finite, hits)),
            sop=str(generate_uid(None)),
            series=str(generate_uid(None)),
            made_at=now.isoformat(timespec="seconds"),
            **more,
        )

    @property
    def is_report(self) -> bool:
        return self.kind in ("sr", "pdf")

    @property
    def made(self) -> datetime:
        return datetime.fromisoformat(self.made_at)


def listed_of(answer: Answer | Recommendation) -> list[Listed]:
    """The hits of an answer, in its order."""
    hits = answer.hits if isinstance(answer, Answer) else [one.hit for one in answer.hits]
    return [Listed(hit.id, float(hit.similarity), int(hit.hamming or 0)) for hit in hits]


def verdict_of(answer: Answer | Recommendation) -> Verdict | None:
    """The verdict of an answer; None = there is none."""
    ood = answer.ood
    if ood is None:
        return None
    return Verdict(ood.verdict, float(ood.p), float(ood.alpha))


def plan_text(plan: Plan) -> dict[str, Any]:
    """The plan for JSON."""
    return asdict(plan)


def plan_from(written: Mapping[str, Any]) -> Plan:
    """The plan that :func:`plan_text` wrote."""
    verdict = written.get("verdict")
    plan = Plan(**{**written, "hits": tuple(Listed(**one) for one in written["hits"])})
    return replace(plan, verdict=None if verdict is None else Verdict(**verdict))


def _finite(hit: Listed) -> Listed:
    if not math.isfinite(hit.similarity):
        raise DocumentError(
            f"the similarity of image {hit.image} is {json.dumps(hit.similarity)}, which no report "
            "can hold; encode the archive again with `precedent reencode`"
        )
    # Six digits are what answers show.
    return replace(hit, similarity=round(float(hit.similarity), 6))
