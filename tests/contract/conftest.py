"""Points to put into a store, and the plain Python that says which of them a filter means."""

import uuid
from collections.abc import Iterator

import numpy as np
import pytest
from backends import BACKENDS, STAND_IN

from engine.codes import hamming
from engine.records import ImageRecord, Point
from engine.store.base import Collection, Condition, Filter, Ids, Match

DIM, BITS = 16, 64


@pytest.fixture(scope="session", autouse=True)
def _cleared() -> Iterator[None]:
    """Leaves no collection of these tests on a server."""
    yield
    for backend in (*BACKENDS, STAND_IN):
        backend.clear()


@pytest.fixture(scope="session")
def collection() -> Collection:
    return Collection("0123456789abcdef", DIM, BITS)


@pytest.fixture(scope="session")
def make_points():
    """Points with ids 1 … count, codes in clusters, and every field used."""

    def made(count: int, seed: int = 0) -> list[Point]:
        rng = np.random.default_rng(seed)
        z = rng.normal(size=(count, DIM)).astype(np.float32)
        z /= np.linalg.norm(z, axis=1, keepdims=True)
        centres = rng.integers(0, 256, (5, BITS // 8), dtype=np.uint8)
        flips = np.packbits(rng.random((count, BITS)) < 0.04, axis=1)
        codes = centres[rng.integers(0, 5, count)] ^ flips
        return [
            Point(str(uuid.UUID(int=i + 1)), _record(rng, i), codes[i], z[i], indexed_at="2024")
            for i in range(count)
        ]

    return made


def _record(rng: np.random.Generator, number: int) -> ImageRecord:
    def maybe(values):
        drawn = rng.integers(-1, len(values))
        return None if drawn < 0 else values[drawn]

    return ImageRecord(
        study=f"1.2.{number // 7}",
        sop=f"1.2.3.{number}",
        frame=int(rng.integers(0, 3)),
        modality=maybe(["CT", "MR", "Röntgen", "日本"]),
        body_part=maybe(["CHEST", "HAND"]),
        study_year=maybe([2010, 2015, 2016, 2020]),
        burned_in=maybe([True, False]),
        labels=tuple(sorted(rng.choice(["a", "b", "c"], rng.integers(0, 4), replace=False))),
        tenant=("default", "other")[rng.integers(0, 2)],
    )


@pytest.fixture(scope="session")
def passes():
    """Whether a point takes part, by the words of engine/store/base.py."""

    def holds(point: Point, condition: Condition) -> bool:
        if isinstance(condition, Ids):
            return point.id in condition.values
        value = getattr(point.record, condition.field)
        if isinstance(condition, Match):
            values = value if isinstance(value, tuple) else (value,)
            return any(v is not None and v in condition.values for v in values)
        if value is None:
            return False
        low_enough = condition.high is None or value <= condition.high
        return low_enough and (condition.low is None or value >= condition.low)

    def passed(point: Point, where: Filter) -> bool:
        code = np.frombuffer(b"" if where.coarse is None else where.coarse.code, np.uint8)
        near = where.coarse is None or hamming(point.code, code) <= where.coarse.radius
        return (
            near
            and all(holds(point, condition) for condition in where.must)
            and not any(holds(point, condition) for condition in where.must_not)
        )

    return passed
