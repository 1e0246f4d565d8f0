"""SIGKILL in the middle of an index: the same command again ends as if nothing had happened."""

import os
import random
import secrets
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from services.commands import CommandProcess

from engine.model.checkpoint import save_checkpoint
from engine.model.config import small_network
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess
from engine.store.base import Filter
from engine.store.edge import EdgeStore
from indexer.datadir.layout import DataDir
from indexer.sample import write_sample

MOMENTS = 10
FILES = 600


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files from all of PRECEDENT_TEST_ARCHIVE where it is set, else the synthetic sample with
    pydicom's files."""
    directory = tmp_path_factory.mktemp("archive") / "sample"
    named = os.environ.get("PRECEDENT_TEST_ARCHIVE")
    if named:
        files = sorted(path for path in Path(named).rglob("*") if path.is_file())
        for path in files[:: max(1, len(files) // FILES)]:
            place = directory / path.relative_to(named)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
        return directory
    write_sample(directory, seed=3, patients=40)
    return directory


@pytest.fixture(scope="module")
def small_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("small") / "sample"
    write_sample(directory, seed=3, patients=8, include_pydicom=False)
    return directory


@pytest.fixture(scope="module", autouse=True)
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A network that encodes quickly: what is killed is more often reading and writing."""
    torch.manual_seed(0)
    config, preprocess = small_network(0, tower="timm:test_resnet"), Preprocess(size=64)
    directory = tmp_path_factory.mktemp("model") / "model"
    network = HashingNetwork(config, preprocess).eval()
    save_checkpoint(directory, network, config, preprocess, (), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRECEDENT_MODEL", str(directory))
        yield


def start(archive: Path, data_dir: Path) -> CommandProcess:
    command = ["index", archive, "--labels", "folder", "--json", "--data-dir", data_dir]
    return CommandProcess(command, start_new_session=True)


def finish(archive: Path, data_dir: Path) -> float:
    started = time.monotonic()
    out, err = start(archive, data_dir).communicate(timeout=900)
    assert '"indexed"' in out, err
    return time.monotonic() - started


def points(data_dir: Path) -> dict[str, tuple[object, ...]]:
    """Everything stored of every point but the time it was written."""
    with EdgeStore.open(DataDir(data_dir).index) as store:
        ids = [point.id for point in store.scroll(Filter())]
        assert len(ids) == len(set(ids))
        return {
            point.id: (point.record, point.code.tobytes(), point.z.tobytes())
            for start in range(0, len(ids), 500)
            for point in store.get(ids[start : start + 500], with_z=True)
            if point.z is not None
        }


def rows(data_dir: Path) -> dict[str, list[tuple[object, ...]]]:
    """The ledger but for the numbers and times of its runs."""
    with sqlite3.connect(DataDir(data_dir).ledger) as ledger:
        tables = {
            "instances": ledger.execute(
                "SELECT locator, size, modified, label, state, reason, detail, content, study, "
                "series, sop FROM instances ORDER BY locator"
            ).fetchall(),
            "points": ledger.execute(
                "SELECT locator, id, frame FROM points ORDER BY locator, id"
            ).fetchall(),
        }
    ledger.close()
    return tables


def thumbnails(data_dir: Path) -> set[str]:
    return {path.stem for path in DataDir(data_dir).thumbnails.rglob("*.jpg")}


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_at_ten_random_moments_the_rerun_ends_the_same(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One key, so that patients' pseudonyms can be compared between the runs.
    monkeypatch.setenv("PRECEDENT_PSEUDONYM_KEY", secrets.token_hex(32))
    undisturbed = tmp_path / "undisturbed"
    seconds = finish(archive, undisturbed)
    expected_points, expected_rows = points(undisturbed), rows(undisturbed)
    assert len(expected_points) > 100
    assert {row[4] for row in expected_rows["instances"]} <= {"done", "refused"}
    chance = random.Random(11)
    killed = 0
    for attempt in range(2 * MOMENTS):
        data_dir = tmp_path / f"killed-{attempt}"
        process = start(archive, data_dir)
        time.sleep(chance.uniform(0.15, 0.9) * seconds)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        else:
            seconds *= 0.8  # the machine had less to do than at the undisturbed run
        process.communicate(timeout=60)
        finish(archive, data_dir)
        assert points(data_dir) == expected_points
        assert rows(data_dir) == expected_rows
        assert thumbnails(data_dir) == set(expected_points)
        if killed == MOMENTS:
            return
    pytest.fail(f"of {2 * MOMENTS} kills only {killed} came in time to prove anything")


def anything_done(data_dir: Path) -> bool:
    if not DataDir(data_dir).ledger.exists():
        return False
    ledger = sqlite3.connect(DataDir(data_dir).ledger)
    try:
        return bool(ledger.execute("SELECT 1 FROM instances WHERE state = 'done'").fetchone())
    except sqlite3.OperationalError:  # the tables are not there yet
        return False
    finally:
        ledger.close()


@pytest.mark.slow
def test_interrupted_by_the_keyboard_it_says_so_and_goes_on(
    small_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = tmp_path / "data"
    monkeypatch.setenv("PRECEDENT_INDEXING__COMMIT_EVERY", "1")
    process = start(small_archive, data_dir)
    deadline = time.monotonic() + 120
    while not anything_done(data_dir) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip().splitlines()[-1].startswith("precedent: interrupted")
    assert "Traceback" not in err
    monkeypatch.delenv("PRECEDENT_INDEXING__COMMIT_EVERY")
    finish(small_archive, data_dir)
    assert {row[4] for row in rows(data_dir)["instances"]} <= {"done", "refused"}
    assert thumbnails(data_dir) == set(points(data_dir))
