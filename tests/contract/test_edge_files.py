"""The embedded store and its folder: what is written, who may open it, what a kill leaves."""

import json
import re
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import qdrant_edge as qdrant

from engine.errors import StoreError, StoreLocked, StoreNotFound
from engine.records import ImageRecord
from engine.store.base import Collection, Filter, Match, Nearest
from engine.store.edge import EdgeStore

ROOT = Path(__file__).parents[2]
ALL = Filter()

# design.md, "A point"
ALLOWED = {
    "tenant", "study", "series", "sop", "frame", "patient", "modality", "body_part", "view",
    "laterality", "manufacturer", "sex", "age_band", "study_year", "labels", "source", "burned_in",
}  # fmt: skip

# Writes points, flushes, says so, writes on and waits to be killed.
_HOLDER = """
import sys, time, uuid
from pathlib import Path
import numpy as np
from engine.records import ImageRecord, Point
from engine.store.base import Collection
from engine.store.edge import EdgeStore
store = EdgeStore.create(Path(sys.argv[1]), Collection("0123456789abcdef", 16, 64))
def points(start, count):
    return [
        Point(
            str(uuid.UUID(int=i + 1)),
            ImageRecord(modality="CT", labels=(str(i),)),
            np.full(8, i % 256, dtype=np.uint8),
            np.eye(16, dtype=np.float32)[i % 16],
        )
        for i in range(start, start + count)
    ]
store.upsert(points(0, 1000))
store.flush()
print("flushed", flush=True)
if sys.argv[2] == "go on":
    for start in range(1000, 10**6, 10):
        store.upsert(points(start, 10))
time.sleep(600)
"""


@pytest.fixture
def holder():
    """Starts a process that holds a store, and returns it when that has been flushed."""
    started = []

    def start(place: Path, then: str) -> subprocess.Popen:
        child = subprocess.Popen(
            [sys.executable, "-c", _HOLDER, str(place), then],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(child)
        assert child.stdout.readline() == "flushed\n"
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()
        child.stdout.close()


def test_only_the_allow_list_is_stored(store_root, collection, make_points):
    place = store_root / "payloads"
    points = make_points(30)
    texts = ALLOWED & {field.name for field in fields(ImageRecord) if "str" in str(field.type)}
    full = dict.fromkeys(texts - {"labels"}, "text")
    everything = ImageRecord(**full, study_year=2020, labels=("a",), burned_in=True)
    points[0] = replace(points[0], record=everything, indexed_at="2024-05-01")
    with EdgeStore.create(place, collection) as store:
        store.upsert(points)
    shard = qdrant.EdgeShard.load(str(place))
    try:
        records, _ = shard.scroll(qdrant.ScrollRequest(limit=100, with_payload=True))
    finally:
        shard.close()
    payloads = {str(record.id): record.payload for record in records}
    assert len(payloads) == 30
    assert set(json.loads(payloads[points[0].id]["record"])["record"]) == ALLOWED
    for point in points:
        payload = payloads[point.id]
        assert set(payload) == {"code", "tenant", "record"}
        about = json.loads(payload["record"])
        assert set(about) <= {"record", "indexed_at", "rendering", "missing_frames"}
        assert set(about["record"]) <= ALLOWED
        assert None not in about["record"].values()
        assert int(payload["code"], 16) == int.from_bytes(point.code.tobytes())
        assert payload["tenant"] == point.record.tenant


@pytest.mark.parametrize("then", ["wait", "go on"])
def test_what_was_flushed_survives_a_kill(store_root, holder, then):
    place = store_root / f"killed {then}"
    child = holder(place, then)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    with EdgeStore.open(place) as store:
        found = list(store.scroll(ALL))
        assert [point.record.labels for point in found[:1000]] == [(str(i),) for i in range(1000)]
        assert found[999].code.tolist() == [999 % 256] * 8
        assert store.count(Filter(must=(Match("modality", ("CT",)),))) == len(found)
        # What came after the flush is there whole or not at all, in the order written.
        assert [point.record.labels for point in found] == [(str(i),) for i in range(len(found))]
        again = store.get([found[0].id], with_z=True)
        store.upsert(again)
        assert store.count(ALL) == len(found)


def test_a_second_process_is_told_who_holds_the_store(store_root, holder, collection):
    place = store_root / "held"
    child = holder(place, "wait")
    for reach in (EdgeStore.open, lambda place: EdgeStore.create(place, collection)):
        with pytest.raises(StoreLocked) as caught:
            reach(place)
        text = str(caught.value)
        assert re.search(rf"\bpid {child.pid}\b", text)
        assert str(place) in text
        assert "precedent serve" in text
        assert "\n" not in text
    child.kill()
    child.wait()
    with EdgeStore.open(place) as store:  # the lock ends with its process
        assert store.count(ALL) == 1000


def test_closing_lets_the_next_one_in(store_root, collection):
    place = store_root / "closed"
    first = EdgeStore.create(place, collection)
    with pytest.raises(StoreLocked):
        EdgeStore.open(place)
    first.close()
    EdgeStore.open(place).close()
    with pytest.raises(StoreError):
        first.count(ALL)


def test_a_refused_open_leaves_no_lock(store_root, collection):
    place = store_root / "refused"
    EdgeStore.create(place, collection).close()
    with pytest.raises(StoreError, match="another"):
        EdgeStore.open(place, Collection("another", 16, 64))
    EdgeStore.open(place).close()


def test_a_foreign_folder_is_not_touched(store_root, collection):
    place = store_root / "photographs"
    place.mkdir()
    (place / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(StoreNotFound):
        EdgeStore.open(place)
    with pytest.raises(StoreError, match="photographs"):
        EdgeStore.create(place, collection)
    assert [path.name for path in place.iterdir()] == ["holiday.jpg"]
    assert (place / "holiday.jpg").read_bytes() == b"precious"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": "m"}', '{"other": 1}'])
def test_a_damaged_description_is_named(store_root, collection, text):
    place = store_root / "described"
    EdgeStore.create(place, collection).close()
    whole = (place / "collection.json").read_text()
    assert json.loads(whole) == {
        "format": 2,
        "model": collection.model,
        "dim": 16,
        "bits": 64,
        "profile": {"graph": "hash", "quantised": False},
    }
    (place / "collection.json").write_text(text)
    with pytest.raises(StoreError, match=r"collection\.json"):
        EdgeStore.open(place)
    (place / "collection.json").write_text(whole)


def test_a_store_of_a_later_version_is_left_alone(store_root, collection):
    place = store_root / "later"
    EdgeStore.create(place, collection).close()
    noted = json.loads((place / "collection.json").read_text())
    (place / "collection.json").write_text(json.dumps({**noted, "format": 3, "cells": "cells.npy"}))
    for opened in (lambda: EdgeStore.open(place), lambda: EdgeStore.create(place, collection)):
        with pytest.raises(StoreError, match=r"later version .* format is 3, .* up to 2"):
            opened()


def test_an_interrupted_creation_is_begun_again(store_root, collection, make_points):
    place = store_root / "begun"
    scratch = place.with_name(".begun-building")
    scratch.mkdir()
    (scratch / "edge_config.json").write_text("half of")
    with EdgeStore.create(place, collection) as store:
        store.upsert(make_points(5))
        assert store.count(ALL) == 5
    assert not scratch.exists()


def test_writes_hold_other_threads_up_briefly_while_somebody_searches(
    store_root, collection, make_points, monkeypatch
):
    # Qdrant Edge holds Python's lock for as long as a call takes.
    calls = []
    with EdgeStore.create(store_root / "index", collection) as store:
        update = EdgeStore._update
        monkeypatch.setattr(EdgeStore, "_update", lambda *args: calls.append(None) or update(*args))
        points = make_points(512)
        store.upsert(points)
        at_once = len(calls)
        store.query([Nearest(points[0].z, ALL, 1)])
        calls.clear()
        store.upsert(points)
        assert len(calls) >= 8 * at_once
        assert store.count(ALL) == 512
