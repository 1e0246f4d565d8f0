"""``precedent upgrade`` brings up archives that earlier versions stored, whenever it is killed."""

import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from formats.make import told
from formats.test_formats import STORED, alike, ask

ROOT = Path(__file__).parents[2]
KILLED_IN = """
import os, signal, sys
from pathlib import Path

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

where = sys.argv[1]
if where == "between the folders":
    # The index of before has gone, the new one has not come.
    from engine.store import edge_exchange
    rename = Path.rename
    def renamed(path, target):
        if path.name.endswith("-converted"):
            kill()
        return rename(path, target)
    Path.rename = renamed
else:
    from indexer.upgrade import bringing
    bring = bringing._bring
    def brought(one, *others):
        if one.thing == where:
            kill()
        bring(one, *others)
    bringing._bring = brought
from api.cli.main import main
sys.argv[1:] = ["upgrade", "--apply"]
main()
"""


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    with tarfile.open(STORED[0]) as packed:
        packed.extractall(tmp_path, filter="data")
    return tmp_path


def stored(folder: Path) -> dict[str, str]:
    """What would become of each thing."""
    ((found,),) = ask(folder, [["upgrade"]])
    return {one["thing"]: one["outcome"] for one in found["stored"]}


def files(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path): path.read_bytes() if path.is_file() and path.stat().st_size < 10**6 else None
        for path in sorted(folder.rglob("*"))
    }


def test_a_dry_run_changes_nothing(unpacked) -> None:
    before = files(unpacked)
    assert stored(unpacked) == {
        "data folder": "migrated",
        "ledger": "migrated",
        "index": "migrated",
        "model": "nothing",
        "calibration": "nothing",
    }
    assert files(unpacked) == before


@pytest.mark.slow
@pytest.mark.parametrize("where", ["index", "between the folders", "data folder"])
def test_a_killed_upgrade_is_gone_on_with(unpacked, where) -> None:
    names = {"PRECEDENT_DATA_DIR": "data", "PRECEDENT_MODEL": "model", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", KILLED_IN, where],
        cwd=unpacked,
        env={**os.environ, **names},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    left = stored(unpacked)
    assert left["data folder"] == "migrated"
    expected = json.loads((unpacked / "answers.json").read_bytes())[:2]
    ((done,), (after,), *answers) = ask(
        unpacked, [["upgrade", "--apply"], ["upgrade"], *(one["asked"] for one in expected)]
    )
    assert "data folder" in {one["thing"] for one in done["done"]}
    assert {one["outcome"] for one in after["stored"]} == {"nothing"}
    for one, answer in zip(expected, answers, strict=True):
        assert alike(answer, told(one["answer"])), one["asked"]
