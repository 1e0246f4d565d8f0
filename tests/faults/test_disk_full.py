"""A disk that fills up while images are indexed: it is said plainly, and later nothing is missing.

The disks are file systems in memory, mounted for a test; without the right to mount, the tests
are skipped. They fill up for real.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from contract.loopback import Loopback
from PIL import Image
from services.commands import CommandProcess
from services.needed import do_without
from services.postgres import Postgres
from test_kill import points, rows, thumbnails
from test_workers import same

from engine.errors import DiskFull, LedgerError
from engine.model.checkpoint import save_checkpoint
from engine.model.config import small_network
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess
from engine.records import Point
from engine.settings import LedgerSettings, Settings, StoreSettings
from engine.store.base import Filter
from indexer.archive import Archive
from indexer.datadir.disk_space import check_room
from indexer.jobs.ledger import JobLedger
from indexer.ledger.database import Database
from indexer.ledger.instances import Ledger
from indexer.sources.base import Discovered

INSTANCES = 600
MIB = 1024**2
LEAST = 100 * MIB


class Disk:
    """A file system of a fixed size."""

    def __init__(self, root: Path, size: int) -> None:
        self.root = root
        root.mkdir()
        self._run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(root))

    def resize(self, size: int) -> None:
        self._run("mount", "-o", f"remount,size={size}", str(self.root))

    def fill(self, free: int) -> Path:
        """Takes all room but ``free`` bytes; returns the file that does."""
        filler = self.root / "filler"
        with filler.open("wb") as out:
            while (more := shutil.disk_usage(self.root).free - free) > 0:
                # It fails when others have taken of it meanwhile.
                with contextlib.suppress(OSError):
                    os.posix_fallocate(out.fileno(), out.seek(0, os.SEEK_END), more)
        return filler

    def unmount(self) -> None:
        # Lazily: also where something still has a file open on it.
        self._run("umount", "-l", str(self.root))

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            do_without("the right to mount", "run the tests as root")


@pytest.fixture
def new_disk(tmp_path: Path) -> Iterator[Callable[[int], Disk]]:
    made: list[Disk] = []

    def make(size: int) -> Disk:
        made.append(Disk(tmp_path / f"disk{len(made)}", size))
        return made[-1]

    yield make
    for disk in made:
        disk.unmount()


def test_room_is_looked_for_where_the_folder_will_be(new_disk: Callable[[int], Disk]) -> None:
    disk = new_disk(8 * MIB)
    folder = disk.root / "not" / "there yet"
    check_room(folder, 8 * MIB)
    with pytest.raises(DiskFull, match=r"has 8 MiB free, and indexing\.min_free_bytes .* 9 MiB"):
        check_room(folder, 9 * MIB)
    disk.fill(0)
    check_room(folder, 0)
    with pytest.raises(DiskFull, match=r"there yet has 0 MiB free.*make room"):
        check_room(folder, 1)


@pytest.mark.slow
def test_a_ledger_without_room_says_so_and_goes_on(new_disk: Callable[[int], Disk]) -> None:
    disk = new_disk(MIB)
    found = [Discovered(f"file:///{number:06}/{'x' * 200}", 1, 1) for number in range(20_000)]
    with Database(f"sqlite:///{disk.root}/ledger.sqlite") as database:
        ledger = Ledger(database.of("default"))
        run = ledger.begin_run("folder", "2026-01-01T00:00:00+00:00")
        with pytest.raises(LedgerError, match=r"is full; make room on its disk"):
            ledger.discover(run, "folder", found)
        disk.resize(64 * MIB)
        assert ledger.discover(run, "folder", found) == len(found)
        assert ledger.pending_count(run) == len(found)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config, preprocess = small_network(0, tower="timm:test_resnet"), Preprocess(size=64)
    directory = tmp_path_factory.mktemp("model") / "model"
    network = HashingNetwork(config, preprocess).eval()
    save_checkpoint(directory, network, config, preprocess, (), {})
    return directory


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures whose thumbnails take some room; some are there twice, some are none."""
    root = tmp_path_factory.mktemp("archive")
    rng = np.random.default_rng(3)
    for number in range(INSTANCES):
        path = root / f"{number:05}.png"
        if number % 100 == 7:
            path.write_bytes(b"no picture %d" % number)
        elif number % 100 == 9:
            path.write_bytes((root / f"{number - 1:05}.png").read_bytes())
        else:
            Image.fromarray(rng.integers(0, 256, (160, 160), np.uint8)).save(path)
    return root


def environment(model: Path, **more: object) -> dict[str, str]:
    named = {
        "MODEL": model,
        "PSEUDONYM_KEY": "k" * 32,
        "INDEXING__READERS": 1,
        "INDEXING__ENCODERS": 1,
        "INDEXING__BATCH_SIZE": 8,
        "INDEXING__COMMIT_EVERY": 20,
        **more,
    }
    kept = {name: v for name, v in os.environ.items() if not name.startswith("PRECEDENT_")}
    ours = {f"PRECEDENT_{name}": str(value) for name, value in named.items()}
    return {**kept, **ours, "OMP_NUM_THREADS": "1"}


def start(environment: dict[str, str], *arguments: str | Path) -> CommandProcess:
    return CommandProcess(arguments, env=environment, start_new_session=True)


def run(environment: dict[str, str], *arguments: str | Path) -> str:
    process = start(environment, *arguments)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out


def states(data_dir: Path) -> Counter[str]:
    ledger = data_dir / "ledger.sqlite"
    if not ledger.exists():
        return Counter()
    connection = sqlite3.connect(ledger)
    try:
        return Counter(state for (state,) in connection.execute("SELECT state FROM instances"))
    except sqlite3.OperationalError:  # the tables are not there yet
        return Counter()
    finally:
        connection.close()


def scratch(data_dir: Path) -> list[Path]:
    """Files that are not finished."""
    return [path for path in data_dir.rglob(".*") if path.is_file()]


@pytest.mark.slow
def test_an_index_ends_before_the_disk_is_full_and_goes_on_after(
    new_disk: Callable[[int], Disk], files: Path, model: Path, tmp_path: Path
) -> None:
    """With the embedded index, which could say nothing any more on a disk that is full."""
    asked = environment(model, INDEXING__MIN_FREE_BYTES=LEAST)
    undisturbed = tmp_path / "undisturbed"
    run(asked, "index", files, "--data-dir", undisturbed, "--json")
    expected_points, expected_rows = points(undisturbed), rows(undisturbed)
    assert len(expected_points) == INSTANCES - 2 * INSTANCES // 100

    disk = new_disk(500 * MIB)
    data_dir = disk.root / "data"
    process = start(asked, "index", files, "--data-dir", data_dir, "--json")
    while not states(data_dir)["done"] and process.poll() is None:
        time.sleep(0.01)
    filler = disk.fill(LEAST // 2)
    out, err = process.communicate(timeout=200)
    assert (process.returncode, out) == (1, "")
    (complaint,) = err.splitlines()
    assert complaint.startswith(f"precedent: the disk of {data_dir} has ")
    assert "make room" in complaint
    found = states(data_dir)
    assert 0 < found["done"] < len(expected_points)
    assert found.total() == INSTANCES
    assert scratch(data_dir) == []
    written = points(data_dir)
    done = [row for row in rows(data_dir)["instances"] if row[4] == "done"]
    noted = {row[1] for row in rows(data_dir)["points"]}
    assert len(noted) == len({row[7] for row in done})
    assert noted <= written.keys() <= expected_points.keys()
    assert noted <= thumbnails(data_dir) <= expected_points.keys()

    # As long as nothing is done about it, it says the same, and does nothing.
    process = start(asked, "index", files, "--data-dir", data_dir, "--json")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert err.startswith(f"precedent: the disk of {data_dir} has ")
    assert states(data_dir) == found

    filler.unlink()
    told = json.loads(run(asked, "index", files, "--data-dir", data_dir, "--json"))
    assert told["indexed"] + told["unchanged"] + sum(told["refused"].values()) == INSTANCES
    same_points(points(data_dir), expected_points)
    assert rows(data_dir) == expected_rows
    assert thumbnails(data_dir) == set(expected_points)


@pytest.mark.slow
def test_an_index_on_a_disk_that_is_full_at_once_goes_on_after(
    new_disk: Callable[[int], Disk], files: Path, model: Path
) -> None:
    """Too fast for a look at the room; however the process ends, nothing is broken."""
    asked = environment(model, INDEXING__MIN_FREE_BYTES=0)
    disk = new_disk(500 * MIB)
    data_dir = disk.root / "data"
    process = start(asked, "index", files, "--data-dir", data_dir, "--json")
    while not states(data_dir)["done"] and process.poll() is None:
        time.sleep(0.01)
    filler = disk.fill(0)
    _, err = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "Traceback" not in err
    filler.unlink()
    told = json.loads(run(asked, "index", files, "--data-dir", data_dir, "--json"))
    assert told["unchanged"] > 0
    assert told["indexed"] + told["unchanged"] + sum(told["refused"].values()) == INSTANCES
    found = points(data_dir)
    assert len(found) == INSTANCES - 2 * INSTANCES // 100
    assert found.keys() == {row[1] for row in rows(data_dir)["points"]} == thumbnails(data_dir)


def same_points(
    found: dict[str, tuple[object, ...]], others: dict[str, tuple[object, ...]]
) -> None:
    """Records and codes; vectors may differ in their last bits with the images beside them."""
    assert {key: point[:2] for key, point in found.items()} == {
        key: point[:2] for key, point in others.items()
    }


@pytest.fixture
def server() -> Iterator[tuple[Loopback, int]]:
    store = Loopback()
    with store.rest() as port:
        yield store, port


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_job_whose_thumbnails_have_no_room_is_finished_by_a_retry(
    new_disk: Callable[[int], Disk],
    files: Path,
    model: Path,
    tmp_path: Path,
    postgres: Postgres,
    server: tuple[Loopback, int],
) -> None:
    """Two workers; ledger and store are elsewhere, and there is no byte left for a picture."""
    _, port = server

    def deployed(name: str, data_dir: Path) -> dict[str, str]:
        return environment(
            model,
            DATA_DIR=data_dir,
            LEDGER__URL=postgres.create_database(),
            STORE__URL=f"http://127.0.0.1:{port}",
            STORE__COLLECTION=name,
            STORE__PREFER_GRPC="false",
            JOBS__CHUNK=100,
            JOBS__ATTEMPTS=2,
            JOBS__BACKOFF_SECONDS=0.2,
            JOBS__HEARTBEAT_SECONDS=0.5,
            INDEXING__MIN_FREE_BYTES=0,
        )

    whole = deployed("whole", tmp_path / "whole")
    assert json.loads(run(whole, "jobs", "submit", files, "--json")) == {"job": 1}
    assert "Traceback" not in work(whole)
    expected = stored(whole)
    assert len(expected) == INSTANCES - 2 * INSTANCES // 100

    disk = new_disk(4 * MIB)
    full = deployed("full", disk.root / "data")
    run(full, "jobs", "submit", files, "--json")
    said = work(full)
    assert "Traceback" not in said
    assert f"the disk of {disk.root / 'data'} is full; make room" in said
    told = json.loads(run(full, "jobs", "show", "1", "--json"))
    assert told["state"] == "failed"
    assert told["tasks"]["failed"] > 0
    assert 0 < told["done"] < INSTANCES
    assert "is full; make room" in json.dumps(told)
    assert scratch(disk.root) == []
    # What the ledger has as done is there, with its thumbnail.
    noted = owned(full)
    assert noted <= thumbnails(disk.root / "data")
    assert noted <= stored(full).keys()

    disk.resize(64 * MIB)
    assert json.loads(run(full, "jobs", "retry", "1", "--json"))["tasks"] > 0
    assert "Traceback" not in work(full)
    told = json.loads(run(full, "jobs", "show", "1", "--json"))
    assert told["state"] == "finished"
    assert told["discovered"] == told["done"] == INSTANCES
    assert told["indexed"] + sum(told["refused"].values()) == INSTANCES
    same(stored(full), expected)
    assert thumbnails(disk.root / "data") == set(expected)


def work(environment: dict[str, str]) -> str:
    """Two workers until nothing is left to do; returns what they said."""
    workers = [start(environment, "worker", "--until-idle") for _ in range(2)]
    try:
        return "".join(said for worker in workers for said in worker.communicate(timeout=200))
    finally:
        for worker in workers:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()


def settings_of(environment: dict[str, str]) -> Settings:
    return Settings(
        data_dir=Path(environment["PRECEDENT_DATA_DIR"]),
        model=Path(environment["PRECEDENT_MODEL"]),
        ledger=LedgerSettings(url=environment["PRECEDENT_LEDGER__URL"]),
        store=StoreSettings(
            url=environment["PRECEDENT_STORE__URL"],
            collection=environment["PRECEDENT_STORE__COLLECTION"],
            prefer_grpc=False,
        ),
    )


def stored(environment: dict[str, str]) -> dict[str, Point]:
    with Archive(settings_of(environment)) as archive:
        return {point.id: point for point in archive.store.scroll(Filter(), with_z=True)}


def owned(environment: dict[str, str]) -> set[str]:
    """The points of instances that the ledger has as done."""
    with Database(environment["PRECEDENT_LEDGER__URL"]) as database:
        done = [
            one.locator
            for one in JobLedger(database.of("default")).fates(1)
            if one.fate == "indexed"
        ]
        found = Ledger(database.of("default")).points_of(done)
        return {point for points in found.values() for point in points}
