"""Indexed studies and their series as QIDO-RS answers them: what the index knows, and no more.

Dates stay empty, since the index keeps the year alone, and so does the patient's name. Viewers
order a list by the date; without one the order is that of the answer.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from api.http.qido.asked import Asked
from api.http.qido.dicom_json import Attributes
from api.http.qido.patients import Patients
from engine.records import ImageRecord
from engine.store.base import Condition, Filter, Match
from indexer.archive import TenantArchive
from indexer.sources.uids import sources_unknown

__all__ = ["SERIES_KEYS", "STUDY_KEYS", "Rank", "Studies", "Study"]

STUDY_KEYS = (
    *("StudyDate", "StudyTime", "AccessionNumber", "ModalitiesInStudy", "StudyDescription"),
    *("ReferringPhysicianName", "RetrieveURL", "PatientName", "PatientID", "PatientBirthDate"),
    *("PatientSex", "StudyInstanceUID", "StudyID", "NumberOfStudyRelatedSeries"),
    "NumberOfStudyRelatedInstances",
)
"""Attributes of a study in an answer (PS3.18 table 10.6.3-3)."""
SERIES_KEYS = (
    *("Modality", "SeriesDescription", "BodyPartExamined", "Laterality", "RetrieveURL"),
    *("StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber"),
    "NumberOfSeriesRelatedInstances",
)
"""Attributes of a series in an answer."""
_OTHER = "OT"
"""For images of which no modality is known: viewers rely on there being one."""
_MOST_IMAGES = 50_000
_LONGEST_TEXT = 64


@dataclass(frozen=True, slots=True)
class Rank:
    """Where a study stands among what is related to another one. place: from 1. similarity: of its
    most similar image. foreign: the other study is foreign to the model."""

    place: int
    similarity: float
    foreign: bool = False

    def __str__(self) -> str:
        warned = " (foreign query)" if self.foreign else ""
        return f"#{self.place} {self.similarity:.2f}{warned}"


@dataclass(frozen=True, slots=True)
class Study:
    """An indexed study. attributes: by keyword, all of :data:`STUDY_KEYS` that apply."""

    uid: str
    attributes: Attributes
    years: frozenset[int]

    def is_asked_for(self, asked: Asked) -> bool:
        """Whether it matches all keys. Of a date the year alone is known: it may be in a range."""
        low, high = asked.years or (0, 0)
        in_time = asked.years is None or any(low <= year <= high for year in self.years)
        return in_time and asked.matches(self.attributes)


class Studies:
    """What a tenant's index has, as answers of QIDO-RS."""

    def __init__(self, archive: TenantArchive) -> None:
        self._store = archive.store
        self._settings = archive.settings.qido
        self._replaced = sources_unknown(archive.settings)
        self._patients = Patients(archive.settings, archive.tenant)

    def available(self, *must: Condition) -> Filter:
        """Images whose study the WADO-RS server has, and knows by its UID. must: narrows them."""
        sources, replaced = self._settings.sources, self._replaced
        return Filter(
            (*((Match("source", sources),) if sources else ()), *must),
            (Match("source", replaced),) if replaced else (),
        )

    def find(
        self,
        uids: Sequence[str] | None = None,
        patient: str | None = None,
        *,
        ranks: Mapping[str, Rank] | None = None,
        query: str | None = None,
    ) -> list[Study]:
        """The studies with these UIDs, of this patient, or both.

        Those with a rank come first, by it; then the others, in the order of ``uids``.

        Args:
            uids: Study Instance UIDs; None = any.
            patient: the whole Patient ID, as answers have it; None = anybody.
            ranks: of studies in a list of related ones. query: to which study they are related.
        """
        must: list[Condition] = []
        if uids is not None:
            must.append(Match("study", tuple(uids)))
        if patient is not None:
            indexed = self._patients.indexed(patient)
            if indexed is None:
                return []
            must.append(Match("patient", (indexed,)))
        elif not uids:
            return []
        images: dict[str, list[ImageRecord]] = {}
        read = 0
        for point in islice(self._store.scroll(self.available(*must)), _MOST_IMAGES):
            read += 1
            if point.record.study is not None:
                images.setdefault(point.record.study, []).append(point.record)
        ranks = ranks or {}
        order = {uid: place for place, uid in enumerate(uids or sorted(images))}
        last = len(ranks) + 1
        places = {uid: ranks[uid].place if uid in ranks else last for uid in images}
        return [
            self._study(uid, images[uid], ranks.get(uid), uid == query, read < _MOST_IMAGES)
            for uid in sorted(images, key=lambda uid: (places[uid], order[uid]))
        ]

    def _study(
        self,
        uid: str,
        images: Sequence[ImageRecord],
        rank: Rank | None,
        is_query: bool,
        is_whole: bool,
    ) -> Study:
        modalities = _modalities(images)
        years = frozenset(one.study_year for one in images if one.study_year is not None)
        part = _commonest(one.body_part for one in images)
        about = [
            *([str(rank)] if rank else ["Query"] if is_query else []),
            *("/".join(modalities), part or "", str(min(years)) if years else ""),
        ]
        series = {one.series for one in images} - {None}
        known: dict[str, Sequence[str | int]] = {
            "ModalitiesInStudy": modalities,
            "StudyDescription": [" ".join(filter(None, about))[:_LONGEST_TEXT].rstrip()],
            "StudyInstanceUID": [uid],
            "PatientID": _one(self._patients.told(_commonest(one.patient for one in images))),
            "PatientSex": _one(_commonest(one.sex for one in images)),
            "RetrieveURL": self._address(f"studies/{uid}"),
            "NumberOfStudyRelatedSeries": [len(series)] if is_whole else [],
            "NumberOfStudyRelatedInstances": [_instances(images)] if is_whole else [],
        }
        return Study(uid, _with_empty(STUDY_KEYS, known), years)

    def series(self, study: str) -> list[Attributes]:
        """The series of a study, by their UIDs; none if it is not indexed."""
        where = self.available(Match("study", (study,)))
        images: dict[str, list[ImageRecord]] = {}
        for point in islice(self._store.scroll(where), _MOST_IMAGES):
            if point.record.series is not None:
                images.setdefault(point.record.series, []).append(point.record)
        return [self._one_series(study, uid, images[uid]) for uid in sorted(images)]

    def _one_series(self, study: str, uid: str, images: Sequence[ImageRecord]) -> Attributes:
        known: dict[str, Sequence[str | int]] = {
            "Modality": _modalities(images)[:1],
            "BodyPartExamined": _one(_commonest(one.body_part for one in images)),
            "Laterality": _one(_commonest(one.laterality for one in images)),
            "StudyInstanceUID": [study],
            "SeriesInstanceUID": [uid],
            "RetrieveURL": self._address(f"studies/{study}/series/{uid}"),
            "NumberOfSeriesRelatedInstances": [_instances(images)],
        }
        return _with_empty(SERIES_KEYS, known)

    def _address(self, below: str) -> list[str]:
        root = self._settings.wado_root
        return [] if root is None else [f"{root}/{below}"]


def _with_empty(keywords: Sequence[str], known: Mapping[str, Sequence[str | int]]) -> Attributes:
    """All of these attributes, but an address only where there is one."""
    found: dict[str, Sequence[str | int]] = {one: known.get(one, ()) for one in keywords}
    if not found["RetrieveURL"]:
        del found["RetrieveURL"]
    return found


def _modalities(images: Iterable[ImageRecord]) -> list[str]:
    """At least one, the commonest first."""
    found = Counter(one.modality or _OTHER for one in images)
    return sorted(found, key=lambda one: (-found[one], one))


def _instances(images: Iterable[ImageRecord]) -> int:
    return len({one.sop for one in images})


def _commonest(values: Iterable[str | None]) -> str | None:
    found = Counter(one for one in values if one)
    return min(found, key=lambda one: (-found[one], one)) if found else None


def _one(value: str | None) -> list[str]:
    return [] if value is None else [value]
