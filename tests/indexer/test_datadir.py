"""The data folder and the key that makes patients' pseudonyms."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from engine import __version__
from engine.errors import SettingsError, StoreError
from engine.settings import Settings
from indexer.datadir.layout import DataDir
from indexer.datadir.run_locks import RunLocks

ROOT = Path(__file__).parents[2]

ASK = """
import sys, pathlib
from engine.settings import Settings
from indexer.datadir.layout import DataDir
root = pathlib.Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(DataDir(root).pseudonym_key(Settings()).hex())
"""


def test_the_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    root = tmp_path / "not" / "yet"
    key = DataDir(root).pseudonym_key(Settings())
    assert len(key) == 32
    assert key == DataDir(root).pseudonym_key(Settings())
    path = root / "pseudonym.key"
    assert path.read_bytes() == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(root.iterdir()) == [root / "folder.json", path]


def test_every_archive_has_its_own(tmp_path: Path) -> None:
    keys = {DataDir(tmp_path / name).pseudonym_key(Settings()) for name in "abc"}
    assert len(keys) == 3


def test_a_key_from_the_settings_is_used_and_not_kept(tmp_path: Path) -> None:
    secret = "0123456789abcdef0123456789abcdef"
    root = tmp_path / "data"
    key = DataDir(root).pseudonym_key(Settings(pseudonym_key=SecretStr(secret)))
    assert key == secret.encode()
    assert not root.exists()


def test_a_key_from_the_environment_goes_before_the_one_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = DataDir(tmp_path).pseudonym_key(Settings())
    monkeypatch.setenv("PRECEDENT_PSEUDONYM_KEY", "k" * 64)
    assert DataDir(tmp_path).pseudonym_key(Settings()) == b"k" * 64
    monkeypatch.delenv("PRECEDENT_PSEUDONYM_KEY")
    assert DataDir(tmp_path).pseudonym_key(Settings()) == kept


@pytest.mark.parametrize("secret", ["", "hunter2", "x" * 31])
def test_a_short_key_is_refused_without_being_shown(tmp_path: Path, secret: str) -> None:
    settings = Settings(pseudonym_key=SecretStr(secret))
    with pytest.raises(SettingsError) as caught:
        DataDir(tmp_path / "data").pseudonym_key(settings)
    message = str(caught.value)
    assert f"{len(secret)} bytes" in message
    assert "32" in message
    assert "openssl rand" in message
    assert not secret or secret not in message
    assert not (tmp_path / "data").exists()


def test_a_secret_does_not_show_in_the_settings() -> None:
    assert "hunter2" not in repr(Settings(pseudonym_key=SecretStr("hunter2")))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SettingsError, match=r"file/data cannot be made.*--data-dir"):
        DataDir(tmp_path / "file" / "data").make()


def test_two_first_runs_at_once_agree_on_one_key(tmp_path: Path) -> None:
    root = tmp_path / "data"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ASK, str(root)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    keys = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert keys == {(root / "pseudonym.key").read_bytes().hex()}
    assert {path.name for path in root.iterdir()} == {"folder.json", "pseudonym.key"}


def test_the_layout_has_a_version(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path / "data")
    data_dir.make()
    about = json.loads((tmp_path / "data" / "folder.json").read_bytes())
    assert about == {"format": 1, "precedent": __version__}
    assert data_dir.in_force() is None


def test_a_folder_without_a_version_gets_one_when_it_is_next_written_to(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    assert data_dir.in_force() is None
    assert not (tmp_path / "folder.json").exists()
    data_dir.make()
    assert (tmp_path / "folder.json").exists()


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ('{"format": 2}', r"later version of Precedent \(its format is 2, .* up to 1\)"),
        ('{"format": "two"}', "later version"),
        ("{}", r"folder\.json cannot be read .* remove it"),
        ("[]", r"folder\.json cannot be read"),
        ("{", r"folder\.json cannot be read"),
    ],
)
def test_a_folder_of_a_later_version_is_left_alone(tmp_path: Path, about: str, says: str) -> None:
    (tmp_path / "folder.json").write_text(about)
    data_dir = DataDir(tmp_path)
    for used in (data_dir.in_force, data_dir.make, lambda: data_dir.pseudonym_key(Settings())):
        with pytest.raises(StoreError, match=says):
            used()
    assert [path.name for path in tmp_path.iterdir()] == ["folder.json"]


def test_a_run_is_dead_only_where_its_lock_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = RunLocks(tmp_path)
    with locks.beginning():
        assert not locks.is_alive(1)
        with locks.alive(1):
            assert locks.is_alive(1)
            opened = os.open

            def none_left(path: Path, *given: int) -> int:
                if path.name == "1.lock":
                    raise OSError(24, "Too many open files")
                return opened(path, *given)

            monkeypatch.setattr(os, "open", none_left)
            assert locks.is_alive(1)
            monkeypatch.undo()
        assert not locks.is_alive(1)
        # As a kill leaves it.
        (tmp_path / "runs" / "1.lock").touch()
        assert not locks.is_alive(1)
        assert not (tmp_path / "runs" / "1.lock").exists()


def test_a_new_folder_is_its_users_alone(tmp_path: Path) -> None:
    DataDir(tmp_path / "new").make()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    (tmp_path / "there").mkdir(mode=0o750)
    DataDir(tmp_path / "there").make()
    assert stat.S_IMODE((tmp_path / "there").stat().st_mode) == 0o750
