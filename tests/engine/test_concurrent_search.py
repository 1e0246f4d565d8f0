"""Searches from several threads while images are added and deleted: right, and never stuck."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from engine.records import ImageRecord, Observations, Point
from engine.search import ladder
from engine.search.engine import SearchEngine
from engine.search.query import Query, parse_where
from engine.settings import SearchSettings
from engine.store import columns
from engine.store.base import Collection, Filter, Match
from engine.store.edge import EdgeStore

COUNT, DIM, BITS = 4_000, 16, 64
THREADS, ROUNDS, SECONDS = 8, 6, 60


def id_of(number: int) -> str:
    return str(uuid.UUID(int=number + 1))


def points(rng: np.random.Generator, first: int, count: int, modality: str) -> list[Point]:
    z = rng.normal(size=(count, DIM)).astype(np.float32)
    z[:, :4] *= 3
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    # Of four directions only, so that many codes are near.
    codes = np.packbits(z[:, :4] @ np.random.default_rng(9).normal(size=(4, BITS)) > 0, axis=1)
    record = ImageRecord(modality=modality, study=f"1.2.{first}")
    return [Point(id_of(first + i), record, codes[i], z[i]) for i in range(count)]


@pytest.mark.parametrize("coarse", ["codes", "cells"])
@pytest.mark.slow
def test_answers_stay_right_while_images_come_and_go(store_root, encoder, monkeypatch, coarse):
    monkeypatch.setattr(columns, "LEAST_POINTS", 1000)
    monkeypatch.setattr(ladder, "_FEW", 300)
    rng = np.random.default_rng(0)
    settled = points(rng, 0, COUNT, "CT")
    asked = [settled[i] for i in range(0, COUNT, COUNT // 24)]
    collection = Collection(encoder.manifest.fingerprint, DIM, BITS)
    where = parse_where(["modality=CT"])
    few = {"min_candidates": 20, "candidates_per_hit": 1, "candidates_share": 0}
    with EdgeStore.create(store_root / coarse, collection) as store:
        store.upsert(settled)
        store.optimise()
        engine = SearchEngine(encoder, store, SearchSettings(coarse=coarse, **few))

        def ask(point: Point):
            seen = Observations(point.z[None], point.code[None])
            answer = engine.answer(seen, Query(10, where))
            return answer.hits, answer.evidence.rung, answer.evidence.candidates, answer.facets

        expected = [ask(point) for point in asked]
        assert coarse in {rung for _, rung, _, _ in expected}
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
