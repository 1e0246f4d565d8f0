"""Searches of an index that is divided into cells, beside the answers of brute force."""

import re
import shutil
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from bench.vectors import nearest, synthetic
from engine.codes import hamming
from engine.records import Answer, Hit, ImageRecord, Observations, Point
from engine.search import ladder
from engine.search.engine import SearchEngine
from engine.search.ladder import Rung, climb, radii
from engine.search.query import MAX_K, Cursor, Query, parse_where
from engine.search.recommend import Examples, Wanted, recommend
from engine.settings import SearchSettings
from engine.store import columns
from engine.store.base import PARTS, Collection, Condition, Filter, Match, Profile, Range
from engine.store.edge import EdgeStore
from engine.store.payload import FACET_FIELDS
from engine.store.rows import View

BITS = 64
COUNT, QUERIES = 6000, 40
SAME = range(3000, 3040)  # images with the code of image 0, and any vectors
CELLS = {"coarse": "cells"}
CODES = {
    "coarse": "codes",
    "min_candidates": 20,
    "candidates_per_hit": 1,
    "candidates_share": 0,
}


def id_of(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(number)))


def unit(z: np.ndarray) -> np.ndarray:
    return (z / np.linalg.norm(z, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Small archives have cells, and fewer images count as few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "LEAST_POINTS", 1000)
        patch.setattr(ladder, "_FEW", 300)
        yield


@dataclass(frozen=True, eq=False)
class Archive:
    """What a store holds, as arrays and records, and images that it does not hold."""

    store: EdgeStore
    z: np.ndarray
    codes: np.ndarray
    records: list[ImageRecord]
    query_z: np.ndarray
    query_codes: np.ndarray

    def __len__(self) -> int:
        return len(self.z)

    def seen(self, number: int) -> Observations:
        """An image of the archive that is uploaded."""
        return Observations(self.z[[number]], self.codes[[number]])

    def asked(self, number: int) -> Observations:
        """An image that is not in the archive."""
        return Observations(self.query_z[[number]], self.query_codes[[number]])

    def passing(self, where: Filter) -> np.ndarray:
        return np.array([passes(record, where) for record in self.records])

    def within(self, seen: Observations, radius: int) -> np.ndarray:
        return hamming(self.codes, seen.codes[0]) <= radius

    @cached_property
    def cell(self) -> np.ndarray:
        return (self.z @ self.store.cells.centroids.T).argmax(axis=1)

    def in_cells(self, seen: Observations, count: int) -> np.ndarray:
        """Which images are in the cells that are nearest to this one."""
        likeness = self.store.cells.centroids @ seen.z[0]
        return np.isin(self.cell, np.argsort(-likeness, kind="stable")[:count])

    def ordered(self, seen: Observations, which: np.ndarray, order: str = "content") -> list[str]:
        """Ids of these images as a search would list them."""
        r = (self.z.astype(np.float64) @ seen.z[0].astype(np.float64)).clip(-1, 1)
        r, bits = r.astype(np.float32).tolist(), hamming(self.codes, seen.codes[0]).tolist()
        keys = {
            "content": lambda i: (-r[i], bits[i], id_of(i)),
            "hamming": lambda i: (bits[i], -r[i], id_of(i)),
        }
        return [id_of(i) for i in sorted(np.flatnonzero(which).tolist(), key=keys[order])]


def passes(record: ImageRecord, where: Filter) -> bool:
    def holds(condition: Condition) -> bool:
        value = getattr(record, condition.field)
        if isinstance(condition, Match):
            return not {value, *(value if isinstance(value, tuple) else ())}.isdisjoint(
                condition.values
            )
        assert isinstance(condition, Range)
        low = condition.low is None or (value is not None and value >= condition.low)
        return value is not None and low and (condition.high is None or value <= condition.high)

    return all(map(holds, where.must)) and not any(map(holds, where.must_not))


def record(number: int, label: str) -> ImageRecord:
    """Twelve images a study, three studies a patient; some values are missing."""
    return ImageRecord(
        study=f"1.2.{number // 12}",
        series=f"1.2.{number // 12}.{number % 2}",
        sop=f"1.2.{number // 12}.{number % 2}.{number}",
        patient=None if number % 50 == 7 else f"p{number // 36}",
        modality=("CT", "MR", "CR")[number % 3],
        body_part=label.upper(),
        view=("AP", None, "PA", "LL", None)[number % 5],
        laterality=(None, "L", None, "R")[number % 4],
        manufacturer=("Acme", None, "Bolt")[number // 12 % 3],
        sex="FM"[number // 36 % 2],
        age_band=f"{number // 36 % 9}0-{number // 36 % 9}9",
        study_year=None if number // 12 % 11 == 0 else 2000 + number // 12 % 20,
        labels=((label,), (label, "nodule"), (), ("nodule", "mass"))[number % 4],
        source=f"station {number % 7}",
        burned_in=(None, True, False)[number // 12 % 3],
    )


def filled(
    place: Path, model: str, z: np.ndarray, codes: np.ndarray, records: Sequence[ImageRecord]
) -> EdgeStore:
    """A store with cells."""
    store = EdgeStore.create(place, Collection(model, z.shape[1], 8 * codes.shape[1]))
    store.upsert([Point(id_of(i), records[i], codes[i], z[i]) for i in range(len(z))])
    store.optimise()
    assert store.cells is not None
    return store


@pytest.fixture(scope="module")
def archive(store_root: Path, encoder) -> Iterator[Archive]:
    drawn = synthetic(COUNT, QUERIES)
    codes = drawn.codes.copy()
    codes[SAME] = codes[0]
    records = [record(i, str(drawn.classes[i])) for i in range(COUNT)]
    with filled(
        store_root / "index", encoder.manifest.fingerprint, drawn.z, codes, records
    ) as store:
        yield Archive(store, drawn.z, codes, records, drawn.query_z, drawn.query_codes)


Search = Callable[..., SearchEngine]


@pytest.fixture(scope="module")
def engine(archive: Archive, encoder) -> Search:
    def made(store: EdgeStore | None = None, **settings: object) -> SearchEngine:
        return SearchEngine(encoder, store or archive.store, SearchSettings(**settings))

    return made


def ids(answer: Answer) -> list[str]:
    return [hit.id for hit in answer.hits]


def recall(answer: Answer, expected: Sequence[str]) -> float:
    return len({*ids(answer)} & {*expected}) / len(expected)


# The most similar images


def spread(count: int) -> tuple[np.ndarray, ...]:
    """Classes, and protocols within these."""
    drawn = synthetic(count, QUERIES)
    return drawn.z, drawn.codes, drawn.query_z, drawn.query_codes


def tight(count: int) -> tuple[np.ndarray, ...]:
    """Six clusters in which every direction is as good as any other."""
    rng = np.random.default_rng(1)
    axes = unit(rng.normal(size=(6, 256)))
    cluster = rng.integers(0, 6, count + QUERIES)
    z = unit(axes[cluster] + 0.2 * rng.normal(size=(len(cluster), 256)) / 16)
    codes = np.packbits(z @ rng.normal(size=(256, BITS)) > 0, axis=1)
    return z[:count], codes[:count], z[count:], codes[count:]


def collapsed(count: int) -> tuple[np.ndarray, ...]:
    """One code for each class."""
    drawn = synthetic(count, QUERIES)
    names, label = np.unique(drawn.classes, return_inverse=True)
    own = np.random.default_rng(2).integers(0, 256, (len(names), BITS // 8), dtype=np.uint8)
    like = nearest(drawn.z, drawn.query_z, 1)[:, 0]
    return drawn.z, own[label], drawn.query_z, own[label[like]]


KINDS = {"spread": spread, "tight": tight, "collapsed": collapsed}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, store_root: Path, encoder) -> Iterator[Archive]:
    z, codes, *queries = KINDS[request.param](4000)
    records = [ImageRecord(modality=("CT", "MR")[i % 2]) for i in range(len(z))]
    with filled(
        store_root / request.param, encoder.manifest.fingerprint, z, codes, records
    ) as store:
        yield Archive(store, z, codes, records, *queries)


def recalls(archive: Archive, search: SearchEngine, query: Query) -> tuple[float, list[Answer]]:
    """Mean recall over the queries, and their answers."""
    passing = archive.passing(query.where)
    rows = np.flatnonzero(passing)
    exact = rows[nearest(archive.z[passing], archive.query_z, query.k)]
    answers = [search.answer(archive.asked(i), query) for i in range(QUERIES)]
    found = [
        recall(answer, [id_of(row) for row in near])
        for answer, near in zip(answers, exact.tolist(), strict=True)
    ]
    return float(np.mean(found)), answers


def test_cells_hold_the_most_similar_images(kind, engine) -> None:
    share, answers = recalls(kind, engine(kind.store, **CELLS), Query(10, facets=False))
    assert share >= 0.985
    for answer in answers:
        assert answer.evidence.rung == "cells"
        assert answer.evidence.cells >= kind.store.cells.probes
        assert answer.evidence.cells_in_all == len(kind.store.cells)
        assert answer.evidence.compared == answer.evidence.candidates < len(kind) / 4


@pytest.mark.parametrize("k", [1, 30, 100])
def test_so_do_they_for_other_numbers_of_hits(kind, engine, k) -> None:
    share, _ = recalls(kind, engine(kind.store, **CELLS), Query(k, facets=False))
    assert share >= 0.985


def test_what_is_chosen_by_itself_misses_as_little(kind, engine) -> None:
    share, _ = recalls(kind, engine(kind.store), Query(10, facets=False))
    assert share >= 0.985


@pytest.mark.slow
@pytest.mark.parametrize("coarse", ["cells", "auto"])
@pytest.mark.parametrize("name", KINDS)
def test_in_a_larger_archive_too(store_root, encoder, monkeypatch, name, coarse) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(columns, "LEAST_POINTS", 10_000)
    monkeypatch.setattr(ladder, "_FEW", 3000)
    z, codes, *queries = KINDS[name](40_000)
    records = [
        ImageRecord(modality="CT" if i % 10 == 3 else "MR", sex="F" if i % 100 == 3 else "M")
        for i in range(len(z))
    ]
    place = store_root / f"large-{name}-{coarse}"
    with filled(place, encoder.manifest.fingerprint, z, codes, records) as store:
        large = Archive(store, z, codes, records, *queries)
        search = SearchEngine(encoder, store, SearchSettings(coarse=coarse))
        for terms, least in (([], 0.985), (["modality=CT"], 0.99), (["sex=F"], 0.99)):
            share, _ = recalls(large, search, Query(10, parse_where(terms), facets=False))
            assert share >= least, terms


def test_what_was_measured_on_the_index_is_true(kind) -> None:
    """The share of the ten nearest neighbours that are in so many cells, of all images."""
    cells, some = kind.store.cells, np.random.default_rng(3).permutation(len(kind))[:200]
    assert cells.recall >= 0.995
    near = nearest(kind.z, kind.z[some], 11)[:, 1:]
    mine = (kind.z @ cells.centroids.T).argmax(axis=1)
    order = np.argsort(-(kind.z[some] @ cells.centroids.T), axis=1)[:, : cells.probes]
    found = (mine[near][:, :, None] == order[:, None, :]).any(axis=2)
    assert found.mean() == pytest.approx(cells.recall, abs=0.01)


def test_the_nearest_cells_come_first(archive) -> None:
    cells = archive.store.cells
    likeness = cells.centroids @ archive.query_z[0]
    for count in (1, 7, len(cells), len(cells) + 5):
        found = cells.nearest(archive.query_z[0], count)
        assert found == tuple(np.argsort(-likeness)[:count].tolist())
    assert np.allclose(np.linalg.norm(cells.centroids, axis=1), 1, atol=1e-5)


def test_cells_are_made_anew_once_the_index_has_outgrown_them(archive) -> None:
    cells = archive.store.cells
    assert cells.points == COUNT
    assert not cells.outgrown(2 * COUNT)
    assert cells.outgrown(4 * COUNT)


@pytest.mark.parametrize("drifts", [False, True])
def test_cells_are_made_anew_when_other_images_come(archive, store_root, drifts) -> None:
    """What the index says of its cells is measured again, and is true of it as it is now."""
    half, whole = 2000, 3000
    z, codes, records = archive.z[:whole].copy(), archive.codes[:whole], archive.records[:whole]
    if drifts:
        rng = np.random.default_rng(0)
        z[half:] = unit(rng.standard_normal((whole - half, z.shape[1])))
    model = archive.store.collection.model
    with filled(store_root / f"drifting-{drifts}", model, z[:half], codes[:half], records) as store:
        before = store.cells
        store.upsert([Point(id_of(i), records[i], codes[i], z[i]) for i in range(half, whole)])
        store.optimise()
        now = store.cells
        assert (now.key != before.key) == drifts
        near = nearest(z, z[::10], 11)[:, 1:]
        order = np.argsort(-(z[::10] @ now.centroids.T), axis=1)[:, : now.probes]
        found = (now.assigned(z)[near][:, :, None] == order[:, None, :]).any(axis=2)
        assert found.mean() == pytest.approx(now.recall, abs=0.015)


def test_an_image_is_found_before_and_after_the_columns_are_sorted(
    archive, engine, store_root
) -> None:
    """Images that were added since the cells were made are in them as well."""
    half, whole = 1500, 3000
    z, codes, records = archive.z[:whole], archive.codes[:whole], archive.records[:whole]
    model = archive.store.collection.model
    with filled(store_root / "growing", model, z[:half], codes[:half], records) as store:
        store.upsert([Point(id_of(i), records[i], codes[i], z[i]) for i in range(half, whole)])
        grown = replace(archive, store=store, z=z, codes=codes, records=records)
        search = engine(store, **CELLS)
        before, answers = recalls(grown, search, Query(10, facets=False))
        for i, answer in enumerate(answers):
            count = grown.in_cells(grown.asked(i), answer.evidence.cells).sum()
            assert answer.evidence.candidates == count
        store.optimise()
        after, again = recalls(grown, search, Query(10, facets=False))
        assert [one.hits for one in again] == [one.hits for one in answers]
    assert before == after >= 0.985


# A radius that is asked for


@pytest.mark.parametrize(
    "terms",
    [[], ["modality=CT", "modality=MR"], ["labels=nodule", "study_year=2003..2015", "sex!=F"]],
    ids=["all", "most", "some"],
)
@pytest.mark.parametrize("radius", [0, 3, 9, 20])
def test_every_image_within_the_radius_is_compared(archive, engine, radius, terms) -> None:
    where = parse_where(terms)
    passing = archive.passing(where)
    probes = archive.store.cells.probes
    query = Query(MAX_K, where, radius=radius, facets=False)
    found = []
    for seen in (archive.seen(0), *map(archive.asked, range(5))):
        answer = engine().answer(seen, query)
        near = archive.within(seen, radius) & passing
        expected = near | (archive.in_cells(seen, probes) & passing)
        evidence = answer.evidence
        assert (evidence.rung, evidence.radius) == ("codes", radius)
        assert (evidence.cells, evidence.cells_in_all) == (probes, len(archive.store.cells))
        assert evidence.candidates == evidence.compared == expected.sum()
        assert evidence.rungs_tried == {f"codes-{radius}-{probes}": expected.sum()}
        assert evidence.matching == passing.sum()
        assert ids(answer) == archive.ordered(seen, expected)[:MAX_K]
        found.append((near & ~archive.in_cells(seen, probes)).sum())
    assert max(found) > 0  # cells alone would have missed some


@pytest.mark.parametrize("coarse", ["codes", "cells", "auto"])
@pytest.mark.parametrize("order", ["content", "hamming"])
def test_a_radius_is_kept_whatever_else_is_asked(archive, engine, order, coarse) -> None:
    seen = archive.seen(0)
    query = Query(MAX_K, order=order, radius=9, facets=False)
    answer = engine(coarse=coarse).answer(seen, query)
    near = archive.ordered(seen, archive.within(seen, 9), order)
    assert len(near) > len(SAME)
    assert answer.evidence.radius == 9
    assert set(near) <= set(ids(answer))
    if order == "hamming":
        assert ids(answer)[: len(near)] == near


@pytest.mark.parametrize("order", ["content", "hamming"])
def test_a_radius_makes_no_list_shorter(archive, engine, encoder, store_root, order) -> None:
    """It says what is not to be missed; what is farther away may be compared as well."""
    few = replace(archive, z=archive.z[:200], codes=archive.codes[:200])
    collection = Collection(encoder.manifest.fingerprint, 256, BITS)
    with EdgeStore.create(store_root / f"few-{order}", collection) as store:
        store.upsert([Point(id_of(i), few.records[i], few.codes[i], few.z[i]) for i in range(200)])
        for of in (archive.store, store):
            query = Query(10, order=order, radius=0, facets=False)
            answer = engine(of).answer(archive.asked(0), query)
            assert len(answer.hits) == 10


@pytest.mark.parametrize("bits", [8, 24, 64, 72, 128, 512])
def test_a_radius_is_exact_for_codes_of_any_length(encoder, store_root, bits) -> None:
    rng = np.random.default_rng(bits)
    z = unit(rng.normal(size=(1200, 8)))
    codes = rng.integers(0, 256, (3, bits // 8), dtype=np.uint8)[rng.integers(0, 3, 1200)]
    codes ^= np.packbits(rng.random((1200, bits)) < rng.random((1200, 1)) / 2, axis=1)
    records = [ImageRecord()] * 1200
    model = encoder.manifest.fingerprint
    with filled(store_root / f"bits-{bits}", model, z, codes, records) as store:
        narrow = Archive(store, z, codes, records, z, codes)
        search = SearchEngine(encoder, store, SearchSettings())
        for radius in {0, 1, bits // 8, bits // 4, bits // 2, bits}:
            for number in (0, 500):
                seen = narrow.seen(number)
                near = narrow.within(seen, radius)
                query = Query(MAX_K, radius=radius, facets=False)
                expected = near | narrow.in_cells(seen, store.cells.probes)
                answer = search.answer(seen, query)
                assert answer.evidence.candidates == expected.sum()
                assert ids(answer) == narrow.ordered(seen, expected)[:MAX_K]


# Which rung is taken


class Measured:
    """The store, as if it had measured another share of neighbours by their codes, and had had
    another number of points then."""

    def __init__(self, store: EdgeStore, code_recall: float, points: int | None = None) -> None:
        self._store = store
        cells = replace(store.cells, code_recall=code_recall)
        self.cells = cells if points is None else replace(cells, points=points)

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


@pytest.mark.parametrize(
    ("coarse", "code_recall", "first"),
    [
        ("auto", 1.0, "codes"),
        ("auto", 0.99, "codes"),
        ("auto", 0.9899, "cells"),
        ("auto", 0.3, "cells"),
        ("codes", 0.3, "codes"),
        ("cells", 1.0, "cells"),
    ],
)
def test_the_setting_says_what_is_tried_first(archive, engine, coarse, code_recall, first) -> None:
    store = Measured(archive.store, code_recall)
    answer = engine(store, **{**CODES, "coarse": coarse}).answer(archive.seen(0), Query(10))
    assert answer.evidence.rung == first
    assert next(iter(answer.evidence.rungs_tried)).startswith(first)


@pytest.mark.parametrize(("points", "first"), [(260_000, "codes"), (270_000, "cells")])
def test_of_very_many_images_cells_are_read_sooner(archive, engine, points, first) -> None:
    """2,000 candidates of codes, at .75 % of the images."""
    options = {**CODES, "coarse": "auto", "candidates_share": 0.0075}
    search = engine(Measured(archive.store, 1.0, points), **options)
    tried = search.answer(archive.seen(0), Query(10)).evidence.rungs_tried
    assert next(iter(tried)).startswith(first)


def test_by_codes_nothing_is_looked_up_in_cells(archive, engine) -> None:
    seen = archive.asked(3)
    for enough in (1, 100, 400, COUNT):
        search = engine(**{**CODES, "min_candidates": enough})
        evidence = search.answer(seen, Query(10, facets=False)).evidence
        assert evidence.cells is None
        assert not [label for label in evidence.rungs_tried if label.startswith("cells")]
        for label, count in evidence.rungs_tried.items():
            radius = BITS if label == "dense" else int(label.removeprefix("codes-"))
            assert count == archive.within(seen, radius).sum()


def test_where_too_few_codes_are_near_cells_are_looked_into(archive, engine) -> None:
    store = Measured(archive.store, 1.0)
    answer = engine(store, min_candidates=COUNT).answer(archive.asked(0), Query(10))
    tried = list(answer.evidence.rungs_tried)
    assert tried[:3] == [f"codes-{radius}" for radius in radii(BITS)]
    assert answer.evidence.rung == "cells"


def test_where_too_many_codes_are_near_cells_are_looked_into(encoder, store_root) -> None:
    """Every code is the same."""
    rng = np.random.default_rng(4)
    z = unit(rng.normal(size=(3000, 8)))
    codes = np.zeros((3000, BITS // 8), np.uint8)
    model = encoder.manifest.fingerprint
    with filled(store_root / "alike", model, z, codes, [ImageRecord()] * 3000) as store:
        alike = Archive(store, z, codes, [ImageRecord()] * 3000, z, codes)
        for code_recall in (1.0, 0.2):
            search = SearchEngine(encoder, Measured(store, code_recall), SearchSettings())
            answer = search.answer(alike.asked(0), Query(10))
            assert answer.evidence.rung == "cells"
            assert answer.evidence.note is None
        search = SearchEngine(encoder, store, SearchSettings(coarse="codes"))
        answer = search.answer(alike.asked(0), Query(10))
        assert answer.evidence.rung == "dense"
        assert "would save nothing" in answer.evidence.note


@pytest.mark.parametrize("graph", ["hash", "precise"])
def test_only_what_may_have_missed_some_says_so(encoder, store_root, graph) -> None:
    """Eight-bit vectors serve the graph, and the graph knows of no filters."""
    rng = np.random.default_rng(9)
    z, codes = unit(rng.normal(size=(2400, 8))), np.zeros((2400, BITS // 8), np.uint8)
    records = [ImageRecord(modality=("CT", "MR")[i % 12 == 0]) for i in range(2400)]
    collection = Collection(encoder.manifest.fingerprint, 8, BITS)
    profile = Profile(graph, quantised=True)
    with EdgeStore.create(store_root / f"quantised-{graph}", collection, profile) as store:
        store.upsert([Point(id_of(i), records[i], codes[i], z[i]) for i in range(2400)])
        stored = Archive(store, z, codes, records, z, codes)
        search = SearchEngine(encoder, store, SearchSettings())
        for terms in ([], ["modality=MR"], ["modality=CT"]):
            where = parse_where(terms)
            for number in range(5):
                answer = search.answer(stored.seen(number), Query(10, where))
                assert answer.evidence.rung == "dense"
                assert answer.evidence.approximate == (graph == "precise" and terms == [])
                if not answer.evidence.approximate:
                    expected = stored.ordered(stored.seen(number), stored.passing(where))
                    assert ids(answer) == expected[:10]


# Filters


def test_where_few_images_pass_all_of_them_are_compared(archive, engine) -> None:
    terms = ["sex=F", "modality=CT", "study_year=2004..2006"]
    passing = archive.passing(parse_where(terms))
    assert 20 < passing.sum() <= 300
    for number in range(5):
        seen = archive.asked(number)
        answer = engine().answer(seen, Query(20, parse_where(terms)))
        assert answer.evidence.rungs_tried == {"dense": passing.sum()}
        assert (answer.evidence.radius, answer.evidence.cells) == (None, None)
        assert not answer.evidence.approximate
        assert ids(answer) == archive.ordered(seen, passing)[:20]


def test_where_filters_leave_few_in_the_cells_more_cells_are_looked_into(archive, engine) -> None:
    where = parse_where(["modality=CT"])
    passing, probes = archive.passing(where), archive.store.cells.probes
    widened = set()
    for number in range(QUERIES):
        seen = archive.asked(number)
        evidence = engine(**CELLS).answer(seen, Query(10, where, facets=False)).evidence
        steps = list(evidence.rungs_tried.items())
        for step, (label, count) in enumerate(steps):
            if label == "dense":
                assert 2**step * probes > 0.4 * len(archive.store.cells)
                assert count == passing.sum()
            else:
                assert label == f"cells-{2**step * probes}"
                assert count == (archive.in_cells(seen, 2**step * probes) & passing).sum()
        assert all(count < 300 for _, count in steps[:-1])
        assert evidence.candidates == steps[-1][1] >= 300
        widened.add(len(steps))
    assert len(widened) > 1


@pytest.mark.parametrize(
    ("terms", "share"),
    [
        (["source=station 0", "source=station 1", "labels=nodule", "view!=AP"], 0.11),
        (["modality=CT", "view=AP", "sex=F"], 0.03),
        (["modality=CT", "view=AP", "sex=F", "laterality=L"], 0.01),
        (["body_part=class 09"], 0.17),
        (["body_part=class 03"], 0.017),
        (["body_part!=class 03", "body_part!=class 09"], 0.8),
    ],
    ids=["ten-percent", "three-percent", "one-percent", "a-class", "a-rare-class", "most"],
)
@pytest.mark.parametrize("few", [50, 300])
def test_little_is_missed_with_filters(archive, engine, monkeypatch, terms, share, few) -> None:
    monkeypatch.setattr(ladder, "_FEW", few)
    where = parse_where(terms)
    where = replace(where, must=tuple(map(in_capitals, where.must)))
    where = replace(where, must_not=tuple(map(in_capitals, where.must_not)))
    assert archive.passing(where).mean() == pytest.approx(share, rel=0.2)
    found, answers = recalls(archive, engine(), Query(10, where, facets=False))
    assert found >= 0.99
    assert all(passes(hit.record, where) for answer in answers for hit in answer.hits)


def in_capitals(condition: Condition) -> Condition:
    if isinstance(condition, Match) and condition.field == "body_part":
        return replace(condition, values=tuple(str(one).upper() for one in condition.values))
    return condition


MATCHING = [
    [],
    ["modality=CT"],
    ["modality=CT", "modality=MR"],
    ["modality=CT", "modality=MR", "sex=F"],
    ["modality!=CT", "modality!=MR"],
    ["labels=nodule", "labels=mass"],
    ["labels=nodule", "labels=class 02", "modality=CR", "view!=PA"],
    ["labels!=nodule"],
    ["study_year=2003", "study_year=2007"],
    ["study_year=2003..2007", "laterality=L", "laterality=R"],
    ["study_year!=2003..", "sex=M"],
    ["burned_in=true"],
    ["burned_in!=false", "age_band=10-19", "age_band=30-39"],
    ["view=AP", "source=station 1", "source=station 2", "manufacturer=acme"],
    ["study=1.2.7", "study=1.2.8", "study=1.2.499"],
    ["study!=1.2.7", "patient=p0", "patient=p2", "modality=CT"],
    ["patient=p3", "series=1.2.9.1", "series=1.2.10.0", "labels=nodule"],
    ["modality=CT", "study=nobody"],
    ["view=LL", "view!=LL"],
]


@pytest.mark.parametrize("terms", MATCHING, ids=lambda terms: " ".join(terms) or "all")
def test_as_many_images_match_as_pass_the_filters(archive, engine, terms) -> None:
    where = spelled(terms)
    expected = archive.passing(where)
    seen = archive.asked(1)
    for settings in (CELLS, CODES):
        answer = engine(**settings).answer(seen, Query(10, parse_where(terms)))
        assert answer.evidence.matching == expected.sum()
        assert not answer.evidence.estimated
        assert len(answer.hits) == min(10, expected.sum())
        assert all(passes(hit.record, where) for hit in answer.hits)
    exact = engine().answer(seen, Query(10, parse_where(terms), exact=True))
    assert exact.evidence.matching == exact.evidence.candidates == expected.sum()
    assert ids(exact) == archive.ordered(seen, expected)[:10]


def spelled(terms: Sequence[str]) -> Filter:
    """The filter in the archive's spelling."""
    return parse_where([term.replace("manufacturer=acme", "manufacturer=Acme") for term in terms])


@pytest.mark.parametrize("terms", MATCHING, ids=lambda terms: " ".join(terms) or "all")
def test_facets_count_the_images_that_pass_the_filters(archive, engine, terms) -> None:
    where = spelled(terms)
    answer = engine(facet_values=1000).answer(archive.asked(2), Query(1, parse_where(terms)))
    expected = facets_of(archive, where)
    assert answer.facets == expected
    for field, counts in answer.facets.items():
        assert list(counts) == sorted(counts, key=lambda value: (-counts[value], value)), field
    assert not answer.evidence.facets_estimated
    assert engine(facet_values=1000).facets(parse_where(terms)) == expected
    few = engine(facet_values=2).answer(archive.asked(2), Query(1, parse_where(terms))).facets
    assert few == {
        field: dict(islice(counts.items(), 2)) for field, counts in answer.facets.items()
    }


def facets_of(archive: Archive, where: Filter) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for field in FACET_FIELDS:
        counter: Counter[str] = Counter()
        for one in archive.records:
            if passes(one, where):
                value = getattr(one, field)
                values = value if isinstance(value, tuple) else (value,)
                counter.update({str(each) for each in values if each is not None})
        if counter:
            found[field] = dict(counter)
    return found


# Pages


PAGED = {
    "cells": ("cells", CELLS, Query(83)),
    "cells-filtered": ("cells", CELLS, Query(83, parse_where(["modality!=CT"]))),
    "codes": ("codes", CODES, Query(13)),
    "codes-hamming": ("codes", CODES, Query(13, order="hamming")),
    "radius": ("codes", {}, Query(83, radius=20)),
    "dense": (
        "dense",
        {},
        Query(40, parse_where(["sex=F", "modality=CT", "study_year=2004..2006"])),
    ),
    "exact": ("exact", {}, Query(250, exact=True)),
    "exact-hamming": (
        "exact",
        {},
        Query(250, parse_where(["sex=F", "modality=CT"]), "hamming", exact=True),
    ),
}
"""Rung, settings, and request of the first page."""


def pages(search: SearchEngine, seen: Observations, query: Query) -> Iterator[Answer]:
    """Its pages, one after the other."""
    answer = search.answer(seen, replace(query, facets=False))
    yield answer
    while answer.next_page is not None:
        page = Cursor.parse(answer.next_page)
        answer = search.answer(seen, replace(query, facets=False, page=page))
        yield answer


def whole_list(archive: Archive, seen: Observations, answer: Answer, query: Query) -> list[str]:
    """All hits there are on the rung of this answer."""
    evidence, passing = answer.evidence, archive.passing(query.where)
    near = np.zeros(len(archive), bool)
    if evidence.radius is not None:
        near |= archive.within(seen, evidence.radius)
    if evidence.cells is not None:
        near |= archive.in_cells(seen, evidence.cells)
    if evidence.rung in ("dense", "exact"):
        near[:] = True
    return archive.ordered(seen, near & passing, query.order)


@pytest.mark.parametrize("name", PAGED)
def test_pages_make_up_the_whole_list(archive, engine, name) -> None:
    rung, settings, query = PAGED[name]
    for number in (0, 7):
        seen = archive.asked(number)
        answers = list(pages(engine(**settings), seen, query))
        rungs = {(a.evidence.rung, a.evidence.radius, a.evidence.cells) for a in answers}
        assert len(rungs) == 1
        assert answers[0].evidence.rung == rung
        expected = whole_list(archive, seen, answers[0], query)
        listed = [one for answer in answers for one in ids(answer)]
        assert listed == expected[: MAX_K // query.k * query.k]
        assert len(answers) > 1


@pytest.mark.parametrize("group_by", ["study", "patient"])
def test_pages_of_groups_make_up_the_whole_list(archive, engine, group_by) -> None:
    seen, query = archive.asked(2), Query(20, group_by=group_by)
    answers = list(pages(engine(**CELLS), seen, query))
    assert len(answers) > 2
    firsts: dict[str, str] = {}
    by_id = {id_of(i): one for i, one in enumerate(archive.records)}
    for one in whole_list(archive, seen, answers[0], query):
        firsts.setdefault(getattr(by_id[one], group_by) or one, one)
    listed = [one for answer in answers for one in ids(answer)]
    assert listed == list(firsts.values())


SAMPLED = {
    "codes": (CODES | {"min_candidates": 400}, Query(50)),
    "cells": (CELLS, Query(50)),
    "radius": ({}, Query(50, radius=20)),
    "dense": (CODES | {"min_candidates": COUNT}, Query(50)),
}
"""Settings, and request of the first page, where more are found than are compared."""


@pytest.mark.parametrize("name", SAMPLED)
def test_pages_make_up_the_list_of_a_sample(archive, engine, name) -> None:
    settings, query = SAMPLED[name]
    seen = archive.asked(5)
    answers = list(pages(engine(max_scanned=256, **settings), seen, query))
    first = answers[0].evidence
    assert first.candidates > 256 >= first.compared
    assert first.radius is None  # which would be no promise
    taken = Rung.labelled(list(first.rungs_tried)[-1])
    parts = int(re.search(r"(\d+) of 256 parts", first.note)[1])
    near = np.full(COUNT, taken.name == "dense")
    if taken.radius is not None:
        near |= archive.within(seen, taken.radius)
    if taken.cells:
        near |= archive.in_cells(seen, taken.cells)
    sampled = np.array([uuid.UUID(id_of(i)).int % PARTS < parts for i in range(COUNT)])
    listed = [one for answer in answers for one in ids(answer)]
    assert listed == archive.ordered(seen, near & sampled)
    assert len(answers) > 1


@pytest.fixture
def busy(archive: Archive, store_root: Path) -> Iterator[EdgeStore]:
    """A copy of the archive into which another thread writes: images like none of the queries,
    which go again, and images that are there, once more."""
    place = store_root / "busy"
    if not place.exists():
        copied(archive.store, place)
    far = -unit(archive.query_z.sum(axis=0))
    done = threading.Event()
    failed: list[BaseException] = []
    written = [0]

    def write(store: EdgeStore) -> None:
        rng = np.random.default_rng(5)
        try:
            while not done.is_set():
                new = [
                    Point(
                        id_of(COUNT + i),
                        ImageRecord(study="new", modality="OT"),
                        ~archive.query_codes[0],
                        unit(far + 0.05 * rng.normal(size=len(far))),
                    )
                    for i in range(64)
                ]
                again = rng.integers(0, COUNT, 64).tolist()
                store.upsert(new)
                store.upsert(
                    [
                        Point(id_of(i), archive.records[i], archive.codes[i], archive.z[i])
                        for i in again
                    ]
                )
                store.delete(Filter((Match("study", ("new",)),)))
                store.flush()
                written[0] += 1
                if written[0] % 8 == 0:
                    store.optimise()
        except BaseException as error:
            failed.append(error)

    with EdgeStore.open(place) as store:
        thread = threading.Thread(target=write, args=(store,))
        thread.start()
        try:
            yield store
        finally:
            done.set()
            thread.join()
    assert failed == []
    assert written[0] > 0


@pytest.mark.parametrize("rounds", [3, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PAGED)
def test_pages_make_up_the_whole_list_while_others_write(
    archive, engine, busy, name, rounds
) -> None:
    _, settings, query = PAGED[name]
    seen = archive.asked(0)
    first = engine(**settings).answer(seen, query)
    expected = whole_list(archive, seen, first, query)[: MAX_K // query.k * query.k]
    for _ in range(rounds):
        answers = pages(engine(busy, **settings), seen, query)
        assert [one for answer in answers for one in ids(answer)][: len(expected)] == expected


@pytest.mark.parametrize("exact", [False, True])
def test_what_is_written_anew_during_a_search_is_found(
    archive, engine, store_root, monkeypatch, exact
) -> None:
    """Also when what it replaces is erased at once."""
    place, seen = store_root / f"anew-{exact}", archive.asked(0)
    query = Query(50, exact=exact, facets=False)
    copied(archive.store, place)
    with EdgeStore.open(place) as store:
        search = engine(store, **CELLS)
        expected = search.answer(seen, query)
        best = store.get(ids(expected)[:20], with_z=True)
        compare = View.nearest

        def written_between(view: View, *asked: object) -> list[Point]:
            monkeypatch.setattr(View, "nearest", compare)
            store.upsert(best)
            store.flush()
            return compare(view, *asked)

        monkeypatch.setattr(View, "nearest", written_between)
        assert search.answer(seen, query).hits == expected.hits
        assert View.nearest is compare


def copied(store: EdgeStore, place: Path) -> None:
    store.flush()
    shutil.copytree(store._directory, place)


# Equal scores


TWINS = 300


@pytest.fixture(scope="module")
def twins(encoder) -> list[Point]:
    """Among 1,800 images 300 with one vector, and one of two codes."""
    rng = np.random.default_rng(6)
    z = unit(rng.normal(size=(1800, 16)))
    z[:TWINS] = z[0]
    codes = np.packbits(z @ rng.normal(size=(16, BITS)) > 0, axis=1)
    codes[:TWINS:3, 0] ^= 1
    return [
        Point(id_of(i), ImageRecord(modality=("CT", "MR")[i % 2]), codes[i], z[i])
        for i in range(len(z))
    ]


def lists(search: SearchEngine, seen: Observations) -> dict[object, tuple[Hit, ...]]:
    where = parse_where(["modality=CT"])
    return {
        (k, order, exact, narrow): search.answer(
            seen, Query(k, where if narrow else Filter(), order, exact)
        ).hits
        for k in (10, 100)
        for order in ("content", "hamming")
        for exact in (False, True)
        for narrow in (False, True)
    }


@pytest.mark.parametrize("coarse", ["cells", "codes"])
@pytest.mark.slow
def test_equals_come_in_the_same_order_however_the_rows_lie(
    twins, encoder, tmp_path, coarse
) -> None:
    place, settings = tmp_path / "index", SearchSettings(coarse=coarse, max_hamming_ranked=400)
    collection = Collection(encoder.manifest.fingerprint, 16, BITS)
    seen = Observations(twins[1].z[None], twins[1].code[None])
    rng = np.random.default_rng(7)
    with EdgeStore.create(place, collection) as store:
        store.upsert(twins)
        unsorted = lists(SearchEngine(encoder, store, settings), seen)
        store.optimise()
        assert store.cells is not None
        expected = lists(SearchEngine(encoder, store, settings), seen)
        for (k, order, _, narrow), hits in expected.items():
            equals = [i for i in range(TWINS) if not narrow or i % 2 == 0]
            by_key = sorted(equals, key=lambda i: (hamming(twins[i].code, seen.codes[0]), id_of(i)))
            assert [hit.id for hit in hits] == [id_of(i) for i in by_key[:k]], order
        assert unsorted == expected
        for profile in (Profile("precise"), Profile()):
            store.arrange(profile)
            exact = {key: hits for key, hits in expected.items() if key[2]}
            found = lists(SearchEngine(encoder, store, settings), seen)
            assert {key: hits for key, hits in found.items() if key[2]} == exact
        assert found == expected
        # Written anew in another order, and sorted.
        store.upsert([twins[i] for i in rng.permutation(len(twins))])
        assert lists(SearchEngine(encoder, store, settings), seen) == expected
        store.optimise()
        assert lists(SearchEngine(encoder, store, settings), seen) == expected
    shutil.rmtree(place / "columns")
    with EdgeStore.open(place) as store:
        assert store.cells is not None
        assert lists(SearchEngine(encoder, store, settings), seen) == expected


def test_all_answers_are_the_same_after_the_columns_are_made_again(
    archive, engine, store_root
) -> None:
    place = store_root / "again"
    copied(archive.store, place)
    queries = [
        Query(20, exact=True),
        Query(20, parse_where(["sex=F", "modality=CT"]), "hamming"),
        Query(20, parse_where(["labels=nodule", "sex=F"]), exact=True),
    ]

    def answers(store: EdgeStore) -> list[object]:
        search = engine(store)
        found = [search.answer(archive.asked(i), query) for i in range(3) for query in queries]
        return [(one.hits, one.facets, one.evidence.matching) for one in found]

    with EdgeStore.open(place) as store:
        expected = answers(store)
    shutil.rmtree(place / "columns")
    with EdgeStore.open(place) as store:
        assert answers(store) == expected
        again = replace(archive, store=store)
        share, found = recalls(again, engine(store, **CELLS), Query(10, facets=False))
        assert {one.evidence.rung for one in found} == {"cells"}
        assert share >= 0.985


# Groups and recommendations


@pytest.fixture(scope="module")
def one_large_study(encoder, store_root: Path) -> Iterator[EdgeStore]:
    """1,500 images nearer than any other, all of one study, and 1,500 of many studies."""
    rng = np.random.default_rng(8)
    query = unit(rng.normal(size=4))
    near = unit(query + rng.normal(size=(1500, 4)) * 0.05)
    far = unit(query + rng.normal(size=(1500, 4)))
    far = far[far @ query < 0.9]
    records = [
        *(ImageRecord(study="big", patient="big") for _ in near),
        *(ImageRecord(study=f"s{i // 3}", patient=f"p{i // 9}") for i in range(len(far))),
    ]
    codes = np.packbits(np.concatenate([near, far]) @ rng.normal(size=(4, BITS)) > 0, axis=1)
    model = encoder.manifest.fingerprint
    with filled(store_root / "large", model, np.concatenate([near, far]), codes, records) as store:
        yield store


@pytest.mark.parametrize("coarse", ["cells", "codes"])
@pytest.mark.parametrize("group_by", ["study", "patient"])
def test_one_large_study_does_not_hide_the_others(
    one_large_study, encoder, group_by, coarse
) -> None:
    search = SearchEngine(encoder, one_large_study, SearchSettings(coarse=coarse))
    alone = search.search_like(id_of(0), Query(20))
    assert alone.evidence.rung == coarse
    assert {hit.record.study for hit in alone.hits} == {"big"}
    answer = search.search_like(id_of(0), Query(20, group_by=group_by))
    names = [getattr(hit.record, group_by) for hit in answer.hits]
    assert names[0] == "big"
    assert len(set(names)) == len(names) == 20


def test_cases_are_found_beyond_one_large_study(one_large_study) -> None:
    settings = SearchSettings(coarse="cells")
    for wanted in (Wanted(20, exclude=None), Wanted(20), Wanted(20, group_by="patient")):
        found = recommend(one_large_study, settings, lambda _: None, Examples((id_of(0),)), wanted)
        assert len(found.hits) == 20


def test_recommendations_from_cells_are_those_of_the_whole_index(archive) -> None:
    shares, rungs = [], Counter()
    for number in range(0, COUNT, COUNT // 30):
        examples = Examples((id_of(number), id_of((number + 777) % COUNT)))
        settings = SearchSettings(coarse="cells")
        found, exact = (
            recommend(archive.store, settings, lambda _: None, examples, wanted)
            for wanted in (Wanted(10), Wanted(10, exact=True))
        )
        rungs.update(found.evidence.rungs)
        assert exact.evidence.rungs == {"exact": 2}
        mine = {one.hit.id for one in found.hits}
        shares.append(len(mine & {one.hit.id for one in exact.hits}) / 10)
    assert rungs["cells"] > 0.9 * rungs.total()
    assert np.mean(shares) >= 0.985


def test_more_candidates_are_had_for_the_asking(archive) -> None:
    z, code = archive.query_z[0], archive.query_codes[0]
    settings = SearchSettings(**CELLS)
    sizes = [
        climb(archive.store, z, code, Filter(), 10, settings, wider=wider).size.count
        for wider in (1, 4, 16)
    ]
    assert sizes[0] < sizes[1] < sizes[2] <= COUNT
