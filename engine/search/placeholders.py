"""Finds patients that stand for no one: one pseudonym over more studies than any person has.

An archive may have been de-identified by giving everybody the same Patient ID. Then "the same
patient" says nothing: leaving out the query's own patient would leave out the archive.
"""

from collections.abc import Collection, Iterable

from engine.records import ImageRecord
from engine.search.sizes import sample_of, sampled_parts
from engine.settings import SearchSettings
from engine.store.ahead import AheadStore
from engine.store.base import Filter, Match, VectorStore

__all__ = [
    "joined",
    "look_ahead",
    "nobodies",
    "placeholder_patients",
    "remark_on",
    "remark_on_nothing",
]

_MOST_STUDIES = 200
"""No person has more studies than this in one archive."""
_FEW_STUDIES = 20
"""A patient with fewer studies is never a placeholder: small archives may be about one person."""
_SHARE = 0.3
"""… and with at least as many, is one if these are this share of the archive's studies."""
_SMALL_ARCHIVE = 100_000
"""Images. In larger archives the share is not looked at: it would be more than 200 studies."""
_SAMPLE = 4_000
"""Most images of one patient whose studies are counted."""
_ASKED_AHEAD = 4
"""Of so many patients the studies are asked for before it is known how many images they have."""
_LARGEST = 32
"""Of all patients, those with the most images are looked at, so many of them."""


def placeholder_patients(
    store: VectorStore, among: Iterable[str | None] | None = None
) -> frozenset[str]:
    """The pseudonyms that are no patient's, by the number of their studies.

    Args:
        among: only these are looked at; None = the 32 patients with the most images.
    """
    if among is None:
        images = store.facets(["patient"], Filter(), _LARGEST)["patient"]
    else:
        named = _named(among)
        if not named:
            return frozenset()
        images = store.facets(["patient"], _of(*named), len(named))["patient"]
    if isinstance(store, AheadStore):
        for name, count in images.items():
            if count >= _FEW_STUDIES:
                store.facets_ahead(["study"], _sample(name, count), _MOST_STUDIES + 1)
    return frozenset(
        name for name, count in images.items() if count >= _FEW_STUDIES and _is(store, name, count)
    )


def _named(patients: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(sorted({one for one in patients if one is not None}))


def _of(*patients: str) -> Filter:
    return Filter(must=(Match("patient", patients),))


def _sample(patient: str, images: int) -> Filter:
    """The images of a patient with this many, or a sample of them."""
    parts = sampled_parts(images, _SAMPLE)
    return _of(patient) if images <= _SAMPLE else sample_of(_of(patient), parts)


def _is(store: VectorStore, patient: str, images: int) -> bool:
    """Whether the patient with this many images has more studies than any person."""
    where = _sample(patient, images)
    studies = len(store.facets(["study"], where, _MOST_STUDIES + 1)["study"])
    if studies > _MOST_STUDIES:
        return True
    if studies < _FEW_STUDIES or store.count(Filter(), exact=False) > _SMALL_ARCHIVE:
        return False
    most = int(studies / _SHARE)
    return len(store.facets(["study"], Filter(), most + 1)["study"]) <= most


def nobodies(
    store: VectorStore,
    settings: SearchSettings,
    own: Iterable[ImageRecord],
    exclude: str | None,
    group_by: str | None,
) -> frozenset[str]:
    """The pseudonyms that are no patient's, of those that a question depends on.

    Args:
        own: records of the query images. exclude, group_by: "study", "patient" or None.
    """
    if not settings.placeholder_patients:
        return frozenset()
    found: frozenset[str] = frozenset()
    if exclude == "patient":
        found = placeholder_patients(store, [record.patient for record in own])
    return found | placeholder_patients(store) if group_by == "patient" else found


def look_ahead(
    store: AheadStore,
    settings: SearchSettings,
    own: Iterable[ImageRecord],
    exclude: str | None,
    group_by: str | None,
) -> None:
    """Sends what :func:`nobodies` will ask first."""
    if not settings.placeholder_patients:
        return
    if exclude == "patient" and (named := _named(record.patient for record in own)):
        store.facets_ahead(["patient"], _of(*named), len(named))
        for one in named[:_ASKED_AHEAD]:
            store.facets_ahead(["study"], _of(one), _MOST_STUDIES + 1)
    if group_by == "patient":
        store.facets_ahead(["patient"], Filter(), _LARGEST)


def remark_on(
    nobody: Collection[str], own: Iterable[ImageRecord], exclude: str | None
) -> list[str]:
    """For the reader of an answer: that the query's patient was not left out; [] = it was."""
    if exclude != "patient" or not any(record.patient in nobody for record in own):
        return []
    return [
        "the Patient ID stands for no one, as more studies have it than any person; only the own "
        "study was left out"
    ]


def remark_on_nothing(store: VectorStore, where: Filter, exclude: str | None) -> list[str]:
    """For the reader of an answer without hits: that all images were left out as the query's own;
    [] = there are none anyway.

    Args:
        where: the filter without what ``exclude`` leaves out.
    """
    if exclude is None or not store.count(where):
        return []
    narrower = "only the own study, or nothing" if exclude == "patient" else "nothing"
    return [
        f"all images that could be hits are of the own {exclude}, which was left out; leave out "
        f"{narrower}"
    ]


def joined(note: str | None, remarks: Iterable[str]) -> str | None:
    """A note on an answer with further remarks; None = there is nothing to say."""
    return "; ".join([*([] if note is None else [note]), *remarks]) or None
