"""``precedent receive`` as a PACS meets it: the command in a process of its own, real senders."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, build_context
from services.commands import CommandProcess
from services.needed import dcmtk
from typer.testing import CliRunner

from api.cli.main import app
from engine.errors import SettingsError
from engine.settings import IndexingSettings, Settings
from engine.store.base import Filter
from indexer.archive import Archive

CT = "1.2.840.10008.5.1.4.1.1.2"
LOCAL = "127.0.0.1"
PATIENCE_SECONDS = 60.0


class Receiving:
    """The command, from its start to its end, with what it says on standard output."""

    def __init__(self, settings: Settings, **receive: Any) -> None:
        chosen = {"allowed_ae_titles": '["PACS"]', "idle_seconds": 0.2, **receive}
        named = {f"PRECEDENT_RECEIVE__{name.upper()}": str(v) for name, v in chosen.items()}
        place = ["--data-dir", str(settings.data_dir), "--model", str(settings.model)]
        self.errors = settings.data_dir.parent / "errors.txt"
        with self.errors.open("ab") as errors:
            self.process = CommandProcess(
                ["receive", "--port", "0", "--json", *place],
                env={**os.environ, "OMP_NUM_THREADS": "1", "PRECEDENT_INDEXING__READERS": "1"}
                | named,
                stderr=errors,
            )
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        assert first, self.errors.read_text()
        self.told = json.loads(first)
        self.port: int = self.told["port"]
        self.rounds: list[dict[str, Any]] = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.rounds.append(json.loads(line))

    @property
    def indexed(self) -> int:
        """Instances, by what it has said so far."""
        return sum(told["indexed"] for told in self.rounds)

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code, when it has ended by itself."""
        self.process.send_signal(how)
        code = self.process.wait(PATIENCE_SECONDS)
        self._reading.join(PATIENCE_SECONDS)
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reading.join(PATIENCE_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def receiving() -> Iterator[Callable[..., Receiving]]:
    started: list[Receiving] = []

    def start(*arguments: Any, **receive: Any) -> Receiving:
        started.append(Receiving(*arguments, **receive))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def settings(indexed, tmp_path: Path) -> Settings:
    """Those of an archive with nothing in it yet."""
    return Settings(
        data_dir=tmp_path / "data",
        model=indexed.settings.model,
        indexing=IndexingSettings(readers=1, batch_size=4),
    )


@pytest.fixture
def files(indexed, tmp_path: Path) -> dict[str, Path]:
    """DICOM files by SOP Instance UID: six CT slices, four MR slices."""
    folder = tmp_path / "sent"
    folder.mkdir()
    sent = {}
    for path in [*indexed.files["ct"], *indexed.files["mr"]]:
        uid = str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)
        sent[uid] = Path(shutil.copy(path, folder / f"{uid}.dcm"))
    return sent


@pytest.fixture
def many(files: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """More of them, by SOP Instance UID: 120 slices that differ."""
    folder = tmp_path / "many"
    folder.mkdir()
    made = {}
    sources = [pydicom.dcmread(path) for path in files.values()]
    for number in range(120):
        one = slice_like(sources[number % len(sources)], number)
        path = folder / f"{number:03}.dcm"
        one.save_as(path, enforce_file_format=True)
        made[str(one.SOPInstanceUID)] = path
    return made


def slice_like(source: Dataset, number: int) -> Dataset:
    one = pydicom.dcmread(source.filename)
    one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"1.2.9.{number}"
    one.PixelData = np.roll(source.pixel_array, 3 * number + 1, axis=1).tobytes()
    return one


def push(tool: str, port: int, *arguments: object, title: str = "PACS") -> list[str]:
    command = [dcmtk(tool), "-v", "-aet", title, "-aec", "PRECEDENT", LOCAL, str(port)]
    return [*command, *map(str, arguments)]


def pushed(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        push(*arguments, **options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_SECONDS,
    )


def until(true: Callable[[], Any], said: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline, said()
        time.sleep(0.02)


def received(settings: Settings) -> dict[str, Path]:
    """The files in the inbox, by SOP Instance UID."""
    return {path.stem: path for path in (settings.data_dir / "received").glob("*/*/*.dcm")}


def sops(settings: Settings) -> list[str | None]:
    """Of all points in the index."""
    with Archive(settings) as archive:
        return sorted(str(point.record.sop) for point in archive.store.scroll(Filter()))


def search(settings: Settings, *images: Path) -> list[dict[str, Any]]:
    place = ["--data-dir", settings.data_dir, "--model", settings.model]
    arguments = ["search", *images, "--json", "-k", "3", *place]
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.output.splitlines()]


@pytest.mark.slow
def test_what_is_pushed_by_those_who_may_is_found_by_search(receiving, settings, files):
    running = receiving(settings)
    assert running.told == {"ae_title": "PRECEDENT", "host": LOCAL, "port": running.port}
    for tool in ("storescu", "dcmsend"):
        done = pushed(tool, running.port, *files.values(), title="OTHER")
        assert done.returncode != 0
        assert "Association Rejected" in done.stdout
    assert not received(settings)
    uids = list(files)
    done = pushed("storescu", running.port, *(files[uid] for uid in uids[:6]))
    assert done.returncode == 0, done.stdout
    done = pushed("dcmsend", running.port, *(files[uid] for uid in uids[6:]))
    assert done.returncode == 0, done.stdout
    # While it runs, not only when it ends.
    until(lambda: running.indexed == len(files), running.errors.read_text)
    assert running.end() == 0
    said = running.errors.read_text().splitlines()
    rejected, taken = said[:2], said[2:]
    assert all("'OTHER' is not among receive.allowed_ae_titles" in line for line in rejected)
    assert [re.findall(r"(\d+) instances taken, 0 refused", line) for line in taken] == [
        ["6"],
        [str(len(files) - 6)],
    ]
    assert all(not told["refused"] for told in running.rounds)
    assert sops(settings) == sorted(files)
    kept = received(settings)
    assert kept.keys() == files.keys()
    for uid, document in zip(uids, search(settings, *files.values()), strict=True):
        first = document["hits"][0]
        assert first["sop"] == uid
        assert first["path"] == str(kept[uid])
        assert first["similarity"] > 0.999


@pytest.mark.slow
def test_files_that_are_not_kept_go_when_they_are_indexed(receiving, settings, files):
    running = receiving(settings, keep="false")
    report = files["1.2.3.0"].with_name("text.dcm")
    text = slice_like(pydicom.dcmread(files["1.2.3.0"]), 500)
    del text.PixelData
    text.save_as(report, enforce_file_format=True)
    assert pushed("storescu", running.port, *files.values(), report).returncode == 0
    assert running.end() == 0
    # Refused ones stay, for people to look at.
    assert received(settings).keys() == {"1.2.9.500"}
    assert sops(settings) == sorted(files)


@pytest.mark.slow
def test_a_stop_in_the_middle_of_a_push_loses_nothing(receiving, settings, many):
    running = receiving(settings, batch=15)
    command = push("storescu", running.port, *many.values())
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as sender:
        until(lambda: len(received(settings)) >= 20, running.errors.read_text)
        assert sender.poll() is None
        assert running.end() == 0
        # Its association was let go on to its end.
        assert sender.wait(PATIENCE_SECONDS) == 0
    assert running.indexed == len(many)
    assert received(settings).keys() == many.keys()
    assert sops(settings) == sorted(many)


@pytest.mark.slow
def test_what_was_acknowledged_before_a_power_cut_is_indexed_after(receiving, settings, many):
    running = receiving(settings, batch=15)
    association = AE("PACS").associate(
        LOCAL, running.port, [build_context(CT)], ae_title="PRECEDENT"
    )
    connection = association.dul.socket.socket
    acknowledged = set()
    paths = iter(many.items())
    for uid, path in paths:
        if association.send_c_store(path).Status == 0:
            acknowledged.add(uid)
        if len(acknowledged) == 40:
            break
    killer = threading.Timer(0, running.process.kill)
    killer.start()
    for uid, path in paths:
        try:
            answer = association.send_c_store(path)
        except RuntimeError:  # the association is gone
            break
        if answer.get("Status") == 0:
            acknowledged.add(uid)
    killer.join()
    association.abort()
    connection.close()
    assert 40 <= len(acknowledged) < len(many)
    there = received(settings).keys()
    assert acknowledged <= there
    again = receiving(settings)
    assert not list((settings.data_dir / "received" / "incoming").iterdir())
    # The sender comes back with the rest.
    rest = [path for uid, path in many.items() if uid not in acknowledged]
    assert pushed("storescu", again.port, *rest).returncode == 0
    assert again.end() == 0
    assert sops(settings) == sorted(many)


def test_without_senders_it_says_how_to_name_them(settings):
    place = ["--data-dir", settings.data_dir, "--model", settings.model]
    result = CliRunner().invoke(app, [*map(str, ["receive", "--port", 0, *place])])
    assert isinstance(result.exception, SettingsError)
    assert "PRECEDENT_RECEIVE__ALLOWED_AE_TITLES" in str(result.exception)
    assert not settings.data_dir.exists()
