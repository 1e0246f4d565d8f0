"""Snapshots: written from any store, restored into any other, refused whole when damaged."""

import contextlib
import hashlib
import io
import json
import stat
import uuid
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from backends import BACKENDS

from engine.errors import FingerprintMismatch, StoreError
from engine.records import ImageRecord
from engine.store.base import Filter, Match, Profile
from engine.store.snapshot import restore_snapshot, write_snapshot

ALL = Filter()
COUNT = 4500  # more than one chunk


@pytest.fixture(scope="module", params=BACKENDS, ids=lambda backend: f"from-{backend.name}")
def source(request):
    return request.param


@pytest.fixture(scope="module", params=BACKENDS, ids=lambda backend: f"to-{backend.name}")
def target(request):
    return request.param


@pytest.fixture(scope="module")
def points(make_points):
    made = make_points(COUNT)
    made[1] = replace(
        made[1],
        record=ImageRecord(
            study="Ünï\u2028\n\r\x00\x1e \U0001fa7b", labels=("", "ü,\t'\""), frame=3
        ),
        indexed_at=None,
    )
    return made


@pytest.fixture(scope="module")
def full(source, store_root, collection, points):
    store = source.create(store_root / f"{source.name}-full", collection, Profile(quantised=True))
    store.upsert(points)
    yield store
    store.close()


@pytest.fixture(scope="module")
def snapshot(full, store_root) -> Path:
    path = store_root / "Sicherung – 日本.snapshot"
    assert write_snapshot(full, path) == COUNT
    return path


@pytest.mark.slow
def test_progress_is_told_after_each_chunk(full, snapshot):
    written, restored = [], []
    write_snapshot(full, snapshot, lambda *step: written.append(step))
    restore_snapshot(snapshot, full, lambda *step: restored.append(step))
    assert written == restored == [(4096, COUNT), (COUNT, COUNT)]


def contents(store) -> list[tuple]:
    return [
        (p.id, p.record, p.indexed_at, p.code.tobytes(), np.round(p.z, 2).tobytes())
        for p in store.scroll(ALL, with_z=True)
    ]


def same(found, expected) -> None:
    """The same points, but for the digits of the vectors that a store may drop."""
    found, expected = list(found), list(expected)
    assert [p.id for p in found] == [p.id for p in expected]
    for one, other in zip(found, expected, strict=True):
        assert (one.record, one.indexed_at) == (other.record, other.indexed_at)
        assert one.code.tolist() == other.code.tolist()
    assert np.allclose([p.z for p in found], [p.z for p in expected], atol=1e-3)


@pytest.mark.slow
def test_a_restored_store_has_all_that_the_other_had(
    full, snapshot, target, store_root, collection, points
):
    store = target.create(store_root / f"{target.name}-restored", collection)
    store.delete(ALL)
    for _ in range(2):  # the second time changes nothing
        assert restore_snapshot(snapshot, store) == COUNT
        assert store.count(ALL) == COUNT
        same(store.scroll(ALL, with_z=True), points)
    assert store.profile == Profile()
    where = Filter((Match("modality", ("日本",)),))
    assert store.count(where) == full.count(where) > 0
    store.close()


@pytest.mark.slow
def test_a_snapshot_of_a_restored_store_is_the_same_file(snapshot, source, store_root, collection):
    store = source.create(store_root / f"{source.name}-again", collection, Profile(quantised=True))
    restore_snapshot(snapshot, store)
    again = snapshot.with_name("again.snapshot")
    write_snapshot(store, again)
    store.close()
    assert names(again) == names(snapshot)
    for name in names(snapshot):
        if not name.endswith(".z.npy") and name != "checksums.json":
            assert member(again, name) == member(snapshot, name)


def names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def member(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


# What the file is. One store stands for all from here on.


@pytest.fixture(scope="module")
def small(store_root, collection, make_points):
    """A store with ten points and a snapshot of it."""
    backend = BACKENDS[0]
    store = backend.create(store_root / "small", collection)
    store.upsert(make_points(10))
    path = store_root / "small.snapshot"
    write_snapshot(store, path)
    yield store, path
    store.close()


def test_the_file_can_be_read_without_this_program(small, collection, make_points):
    _, path = small
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    about = json.loads(member(path, "collection.json"))
    assert about == {
        "format": "precedent-snapshot",
        "version": 1,
        "model": collection.model,
        "dim": 16,
        "bits": 64,
        "profile": {"graph": "hash", "quantised": False},
        "count": 10,
        "chunks": 1,
    }
    with np.load(path, allow_pickle=False) as arrays:
        z, ids = arrays["points-00000.z"], arrays["points-00000.ids"]
        codes = arrays["points-00000.codes"]
    expected = make_points(10)
    assert z.dtype == np.float32
    assert np.allclose(z, [p.z for p in expected], atol=1e-3)
    assert codes.tolist() == [p.code.tolist() for p in expected]
    assert [str(uuid.UUID(bytes=row.tobytes())) for row in ids] == [p.id for p in expected]
    lines = member(path, "points-00000.records.jsonl").decode("ascii").splitlines()
    assert [json.loads(line)["record"]["sop"] for line in lines] == [p.record.sop for p in expected]


def test_an_empty_store_has_a_snapshot_too(small, store_root, collection):
    empty = BACKENDS[0].create(store_root / "none", collection)
    path = store_root / "none.snapshot"
    assert write_snapshot(empty, path) == 0
    assert restore_snapshot(path, empty) == 0
    assert restore_snapshot(small[1], empty) == 10
    empty.close()


def test_what_was_there_stays(small, store_root, collection, make_points):
    store, path = small
    other = BACKENDS[0].create(store_root / "other", collection)
    mine = [replace(p, id=str(uuid.UUID(int=9000 + i))) for i, p in enumerate(make_points(3))]
    other.upsert(mine)
    other.upsert([replace(make_points(1)[0], record=ImageRecord(modality="US"))])
    restore_snapshot(path, other)
    same(other.scroll(ALL, with_z=True), [*store.scroll(ALL, with_z=True), *mine])
    other.close()


def test_writing_replaces_a_file_at_once_or_not_at_all(small, store_root):
    store, path = small
    old = path.read_bytes()

    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_snapshot(store, path, fail)
    assert path.read_bytes() == old
    assert [p.name for p in store_root.iterdir() if p.name.startswith(".small.snap")] == []
    write_snapshot(store, path)
    assert path.read_bytes() == old


@pytest.mark.parametrize("place", ["nowhere/a.snapshot", "folder.snapshot"])
def test_a_place_that_cannot_be_written_is_named(small, store_root, place):
    (store_root / "folder.snapshot").mkdir(exist_ok=True)
    with pytest.raises(StoreError, match=place):
        write_snapshot(small[0], store_root / place)
    assert [p.name for p in store_root.iterdir() if p.name.startswith(".folder")] == []


# What is refused, before anything is written


@pytest.fixture
def untouched(store_root, collection):
    """A store that a refused snapshot must leave empty."""
    store = BACKENDS[0].create(store_root / "untouched", collection)
    yield store
    assert store.count(ALL) == 0
    store.close()


def rewritten(path: Path, **changes: bytes | None) -> Path:
    """A copy with members replaced or left out, packed as a whole file again."""
    made = path.with_name("rewritten.snapshot")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            data = changes.get(name.replace(".", "_").replace("-", "_"), old.read(name))
            if data is not None:
                new.writestr(name, data)
    return made


@pytest.mark.parametrize("change", [{"model": "fedcba9876543210"}, {"dim": 17}, {"bits": 32}])
def test_another_model_is_refused(small, store_root, collection, change):
    other = replace(collection, **change)
    store = BACKENDS[0].create(store_root / f"of-{'-'.join(change)}", other)
    with pytest.raises(
        FingerprintMismatch, match=r"(?s)small\.snapshot.*0123456789abcdef.*--model"
    ):
        restore_snapshot(small[1], store)
    assert store.count(ALL) == 0
    store.close()


def test_a_file_that_is_not_there_or_is_none_is_refused(small, untouched, store_root):
    (store_root / "text.snapshot").write_text("no snapshot")
    (store_root / "empty.snapshot").write_bytes(b"")
    with zipfile.ZipFile(store_root / "photos.snapshot", "w") as archive:
        archive.writestr("holiday.jpg", b"precious")
    for name in ("text", "empty", "photos", "missing"):
        with pytest.raises(StoreError, match=rf"{name}\.snapshot"):
            restore_snapshot(store_root / f"{name}.snapshot", untouched)
    with pytest.raises(StoreError, match="cannot be read"):
        restore_snapshot(store_root, untouched)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_short_is_refused(small, untouched, share):
    cut = small[1].with_name("cut.snapshot")
    whole = small[1].read_bytes()
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(StoreError, match=r"cut\.snapshot"):
        restore_snapshot(cut, untouched)


def test_a_flipped_bit_anywhere_is_refused_or_harmless(small, store_root, collection):
    store, path = small
    expected, whole = contents(store), bytearray(path.read_bytes())
    flipped = path.with_name("flipped.snapshot")
    target = BACKENDS[0].create(store_root / "flipped", collection)
    harmless = 0
    for position in range(0, len(whole), 61):
        damaged = whole.copy()
        damaged[position] ^= 1 << position % 8
        flipped.write_bytes(damaged)
        with contextlib.suppress(StoreError):
            restore_snapshot(flipped, target)
            harmless += 1  # in what ZIP says twice or nobody reads, such as times
            assert contents(target) == expected
            target.delete(ALL)
        assert target.count(ALL) == 0
    assert harmless < len(whole) / 61 / 2
    target.close()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("points_00000_z_npy", b"\x93NUMPY\x01\x00nonsense"),
        ("points_00000_codes_npy", None),
        ("points_00000_records_jsonl", b'{"record": {}, "indexed_at": null}\n'),
        ("collection_json", b'{"format": "precedent-snapshot", "version": 1}'),
        ("checksums_json", b"{}"),
        ("checksums_json", b"[]"),
        ("checksums_json", None),
    ],
)
def test_a_part_that_was_changed_or_taken_out_is_refused(small, untouched, name, change):
    with pytest.raises(StoreError, match=r"rewritten\.snapshot"):
        restore_snapshot(rewritten(small[1], **{name: change}), untouched)


def sealed(path: Path, name: str, data: bytes) -> Path:
    """A copy with one member replaced and its checksum made to fit."""
    sums = json.loads(member(path, "checksums.json"))
    sums[name] = hashlib.sha256(data).hexdigest()
    key = name.replace(".", "_").replace("-", "_")
    return rewritten(path, **{key: data, "checksums_json": json.dumps(sums).encode()})


@pytest.mark.parametrize(
    "change",
    [
        {"format": "holidays"}, {"version": 2}, {"version": "1"},
        {"count": 11}, {"chunks": 2}, {"chunks": 0},
    ],
    ids=str,
)  # fmt: skip
def test_another_format_or_count_is_refused(small, untouched, change):
    about = json.loads(member(small[1], "collection.json")) | change
    made = sealed(small[1], "collection.json", json.dumps(about).encode())
    with pytest.raises(StoreError, match=r"rewritten\.snapshot"):
        restore_snapshot(made, untouched)


def test_records_of_a_later_version_are_refused(small, untouched):
    lines = member(small[1], "points-00000.records.jsonl").replace(b'"frame"', b'"mood"')
    with pytest.raises(StoreError, match="mood"):
        restore_snapshot(sealed(small[1], "points-00000.records.jsonl", lines), untouched)


def npy(array: np.ndarray, **kwargs: bool) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **kwargs)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("part", "array"),
    [
        ("z", np.full((10, 16), np.nan, np.float32)),
        ("z", np.zeros((10, 17), np.float32)),
        ("z", np.zeros((9, 16), np.float32)),
        ("z", np.zeros((10, 16), np.float64)),
        ("codes", np.zeros((10, 4), np.uint8)),
        ("ids", np.zeros(160, np.uint8)),
        ("z", np.array([[None] * 16] * 10, object)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.dtype}{value.shape}",
)
def test_arrays_of_another_kind_are_refused(small, untouched, part, array):
    made = sealed(small[1], f"points-00000.{part}.npy", npy(array, allow_pickle=True))
    with pytest.raises(StoreError, match=r"rewritten\.snapshot"):
        restore_snapshot(made, untouched)
