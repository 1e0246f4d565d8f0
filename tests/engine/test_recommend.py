"""Recommendations from a real store, beside the brute-force answer."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from engine.errors import ImageNotFound, QueryError
from engine.model.checkpoint import save_checkpoint
from engine.model.encoder import Encoder
from engine.ood.calibration import OodGate
from engine.ood.detectors import KnnDetector
from engine.records import ImageRecord, Observations, OodVerdict, Point
from engine.search.engine import SearchEngine
from engine.search.recommend import MAX_EXAMPLES, Examples, Recommendation, Wanted, recommend
from engine.settings import SearchSettings
from engine.store.base import Collection, Filter, Ids, Match
from engine.store.edge import EdgeStore

COUNT, DIM, BITS, PER_STUDY = 3000, 16, 64, 8
TWINS = range(2900, 2960)  # all with one vector and one code
RIVAL = 2899  # very like them


def id_of(number: int) -> str:
    return str(uuid.UUID(int=number + 1))


def number_of(point_id: str) -> int:
    return uuid.UUID(point_id).int - 1


def study_of(number: int) -> str | None:
    return None if number % 50 == 7 else f"1.2.{number // PER_STUDY}"


def patient_of(number: int) -> str | None:
    return None if number % 50 == 7 else f"p{number // PER_STUDY // 2}"


def labels_of(number: int) -> tuple[str, ...]:
    return (("a",), ("b",), ("a", "b"), (), ("c",))[number % 5]


def record(number: int) -> ImageRecord:
    return ImageRecord(
        study=study_of(number),
        series=f"1.2.{number // PER_STUDY}.{number % 2}",
        # Numbered against the order of the ids, and of text: 10 comes after 9.
        sop=f"1.2.9.{COUNT - number}",
        patient=patient_of(number),
        modality=("CT", "MR")[number % 2],
        labels=labels_of(number),
    )


@pytest.fixture(scope="module")
def points() -> list[Point]:
    """Clusters, in vectors and in codes, that cut across the studies."""
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 256, (25, BITS // 8), dtype=np.uint8)
    axes = rng.normal(size=(25, DIM))
    cluster = rng.integers(0, 25, COUNT)
    share = rng.choice([0.02, 0.1, 0.5], COUNT)
    codes = centres[cluster] ^ np.packbits(rng.random((COUNT, BITS)) < share[:, None], axis=1)
    z = axes[cluster] + rng.normal(size=(COUNT, DIM)) * 0.5
    z[TWINS], codes[TWINS] = rng.normal(size=DIM), rng.integers(0, 256, BITS // 8)
    z[RIVAL] = z[TWINS[0]] + rng.normal(size=DIM) * 0.2
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return [Point(id_of(i), record(i), codes[i], z[i].astype(np.float32)) for i in range(COUNT)]


@pytest.fixture(scope="module")
def stores(store_root: Path, points: list[Point]) -> Iterator[list[EdgeStore]]:
    """The same archive, written in two orders."""
    shuffled = np.random.default_rng(1).permutation(COUNT).tolist()
    made = []
    for name, order in (("straight", list(range(COUNT))), ("shuffled", shuffled)):
        made.append(EdgeStore.create(store_root / name, Collection("0" * 16, DIM, BITS)))
        for start in range(0, COUNT, 500):
            made[-1].upsert([points[i] for i in order[start : start + 500]])
    yield made
    for store in made:
        store.close()


@dataclass(frozen=True)
class Stored:
    """What the store keeps of all images, vectors brought to unit length."""

    z: np.ndarray
    codes: np.ndarray


@pytest.fixture(scope="module")
def stored(stores: list[EdgeStore]) -> Stored:
    found = stores[0].get([id_of(i) for i in range(COUNT)], with_z=True)
    z = np.stack([point.z for point in found]).astype(np.float64)
    return Stored(z / np.linalg.norm(z, axis=1, keepdims=True), np.stack([p.code for p in found]))


def asked(
    store: EdgeStore, examples: Examples, wanted: Wanted, verdict=lambda _: None, **settings
) -> Recommendation:
    return recommend(store, SearchSettings(**settings), verdict, examples, wanted)


def ids(numbers: Sequence[int]) -> tuple[str, ...]:
    return tuple(id_of(number) for number in numbers)


def naive(
    stored: Stored,
    liked: Sequence[int],
    disliked: Sequence[int] = (),
    *,
    exclude: str | None = "patient",
    group_by: str | None = "study",
    taking_part: np.ndarray | None = None,
) -> list[tuple[int, float, int, int]]:
    """(image, similarity, Hamming distance, because) of every image that may be shown."""
    likeness = stored.z @ stored.z[list(liked)].T
    differing = np.bitwise_count(stored.codes[:, None] ^ stored.codes[list(liked)]).sum(
        axis=2, dtype=int
    )
    found = []
    own = {study_of(i) for i in liked} - {None}
    owners = {patient_of(i) for i in liked} - {None}
    for i in range(COUNT):
        if i in liked or i in disliked or (taking_part is not None and not taking_part[i]):
            continue
        if exclude is not None and study_of(i) in own:
            continue
        if exclude == "patient" and patient_of(i) in owners:
            continue
        best = max(range(len(liked)), key=lambda e: (round(likeness[i, e], 12), -differing[i, e]))
        if any(stored.z[i] @ stored.z[d] > likeness[i, best] + 1e-12 for d in disliked):
            continue
        found.append((i, float(likeness[i, best]), int(differing[i, best]), liked[best]))
    found.sort(key=lambda one: (-round(one[1], 12), one[2], id_of(one[0])))
    if group_by is None:
        return found
    named = {"study": study_of, "patient": patient_of}[group_by]
    seen: set[str] = set()
    firsts = []
    for one in found:
        name = named(one[0]) or id_of(one[0])
        if name not in seen:
            seen.add(name)
            firsts.append(one)
    return firsts


def told(answer: Recommendation) -> list[tuple[int, float, int, int]]:
    return [
        (number_of(s.hit.id), s.hit.similarity, s.hit.hamming, number_of(s.because or id_of(-1)))
        for s in answer.hits
    ]


def assert_same(
    found: list[tuple[int, float, int, int]], expected: list[tuple[int, float, int, int]]
) -> None:
    assert [(i, bits, because) for i, _, bits, because in found] == [
        (i, bits, because) for i, _, bits, because in expected
    ]
    assert [one[1] for one in found] == pytest.approx([one[1] for one in expected], abs=1e-6)


# The rules


@pytest.mark.parametrize("group_by", [None, "study", "patient"])
@pytest.mark.parametrize("exclude", [None, "study", "patient"])
@pytest.mark.parametrize(
    ("liked", "disliked"),
    [((3,), ()), ((3, 700, 1501), ()), ((3, 700), (1502, 20, 2222)), (range(0, 96, 3), (5, 1000))],
    ids=["one", "three", "with-dislikes", "most"],
)
def test_hits_are_those_of_the_naive_answer(
    stores, stored, liked, disliked, exclude, group_by
) -> None:
    liked = tuple(liked)
    wanted = Wanted(12, exact=True, group_by=group_by, exclude=exclude)
    answer = asked(stores[0], Examples(ids(liked), ids(disliked)), wanted)
    expected = naive(stored, liked, disliked, exclude=exclude, group_by=group_by)
    assert_same(told(answer), expected[:12])
    for suggestion in answer.hits:
        assert suggestion.hit.record == record(number_of(suggestion.hit.id))


def test_by_default_it_is_one_of_each_study_and_none_of_the_patient_s_own(stores) -> None:
    hits = asked(stores[0], Examples(ids([3, 700])), Wanted(100)).hits
    studies = [s.hit.record.study for s in hits if s.hit.record.study is not None]
    assert len(studies) == len(set(studies))
    assert None in {s.hit.record.study for s in hits}  # images of no study are not merged
    patients = {s.hit.record.patient for s in hits}
    assert not patients & {patient_of(3), patient_of(700)}


def test_filters_hold_for_every_example(stores, stored) -> None:
    odd = np.arange(COUNT) % 2 == 1
    where = Filter(must=(Match("modality", ("MR",)),))
    answer = asked(stores[0], Examples(ids([4, 900])), Wanted(20, where, exact=True))
    assert_same(told(answer), naive(stored, (4, 900), taking_part=odd)[:20])


def test_a_large_study_does_not_hide_the_others(stores, stored) -> None:
    """Sixty images with one vector are nearest; of their studies there are eight."""
    asked_for = TWINS[0] - 1
    wanted = Wanted(40, exact=True, exclude=None)
    answer = asked(stores[0], Examples(ids([TWINS[3], asked_for])), wanted)
    assert_same(told(answer), naive(stored, (TWINS[3], asked_for), exclude=None)[:40])


def test_dislikes_that_take_all_that_is_near_are_looked_past(stores, stored) -> None:
    liked, disliked = (TWINS[0],), tuple(TWINS[1:3])
    wanted = Wanted(15, exact=True, exclude=None, group_by=None)
    # What is as near to both stays: the twins are no nearer to the disliked ones.
    answer = asked(stores[0], Examples(ids(liked), ids(disliked)), wanted)
    expected = naive(stored, liked, disliked, exclude=None, group_by=None)
    assert_same(told(answer), expected[:15])
    assert expected[0][0] in TWINS
    # From the other side, the twins are nearer to what is disliked.
    answer = asked(stores[0], Examples(ids([RIVAL]), ids(liked)), wanted)
    expected = naive(stored, (RIVAL,), liked, exclude=None, group_by=None)
    assert_same(told(answer), expected[:15])
    assert not {one[0] for one in told(answer)} & set(TWINS)
    assert answer.evidence.nearer_to_disliked >= len(TWINS) - 1


@pytest.mark.parametrize("exclude", [None, "patient"])
def test_the_examples_themselves_are_no_hits(stores, exclude) -> None:
    liked, disliked = ids(TWINS[:5]), ids(TWINS[5:9])
    wanted = Wanted(200, group_by=None, exclude=exclude)
    found = {s.hit.id for s in asked(stores[0], Examples(liked, disliked), wanted).hits}
    assert not found & {*liked, *disliked}


def test_a_hit_names_the_example_it_is_most_like(stores, stored) -> None:
    liked = (3, 700, 1501)
    answer = asked(stores[0], Examples(ids(liked)), Wanted(40))
    reasons = {s.because for s in answer.hits}
    assert len(reasons) > 1
    for s in answer.hits:
        likeness = stored.z[list(liked)] @ stored.z[number_of(s.hit.id)]
        assert s.because == id_of(liked[int(likeness.argmax())])
        assert s.hit.similarity == pytest.approx(likeness.max(), abs=1e-6)


# The ladder


def within(stored: Stored, number: int, radius: int) -> np.ndarray:
    return np.unpackbits(stored.codes ^ stored.codes[number], axis=1).sum(axis=1) <= radius


def test_each_example_climbs_by_its_own_code(stores, stored) -> None:
    liked = (3, 700, 1501, TWINS[0])
    wanted = Wanted(2, exclude=None, group_by=None)
    few = {"min_candidates": 30, "candidates_per_hit": 1}
    answer = asked(stores[0], Examples(ids(liked)), wanted, **few)
    basis = answer.evidence
    expected: dict[str, int] = {}
    candidates = 0
    for number in liked:
        near = [within(stored, number, radius) for radius in (3, 7, 11, BITS)]
        # The examples themselves take no part.
        counts = [int(one.sum() - one[list(liked)].sum()) for one in near]
        at = next(at for at in range(4) if counts[at] >= 30)
        rung = "dense" if at == 3 else "codes"
        expected[rung] = expected.get(rung, 0) + 1
        candidates += counts[at]
    assert basis.rungs == expected
    assert len(expected) > 1
    assert (basis.candidates, basis.estimated, basis.approximate) == (candidates, False, False)
    assert (basis.liked, basis.disliked, basis.bits, basis.model) == (4, 0, BITS, "0" * 16)
    assert basis.ranked >= len(answer.hits) == 2
    assert set(basis.timings_ms) == {"fetch", "ood", "prefilter", "rank"}
    assert basis.note is None


def test_a_rung_with_images_of_too_few_studies_is_widened(stores, stored) -> None:
    """The 60 twins share a code and eight studies: enough images, but not enough studies."""
    wanted = Wanted(12, exclude=None)
    answer = asked(
        stores[0], Examples(ids([TWINS[0]])), wanted, min_candidates=1, candidates_per_hit=1
    )
    assert len(answer.hits) == 12
    first = within(stored, TWINS[0], 3).sum() - 1  # enough images
    assert first > 12
    assert answer.evidence.candidates > first


def test_all_examples_are_asked_in_one_round_trip(stores, monkeypatch) -> None:
    sizes = []
    query = EdgeStore.query

    def counted(self, asked):
        sizes.append(len(asked))
        return query(self, asked)

    monkeypatch.setattr(EdgeStore, "query", counted)
    # Without the twins, which are more equals than one list has room for.
    where = Filter(must_not=(Ids(ids(TWINS)),))
    asked(stores[0], Examples(ids([3, 700, 1501, 2000])), Wanted(5, where))
    assert sizes == [4]


# Determinism


@pytest.mark.slow
@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(30),
        Wanted(30, group_by=None, exclude=None),
        Wanted(30, group_by=None, exclude=None, diversity=0.4),
        Wanted(30, exact=True, group_by="patient"),
        Wanted(30, diversity=1.0),
    ],
    ids=["default", "images", "diverse", "exact", "most-diverse"],
)
@pytest.mark.parametrize("liked", [(TWINS[10], 3), tuple(range(0, 320, 10))], ids=["two", "many"])
def test_a_shuffled_archive_gives_the_same_list(stores, liked, wanted) -> None:
    examples = Examples(ids(liked), ids([1501, TWINS[0]]))
    few = {"min_candidates": 20, "candidates_per_hit": 2}
    straight, shuffled = (asked(store, examples, wanted, **few) for store in stores)
    assert straight.hits == shuffled.hits
    assert straight.votes == shuffled.votes
    assert replace(straight.evidence, timings_ms={}) == replace(shuffled.evidence, timings_ms={})


# Diversity


def naive_mmr(
    stored: Stored, shortlist: list[tuple[int, float, int, int]], k: int, d: float
) -> list[int]:
    chosen: list[int] = []
    left = [one[:2] for one in shortlist]
    while left and len(chosen) < k:

        def worth(one: tuple[int, float]) -> float:
            alike = max((stored.z[one[0]] @ stored.z[c] for c in chosen), default=0.0)
            return round((1 - d) * one[1] - d * alike, 10)

        best = max(left, key=worth)  # the first of equals
        chosen.append(best[0])
        left.remove(best)
    return chosen


@pytest.mark.parametrize("diversity", [0.1, 0.5, 0.9, 1.0])
def test_diverse_hits_are_chosen_by_marginal_relevance(stores, stored, diversity) -> None:
    wanted = Wanted(10, exact=True, diversity=diversity)
    answer = asked(stores[0], Examples(ids([3, 700])), wanted)
    shortlist = naive(stored, (3, 700))[:50]  # five for each hit
    assert [one[0] for one in told(answer)] == naive_mmr(stored, shortlist, 10, diversity)
    assert answer.evidence.diversity == diversity


def test_diversity_makes_hits_differ_from_each_other(stores, stored) -> None:
    def alike(answer: Recommendation) -> float:
        z = stored.z[[one[0] for one in told(answer)]]
        return float((z @ z.T).mean())

    plain = asked(stores[0], Examples(ids([3])), Wanted(10))
    diverse = asked(stores[0], Examples(ids([3])), Wanted(10, diversity=0.7))
    assert alike(diverse) < alike(plain) - 0.02
    assert diverse.hits[0] == plain.hits[0]


# Votes


def test_votes_weigh_labels_by_similarity(stores) -> None:
    answer = asked(stores[0], Examples(ids([3, 700])), Wanted(25))
    weights = [(s.hit.similarity, labels_of(number_of(s.hit.id))) for s in answer.hits]
    total = sum(max(r, 0) for r, labels in weights if labels)
    for vote in answer.votes:
        mine = [max(r, 0) for r, labels in weights if vote.label in labels]
        assert (vote.share, vote.hits) == (pytest.approx(sum(mine) / total), len(mine))
    assert {vote.label for vote in answer.votes} == {"a", "b", "c"}
    shares = [vote.share for vote in answer.votes]
    assert shares == sorted(shares, reverse=True)


def test_what_is_unlike_has_no_vote(stores) -> None:
    """All images that pass: many are on the far side, and their r is negative."""
    labelled = Match("labels", ("a", "c")), Match("modality", ("MR",))
    wanted = Wanted(1000, Filter(must=labelled), group_by=None, exact=True)
    answer = asked(stores[0], Examples(ids([3])), wanted)
    assert answer.hits[-1].hit.similarity < 0
    alike = [s.hit for s in answer.hits if s.hit.similarity > 0]
    voted = {vote.label: vote.share for vote in answer.votes}
    mine = sum(hit.similarity for hit in alike if "c" in hit.record.labels)
    assert voted["c"] == pytest.approx(mine / sum(hit.similarity for hit in alike))


# Studies


def test_a_study_is_all_of_its_images(stores, stored) -> None:
    mine = [i for i in range(COUNT) if study_of(i) == "1.2.30"]
    answer = asked(stores[0], Examples(study="1.2.30"), Wanted(10, exact=True))
    assert answer.evidence.liked == len(mine) == PER_STUDY
    # Their own order decides only where two are equally like a hit, which here none are.
    assert_same(told(answer), naive(stored, tuple(mine))[:10])


def test_of_a_disliked_image_its_study_is_not_blamed(stores) -> None:
    mine = [i for i in range(COUNT) if study_of(i) == "1.2.30"]
    answer = asked(stores[0], Examples(study="1.2.30", disliked=ids(mine[:2])), Wanted(5))
    assert (answer.evidence.liked, answer.evidence.disliked) == (len(mine) - 2, 2)
    with pytest.raises(QueryError, match="nothing is left"):
        asked(stores[0], Examples(study="1.2.30", disliked=ids(mine)), Wanted(5))


def test_of_a_long_study_32_images_are_taken_from_end_to_end(store_root, points) -> None:
    """100 slices whose vectors turn evenly: the two ends and steps of about three between."""
    angle = np.linspace(0, np.pi, 100)
    z = np.stack([np.cos(angle), np.sin(angle), *np.zeros((DIM - 2, 100))], axis=1)
    code = np.zeros(BITS // 8, np.uint8)
    rng = np.random.default_rng(2)
    slices = [
        Point(
            str(uuid.UUID(bytes=rng.bytes(16))),
            ImageRecord(study="1.7", series="1.7.1", sop=f"1.7.1.{i + 1}"),
            code,
            z[i].astype(np.float32),
        )
        for i in range(100)
    ]
    with EdgeStore.create(store_root / "long", Collection("0" * 16, DIM, BITS)) as store:
        store.upsert([slices[i] for i in rng.permutation(100)])
        store.upsert(points[:50])
        answer = asked(store, Examples(study="1.7"), Wanted(200, exclude=None, group_by=None))
    assert answer.evidence.liked == MAX_EXAMPLES
    numbers = {point.id: i for i, point in enumerate(slices)}
    shown = {numbers[s.hit.id] for s in answer.hits if s.hit.id in numbers}
    taken = sorted(set(range(100)) - shown)
    assert taken == np.linspace(0, 99, 32).round().astype(int).tolist()


# Uploads and verdicts


def upload(stored: Stored, number: int) -> Observations:
    return Observations(stored.z[[number]].astype(np.float32), stored.codes[[number]])


def test_an_uploaded_image_is_an_example_of_its_own(stores, stored) -> None:
    examples = Examples(seen=upload(stored, 3), records=(record(3),), seen_ids=(id_of(3),))
    answer = asked(stores[0], examples, Wanted(10, exact=True))
    found = told(answer)
    expected = naive(stored, (3,))[:10]
    assert [one[0] for one in found] == [one[0] for one in expected]
    assert [one[1] for one in found] == pytest.approx([one[1] for one in expected], abs=1e-5)
    assert {s.because for s in answer.hits} == {None}
    # Nothing is known of its study: then only the image itself can be left out.
    alone = asked(stores[0], replace(examples, records=()), Wanted(10, exact=True))
    assert [one[0] for one in told(alone)] == [one[0] for one in naive(stored, (3,), exclude=None)][
        :10
    ]
    with_more = replace(examples, liked=ids([700]), disliked=ids([20]))
    both = asked(stores[0], with_more, Wanted(40)).hits
    assert {s.because for s in both} == {None, id_of(700)}


def gate(stored: Stored, scores: Sequence[float]) -> OodGate:
    """Images nearest to image 3 are the most familiar; n of ``scores`` say how much is usual."""
    known = Observations(stored.z[[3]].astype(np.float32), stored.codes[[3]])
    calibration = np.asarray(scores, dtype=np.float32)
    return OodGate([KnnDetector(1).fit(known)], {"knn": calibration})


def test_the_verdict_is_that_of_the_strictest_example(stores, stored) -> None:
    judge = gate(stored, np.linspace(0.0, 0.9, 999))

    def verdict(seen: Observations) -> OodVerdict | None:
        return min(judge.verdicts(seen), key=lambda one: one.p)

    liked = (3, 700, 1501)
    alone = [asked(stores[0], Examples(ids([i])), Wanted(), verdict).ood for i in liked]
    assert len({one.p for one in alone}) == 3
    strictest = min(alone, key=lambda one: one.p)
    assert asked(stores[0], Examples(ids(liked)), Wanted(), verdict).ood == strictest
    # The upload counts as well, and what is disliked does not.
    seen = Examples(ids([3]), ids([700, 1501]), seen=upload(stored, 2222))
    theirs = [verdict(upload(stored, i)) for i in (3, 2222)]
    # Of two verdicts the stricter one, corrected for there being two.
    expected = min(1.0, 2 * min(one.p for one in theirs))
    assert asked(stores[0], seen, Wanted(), verdict).ood.p == expected


@pytest.mark.parametrize("policy", ["warn", "refuse"])
def test_foreign_examples_are_refused_only_when_the_policy_says_so(stores, stored, policy) -> None:
    judge = gate(stored, np.full(99, -1.0))

    def verdict(seen: Observations) -> OodVerdict | None:
        return judge.verdicts(seen)[0]

    answer = asked(stores[0], Examples(ids([3])), Wanted(5), verdict, ood_policy=policy)
    assert answer.ood.foreign
    if policy == "warn":
        assert len(answer.hits) == 5
    else:
        assert (answer.hits, answer.votes) == ((), ())
        assert (answer.evidence.rungs, answer.evidence.candidates) == ({}, 0)
        assert set(answer.evidence.timings_ms) == {"fetch", "ood"}


# What cannot be asked


def test_unknown_examples_are_named(stores) -> None:
    unknown, nonsense = id_of(COUNT + 7), "no id at all"
    for examples in (
        Examples((id_of(3), unknown)),
        Examples((id_of(3),), (unknown,)),
        Examples((unknown, nonsense)),
    ):
        with pytest.raises(ImageNotFound, match=unknown):
            asked(stores[0], examples, Wanted())
    with pytest.raises(ImageNotFound, match=nonsense):
        asked(stores[0], Examples((nonsense,)), Wanted())
    with pytest.raises(ImageNotFound, match=r"1\.2\.99999"):
        asked(stores[0], Examples(study="1.2.99999"), Wanted())


def test_an_id_may_be_written_in_capitals_or_twice(stores) -> None:
    number = 3000 // 7
    plain = asked(stores[0], Examples(ids([number])), Wanted(5))
    again = asked(stores[0], Examples((id_of(number).upper(), id_of(number))), Wanted(5))
    assert again.hits == plain.hits
    assert again.evidence.liked == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "no example is liked"),
        ({"disliked": ids([1])}, "no example is liked"),
        ({"liked": ids([1, 2]), "disliked": ids([2])}, f"image {id_of(2)} is liked and disliked"),
        ({"liked": ids(range(33))}, "33 images are liked; give up to 32"),
        ({"liked": ids([40]), "disliked": ids(range(33))}, "33 images are disliked"),
    ],
)
def test_examples_that_cannot_be_asked_with_are_refused(given, said) -> None:
    with pytest.raises(QueryError, match=said):
        Examples(**given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"k": 0}, "k is 0"),
        ({"group_by": "series"}, "group_by is 'series'"),
        ({"exclude": "everything"}, "exclude is 'everything'"),
        ({"diversity": -0.1}, "diversity is -0.1"),
        ({"diversity": 1.5}, "diversity is 1.5"),
        ({"diversity": float("nan")}, "diversity is nan"),
    ],
)
def test_values_out_of_range_are_refused(given, said) -> None:
    with pytest.raises(QueryError, match=said):
        Wanted(**given)


def test_where_nothing_passes_there_is_nothing(stores) -> None:
    where = Filter(must=(Match("modality", ("XX",)),))
    answer = asked(stores[0], Examples(ids([3])), Wanted(5, where, diversity=0.5))
    assert (answer.hits, answer.votes) == ((), ())
    assert answer.evidence.candidates == 0


def test_many_known_examples_are_no_more_often_foreign_than_one(
    store_root, build, tiny_config, preprocess
) -> None:
    """At most about 3 of 100 sets of examples are called foreign, however large they are."""
    rng = np.random.default_rng(4)
    manifest = save_checkpoint(
        store_root / "model", build(), tiny_config, preprocess, ("a", "b", "c"), {}
    )
    z = rng.normal(size=(8000, DIM)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    seen = Observations(z, np.zeros((len(z), BITS // 8), np.uint8))
    judge = OodGate.calibrated([KnnDetector(5).fit(seen[:1000])], seen[1000:3000])
    collection = Collection(manifest.fingerprint, DIM, BITS)
    with EdgeStore.create(store_root / "known", collection) as store:
        encoder = Encoder(build(), manifest, precision="fp32")
        engine = SearchEngine(encoder, store, SearchSettings(), judge)
        sets = [seen[3000 + 16 * i : 3016 + 16 * i] for i in range(300)]
        foreign = [engine.verdict(one).foreign for one in sets]
        assert np.mean(foreign) <= 0.05
        # One that is far off is noticed among others that are known.
        away = Observations(np.eye(1, DIM, dtype=np.float32) * -9, seen.codes[:1])
        assert engine.verdict(Observations.joined([sets[0], away])).foreign
        point = Point(id_of(1), record(1), seen.codes[0], z[5000])
        store.upsert([point, Point(id_of(900), record(900), seen.codes[0], z[5001])])
        answer = engine.recommend(Examples(ids([1])), Wanted(5))
    assert [s.hit.id for s in answer.hits] == [id_of(900)]
    assert set(answer.ood.p_values) == {"knn"}
