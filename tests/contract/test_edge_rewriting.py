"""An embedded index written anew: what was deleted is in no file, all else is as it was."""

import os
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
from test_columns import ALL, ROOT, made, said, small_cells  # noqa: F401 - a fixture

from engine.errors import StoreError
from engine.records import Point
from engine.store import edge_rewriting
from engine.store.base import Collection, Filter, Ids, Match, Nearest, Profile
from engine.store.edge import EdgeStore
from engine.store.sharing.store import SharedStore

SECRET = Filter((Match("source", ("secret",)),))


def needles(points: list[Point]) -> list[bytes]:
    """What tells of these points in a file."""
    found = []
    for point in points[:4]:
        assert point.z is not None
        found += [point.z.tobytes(), uuid.UUID(point.id).bytes, point.id.encode()]
        found.append(f'"{point.record.sop}"'.encode())
    return [*found, b"secret"]


def holding(place: Path, points: list[Point]) -> set[str]:
    """The files below the place that have something of these points."""
    wanted, found = needles(points), set()
    for path in place.parent.rglob("*"):
        # Files of the engine are megabytes of zeros behind what is in them.
        data = path.read_bytes().rstrip(b"\0") if path.is_file() else b""
        if any(one in data for one in wanted):
            found.add(str(path.relative_to(place.parent)))
    return found


def deleted_from(place: Path, collection: Collection, profile: Profile | None = None):
    """Fills a store, deletes some of it; what went."""
    with EdgeStore.create(place, collection, profile) as store:
        # Ids that are found by chance nowhere else.
        points = [Point(str(uuid.uuid5(uuid.NAMESPACE_OID, p.id)), p.record, p.code, p.z)
                  for p in made(600)]  # fmt: skip
        store.upsert(points)
        store.optimise()
        gone = list(store.scroll(SECRET, with_z=True))
        assert store.delete(SECRET) == len(gone) == 17
        store.flush()
        store.optimise()
    return gone


@pytest.mark.parametrize("graph", ["hash", pytest.param("precise", marks=pytest.mark.slow)])
def test_no_file_has_anything_of_what_was_deleted(tmp_path, collection, graph):
    place = tmp_path / "at" / "index"
    gone = deleted_from(place, collection, Profile(graph))
    # The engine itself keeps it, or the test would prove nothing.
    found = holding(place, gone)
    assert any("wal" in name for name in found)
    assert any("segments" in name for name in found)
    with EdgeStore.open(place) as store:
        before = said(store)
        assert store.rewrite() == 583
        assert said(store) == before
        assert holding(place, gone) == set()
        # It goes on as ever.
        store.upsert(gone[:1])
        assert store.count(SECRET) == 1
        store.delete(SECRET)
    with EdgeStore.open(place) as store:
        assert said(store) == before
        assert store.profile == Profile(graph)
    assert sorted(one.name for one in place.parent.iterdir()) == [
        "index", "index.lock", "index.pid",
    ]  # fmt: skip


def test_cells_stay_but_those_that_tell_of_what_went(tmp_path, collection, small_cells):  # noqa: F811
    place = tmp_path / "index"
    with EdgeStore.create(place, collection) as store:
        lonely = np.zeros((40, 16), np.float32)
        lonely[:, 0] = -1
        store.upsert(made(600))
        store.upsert([
            Point(str(uuid.UUID(int=9_000 + n)), p.record, p.code, lonely[n])
            for n, p in enumerate(made(40))
        ])  # fmt: skip
        store.arrange(Profile())
        key = store.cells.key
        assert lonely[0].tobytes() in (next(place.rglob("cells.npz"))).read_bytes()
        store.delete(Filter((Match("sop", ("1.2.7.599",)),)))
        store.rewrite()
        assert store.cells.key == key
        alone = [str(uuid.UUID(int=9_000 + n)) for n in range(40)]
        store.delete(Filter((Ids(tuple(alone)),)))
        before = [p.id for p in store.scroll(ALL)]
        store.rewrite()
        assert store.cells.key != key
        assert lonely[0].tobytes() not in (next(place.rglob("cells.npz"))).read_bytes()
        assert [p.id for p in store.scroll(ALL)] == before
        key = store.cells.key
        store.rewrite(new_cells=True)
        assert store.cells is not None


def test_an_empty_index_is_written_anew(tmp_path, collection):
    place = tmp_path / "at" / "index"
    gone = deleted_from(place, collection)
    with EdgeStore.open(place) as store:
        store.delete(ALL)
        assert store.rewrite() == 0
        assert store.query([Nearest(gone[0].z, ALL, 3)]) == [[]]
        assert holding(place, gone) == set()
        store.upsert(gone)
        assert store.count(ALL) == 17


def test_a_copy_that_differs_replaces_nothing(tmp_path, collection, monkeypatch):
    place = tmp_path / "index"
    deleted_from(place, collection)
    scrolled = edge_rewriting.scrolled

    def losing_one(shard):
        for records in scrolled(shard):
            yield records[:-1] if shard is not source else records

    with EdgeStore.open(place) as store:
        before, source = said(store), store._open_shard
        monkeypatch.setattr(edge_rewriting, "scrolled", losing_one)
        with pytest.raises(StoreError, match="nothing was replaced"):
            store.rewrite()
        monkeypatch.undo()
        assert said(store) == before
        assert store.rewrite() == 583
        assert said(store) == before


def test_another_process_has_it_written_anew(tmp_path, collection):
    place = tmp_path / "at" / "index"
    gone = deleted_from(place, collection)
    with (
        SharedStore(place, lambda: EdgeStore.open(place), None) as owner,
        SharedStore(place, lambda: EdgeStore.open(place), None) as asking,
    ):
        assert asking.holder is not None
        before = said(owner)
        assert asking.rewrite() == 583
        assert said(owner) == said(asking) == before
    assert holding(place, gone) == set()


_KILLED = """
import os, shutil, signal, sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
import test_edge_rewriting
from engine.store.edge import EdgeStore
STEPS = ("os.rename", "shutil.rmtree", "os.remove", "os.mkdir", "os.rmdir", "open")
place, moments = Path(sys.argv[1]), int(sys.argv[2])

def rewritten(copy, at):
    store, seen = EdgeStore.open(copy), 0
    def killed(event, arguments):
        nonlocal seen
        if event in STEPS and "index" in str(arguments[0]):
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(killed)
    store.rewrite()
    return seen

def forked(copy, at):
    shutil.copytree(place.parent, copy.parent)
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(write, str(rewritten(copy, at)).encode())
        os._exit(0)
    os.close(write)
    status = os.waitpid(pid, 0)[1]
    return int(os.read(read, 99) or 0), status

steps, _ = forked(place.parent.with_name("counted") / "index", -1)
for number in range(moments):
    at = 1 + number * (steps - 1) // (moments - 1)
    _, status = forked(place.parent.with_name(f"killed-{{number}}") / "index", at)
    print(at, steps, os.WIFSIGNALED(status) and os.WTERMSIG(status), flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_is_the_old_one_or_the_new_one(tmp_path, collection):
    place = tmp_path / "at" / "index"
    gone = deleted_from(place, collection)
    with EdgeStore.open(place) as store:
        before = said(store)
    moments = 8
    code = _KILLED.format(tests=str(Path(__file__).parent))
    ran = subprocess.run(
        [sys.executable, "-c", code, str(place), str(moments)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )  # fmt: skip
    told = [line.split() for line in ran.stdout.splitlines()]
    assert len(told) == moments, ran.stderr
    assert {one[2] for one in told} == {str(int(signal.SIGKILL))}
    kept = 0
    for number in range(moments):
        copy = tmp_path / f"killed-{number}" / "index"
        with EdgeStore.open(copy) as store:
            assert said(store) == before
            kept += bool(holding(copy, gone))
            assert store.rewrite() == 583
            assert said(store) == before
        assert holding(copy, gone) == set()
        assert not [one for one in copy.parent.iterdir() if one.name.startswith(".")]
        shutil.rmtree(copy.parent)
    # Both have happened: killed before the exchange, and after it.
    assert 0 < kept < moments
