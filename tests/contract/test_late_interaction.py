"""Whole series and studies compared with examples, on every store, beside plain Python."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from backends import BACKENDS

from engine.errors import ImageNotFound, QueryError
from engine.records import ImageRecord, Observations, Point
from engine.search import examples as of_examples, late_interaction
from engine.search.examples import Examples, taken_of
from engine.search.recommend import Recommendation, Wanted, recommend
from engine.settings import SearchSettings
from engine.store.base import Collection, Filter, Match, VectorStore
from engine.store.tenant import TenantStore

DIM, BITS = 16, 64
SERIES, SLICES, LONG = 24, 6, 40
pytestmark = pytest.mark.filterwarnings(
    "ignore:Local mode performs exact .brute-force. search:UserWarning"
)


def id_of(number: int) -> str:
    return str(uuid.UUID(int=number + 1))


def record(series: int | None, place: int, tenant: str = "default") -> ImageRecord:
    """Of every two series one study, of every two studies one patient; None = of no series."""
    if series is None:
        return ImageRecord(modality="US", tenant=tenant)
    return ImageRecord(
        study=f"1.2.{series // 2}",
        series=f"1.2.3.{series}",
        sop=f"1.2.3.{series}.{place}",
        patient=f"p{series // 4}",
        modality=("CT", "MR")[series // 2 % 2],
        tenant=tenant,
    )


@pytest.fixture(scope="module")
def points() -> list[Point]:
    """Slices that follow a path of their patient, each series at some distance from it; the last
    series is long; and five images that are of none."""
    rng = np.random.default_rng(0)
    paths = rng.normal(size=(SERIES // 4 + 1, 2, DIM))
    made = []
    for series in (*range(SERIES), *[None] * 5):
        apart = rng.normal(size=DIM) * 0.4
        for place in range(1 if series is None else LONG if series == SERIES - 1 else SLICES):
            start, end = paths[-1 if series is None else series // 4]
            z = start + (end - start) * place / SLICES + apart + rng.normal(size=DIM) * 0.2
            z = (z / np.linalg.norm(z)).astype(np.float32)
            code = np.packbits(rng.random(BITS) < 0.5)
            made.append(Point(id_of(len(made)), record(series, place), code, z))
    return made


@pytest.fixture(scope="module", params=BACKENDS, ids=lambda backend: backend.name)
def store(request, store_root: Path, points: list[Point]) -> Iterator[VectorStore]:
    """With the points twice: for two tenants, who have the same studies and series."""
    collection = Collection("0123456789abcdef", DIM, BITS)
    store = request.param.create(store_root / f"series-{request.param.name}", collection)
    store.upsert(points)
    rng = np.random.default_rng(1)
    for point in points[: SLICES * 8]:
        z = rng.normal(size=DIM).astype(np.float32)
        other = replace(point.record, tenant="north")
        number = uuid.UUID(point.id).int + 10_000
        store.upsert([replace(point, id=id_of(number), record=other, z=z / np.linalg.norm(z))])
    yield store
    store.close()


def asked(store: VectorStore, examples: Examples, wanted: Wanted) -> Recommendation:
    mine = TenantStore(store, "default")
    return recommend(mine, SearchSettings(), lambda _: None, examples, wanted)


def naive(
    points: Sequence[Point],
    liked: Sequence[Point],
    rule: str,
    *,
    exclude: Sequence[str] = ("study", "patient"),
    modality: str | None = None,
) -> list[tuple[str, float]]:
    """Of every case its name and its score, the best first."""
    cases: dict[str, list[np.ndarray]] = {}
    for point in points:
        if any(getattr(point.record, name) == getattr(one.record, name) is not None
               for one in liked for name in (*exclude, rule)):  # fmt: skip
            continue
        if modality is None or point.record.modality == modality:
            name = getattr(point.record, rule) or point.id
            cases.setdefault(name, []).append(point.z.astype(np.float64))
    scores = {
        name: float(np.mean([max(float(one.z @ z) for z in of_case) for one in liked]))
        for name, of_case in cases.items()
    }
    return sorted(scores.items(), key=lambda one: -one[1])


def of_series(points: Sequence[Point], series: int) -> list[Point]:
    return [point for point in points if point.record.series == f"1.2.3.{series}"]


def told(answer: Recommendation, rule: str) -> list[tuple[str, float]]:
    return [
        (getattr(one.hit.record, rule) or one.hit.id, one.hit.similarity) for one in answer.hits
    ]


@pytest.mark.parametrize("series", [0, 7, 13])
@pytest.mark.parametrize("rule", ["series", "study"])
def test_cases_are_ranked_by_the_mean_of_best_matches(store, points, series, rule) -> None:
    liked = of_series(points, series)
    wanted = Wanted(50, rule=rule, group_by=None)
    answer = asked(store, Examples(series=f"1.2.3.{series}"), wanted)
    expected = naive(points, liked, rule)
    found = told(answer, rule)
    # A server keeps fewer digits.
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert [score for _, score in found] == pytest.approx([s for _, s in expected], abs=2e-3)
    cases = len(expected)
    assert (answer.evidence.rule, answer.evidence.cases) == (rule, cases)
    assert (answer.evidence.liked, answer.evidence.liked_of) == (SLICES, SLICES)
    by_id = {point.id: point for point in points}
    for one in answer.hits:
        case = [p for p in points if getattr(p.record, rule) == getattr(one.hit.record, rule)]
        if getattr(one.hit.record, rule) is None:
            continue
        best = max(float(a.z @ b.z) for a in liked for b in case)
        shown = float(by_id[one.because].z @ by_id[one.hit.id].z)
        assert shown == pytest.approx(best, abs=2e-3)


def test_uploads_filters_and_groups_are_as_for_images(store, points) -> None:
    liked = of_series(points, 9)
    seen = Observations(np.stack([p.z for p in liked]), np.stack([p.code for p in liked]))
    records = tuple(point.record for point in liked)
    ids = tuple(point.id for point in liked)
    uploaded = Examples(seen=seen, records=records, seen_ids=ids)
    where = Filter(must=(Match("modality", ("CT",)),))
    answer = asked(store, uploaded, Wanted(50, where, rule="series", group_by=None))
    expected = naive(points, liked, "series", modality="CT")
    assert [name for name, _ in told(answer, "series")] == [name for name, _ in expected]
    assert {one.because for one in answer.hits} == {None}
    grouped = asked(store, uploaded, Wanted(50, where, rule="series"))
    studies = [one.hit.record.study for one in grouped.hits]
    every = [one.hit.record.study for one in answer.hits]
    assert studies == list(dict.fromkeys(every))
    # Other series of the own study are answers where it is not left out; the own one never is.
    own = asked(store, uploaded, Wanted(3, rule="series", group_by=None, exclude=None))
    assert "1.2.3.8" in {one.hit.record.series for one in own.hits}
    assert "1.2.3.9" not in {one.hit.record.series for one in own.hits}


def test_another_tenants_series_take_no_part(store, points) -> None:
    north = TenantStore(store, "north")
    examples = Examples(series="1.2.3.0")
    wanted = Wanted(50, rule="series", group_by=None)
    answer = recommend(north, SearchSettings(), lambda _: None, examples, wanted)
    assert {one.hit.record.tenant for one in answer.hits} == {"north"}
    assert {one.hit.record.series for one in answer.hits} == {f"1.2.3.{n}" for n in range(4, 8)}
    with pytest.raises(ImageNotFound, match=r"no indexed image is of series '1\.2\.3\.20'"):
        recommend(north, SearchSettings(), lambda _: None, Examples(series="1.2.3.20"), wanted)


def test_of_what_is_long_some_images_are_compared(store, points, monkeypatch) -> None:
    wanted = Wanted(50, rule="series", group_by=None)
    whole = asked(store, Examples(series="1.2.3.0"), wanted)
    assert whole.evidence.cases_sampled == 0
    assert whole.evidence.ranked == 19 * SLICES + LONG + 5
    monkeypatch.setattr(late_interaction, "_IMAGES", 10)
    monkeypatch.setattr(of_examples, "MAX_EXAMPLES", 4)
    some = asked(store, Examples(series="1.2.3.0"), wanted)
    assert (some.evidence.liked, some.evidence.liked_of) == (4, SLICES)
    assert some.evidence.cases_sampled == 1
    assert some.evidence.ranked == 19 * SLICES + 10 + 5
    monkeypatch.setattr(late_interaction, "_MOST_READ", 60)
    fewer = asked(store, Examples(series="1.2.3.0"), wanted)
    assert 0 < fewer.evidence.ranked < some.evidence.ranked
    assert fewer.evidence.cases_sampled == fewer.evidence.cases


def test_what_is_nearer_to_a_disliked_image_is_left_out(store, points) -> None:
    wanted = Wanted(50, rule="series", group_by=None)
    plain = asked(store, Examples(series="1.2.3.0"), wanted)
    disliked = plain.hits[0].hit.id
    kept = asked(store, Examples(series="1.2.3.0", disliked=(disliked,)), wanted)
    left_out = len(plain.hits) - len(kept.hits)
    assert plain.hits[0].hit.record.series not in {one.hit.record.series for one in kept.hits}
    assert kept.evidence.nearer_to_disliked == left_out > 0


def test_one_long_series_does_not_hide_the_others(store, points, monkeypatch) -> None:
    """The lists of images near the examples are full of it."""
    monkeypatch.setattr(late_interaction, "NEAREST", 20)
    monkeypatch.setattr(late_interaction, "_CASES", 3)
    wanted = Wanted(8, rule="series", group_by=None)
    answer = asked(store, Examples(series=f"1.2.3.{SERIES - 4}"), replace(wanted, exclude=None))
    assert answer.hits[0].hit.record.series == f"1.2.3.{SERIES - 3}"
    assert len(answer.hits) == 8
    assert len({one.hit.record.series for one in answer.hits}) == 8


def test_uploads_of_a_series_are_taken_evenly_and_of_one_alone() -> None:
    slices = [record(3, place) for place in range(64)]
    shuffled = np.random.default_rng(2).permutation(64).tolist()
    taken = taken_of([slices[place] for place in shuffled], "series")
    places = [shuffled[at] for at in taken]
    assert len(places) == 32
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0, 63)
    two = [record(2, 0), record(3, 0)]
    with pytest.raises(QueryError, match=r"of 2 series: 1\.2\.3\.2, 1\.2\.3\.3; give those of one"):
        taken_of(two, "series")
    assert taken_of(two, "study") == [0, 1]
    with pytest.raises(QueryError, match="of 2 studies"):
        taken_of([record(2, 0), record(4, 0)], "study")
    assert len(taken_of([record(2, 0), record(4, 0)], "image")) == 2
    assert taken_of([ImageRecord()] * 3, "series") == [0, 1, 2]
