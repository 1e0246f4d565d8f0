"""Backups while others index and delete, and SIGKILL in the midst of them."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from services.commands import CommandProcess

from engine.errors import BackupError
from engine.model.checkpoint import save_checkpoint
from engine.model.config import small_network
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess
from engine.store.base import Filter
from engine.store.edge import EdgeStore
from indexer.backup.chain import chain_of
from indexer.backup.container import AT_ONCE
from indexer.datadir.layout import DataDir
from indexer.sample import write_sample

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("archive") / "sample"
    write_sample(directory, seed=3, patients=12, include_pydicom=False)
    return directory


@pytest.fixture(scope="module", autouse=True)
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A network that encodes quickly, and ledger and index that are committed often."""
    torch.manual_seed(0)
    config, preprocess = small_network(0, tower="timm:test_resnet"), Preprocess(size=64)
    directory = tmp_path_factory.mktemp("model") / "model"
    network = HashingNetwork(config, preprocess).eval()
    save_checkpoint(directory, network, config, preprocess, (), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRECEDENT_MODEL", str(directory))
        patch.setenv("PRECEDENT_INDEXING__COMMIT_EVERY", "8")
        patch.setenv("PRECEDENT_INDEXING__BATCH_SIZE", "4")
        patch.setenv("PRECEDENT_INDEXING__READERS", "1")
        yield


def begun(*arguments: object) -> CommandProcess:
    return CommandProcess([*arguments], start_new_session=True)


def ended(process: CommandProcess) -> dict[str, Any]:
    out, err = process.communicate(timeout=600)
    assert process.wait(10) == 0, err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def restored(file: Path, source: Path, to: Path) -> Path:
    key = ["--pseudonym-key", source / "pseudonym.key", "--data-dir", to]
    ended(begun("backup", "restore", file, *key, "--json"))
    return to


def lacking(data_dir: Path) -> set[str]:
    """The points that the ledger says are done, and the index lacks."""
    with sqlite3.connect(data_dir / "ledger.sqlite") as ledger:
        done = {
            one
            for (one,) in ledger.execute(
                "SELECT p.id FROM points p JOIN instances i "
                "ON i.locator = p.locator AND i.tenant = p.tenant WHERE i.state = 'done'"
            )
        }
    ledger.close()
    with EdgeStore.open(DataDir(data_dir).index) as store:
        return done - {point.id for point in store.scroll(Filter())}


def done(data_dir: Path) -> int:
    """How many instances the ledger says are done."""
    if not (data_dir / "ledger.sqlite").exists():
        return 0
    with closing(sqlite3.connect(data_dir / "ledger.sqlite")) as ledger:
        try:
            found = ledger.execute("SELECT count(*) FROM instances WHERE state = 'done'")
        except sqlite3.OperationalError:  # it is being made
            return 0
        return int(found.fetchone()[0])


def everything(data_dir: Path) -> tuple[dict[str, bytes], list[Any]]:
    with EdgeStore.open(DataDir(data_dir).index) as store:
        points = {one.id: one.code.tobytes() for one in store.scroll(Filter())}
    with sqlite3.connect(data_dir / "ledger.sqlite") as ledger:
        found = ledger.execute(
            "SELECT locator, state, reason, content FROM instances ORDER BY locator"
        ).fetchall()
    ledger.close()
    return points, found


def test_under_load_the_ledger_never_has_more_than_the_index(sample, tmp_path):
    """Backups are made while one process indexes, which is killed, and another one deletes."""
    data, backups = tmp_path / "data", tmp_path / "backups"
    backups.mkdir()
    rng = random.Random(4)
    indexing = begun("index", sample, "--data-dir", data)
    while not done(data):
        assert indexing.poll() is None
        time.sleep(0.05)
    deleting = []
    for number in range(6):
        file = backups / f"{number}.backup"
        since = ["--since", backups / f"{number - 1}.backup"] if number % 3 else []
        making = begun("backup", "create", file, *since, "--data-dir", data, "--json")
        if number == 2:
            time.sleep(rng.uniform(0, 0.5))
            # The owner of the index, in whose process it is copied.
            indexing.send_signal(signal.SIGKILL)
            indexing.wait(60)
        ended(making)
        if indexing.poll() is not None:
            indexing.communicate(timeout=60)
            indexing = begun("index", sample, "--data-dir", data)
        if number in (1, 3):
            with sqlite3.connect(data / "ledger.sqlite") as ledger:
                found = ledger.execute("SELECT study FROM instances WHERE state = 'done'")
                (study,) = next(iter(found), (None,))
            ledger.close()
            if study is not None:
                deleting.append(begun("delete", "--study", study, "--yes", "--data-dir", data))
    for one in deleting:
        one.communicate(timeout=600)
    indexing.communicate(timeout=900)
    for number in range(6):
        there = restored(backups / f"{number}.backup", data, tmp_path / f"there-{number}")
        assert lacking(there) == set(), number
    # The same command again brings an early one to where an undisturbed run ends.
    undisturbed = tmp_path / "undisturbed"
    for place in (there := tmp_path / "there-0", undisturbed):
        begun("index", sample, "--data-dir", place).communicate(timeout=900)
    assert everything(there) == everything(undisturbed)


def test_a_killed_backup_leaves_nothing_that_restore_takes(sample, tmp_path):
    data, backups = tmp_path / "data", tmp_path / "backups"
    backups.mkdir()
    begun("index", sample, "--data-dir", data).communicate(timeout=900)
    started = time.monotonic()
    ended(begun("backup", "create", backups / "good", "--data-dir", data, "--json"))
    seconds = time.monotonic() - started
    (backups / "good").rename(tmp_path / "good")
    for number in range(4):
        making = begun("backup", "create", backups / "killed", "--data-dir", data)
        time.sleep(seconds * (number + 0.5) / 4)
        making.send_signal(signal.SIGKILL)
        making.communicate(timeout=60)
        for path in backups.iterdir():
            if path.name == "killed":
                chain_of([path], ())
                continue  # it had been done
            with pytest.raises(BackupError):
                restore_in_process(path, tmp_path / "never")
        (backups / "killed").unlink(missing_ok=True)
        assert not (tmp_path / "never").exists()
    # Nothing stays locked, and what was left over goes with the next one.
    for path in (*backups.glob(".*"), *data.glob(".backup-*")):
        old(path)
    ended(begun("backup", "create", backups / "last", "--data-dir", data, "--json"))
    assert [one.name for one in backups.iterdir()] == ["last"]
    assert [*data.glob(".backup-*")] == []


def restore_in_process(file: Path, to: Path) -> None:
    from api.cli.backup import _audit_flaws
    from engine.settings import Settings
    from indexer.backup.restoring import restore

    settings = Settings(data_dir=to)
    restore(chain_of([file], ()), (), settings, _audit_flaws, without_key=True)


def old(path: Path) -> None:
    os.utime(path, (0, 0))


def test_a_killed_restore_leaves_nothing_that_opens(sample, tmp_path):
    data, file = tmp_path / "data", tmp_path / "full.backup"
    begun("index", sample, "--data-dir", data).communicate(timeout=900)
    ended(begun("backup", "create", file, "--data-dir", data, "--json"))
    to = tmp_path / "there" / "data"
    to.parent.mkdir()
    key = ["--pseudonym-key", data / "pseudonym.key", "--data-dir", to]
    started = time.monotonic()
    ended(begun("backup", "restore", file, *key, "--json"))
    seconds = time.monotonic() - started
    whole = everything(to)
    for number in range(4):
        shutil.rmtree(to)
        making = begun("backup", "restore", file, *key)
        time.sleep(seconds * (number + 0.5) / 4)
        making.send_signal(signal.SIGKILL)
        making.communicate(timeout=60)
        if to.exists():  # it had been done
            assert everything(to) == whole
        else:
            assert not DataDir(to).exists
            to.mkdir()
    for path in to.parent.glob(".*"):
        old(path)
    shutil.rmtree(to)
    ended(begun("backup", "restore", file, *key, "--json"))
    assert everything(to) == whole
    assert [*to.parent.iterdir()] == [to]


_MEASURED = """
import resource, sys
from api.cli.main import app
app(sys.argv[1:], standalone_mode=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def most_memory(*arguments: object) -> int:
    """Bytes that a command has in memory at most."""
    command = [sys.executable, "-c", _MEASURED, *map(str, arguments)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(out.splitlines()[-1]) * 1024


@pytest.mark.alone
def test_memory_does_not_grow_with_the_archive(sample, tmp_path):
    pytest.importorskip("pyrage")
    data, key = tmp_path / "data", tmp_path / "key"
    begun("index", sample, "--data-dir", data).communicate(timeout=900)
    public = begun("backup", "key", key).communicate(timeout=60)[0].split()[0]
    used = []
    for size in (1, 400):
        kept = data / "received" / "aa" / "bb"
        kept.mkdir(parents=True, exist_ok=True)
        with (kept / "1.2.dcm").open("wb") as out:
            for number in range(size):
                out.write(random.Random(number).randbytes(AT_ONCE))
        for number in range(10 * size):
            (kept / f"1.3.{number}.dcm").write_bytes(b"DICM%d" % number)
        file = tmp_path / f"{size}.age"
        create = ["backup", "create", file, "--to", public, "--data-dir", data]
        there = tmp_path / f"there-{size}"
        used.append(
            (
                most_memory(*create),
                most_memory("backup", "verify", file, "--identity", key),
                most_memory("backup", "restore", file, "--identity", key, "--data-dir", there),
            )
        )
        assert (there / "received/aa/bb/1.2.dcm").stat().st_size == size * AT_ONCE
        shutil.rmtree(there)
    for small, large in zip(*used, strict=True):
        assert large < small + 40 * AT_ONCE, used
