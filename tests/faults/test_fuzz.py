"""Thousands of damaged files: each is read or refused, in time, in bounds and in silence."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil
import pytest
from mutations import TOKEN, mutants, whole_files

from engine.errors import ImageRefused, RefusalReason
from engine.model.preprocess import Preprocess
from engine.settings import IndexingSettings, Settings
from indexer.file_reader import FileReader
from indexer.imaging.prepare import Prepared

SECONDS = 5.0
MEMORY = 1024**3
# For a process that is started anew, on a busy machine.
SLACK = 30.0
_POLL_SECONDS = 0.05
SETTINGS = Settings(indexing=IndexingSettings(reader_seconds=SECONDS, reader_memory_bytes=MEMORY))


class _Watch:
    """Watches the processes that this one starts, and notes the most memory any of them had."""

    def __init__(self) -> None:
        self._before = set(psutil.Process().children())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.most = 0

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            for process in set(psutil.Process().children()) - self._before:
                try:
                    # Address space: what the limit is on, and never less than what is resident.
                    self.most = max(self.most, process.memory_info().vms)
                except psutil.NoSuchProcess:
                    continue


@dataclass
class _Fates:
    """What became of damaged files: counts by reason, or "read"; the longest wait for one."""

    counts: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0
    memory: int = 0
    seconds: float = 0.0
    told: list[str] = field(default_factory=list)


def _read(contents: Iterator[bytes]) -> _Fates:
    fates = _Fates()
    with (
        _Watch() as watch,
        FileReader(SETTINGS, Preprocess(), b"key", frames=4, processes=2) as reader,
    ):
        last = started = time.monotonic()
        for result in reader.read(contents):
            now = time.monotonic()
            fates.longest, last = max(fates.longest, now - last), now
            if isinstance(result, ImageRefused):
                assert result.reason in set(RefusalReason)
                fates.counts[result.reason.value] += 1
                fates.told.append(str(result))
            else:
                assert isinstance(result, Prepared)
                assert result.pictures
                fates.counts["read"] += 1
        fates.seconds = time.monotonic() - started
    fates.memory = watch.most
    return fates


def _check(count: int, seed: int, caplog, capfd) -> _Fates:
    caplog.set_level(logging.DEBUG)
    damaged = mutants(whole_files(), count, seed)
    # What building the files said is not what reading them says.
    capfd.readouterr()
    caplog.clear()
    fates = _read(content for _, content in damaged)
    said = "\n".join([*fates.told, caplog.text, *capfd.readouterr()])
    assert fates.counts.total() == count
    assert fates.longest < SECONDS + SLACK
    assert 0 < fates.memory <= MEMORY
    # Nor part of it: a length may end in the middle of a name.
    assert TOKEN[:6] not in said
    assert "Traceback" not in said
    return fates


def test_the_whole_files_say_what_they_are_and_name_nobody(capfd):
    files = whole_files()
    named = [content for content in files.values() if TOKEN[:6].encode() in content]
    assert len(named) > 45
    capfd.readouterr()
    with FileReader(SETTINGS, Preprocess(), b"key", frames=4, processes=2) as reader:
        results = dict(zip(files, reader.read(files.values()), strict=True))
    refused = {name: one for name, one in results.items() if isinstance(one, ImageRefused)}
    assert {one.reason.value for one in refused.values()} <= {
        "no-pixels",
        "damaged",
        "unsupported-transfer-syntax",
    }
    assert len(files) - len(refused) >= 50
    said = "\n".join([*map(str, refused.values()), *capfd.readouterr()])
    assert TOKEN[:6] not in said
    kept = "\n".join(repr(one.record) for one in results.values() if isinstance(one, Prepared))
    assert TOKEN[:6] not in kept


def test_a_few_hundred_damaged_files(caplog, capfd):
    fates = _check(300, 17, caplog, capfd)
    # The damage is neither nothing nor everything.
    assert fates.counts["read"] > 30
    assert len(fates.counts) >= 5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_damaged_files(caplog, capfd):
    fates = _check(10_000, 4, caplog, capfd)
    with capfd.disabled():
        rate = fates.counts.total() / fates.seconds
        print(f"\n{rate:.0f} files/s, {fates.memory / 2**20:.0f} MiB at most, {fates.counts}")
    assert fates.counts["read"] > 1000
    # They cost a process each, and one file in a thousand is already many.
    lost = fates.counts["too-slow"] + fates.counts["reader-died"]
    assert lost <= 10
