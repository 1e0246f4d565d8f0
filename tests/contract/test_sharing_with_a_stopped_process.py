"""A process that has the index open and is stopped, or works for long, while others ask it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import StoreLocked
from engine.store.base import Collection, Filter
from engine.store.edge import EdgeStore
from engine.store.sharing import client, liveness, owner
from engine.store.sharing.liveness import Liveness
from engine.store.sharing.store import SharedStore

ALL = Filter()
HOLDING = """
import sys
from pathlib import Path
from engine.store.edge import EdgeStore
from engine.store.sharing.store import SharedStore
sys.argv[1] = "holding"
place = Path(sys.argv[2])
with SharedStore(place, lambda: EdgeStore.open(place), None):
    print("open", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def place(tmp_path: Path, collection: Collection) -> Path:
    """An empty store."""
    EdgeStore.create(tmp_path / "index", collection).close()
    return tmp_path / "index"


@pytest.fixture
def holding(place: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the store open."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, "-", str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


def shared(place: Path) -> SharedStore:
    return SharedStore(place, lambda: EdgeStore.open(place), None)


def test_one_that_is_stopped_is_named_and_one_that_goes_on_answers(
    place, holding, make_points, monkeypatch
):
    monkeypatch.setattr(client, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(liveness, "STOPPED_SECONDS", 0.3)
    with shared(place) as store:
        assert store.count(ALL) == 0
        holding.send_signal(signal.SIGSTOP)
        os.waitpid(holding.pid, os.WUNTRACED)
        for call in (lambda: store.count(ALL), lambda: store.upsert(make_points(1000))):
            began = time.monotonic()
            with pytest.raises(StoreLocked) as told:
                call()
            assert time.monotonic() - began < 20
            assert f"pid {holding.pid}, `precedent holding`" in str(told.value)
            assert f"kill -CONT {holding.pid}" in str(told.value)
        holding.send_signal(signal.SIGCONT)
        store.upsert(make_points(1000))
        store.flush()
        assert store.count(ALL) == 1000


@pytest.mark.slow
def test_a_call_that_takes_longer_than_silence_may_is_not_cut(place, monkeypatch):
    """As a long arrangement: it says that it goes on."""
    monkeypatch.setattr(client, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(owner, "BEAT_SECONDS", 0.05)
    for limit in ("STOPPED_SECONDS", "IDLE_SECONDS", "WAITING_SECONDS"):
        monkeypatch.setattr(liveness, limit, 0.5)
    monkeypatch.setattr(client, "pid_of", lambda _: None)
    with shared(place) as first, shared(place) as second:
        ended = threading.Event()

        def optimise() -> None:
            ended.wait(1.5)

        assert first._reception is not None
        monkeypatch.setitem(first._reception._calls, "optimise", optimise)
        began = time.monotonic()
        second.optimise()
        assert time.monotonic() - began >= 1.5


@pytest.mark.parametrize(
    ("state", "works", "seconds"),
    [
        ("S", True, None),
        ("R", True, None),
        ("S", False, liveness.IDLE_SECONDS),
        ("T", True, liveness.STOPPED_SECONDS),
        ("D", False, liveness.WAITING_SECONDS),
        (None, False, liveness.WAITING_SECONDS),
    ],
)
def test_how_long_silence_may_last(monkeypatch, state, works, seconds):
    """A process that says nothing, as inside one long step of Qdrant Edge."""
    now, ticks = 0.0, 0
    monkeypatch.setattr(liveness, "_at_work", lambda _: (state, None if state is None else ticks))
    watched = Liveness(7, "pid 7", lambda: now)

    def until(limit: float) -> None:
        nonlocal now, ticks
        while now < limit:
            watched.check()
            now, ticks = now + 1, ticks + works

    until(seconds or 10 * liveness.WAITING_SECONDS)
    if seconds is not None:
        with pytest.raises(StoreLocked, match="kill -9 7"):
            watched.check()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system tells no states")
def test_the_system_tells_whether_a_process_works():
    state, before = liveness._at_work(os.getpid())
    began = time.process_time()
    while time.process_time() - began < 0.05:
        pass
    assert state == "R"
    after = liveness._at_work(os.getpid())[1]
    assert before is not None
    assert after is not None
    assert after > before
    assert liveness._at_work(None) == (None, None)
