"""How a model answers pictures of a source that neither its training nor its index has.

Every source of a kind is asked about in turn, while the index holds the others. A query is judged
by its first hit: is it of the same kind? And by the gate: is a kind that was learned called
foreign, and is a wrong hit passed as known, neither called foreign nor unfamiliar?
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.manifests import Picture
from engine.ood.calibration import OodGate

__all__ = ["INDEXES", "Judged", "Seen", "asked", "judged", "kind_row", "overall_row", "source_row"]

INDEXES = ("base", "others", "enriched")
"""What the index holds. base: the database of the first manifest, without the source; others: all
other sources; enriched: these, and the other patients of the source itself, as an archive of one's
own has them."""

MOST = 200  # queries of a kind and source
DRAWS = 2000  # of a bootstrap


@dataclass(frozen=True)
class Seen:
    """Pictures as a model sees them. z: float32 (N, D), of unit length. scores: of the detectors of
    its gate, float32 (N,) by name; None = it has none."""

    pictures: Sequence[Picture]
    z: NDArray[np.float32]
    scores: dict[str, NDArray[np.float32]] | None


@dataclass(frozen=True)
class Judged:
    """The queries of one kind and source.

    held_out: whether the model learned from nothing of the source. taught: whether it learned the
    kind, from others. patients: of each query. right: by index, of each query, whether the first
    hit is of its kind; None = that index has nothing of the kind. verdicts: the word on each query.
    """

    kind: str
    source: str
    held_out: bool
    taught: bool
    patients: NDArray[np.str_]
    right: dict[str, NDArray[np.bool_] | None] = field(default_factory=dict)
    verdicts: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.patients)

    def share(self, word: str) -> float | None:
        """The share of the queries with this verdict; None = there are no verdicts."""
        return None if self.verdicts is None else _mean(self.verdicts == word)


def asked(pictures: Sequence[Picture], kind: str, source: str, most: int = MOST) -> list[int]:
    """The queries of a kind and source: of the split ``query`` where there is one, else all; of
    every patient as many, at most ``most`` together."""
    own = [at for at, one in enumerate(pictures) if (one.kind, one.source) == (kind, source)]
    split = [at for at in own if pictures[at].part == "query"]
    by_patient: dict[str, list[int]] = {}
    for at in split or [at for at in own if pictures[at].more]:
        by_patient.setdefault(pictures[at].patient, []).append(at)
    rng = np.random.default_rng(0)
    rows = [rng.permutation(images).tolist() for _, images in sorted(by_patient.items())]
    if len(rows) > most:
        rows = [rows[at] for at in rng.permutation(len(rows))[:most]]
    # Slice by slice of a patient that has several, in turn.
    turns = max((len(row) for row in rows), default=0)
    found = [row[turn] for turn in range(turns) for row in rows if turn < len(row)]
    return sorted(found[:most])


def judged(
    seen: Seen,
    trained_on: Sequence[dict[str, Any]],
    only: Sequence[str] | None = None,
    gate: OodGate | None = None,
) -> list[Judged]:
    """How the model answers each source of each kind.

    Args:
        trained_on: what it learned from, rows with "class" and "source".
        only: ask these sources alone; None = all.
        gate: judges the scores; None = there are no verdicts.

    Raises:
        SystemExit: it learned from a source in ``only``.
    """
    learned = {row["source"] for row in trained_on}
    if overlap := sorted(learned & set(only or ())):
        raise SystemExit(f"the model has learned from {overlap[0]}; it cannot be judged by it")
    pictures = seen.pictures
    kinds = np.array([one.kind for one in pictures])
    sources = np.array([one.source for one in pictures])
    patients = np.array([one.patient for one in pictures])
    words = None
    if gate is not None and seen.scores is not None:
        words = np.array([one.verdict for one in gate.judged(seen.scores)])
    searched = np.array([one.more or one.part == "database" for one in pictures])
    base = np.array([not one.more and one.part == "database" for one in pictures])
    found = []
    for kind, source in sorted({(one.kind, one.source) for one in pictures}):
        if only is not None and source not in only:
            continue
        queries = np.array(asked(pictures, kind, source), dtype=np.int64)
        if not len(queries):
            continue
        elsewhere = sources != source
        held = {
            "base": np.flatnonzero(base & elsewhere),
            "others": np.flatnonzero(searched & elsewhere),
            "enriched": np.flatnonzero(searched),
        }
        own = patients[queries][:, None] == patients[None, :]
        found.append(
            Judged(
                kind,
                source,
                source not in learned,
                any(row["class"] == kind and row["source"] != source for row in trained_on),
                patients[queries],
                {name: _right(seen.z, kinds, queries, index, own) for name, index in held.items()},
                None if words is None else words[queries],
            )
        )
    return found


def _right(
    z: NDArray[np.float32],
    kinds: NDArray[np.str_],
    queries: NDArray[np.int64],
    index: NDArray[np.int64],
    own: NDArray[np.bool_],
) -> NDArray[np.bool_] | None:
    """Whether the first hit of each query is of its kind, bool (Q,). Nothing of the query's own
    patient is a hit."""
    kind = kinds[queries[0]]
    allowed = ~own[:, index]
    if not (allowed & (kinds[index] == kind)).any(axis=1).all():
        return None
    similarity = np.where(allowed, z[queries] @ z[index].T, -np.inf)
    right: NDArray[np.bool_] = kinds[index[similarity.argmax(axis=1)]] == kind
    return right


def source_row(one: Judged) -> dict[str, Any]:
    """The figures of one kind and source; intervals are by patient."""
    row: dict[str, Any] = {
        "class": one.kind,
        "source": one.source,
        "held out": one.held_out,
        "queries": len(one),
        "patients": len(np.unique(one.patients)),
    }
    for name in INDEXES:
        row[f"P@1 {name}"] = _mean(one.right.get(name))
    right = one.right.get("others")
    row["95 %"] = None if right is None else _interval([_by_patient(right, one.patients)])
    row |= {word: one.share(word) for word in ("unfamiliar", "foreign")}
    row |= _wrong([one])
    return row


def kind_row(kind: str, every: Sequence[Judged]) -> dict[str, Any]:
    """The figures of a kind over the sources that were held out, each counted alike; intervals by
    source and patient."""
    some = [one for one in every if one.kind == kind and one.held_out]
    some = [one for one in some if one.right.get("others") is not None]
    return {"class": kind, "sources": len(some), **_over_sources(some)}


def overall_row(every: Sequence[Judged], kinds: Sequence[str]) -> dict[str, Any]:
    """The mean of these kinds, each counted alike."""
    rows = [kind_row(kind, every) for kind in kinds]
    some = [
        one
        for one in every
        if one.kind in kinds and one.held_out and one.right.get("others") is not None
    ]
    names = [*(f"P@1 {name}" for name in INDEXES), "unfamiliar", "foreign"]
    # Of an index that lacks one of the kinds, the mean of the others would be another figure.
    means = {
        name: None
        if any(row[name] is None for row in rows)
        else _plain_mean([row[name] for row in rows])
        for name in names
    }
    by_kind = [
        [
            _by_patient(one.right["others"], one.patients)
            for one in some
            if one.kind == kind and one.right["others"] is not None
        ]
        for kind in kinds
    ]
    return {
        "class": "all",
        "sources": sum(row["sources"] for row in rows),
        "queries": sum(len(one) for one in some),
        "patients": sum(row["patients"] for row in rows),
        **means,
        "95 %": _interval_of_kinds([sources for sources in by_kind if sources]),
        **_wrong(some),
    }


def _over_sources(some: Sequence[Judged]) -> dict[str, Any]:
    rights = [
        _by_patient(one.right["others"], one.patients)
        for one in some
        if one.right["others"] is not None
    ]
    row: dict[str, Any] = {
        "queries": sum(len(one) for one in some),
        "patients": len({patient for one in some for patient in one.patients.tolist()}),
    }
    for name in INDEXES:
        row[f"P@1 {name}"] = _plain_mean([_mean(one.right.get(name)) for one in some])
    row["95 %"] = _interval(rights) if rights else None
    for word in ("unfamiliar", "foreign"):
        row[word] = _plain_mean([one.share(word) for one in some])
    return row | _wrong(some)


def _wrong(some: Sequence[Judged]) -> dict[str, Any]:
    """How many first hits among all other sources are wrong, and how many the gate passes."""
    wrong = passed = 0
    for one in some:
        right = one.right.get("others")
        if right is None:
            continue
        wrong += int((~right).sum())
        if one.verdicts is not None:
            passed += int((~right & (one.verdicts == "known")).sum())
    known = any(one.verdicts is not None for one in some)
    return {"wrong": wrong, "passed": passed if known else None}


def _mean(values: NDArray[np.bool_] | None) -> float | None:
    return None if values is None else round(float(values.mean()), 4)


def _plain_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 4) if known else None


_Counts = NDArray[np.float64]


def _by_patient(right: NDArray[np.bool_] | None, patients: NDArray[np.str_]) -> _Counts:
    """Right answers and queries of each patient, float64 (P, 2)."""
    assert right is not None
    _, number = np.unique(patients, return_inverse=True)
    return np.stack([np.bincount(number, right), np.bincount(number)], axis=1)


def _drawn_mean(sources: Sequence[_Counts], rng: np.random.Generator) -> float:
    """The mean over sources, drawn with replacement, of patients, drawn with replacement."""
    chosen = rng.integers(len(sources), size=len(sources)) if len(sources) > 1 else [0]
    shares = []
    for at in chosen:
        counts = sources[at]
        right, asked_for = counts[rng.integers(len(counts), size=len(counts))].sum(axis=0)
        shares.append(right / asked_for)
    return float(np.mean(shares))


def _interval(sources: Sequence[_Counts]) -> list[float] | None:
    """Of the mean over sources, 95 %; None where one patient is all that there is."""
    if len(sources) == 1 and len(sources[0]) == 1:
        return None
    rng = np.random.default_rng(0)
    return _middle([_drawn_mean(sources, rng) for _ in range(DRAWS)])


def _interval_of_kinds(kinds: Sequence[Sequence[_Counts]]) -> list[float] | None:
    """Of the mean over kinds, which stay as they are, of sources and patients, which are drawn."""
    if not kinds:
        return None
    rng = np.random.default_rng(0)
    return _middle(
        [float(np.mean([_drawn_mean(sources, rng) for sources in kinds])) for _ in range(DRAWS)]
    )


def _middle(means: Sequence[float]) -> list[float]:
    return [round(float(value), 3) for value in np.percentile(means, [2.5, 97.5])]
