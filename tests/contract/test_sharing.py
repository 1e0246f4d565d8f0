"""An embedded store in use by several processes: who has it, who asks, and who takes it over."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import FingerprintMismatch, StoreError, StoreLocked
from engine.records import Point
from engine.store.base import (
    Coarse,
    Collection,
    Filter,
    Ids,
    Match,
    Nearest,
    Part,
    Profile,
    Range,
)
from engine.store.edge import EdgeStore
from engine.store.sharing import client, messages, owner
from engine.store.sharing.place import connected, socket_path
from engine.store.sharing.store import SharedStore

ALL = Filter()
OWNER = """
import sys
from pathlib import Path
from engine.store.edge import EdgeStore
from engine.store.sharing.store import SharedStore
sys.argv[1] = "holding"
place = Path(sys.argv[2])
store = SharedStore(place, lambda: EdgeStore.open(place), None)
print("open", flush=True)
sys.stdin.readline()
store.close()
"""


@pytest.fixture
def place(tmp_path: Path, collection: Collection) -> Path:
    """An empty store."""
    EdgeStore.create(tmp_path / "index", collection).close()
    return tmp_path / "index"


def shared(place: Path, wanted: Collection | None = None, **options: Any) -> SharedStore:
    return SharedStore(place, lambda: EdgeStore.open(place, wanted), wanted, **options)


@pytest.fixture
def holding() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Starts processes that have a store open until they read a line."""
    started: list[subprocess.Popen[str]] = []

    def start(place: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, "-", str(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def all_ids(store: Any) -> set[str]:
    return {point.id for point in store.scroll(ALL)}


def test_the_first_one_has_it_and_the_next_ones_ask(place, collection, make_points):
    points = make_points(30)
    with shared(place) as first, shared(place) as second, shared(place) as third:
        assert first.holder is None
        assert second.holder is not None
        assert second.holder.pid == os.getpid()
        second.upsert(points)
        assert all_ids(first) == all_ids(third) == {point.id for point in points}
        (found,) = third.query([Nearest(points[3].z, ALL, 2)])
        assert found[0].id == points[3].id
    with EdgeStore.open(place) as store:
        assert len(store) == 30


def test_one_that_asks_takes_it_over_when_the_other_ends(place, make_points):
    points = make_points(30)
    first = shared(place)
    with shared(place) as second, shared(place) as third:
        second.upsert(points[:10])
        first.close()
        assert third.count(ALL) == 10
        assert third.holder is None
        second.upsert(points[10:])
        assert second.holder is not None
        assert third.count(ALL) == 30


def test_a_call_that_has_begun_comes_to_its_end(place, make_points, monkeypatch):
    """The process that has it closes the store while another one's call is under way."""
    began, go_on = threading.Event(), threading.Event()
    upsert = EdgeStore._upsert

    def slow(self: EdgeStore, points: list[Point]) -> None:
        began.set()
        assert go_on.wait(30)
        upsert(self, points)

    first = shared(place)
    with shared(place) as second:
        monkeypatch.setattr(EdgeStore, "_upsert", slow)
        writing = threading.Thread(target=second.upsert, args=(make_points(5),))
        writing.start()
        assert began.wait(30)
        closing = threading.Thread(target=first.close)
        closing.start()
        monkeypatch.setattr(EdgeStore, "_upsert", upsert)
        time.sleep(0.05)
        assert closing.is_alive()
        go_on.set()
        for thread in (closing, writing):
            thread.join(30)
        assert second.count(ALL) == 5


def test_what_a_killed_process_may_have_lost_is_written_again(
    place, holding, make_points, monkeypatch
):
    points = make_points(20)
    process = holding(place)
    with shared(place) as store:
        assert store.holder is not None
        assert (store.holder.pid, store.holder.command) == (process.pid, "precedent holding")
        store.upsert(points[:10])
        store.flush()
        store.upsert(points[10:])
        store.delete(Filter((Ids((points[0].id, points[11].id)),)))
        process.kill()
        process.wait()
        again: list[str] = []
        upsert = EdgeStore.upsert

        def noted(self: EdgeStore, points: list[Point]) -> None:
            again.extend(point.id for point in points)
            upsert(self, points)

        monkeypatch.setattr(EdgeStore, "upsert", noted)
        store.flush()
        # Those of before the flush are durable already.
        assert again == [point.id for point in points[10:]]
        assert store.holder is None
    with EdgeStore.open(place) as after:
        assert all_ids(after) == {p.id for p in points} - {points[0].id, points[11].id}


def test_searches_go_on_over_the_end_of_the_process_that_had_it(place, holding, make_points):
    points = make_points(40)
    with EdgeStore.open(place) as filled:
        filled.upsert(points)
    process = holding(place)
    failed: list[Exception] = []
    answered = [0, 0]
    stop = threading.Event()

    def search(store: SharedStore, at: int) -> None:
        while not stop.is_set():
            try:
                (found,) = store.query([Nearest(points[7].z, ALL, 1)])
                assert found[0].id == points[7].id
                answered[at] += 1
            except Exception as error:
                failed.append(error)
                return

    with shared(place) as one, shared(place) as other:
        threads = [
            threading.Thread(target=search, args=(store, at))
            for at, store in ((0, one), (0, one), (1, other))
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        process.kill()
        process.wait()
        before = list(answered)
        deadline = time.monotonic() + 30
        while min(b - a for a, b in zip(before, answered, strict=True)) < 20 and not failed:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        stop.set()
        for thread in threads:
            thread.join(30)
    assert not failed


def test_the_socket_is_of_its_owner_alone_and_goes_with_it(place):
    path = socket_path(place)
    with shared(place):
        status = path.stat()
        assert stat.S_ISSOCK(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert status.st_uid == os.geteuid()
    assert not path.exists()


def test_the_socket_of_a_killed_process_is_replaced(place, holding):
    process = holding(place)
    process.kill()
    process.wait()
    assert socket_path(place).exists()
    assert connected(socket_path(place)) is None
    with shared(place) as store, shared(place) as other:
        assert store.holder is None
        assert other.count(ALL) == 0


def test_a_path_longer_than_an_address_may_be(tmp_path, collection, make_points):
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    EdgeStore.create(folder / "index", collection).close()
    with shared(folder / "index") as first, shared(folder / "index") as second:
        second.upsert(make_points(3))
        assert first.count(ALL) == 3


ASKING = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
asking = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
try:
    asking.connect(sys.argv[1])
except PermissionError:
    print("not let in")
else:
    print("told", len(asking.recv(1000)))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("mode", "said"), [(0o600, "not let in"), (0o666, "told 0")])
def test_another_user_is_told_nothing(collection, mode, said, caplog):
    # Not below the tests' own folder, which others may not enter.
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        place = Path(folder) / "index"
        with SharedStore(place, lambda: EdgeStore.create(place, collection), collection):
            socket_path(place).chmod(mode)
            asked = subprocess.run(
                ["/usr/bin/python3", "-c", ASKING, str(socket_path(place)), "65534"],
                capture_output=True,
                text=True,
                timeout=60,
            )
    assert asked.stdout.strip() == said, asked.stderr
    if mode == 0o666:
        assert "another user" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_socket_that_another_user_put_there_is_not_believed(tmp_path):
    path = tmp_path / "index.sock"
    pretending = subprocess.Popen(
        [
            "/usr/bin/python3",
            "-c",
            "import os, socket, sys\n"
            "s = socket.socket(socket.AF_UNIX)\ns.bind(sys.argv[1])\n"
            "os.setuid(65534)\ns.listen()\nprint('up', flush=True)\nsys.stdin.read()",
            str(path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with pretending:
        assert pretending.stdout is not None
        assert pretending.stdout.readline() == "up\n"
        with pytest.raises(StoreError, match=r"another user \(uid 65534\)"):
            connected(path)
        pretending.communicate("")


def test_one_that_does_not_answer_is_named(place, holding, monkeypatch):
    monkeypatch.setattr(client, "_GREETING_SECONDS", 0.1)
    process = holding(place)
    process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(StoreLocked) as told:
            shared(place, patience=0.2)
    finally:
        process.send_signal(signal.SIGCONT)
    assert f"pid {process.pid}, `precedent holding`, since 2" in str(told.value)
    assert "\n" not in str(told.value)


def test_one_that_opens_it_alone_is_named(place):
    with EdgeStore.open(place), pytest.raises(StoreLocked, match=f"pid {os.getpid()}"):
        shared(place, patience=0.1)


def test_another_model_is_refused_there_too(place, collection):
    other = Collection("fedcba9876543210", collection.dim, collection.bits)
    with shared(place), pytest.raises(FingerprintMismatch, match="fedcba9876543210"):
        shared(place, other)


def test_another_version_is_named(place, monkeypatch):
    with shared(place):
        monkeypatch.setattr(client, "PROTOCOL", owner.PROTOCOL + 1)
        with pytest.raises(StoreError, match="another version of Precedent"):
            shared(place)


def test_a_thread_that_comes_late_asks_whoever_has_it_now(place):
    """Another thread has found out that the process had ended, between two steps of this one."""
    first = shared(place)
    with shared(place) as second:
        before = second._store
        first.close()
        assert second.count(ALL) == 0
        with pytest.raises(client.OwnerGone):
            before.count(ALL)
        second._reach_again(before)
        assert second.holder is None


def test_errors_come_as_they_are(place, make_points):
    (point,) = make_points(1)
    with shared(place), shared(place) as other:
        with pytest.raises(StoreError, match="has a code of 8 bits"):
            other.upsert([Point(point.id, point.record, point.code[:1], point.z)])
        with pytest.raises(StoreError, match="never ends"):
            next(other.scroll(ALL, page=0))
        assert other.count(ALL) == 0


def test_where_no_socket_can_be_the_store_is_used_alone(place, monkeypatch, caplog):
    def refused(*_: Any) -> Any:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(owner, "listening", refused)
    with shared(place) as store:
        assert store.count(ALL) == 0
        assert "no other command can use the index meanwhile" in caplog.text
        with pytest.raises(StoreLocked):
            shared(place, patience=0.1)


SENT = [
    None,
    (1, 2.5, "Röntgen", True, b"\x00\xff"),
    {"with": {"where": Filter((Match("modality", ("CT", "日本")), Part(3)), (Ids(("a",)),))}},
    Filter(coarse=Coarse((1, 2), b"\x01", 7, "key")),
    (Range("study_year", 2010), Range("frame", None, 3), Match("burned_in", (True,))),
    Profile("precise", quantised=True),
    Collection("0123456789abcdef", 16, 64, "bf16"),
]


@pytest.mark.parametrize("content", SENT, ids=lambda one: type(one).__name__)
def test_what_is_sent_arrives(content):
    here, there = socket.socketpair()
    with here, there:
        messages.send(here, content)
        assert messages.receive(there) == content


def test_points_arrive_whole(make_points):
    points = make_points(5)
    here, there = socket.socketpair()
    with here, there:
        messages.send(here, points)
        got = messages.receive(there)
        assert [one.id for one in got] == [one.id for one in points]
        for one, other in zip(got, points, strict=True):
            assert (one.record, one.indexed_at) == (other.record, other.indexed_at)
            assert np.array_equal(one.z, other.z)
            assert np.array_equal(one.code, other.code)


@pytest.mark.parametrize(
    "header",
    [
        b"no json",
        b'{"content":{"Path":{"x":1}},"buffers":[]}',
        b'{"content":{"array":3,"dtype":"uint8","shape":[1]},"buffers":[]}',
        b'{"content":{"array":0,"dtype":"object","shape":[1]},"buffers":[0]}',
        b'{"content":1,"buffers":[-5]}',
        b'{"content":{"Filter":{"must":1,"nothing":2}},"buffers":[]}',
        b"[]",
        b"[" * 100_000,
    ],
    ids=lambda one: one[:40].decode(),
)
def test_what_is_no_message_is_refused(header):
    here, there = socket.socketpair()
    with here, there:
        here.sendall(len(header).to_bytes(4) + header)
        with pytest.raises(StoreError, match="same version of Precedent"):
            messages.receive(there)


def test_a_message_that_claims_to_be_huge_is_refused():
    here, there = socket.socketpair()
    with here, there:
        here.sendall(b"\xff\xff\xff\xff")
        with pytest.raises(StoreError, match="header of 4294967295 bytes"):
            messages.receive(there)


def test_rubbish_does_not_disturb_others(place, caplog):
    with shared(place) as store, shared(place) as other:
        with connected(socket_path(place)) as rude:
            messages.receive(rude)
            rude.sendall(b"\x00\x00\x00\x05hello")
            assert messages.receive(rude)["error"] == "StoreError"
            assert rude.recv(100) == b""
        assert other.count(ALL) == store.count(ALL) == 0


def test_another_process_at_the_same_place_is_not_taken_for_the_one_before(place, make_points):
    """It came while no connection was open, and knows nothing of what was written before."""
    points = make_points(6)
    with EdgeStore.open(place) as store:
        first = owner.Reception(store, socket_path(place))
        asking = shared(place, patience=0.1)
        asking.upsert(points[:3])
        remote = asking._store
        assert isinstance(remote, client.RemoteStore)
        first.close()
        store.delete(ALL)  # as if it had been killed before it wrote that to the disk
        second = owner.Reception(store, socket_path(place))
        for connection in remote._idle:
            connection.close()
        remote._idle.clear()
        with pytest.raises(client.OwnerGone):
            remote.count(ALL)
        asking.upsert(points[3:])
        asking.flush()
        assert all_ids(store) == {point.id for point in points}
        asking.close()
        second.close()


def test_where_no_connection_can_be_taken_for_a_while_it_goes_on_later(place, monkeypatch, caplog):
    accept = socket.socket.accept
    monkeypatch.setattr(client, "_GREETING_SECONDS", 0.1)

    def none_left(self: socket.socket) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket.socket, "accept", none_left)
    with shared(place) as store:
        time.sleep(0.3)
        with pytest.raises(StoreLocked):
            shared(place, patience=0.1)
        monkeypatch.setattr(socket.socket, "accept", accept)
        with shared(place) as other:
            assert other.count(ALL) == store.count(ALL) == 0
    assert caplog.text.count("Too many open files") == 1


def test_where_no_thread_is_left_others_are_let_in_later(place, monkeypatch, caplog):
    start = threading.Thread.start

    def none_left(self: threading.Thread) -> None:
        if self.name == "index client":
            raise RuntimeError("can't start new thread")
        start(self)

    with shared(place) as store:
        monkeypatch.setattr(threading.Thread, "start", none_left)
        with pytest.raises(StoreLocked):
            shared(place, patience=0.1)
        monkeypatch.setattr(threading.Thread, "start", start)
        with shared(place) as other:
            assert other.count(ALL) == store.count(ALL) == 0
    assert "no thread is left" in caplog.text


def test_what_is_too_large_is_an_error_and_not_asked_again(place, make_points, monkeypatch):
    points = make_points(8)
    with shared(place) as store, shared(place) as other:
        store.upsert(points)
        monkeypatch.setattr(messages, "_LARGEST_BUFFERS", 100)
        with pytest.raises(StoreError, match="too large for the index's socket"):
            other.selected_ids(ALL)
        with pytest.raises(StoreError, match="too large for the index's socket"):
            other.upsert(points)
        monkeypatch.setattr(messages, "_LARGEST_HEADER", 300)
        with pytest.raises(StoreError, match="too large for the index's socket"):
            other.get([point.id for point in points])
        monkeypatch.undo()
        assert other.count(ALL) == 8


def test_a_fault_of_the_one_that_has_it_is_an_error_and_not_asked_again(place, monkeypatch, caplog):
    with shared(place) as store, shared(place) as other:
        reception = store._reception
        assert reception is not None
        monkeypatch.setitem(reception._calls, "count", lambda **_: object())
        with pytest.raises(StoreError, match=r"failed \(TypeError\)"):
            other.count(ALL)
        monkeypatch.setitem(reception._calls, "count", lambda **_: 1 / 0)
        with pytest.raises(StoreError, match=r"failed \(ZeroDivisionError\)"):
            other.count(ALL)
        assert "a call over the socket of the index failed" in caplog.text


def test_every_call_goes_over_the_socket(place, make_points):
    """With all that it may be given, and as the process that has the index answers it."""
    points = make_points(6)
    asked = [
        Nearest(points[2].z, ALL, 2),
        Nearest(points[2].z, Filter((Ids((points[4].id,)),)), 3, exact=True, with_z=True),
        Nearest(points[2].z, Filter((Match("modality", ("none",)),)), 3),
    ]
    with shared(place) as store, shared(place) as other:
        assert isinstance(other._store, client.RemoteStore)
        other.upsert(points)
        other.optimise()
        for here, there in zip(store.query(asked), other.query(asked), strict=True):
            assert [(one.id, one.score) for one in here] == [(one.id, one.score) for one in there]
        other.arrange(Profile("precise", quantised=True))
        assert other.profile == store.profile == Profile("precise", quantised=True)
        assert other.approximates(ALL) == store.approximates(ALL)
        fields = ["modality", "tenant"]
        assert other.facets(fields, ALL, 10) == store.facets(fields, ALL, 10)
        nobody = Filter((Match("tenant", ("nobody",)),))
        assert other.facets(fields, nobody, 10) == store.facets(fields, nobody, 10)
        assert list(other.scroll(nobody)) == other.get([]) == []
        assert other.delete(Filter((Ids((points[0].id,)),))) == 1
        assert store.count(ALL) == 5


def test_one_that_takes_no_answer_does_not_hold_up_the_end(place, monkeypatch):
    """As a command that was stopped with Ctrl-Z."""
    monkeypatch.setattr(owner, "_PARTING_SECONDS", 0.2)
    store = shared(place)
    reception = store._reception
    assert reception is not None
    monkeypatch.setitem(reception._calls, "count", lambda: np.zeros(1 << 24, np.uint8))
    with connected(socket_path(place)) as stopped:
        messages.receive(stopped)
        messages.send(stopped, {"call": "count", "with": {}})
        while not reception._sending:
            time.sleep(0.01)
        began = time.monotonic()
        store.close()
        assert time.monotonic() - began < 20
