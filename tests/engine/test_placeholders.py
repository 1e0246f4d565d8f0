"""One patient over more studies than any person has is no patient; filters fit the archive."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from engine.records import ImageRecord, Point
from engine.search.placeholders import placeholder_patients
from engine.search.query import parse_where
from engine.search.recommend import Examples, Recommendation, Wanted, recommend
from engine.search.spelling import as_spelled
from engine.settings import SearchSettings
from engine.store.base import Collection, Match
from engine.store.edge import EdgeStore

DIM, BITS = 16, 64
Make = Callable[[list[ImageRecord]], EdgeStore]


def id_of(number: int) -> str:
    return str(uuid.UUID(int=number + 1))


@pytest.fixture
def make(tmp_path) -> Iterator[Make]:
    opened: list[EdgeStore] = []

    def made(records: list[ImageRecord]) -> EdgeStore:
        rng = np.random.default_rng(0)
        z = rng.normal(size=(len(records), DIM)).astype(np.float32)
        z /= np.linalg.norm(z, axis=1, keepdims=True)
        codes = rng.integers(0, 256, (len(records), BITS // 8), dtype=np.uint8)
        path = tmp_path / str(len(opened))
        opened.append(EdgeStore.create(path, Collection("0" * 16, DIM, BITS)))
        opened[-1].upsert([Point(id_of(i), records[i], codes[i], z[i]) for i in range(len(z))])
        return opened[-1]

    yield made
    for store in opened:
        store.close()


def studies(patient: str | None, first: int, count: int, images: int = 1) -> list[ImageRecord]:
    return [
        ImageRecord(study=f"1.2.{first + number // images}", patient=patient, modality="CT")
        for number in range(count * images)
    ]


def cases(store: EdgeStore, liked: int, **wanted) -> Recommendation:
    settings = SearchSettings(placeholder_patients=wanted.pop("placeholder_patients", True))
    asked = Wanted(**{"k": 5, **wanted})
    return recommend(store, settings, lambda _: None, Examples((id_of(liked),)), asked)


def everybody() -> list[ImageRecord]:
    """Patient "all" has 30 studies of 60; the others have one to three."""
    return [
        *studies("all", 0, 30),
        *(one for n in range(15) for one in studies(f"p{n}", 100 + 2 * n, 2)),
    ]


def test_a_placeholder_s_own_images_are_not_left_out(make):
    answer = cases(make(everybody()), 0)
    assert len(answer.hits) == 5
    assert "stands for no one" in answer.evidence.note
    assert "1.2.0" not in {one.hit.record.study for one in answer.hits}


def test_a_person_s_are(make):
    answer = cases(make(everybody()), 31)
    assert len(answer.hits) == 5
    assert answer.evidence.note is None
    assert "p0" not in {one.hit.record.patient for one in answer.hits}


def test_the_setting_turns_it_off(make):
    answer = cases(make(everybody()), 0, placeholder_patients=False)
    assert "all" not in {one.hit.record.patient for one in answer.hits}
    assert answer.evidence.note is None


def test_each_image_of_a_placeholder_is_a_group_by_itself(make):
    store = make(everybody())
    answer = cases(store, 31, k=40, group_by="patient", exclude="study")
    patients = [one.hit.record.patient for one in answer.hits]
    assert patients.count("all") > 10
    assert all(patients.count(name) == 1 for name in patients if name != "all")
    off = cases(store, 31, k=40, group_by="patient", exclude="study", placeholder_patients=False)
    assert [one.hit.record.patient for one in off.hits].count("all") == 1


@pytest.mark.parametrize(
    ("records", "found"),
    [
        (studies("many", 0, 201) + studies(None, 300, 800), {"many"}),
        (studies("some", 0, 199) + studies(None, 300, 800), set()),
        (studies("share", 0, 20) + studies(None, 300, 40), {"share"}),
        (studies("share", 0, 20) + studies(None, 300, 60), set()),
        # Many images do not make many studies, and a few studies may be all there are.
        (studies("long", 0, 3, images=100), set()),
        (studies("alone", 0, 19), set()),
        ([], set()),
    ],
    ids=["many", "fewer", "share", "smaller-share", "long", "alone", "empty"],
)
def test_who_is_a_placeholder(make, records, found):
    store = make(records)
    names = {record.patient for record in records} | {"nobody", None}
    assert placeholder_patients(store) == found
    assert placeholder_patients(store, names) == found
    assert placeholder_patients(store, []) == frozenset()


def test_an_archive_of_one_patient_says_why_there_is_nothing(make):
    store = make(studies("alone", 0, 6))
    answer = cases(store, 0)
    assert answer.hits == ()
    assert "own patient" in answer.evidence.note
    assert len(cases(store, 0, exclude="study").hits) == 5


# Filters.


def kinds() -> list[ImageRecord]:
    made = ImageRecord(study="1.2", modality="CT", body_part="CHEST", study_year=2019)
    return [
        replace(made, manufacturer="SIEMENS", labels=("Nodule",)),
        replace(made, manufacturer="Siemens", modality="MR"),
        replace(made, manufacturer="GE", source="PACS"),
    ]


@pytest.mark.parametrize(
    ("terms", "count"),
    [
        (["modality=ct"], 2),
        (["modality!=ct"], 1),
        (["body_part=Chest"], 3),
        (["manufacturer=siemens"], 2),
        (["manufacturer!=siemens"], 1),
        (["labels=nodule"], 1),
        (["source=pacs"], 1),
        (["study_year=2019"], 3),
        (["modality=ct", "manufacturer=ge"], 1),
    ],
    ids=str,
)
def test_case_does_not_matter(make, terms, count):
    store = make(kinds())
    where, remarks = as_spelled(store, parse_where(terms))
    assert store.count(where) == count
    assert remarks == ()
    found = store.facets(["manufacturer"], where, 10)["manufacturer"]
    assert set(found) <= {"SIEMENS", "Siemens", "GE"}


@pytest.mark.parametrize(
    ("term", "said"),
    [
        ("modality=xx", "no image has modality 'XX'; there are CT, MR"),
        ("modality!=xx", "no image has modality 'XX'"),
        ("labels=mass", "no image has labels 'mass'; there are Nodule"),
        ("view=PA", "no image has view 'PA'; none has any"),
        ("study=9.9", "no image has study '9.9'"),
        ("study_year=1999", "no image has study_year 1999; there are 2019"),
    ],
)
def test_a_value_that_no_image_has_is_told(make, term, said):
    store = make(kinds())
    _, remarks = as_spelled(store, parse_where([term]))
    assert len(remarks) == 1
    assert remarks[0].startswith(said)
    answer = cases(store, 0, where=parse_where([term]), exclude=None)
    assert said in answer.evidence.note


def test_values_that_occur_are_not_commented_on(make):
    store = make(kinds())
    answer = cases(store, 0, where=parse_where(["modality=mr"]), exclude=None, group_by=None)
    assert [one.hit.id for one in answer.hits] == [id_of(1)]
    assert answer.evidence.note is None


def test_coded_values_are_in_upper_case():
    """Code strings are (PS3.5 6.2)."""
    found = parse_where(["modality=ct", "laterality=l", "sex=f", "labels=Ab", "age_band=60-69"])
    assert [one.values for one in found.must if isinstance(one, Match)] == [
        ("CT",),
        ("L",),
        ("F",),
        ("Ab",),
        ("60-69",),
    ]
