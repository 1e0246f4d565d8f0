"""What is derived from the shard of an embedded store: right after a kill, made again at need."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.errors import StoreError
from engine.records import ImageRecord, Point
from engine.store import cells, columns
from engine.store.base import Coarse, Collection, Filter, Ids, Match, Nearest
from engine.store.edge import EdgeStore
from engine.store.payload import FACET_FIELDS

ROOT = Path(__file__).parents[2]
ALL = Filter()
DIM = 16


def made(count: int, seed: int = 0, start: int = 0) -> list[Point]:
    """Points in clusters, with records that repeat."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(12, DIM))
    z = centres[rng.integers(12, size=count)] + 0.4 * rng.normal(size=(count, DIM))
    z = (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
    return [
        Point(
            str(uuid.UUID(int=start + i + 1)),
            ImageRecord(
                study=f"1.2.{i % 37}",
                sop=f"1.2.{i % 37}.{i}",
                patient=f"p{i % 11}",
                modality=("CT", "MR", None)[i % 3],
                labels=(("a",), ("a", "b"), ())[i % 3],
                study_year=2000 + i % 7,
                source="secret" if i % 37 == 5 else "open",
            ),
            np.packbits(z[i, :8] > 0).repeat(8),
            z[i],
        )
        for i in range(count)
    ]


@pytest.fixture
def small_cells(monkeypatch):
    """Cells for a few hundred points."""
    for module in (cells, columns):
        monkeypatch.setattr(module, "LEAST_POINTS", 300)


def said(store: EdgeStore) -> tuple:
    """What the store answers to questions of each kind."""
    near = [Nearest(point.z, ALL, 20) for point in made(5, seed=9)]
    where = Filter((Match("labels", ("b",)),), (Match("study", ("1.2.5", "1.2.6")),))
    return (
        [(p.id, p.record, p.code.tobytes(), p.z.tobytes()) for p in store.scroll(ALL, with_z=True)],
        [[(p.id, p.score) for p in found] for found in store.query(near)],
        store.facets((*FACET_FIELDS, "patient"), ALL, 50),
        store.facets(FACET_FIELDS, where, 50),
        store.count(where),
        [p.id for p in store.scroll(Filter((Match("sop", ("1.2.3.3",)),)))],
    )


def filled(place: Path, collection: Collection) -> tuple:
    with EdgeStore.create(place, collection) as store:
        store.upsert(made(500))
        store.delete(Filter((Match("study", ("1.2.9",)),)))
        changed = [replace(p, record=replace(p.record, modality="US")) for p in made(500)[:40]]
        store.upsert(changed)
        store.flush()
        return said(store)


def _cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


DAMAGES = {
    "absent": shutil.rmtree,
    "without state": lambda folder: (folder / "state.json").unlink(),
    "half a state": lambda folder: _cut(folder / "state.json"),
    "of another format": lambda folder: (folder / "state.json").write_text('{"format": 99}'),
    "vectors cut": lambda folder: _cut(next(folder.glob("*/z"))),
    "records cut": lambda folder: _cut(next(folder.glob("*/records"))),
    "combinations cut": lambda folder: _cut(next(folder.glob("*/combinations.jsonl"))),
    "no combinations": lambda folder: next(folder.glob("*/combinations.jsonl")).unlink(),
    "a column missing": lambda folder: next(folder.glob("*/combination")).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_what_is_torn_is_made_again_from_the_shard(store_root, collection, damage):
    place = store_root / f"damaged {damage}"
    before = filled(place, collection)
    DAMAGES[damage](place / "columns")
    with EdgeStore.open(place) as store:
        assert said(store) == before
    with EdgeStore.open(place) as store:
        assert said(store) == before


def test_columns_of_another_time_are_made_again(store_root, collection):
    place = store_root / "older"
    filled(place, collection)
    shutil.copytree(place / "columns", place.with_name("kept"))
    with EdgeStore.open(place) as store:
        store.upsert(made(50, seed=3, start=10_000))
        store.flush()
        after = said(store)
    shutil.rmtree(place / "columns")
    shutil.copytree(place.with_name("kept"), place / "columns")
    with EdgeStore.open(place) as store:
        assert said(store) == after


def test_after_a_power_cut_everything_is_read_again(store_root, collection, monkeypatch, tmp_path):
    place = store_root / "power"
    store = EdgeStore.create(place, collection)
    store.upsert(made(200))
    store.flush()
    store.upsert(made(40, seed=3, start=10_000))
    before = said(store)
    store._shard.close()  # without telling the columns that all is written
    store._columns.close()
    store._lock.release()
    # What was not flushed may be anything: here, the vectors of the new rows are lost.
    vectors = np.memmap(next((place / "columns").glob("*/z")), np.float32, "r+")
    vectors[200 * DIM :] = 0
    vectors.flush()
    boot = tmp_path / "boot_id"
    boot.write_text("00000000-0000-0000-0000-000000000000\n")
    monkeypatch.setattr(columns, "_BOOT", boot)
    with EdgeStore.open(place) as store:
        assert said(store) == before


_WRITER = """
import sys, uuid
sys.path[:0] = [{tests!r}]
from pathlib import Path
from engine.store import cells, columns
for module in (cells, columns):
    module.LEAST_POINTS = 300
from engine.store.base import Collection, Filter, Match
from engine.store.edge import EdgeStore
from test_columns import made
store = EdgeStore.create(Path(sys.argv[1]), Collection("0123456789abcdef", 16, 64))
print("open", flush=True)
step = 0
while True:
    step += 1
    store.upsert(made(120, seed=step, start=100 * step))
    store.delete(Filter((Match("study", (f"1.2.{{step % 37}}",)),)))
    if step % 3 == 0:
        store.flush()
    if step % 4 == 0:
        store.optimise()
    if step % 7 == 0:
        store.arrange(store.profile)
"""


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.05, 0.2, 0.4, 0.7, 1.1, 1.6, 2.4, 3.3])
def test_killed_at_any_moment_columns_and_shard_say_the_same(store_root, small_cells, after):
    place = store_root / f"killed after {after}"
    code = _WRITER.format(tests=str(Path(__file__).parent))
    with subprocess.Popen(
        [sys.executable, "-c", code, str(place)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "open\n"
        time.sleep(after)
        child.kill()
        assert child.wait() == -signal.SIGKILL
    with EdgeStore.open(place) as store:
        found = said(store)
    shutil.rmtree(place / "columns")
    with EdgeStore.open(place) as store:
        assert said(store) == found


def test_nothing_of_what_was_deleted_is_left(store_root, collection):
    place = store_root / "erased"
    with EdgeStore.create(place, collection) as store:
        store.upsert(made(500))
        store.flush()
        secret = next(p for p in store.scroll(ALL, with_z=True) if p.record.source == "secret")
        assert store.delete(Filter((Match("study", (secret.record.study,)),))) > 5
        store.flush()
        assert "secret" not in store.facets(["source"], ALL, 9)["source"]
        left = [p.read_bytes() for p in (place / "columns").rglob("*") if p.is_file()]
    for needle in (
        b"secret",
        b'"' + secret.record.sop.encode() + b'"',
        b'"' + secret.record.study.encode() + b'"',
        uuid.UUID(secret.id).bytes,
        secret.z.tobytes(),
    ):
        assert not any(needle in data for data in left)
    with EdgeStore.open(place) as store:
        assert store.get([secret.id]) == []
        assert store.count(Filter((Match("source", ("secret",)),))) == 0


def test_a_value_that_comes_back_is_counted_again(store_root, collection):
    with EdgeStore.create(store_root / "back", collection) as store:
        points = made(100)
        store.upsert(points)
        secret = Filter((Match("source", ("secret",)),))
        count = store.delete(secret)
        store.flush()
        store.upsert(points)
        assert store.count(secret) == count > 0
        assert store.facets(["source"], ALL, 9)["source"]["secret"] == count


def test_searches_during_writes_see_whole_states(store_root, collection):
    """A reader that began before a point was replaced or deleted still finds what there was."""
    with EdgeStore.create(store_root / "moments", collection) as store:
        points = made(300)
        store.upsert(points)
        view = store._view
        store.upsert([replace(p, record=replace(p.record, modality="US")) for p in points[:50]])
        store.delete(Filter((Ids((points[60].id,)),)))
        assert view.count(Filter((Match("sop", (points[60].record.sop,)),))) == 1
        assert [p.id for p in view.nearest(points[60].z, ALL, 1)] == [points[60].id]
        assert view.point(view.find([points[0].id])[0]).record.modality == "CT"
        assert store.get([points[0].id])[0].record.modality == "US"
        assert store.get([points[60].id]) == []


def test_cells_are_made_and_kept(store_root, collection, small_cells):
    place = store_root / "cells"
    with EdgeStore.create(place, collection) as store:
        store.upsert(made(290))
        store.optimise()
        assert store.cells is None
        store.upsert(made(700))
        store.optimise()
        first = store.cells
        assert (first.model, first.points) == (collection.model, 700)
        assert 0.9 < first.recall <= 1
        new = made(30, seed=2, start=10_000)
        store.upsert(new)
        # What is new lies in the cell of the nearest centroid, and is found there.
        for point in new:
            where = Filter(coarse=Coarse(first.nearest(point.z, 1), of=first.key))
            assert store.query([Nearest(point.z, where, 1)])[0][0].id == point.id
    with EdgeStore.open(place) as store:
        assert np.array_equal(store.cells.centroids, first.centroids)
        store.upsert(made(1500, start=20_000))
        store.optimise()
        assert np.array_equal(store.cells.centroids, first.centroids)  # grown by less than 4
        store.upsert(made(1500, seed=5, start=40_000))
        store.optimise()
        assert store.cells.points == store.count(ALL)
        store.arrange(store.profile)
        everything = Coarse(tuple(range(len(store.cells))), of=store.cells.key)
        assert store.count(Filter(coarse=everything)) == store.count(ALL)


def test_cells_of_another_model_are_made_again(store_root, collection, small_cells):
    place = store_root / "other cells"
    with EdgeStore.create(place, collection) as store:
        store.upsert(made(700))
        store.optimise()
        before = said(store)
    path = next((place / "columns").glob("*/cells.npz"))
    with np.load(path) as found:
        about = json.loads(str(found["about"])) | {"model": "f" * 16}
        np.savez(path, centroids=found["centroids"], about=np.array(json.dumps(about)))
    with EdgeStore.open(place) as store:
        assert store.cells.model == collection.model
        assert said(store) == before


def test_a_rebuilt_index_has_the_same_order(store_root, collection, small_cells):
    """Equal vectors in other rows have equal scores, and come in the order of their ids."""
    place = store_root / "equal"
    points = made(700)
    twins = [
        replace(point, id=str(uuid.UUID(int=90_000 - 7 * i)), z=points[0].z)
        for i, point in enumerate(points[:60])
    ]
    with EdgeStore.create(place, collection) as store:
        store.upsert(points)
        store.upsert(twins)
        before = said(store)
        (found,) = store.query([Nearest(twins[0].z, ALL, 61)])
        assert [p.id for p in found] == sorted([points[0].id, *(p.id for p in twins)])
        assert len({p.score for p in found}) == 1
        store.optimise()
        assert store.cells is not None
        assert said(store) == before
    shutil.rmtree(place / "columns")
    with EdgeStore.open(place) as store:
        assert said(store) == before


def test_an_unknown_field_is_named(store_root, collection):
    with (
        EdgeStore.create(store_root / "fields", collection) as store,
        pytest.raises(StoreError, match="'colour'"),
    ):
        store.count(Filter((Match("colour", ("red",)),)))


def test_cells_of_before_are_not_taken_for_those_of_now(store_root, collection, small_cells):
    with EdgeStore.create(store_root / "generations", collection) as store:
        store.upsert(made(700))
        store.optimise()
        before = store.cells
        store.delete(Filter((Match("modality", ("CT",)),)))
        store.upsert(made(350, seed=8, start=50_000))
        store.arrange(store.profile)
        assert store.cells.key != before.key
        for point in list(store.scroll(ALL, with_z=True))[::40]:
            where = Filter(coarse=Coarse(before.nearest(point.z, 1), of=before.key))
            assert store.query([Nearest(point.z, where, 1)])[0][0].score == pytest.approx(
                1, abs=1e-6
            )


def test_a_write_that_failed_half_way_is_made_sure_of(store_root, collection, monkeypatch):
    """The shard took the points, and the columns could not."""
    place = store_root / "half"
    with EdgeStore.create(place, collection) as store:
        store.upsert(made(100))
        store.flush()
        with monkeypatch.context() as broken:
            broken.setattr(columns, "keys_of", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                store.upsert(made(30, start=5000))
        store.flush()
        found = said(store)
        assert store.count(ALL) > 100
    shutil.rmtree(place / "columns")
    with EdgeStore.open(place) as store:
        assert said(store) == found


def test_a_disk_that_is_full_is_told_and_harms_nothing(store_root, collection, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    place = store_root / "full"
    store = EdgeStore.create(place, collection)
    store.upsert(made(100))
    store.flush()
    before = said(store)
    with monkeypatch.context() as broken:
        broken.setattr("os.posix_fallocate", full)
        with pytest.raises(StoreError, match="space"):
            store.upsert(made(5000, start=5000))
    with monkeypatch.context() as broken:
        broken.setattr(columns, "write_atomically", full)
        store.upsert(made(3))
        with pytest.raises(StoreError, match="make room"):
            store.close()
    with EdgeStore.open(place) as store:  # the lock was let go of
        kept = {point.id for point in store.scroll(ALL)}
        assert {point[0] for point in before[0]} <= kept


def test_what_was_deleted_before_a_kill_is_erased_after_it(store_root, collection):
    place = store_root / "erased later"
    store = EdgeStore.create(place, collection)
    store.upsert(made(500))
    secret = [p for p in store.scroll(ALL, with_z=True) if p.record.source == "secret"]
    assert store.delete(Filter((Match("source", ("secret",)),))) == len(secret) > 5
    store._columns.close()  # as if killed: nothing was flushed
    store._open_shard.close()
    store._lock.release()
    with EdgeStore.open(place) as store:
        store.flush()
    left = [path.read_bytes() for path in (place / "columns").rglob("*") if path.is_file()]
    for point in secret:
        for needle in (b'"secret"', uuid.UUID(point.id).bytes, point.z.tobytes()):
            assert not any(needle in data for data in left)


@pytest.mark.slow
def test_many_readers_see_whole_states_while_others_write(store_root, collection):
    """Points are only ever replaced, each keeping its modality: no count may change."""
    with EdgeStore.create(store_root / "whole", collection) as store:
        points = made(400)
        store.upsert(points)
        expected = store.facets(["modality"], ALL, 9), store.count(ALL)
        wrong: list[object] = []
        ended = threading.Event()

        def ask() -> None:
            number = 0
            try:
                while not ended.is_set():
                    number = (number + 1) % len(points)
                    here = store.facets(["modality"], ALL, 9), store.count(ALL)
                    (best,) = store.query([Nearest(points[number].z, ALL, 1)])
                    again = store.get([points[number].id])
                    if here != expected or not again or best[0].score < 0.999:
                        wrong.append((number, here, again, best))
            except Exception as error:
                wrong.append(error)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 3
        step = 0
        while time.monotonic() < until:
            step += 1
            some = points[step * 16 % 384 :][:16]
            labels = (f"new {step}",)
            store.upsert([replace(p, record=replace(p.record, labels=labels)) for p in some])
            if step % 5 == 0:
                store.flush()
        ended.set()
        for thread in threads:
            thread.join()
        assert wrong == []
