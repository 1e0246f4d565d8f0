"""Searches from several threads while images are added and deleted: right, and never stuck."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from engine.records import ImageRecord, Observations, Point
from engine.search.engine import SearchEngine
from engine.search.query import Query, parse_where
from engine.settings import SearchSettings
from engine.store.base import Collection, Filter, Match
from engine.store.edge import EdgeStore

COUNT, DIM, BITS = 4_000, 16, 64
THREADS, ROUNDS, SECONDS = 8, 6, 60


def id_of(number: int) -> str:
    return str(uuid.UUID(int=number + 1))


def points(rng: np.random.Generator, first: int, count: int, modality: str) -> list[Point]:
    z = rng.normal(size=(count, DIM)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    codes = np.packbits(z @ np.random.default_rng(9).normal(size=(DIM, BITS)) > 0, axis=1)
    record = ImageRecord(modality=modality, study=f"1.2.{first}")
    return [Point(id_of(first + i), record, codes[i], z[i]) for i in range(count)]


@pytest.mark.slow
def test_answers_stay_right_while_images_come_and_go(store_root, encoder):
    rng = np.random.default_rng(0)
    settled = points(rng, 0, COUNT, "CT")
    asked = [settled[i] for i in range(0, COUNT, COUNT // 24)]
    collection = Collection(encoder.manifest.fingerprint, DIM, BITS)
    where = parse_where(["modality=CT"])
    with EdgeStore.create(store_root / "busy", collection) as store:
        store.upsert(settled)
        engine = SearchEngine(encoder, store, SearchSettings(min_candidates=20))

        def ask(point: Point):
            seen = Observations(point.z[None], point.code[None])
            answer = engine.answer(seen, Query(10, where))
            return answer.hits, answer.evidence.rung, answer.evidence.candidates, answer.facets

        expected = [ask(point) for point in asked]
        assert {rung for _, rung, _, _ in expected} & {"s0", "s1", "s2"}
        done = threading.Event()
        written = []

        def write() -> None:
            number = 0
            while not done.is_set():
                first = COUNT + 64 * number
                store.upsert(points(rng, first, 64, "MR"))
                written.append(first)
                if number % 3 == 2:
                    assert store.delete(Filter(must=(Match("study", (f"1.2.{first}",)),))) == 64
                    written.pop()
                if number % 10 == 9:
                    store.flush()
                    store.optimise()
                number += 1

        with ThreadPoolExecutor(THREADS + 1) as pool:
            writer = pool.submit(write)
            try:
                for _ in range(ROUNDS):
                    found = [pool.submit(ask, point) for point in asked]
                    answers = [one.result(timeout=SECONDS) for one in found]
                    assert answers == expected
            finally:
                done.set()
            writer.result(timeout=SECONDS)
        assert written  # something was going on
        assert store.count(Filter()) == COUNT + 64 * len(written)
        assert [ask(point) for point in asked] == expected
