"""Duplicates, beside the answer that compares every image with every other."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import engine.search.duplicates as module
from engine.errors import QueryError
from engine.records import ImageRecord, Point
from engine.search.components import Components
from engine.search.duplicates import DuplicateGroup, duplicates
from engine.store.base import Collection, Filter, Ids, Match
from engine.store.edge import EdgeStore

DIM, BITS = 32, 64


def id_of(number: int) -> str:
    return str(uuid.UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC834 % 2**128))


@pytest.fixture(scope="module")
def store_of(store_root: Path) -> Iterator[Callable[..., EdgeStore]]:
    opened = []

    def made(codes: np.ndarray, z: np.ndarray, per_study: int = 5) -> EdgeStore:
        collection = Collection("0" * 16, z.shape[1], 8 * codes.shape[1])
        store = EdgeStore.create(store_root / str(uuid.uuid4()), collection)
        opened.append(store)
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
        points = [
            Point(
                id_of(i),
                ImageRecord(study=f"1.2.{i // per_study}", modality=("CT", "MR")[i % 2]),
                codes[i],
                z[i].astype(np.float32),
            )
            for i in range(len(codes))
        ]
        store.upsert(points)
        return store

    yield made
    for store in opened:
        store.close()


def rows_of(points: list[Point]) -> np.ndarray:
    """The vectors as they are compared: rounded to float16, then brought to unit length."""
    z = np.stack([point.z for point in points]).astype(np.float16).astype(np.float64)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def naive(
    store: EdgeStore, similarity: float, max_bits: int, where: Filter | None = None
) -> set[frozenset[str]]:
    points = list(store.scroll(where or Filter(), with_z=True))
    z = rows_of(points)
    codes = np.stack([point.code for point in points])
    groups = {i: {i} for i in range(len(points))}
    for i in range(len(points)):
        # Summed as for one pair, in the same order: equal vectors have r = 1 exactly.
        alike = (z * z[i]).sum(axis=1).astype(np.float32) >= np.float32(similarity)
        near = np.bitwise_count(codes ^ codes[i]).sum(axis=1) <= max_bits
        for j in np.flatnonzero(alike & near).tolist():
            if groups[i] is not groups[j]:
                groups[i] |= groups[j]
                for member in groups[j]:
                    groups[member] = groups[i]
    return {frozenset(points[i].id for i in one) for one in groups.values() if len(one) > 1}


def as_sets(found: list[DuplicateGroup]) -> set[frozenset[str]]:
    return {frozenset(member.id for member in group.members) for group in found}


def clustered(
    count: int, clusters: int, spread: float, flips: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Codes (N, 8) and vectors (N, 32) of near copies, and of some that are far."""
    rng = np.random.default_rng(seed)
    of = rng.integers(0, clusters, count)
    centres = rng.integers(0, 256, (clusters, BITS // 8), dtype=np.uint8)
    noise = rng.normal(size=(count, DIM)) * spread * rng.random((count, 1)) / np.sqrt(DIM)
    axes = rng.normal(size=(clusters, DIM))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    codes = centres[of] ^ np.packbits(rng.random((count, BITS)) < flips, axis=1)
    return codes, axes[of] + noise


@pytest.fixture(params=[None, 16, 100], ids=["one-block", "small-blocks", "blocks"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that an archive of hundreds has many, and pairs in several parts."""
    if request.param is not None:
        monkeypatch.setattr(module, "_BLOCK", request.param)
        monkeypatch.setattr(module, "_VALUES", 50 * DIM)


@pytest.fixture(scope="module")
def near_copies(store_of) -> EdgeStore:
    codes, z = clustered(600, 60, 0.3, 0.015, seed=1)
    z[500:520] = z[480:500]  # exact copies, some with other codes
    codes[500:510] = codes[480:490]
    return store_of(codes, z)


@pytest.mark.parametrize("max_bits", [0, 1, 2, 3])
@pytest.mark.parametrize("similarity", [0.9, 0.99, 0.9995, 1.0])
def test_groups_are_those_of_the_naive_answer(near_copies, block, similarity, max_bits) -> None:
    found = list(duplicates(near_copies, similarity=similarity, max_bits=max_bits))
    assert as_sets(found) == naive(near_copies, similarity, max_bits)
    sizes = [len(group.members) for group in found]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) >= 20


@pytest.fixture(scope="module", params=range(3))
def collapsed(store_of, request: pytest.FixtureRequest) -> EdgeStore:
    """One bucket with everything in it."""
    _, z = clustered(700, 80, 0.5, 0, seed=request.param)
    return store_of(np.full((700, BITS // 8), 0xA5, np.uint8), z)


@pytest.mark.slow
def test_where_all_codes_are_the_same_nothing_is_missed(collapsed, block) -> None:
    for similarity in (0.95, 0.99):
        found = list(duplicates(collapsed, similarity=similarity, max_bits=0))
        expected = naive(collapsed, similarity, 0)
        assert as_sets(found) == expected
        assert len(expected) > 10


@pytest.fixture(scope="module")
def turning(store_of) -> EdgeStore:
    """A turning vector: only neighbours are alike, and they connect the two ends."""
    angle = np.linspace(0, 3, 600)
    z = np.zeros((600, DIM))
    z[:, 0], z[:, 1] = np.cos(angle), np.sin(angle)
    rng = np.random.default_rng(0)
    order = rng.permutation(600)
    return store_of(np.zeros((600, BITS // 8), np.uint8), z[order])


def test_chains_are_one_group_however_they_are_cut(turning, block) -> None:
    (group,) = duplicates(turning, similarity=0.99995)
    assert len(group.members) == 600
    assert min(one.similarity for one in group.members) < 0.5
    found = list(duplicates(turning, similarity=0.999999))
    assert as_sets(found) == naive(turning, 0.999999, 2)


def test_the_threshold_is_met_by_what_equals_it(store_of) -> None:
    """A pair's own similarity as the threshold finds the pair; the next number does not."""
    codes, z = clustered(200, 100, 0.2, 0, seed=5)
    store = store_of(codes, z)
    points = list(store.scroll(Filter(), with_z=True))
    rows = rows_of(points)
    tested = 0
    for i in range(200):
        for j in range(i):
            r = np.float32((rows[i] * rows[j]).sum())
            if not 0.99 < r < 0.99999 or tested > 12:
                continue
            tested += 1
            pair = {points[i].id, points[j].id}

            def alone(threshold: float, pair: set[str] = pair) -> bool:
                where = Filter(must=(Ids(tuple(pair)),))
                return bool(list(duplicates(store, similarity=threshold, where=where)))

            assert alone(float(r))
            assert not alone(float(np.nextafter(r, np.float32(2))))
    assert tested > 5


def test_float16_decides_not_what_was_written(store_of) -> None:
    """Two vectors that differ by less than float16 tells apart are the same."""
    z = np.random.default_rng(3).normal(size=(1, DIM))
    z = np.concatenate([z, z * (1 + 1e-6), z + 1e-7])
    store = store_of(np.zeros((3, BITS // 8), np.uint8), z)
    (group,) = duplicates(store, similarity=1.0)
    assert [one.similarity for one in group.members] == [1.0, 1.0, 1.0]


def test_members_say_how_alike_they_are(store_of) -> None:
    rng = np.random.default_rng(6)
    z = rng.normal(size=(30, DIM))
    codes = rng.integers(0, 256, (30, BITS // 8), dtype=np.uint8)
    z[1:4] = z[0]
    codes[1:4] = codes[0]
    codes[2, 0] ^= 1
    z[3] += 0.02 * np.linalg.norm(z[0]) * rng.normal(size=DIM) / np.sqrt(DIM)
    (group,) = duplicates(store_of(codes, z, per_study=2), similarity=0.999)
    assert {one.id for one in group.members} == {id_of(i) for i in range(4)}
    assert group.studies == 2
    first, *rest = group.members
    assert first.id == min(one.id for one in group.members)
    assert (first.similarity, first.identical) == (1.0, True)
    assert [one.similarity for one in rest] == sorted((o.similarity for o in rest), reverse=True)
    by_id = {one.id: one for one in group.members}
    numbers = [i for i in range(4) if id_of(i) != first.id]
    assert first.id != id_of(2)  # what follows holds beside the code of the other three
    assert first.id != id_of(3)
    for number in numbers:
        member = by_id[id_of(number)]
        assert member.record.study == f"1.2.{number // 2}"
        assert member.identical == (number in (0, 1))
    assert 0.999 <= by_id[id_of(3)].similarity < 1 - 1e-6


def test_only_what_passes_the_filter_takes_part(store_of) -> None:
    codes, z = clustered(300, 20, 0.1, 0, seed=7)
    store = store_of(codes, z)
    where = Filter(must=(Match("modality", ("CT",)),))
    found = list(duplicates(store, similarity=0.99, where=where))
    assert as_sets(found) == naive(store, 0.99, 2, where)
    assert {one.record.modality for group in found for one in group.members} == {"CT"}
    nothing = Filter(must=(Match("modality", ("XX",)),))
    assert list(duplicates(store, where=nothing)) == []


def test_what_is_deleted_while_the_list_is_read_is_not_shown(store_of) -> None:
    codes, z = clustered(40, 2, 0.0, 0, seed=8)
    store = store_of(codes, z)
    groups = duplicates(store, similarity=0.999)
    first = next(groups)
    (other,) = naive(store, 0.999, 2) - as_sets([first])
    kept, *gone = sorted(other)
    store.delete(Filter(must=(Ids(tuple(gone)),)))
    assert list(groups) == []
    assert store.get([kept])


def test_the_order_of_writing_does_not_matter(store_of) -> None:
    codes, z = clustered(400, 30, 0.2, 0.01, seed=9)
    store = store_of(codes, z)
    before = list(duplicates(store, similarity=0.995))
    points = list(store.scroll(Filter(), with_z=True))
    store.delete(Filter())
    store.upsert([points[i] for i in np.random.default_rng(0).permutation(len(points))])
    assert list(duplicates(store, similarity=0.995)) == before


def test_progress_reaches_its_end(store_of) -> None:
    codes, z = clustered(300, 20, 0.1, 0, seed=10)
    told: list[tuple[str, int, int]] = []
    list(duplicates(store_of(codes, z), progress=lambda *step: told.append(step)))
    assert [one[0] for one in told] == sorted((one[0] for one in told), reverse=True)
    for stage in ("read", "compare"):
        steps = [(done, total) for name, done, total in told if name == stage]
        assert steps[-1][0] == steps[-1][1]


def test_a_code_with_one_narrow_band_has_bits_to_spare_for_none(store_of) -> None:
    rng = np.random.default_rng(11)
    codes = rng.integers(0, 256, (50, 1), dtype=np.uint8)
    store = store_of(codes, np.repeat(rng.normal(size=(1, DIM)), 50, axis=0))
    found = list(duplicates(store, similarity=0.99, max_bits=0))
    assert as_sets(found) == naive(store, 0.99, 0)
    with pytest.raises(QueryError, match="max_bits is 1; of codes of 8 bits, use 0 to 0"):
        duplicates(store, max_bits=1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_bits": 4}, "max_bits is 4; of codes of 64 bits, use 0 to 3"),
        ({"max_bits": -1}, "max_bits is -1"),
        ({"similarity": 0.0}, "similarity is 0.0"),
        ({"similarity": 1.1}, "similarity is 1.1"),
        ({"similarity": float("nan")}, "similarity is nan"),
    ],
)
def test_values_out_of_range_are_refused(store_of, given, said) -> None:
    store = store_of(np.zeros((1, 8), np.uint8), np.ones((1, DIM)))
    with pytest.raises(QueryError, match=said):
        duplicates(store, **given)


# Components


@pytest.mark.parametrize("seed", range(6))
def test_components_are_those_of_a_walk(seed) -> None:
    rng = np.random.default_rng(seed)
    count = 200
    components = Components(count)
    near: dict[int, set[int]] = {i: set() for i in range(count)}
    for _ in range(6):
        a, b = rng.integers(0, count, (2, rng.integers(0, 40)))
        components.join(a, b)
        for one, other in zip(a.tolist(), b.tolist(), strict=True):
            near[one].add(other)
            near[other].add(one)
    expected = set()
    for start in range(count):
        reached, left = {start}, [start]
        while left:
            new = near[left.pop()] - reached
            reached |= new
            left.extend(new)
        if len(reached) > 1:
            expected.add(frozenset(reached))
    found = components.groups()
    assert {frozenset(part.tolist()) for part in found} == expected
    assert [len(part) for part in found] == sorted((len(part) for part in found), reverse=True)
    assert all((np.diff(part) > 0).all() for part in found)


def test_no_items_are_in_no_component() -> None:
    assert Components(0).groups() == []
