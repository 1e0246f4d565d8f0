"""Thousands of damaged files: each is read or refused, in time, in bounds and in silence.

They are indexed as anyone would index them, and each is accounted for.
"""

import logging
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import torch
from mutations import SAMPLES, TOKEN, archive_mutants, mutants, whole_files
from sqlalchemy import select

from engine.errors import ImageRefused, RefusalReason
from engine.model.checkpoint import save_checkpoint
from engine.model.config import small_network
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess
from engine.settings import IndexingSettings, Settings
from engine.store.base import Filter
from indexer.archive import Archive
from indexer.files.locators import Image, shown
from indexer.imaging.prepare import Prepared
from indexer.ledger.database import open_database
from indexer.ledger.schema import instances, points
from indexer.pipeline.file_reader import FileReader
from indexer.pipeline.run import IndexingReport
from indexer.sources.folder import FolderSource

pytestmark = pytest.mark.usefixtures("own_readers")

SECONDS = 5.0
MEMORY = 1024**3
# For a process that is started anew, on a busy machine.
SLACK = 30.0
_POLL_SECONDS = 0.05
_AT_ONCE = 2000
# What this process may take besides what it had: queues, and the first time round buffers.
_OWN_MEMORY = 400 * 1024**2


class _Watch:
    """Notes the most memory that this process, and any that it starts, had meanwhile."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._before = set(self._process.children())
        self._started_with = self._private()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.most = 0
        self.grown = 0

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _private(self) -> int:
        # Without pages of files: those of the index count as long as nobody else wants memory.
        memory = self._process.memory_info()
        return int(memory.rss - memory.shared)

    def _look(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            self.grown = max(self.grown, self._private() - self._started_with)
            for process in set(self._process.children()) - self._before:
                try:
                    if process.cmdline() == self._process.cmdline():
                        continue  # forked, and not a reader yet: its memory is ours
                    # Address space: what the limit is on, and never less than what is resident.
                    self.most = max(self.most, process.memory_info().vms)
                except psutil.NoSuchProcess:
                    continue


class _Timed(FolderSource):
    """Notes the longest wait between two images that were asked for."""

    longest = 0.0

    def images(self, locators: Iterable[str]) -> Iterator[Image | ImageRefused]:
        last = time.monotonic()
        for image in super().images(locators):
            now = time.monotonic()
            self.longest, last = max(self.longest, now - last), now
            yield image


@dataclass
class _Fates:
    """What became of damaged files: counts by reason, or "indexed"; the longest wait for one.

    memory: of the process that took most, in bytes. grown: the same of this one, beyond what
    it began with.
    """

    counts: Counter[str] = field(default_factory=Counter)
    points: int = 0
    longest: float = 0.0
    memory: int = 0
    grown: int = 0
    seconds: float = 0.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a very small network: what is tried here is not the model."""
    torch.manual_seed(0)
    config, preprocess = small_network(0, tower="timm:test_resnet"), Preprocess(size=64)
    directory = tmp_path_factory.mktemp("model") / "model"
    network = HashingNetwork(config, preprocess).eval()
    save_checkpoint(directory, network, config, preprocess, (), {})
    return directory


@pytest.fixture
def settings(store_root: Path, model: Path, tmp_path: Path) -> Settings:
    return Settings(
        data_dir=store_root / tmp_path.name,
        model=model,
        indexing=IndexingSettings(
            reader_seconds=SECONDS,
            reader_memory_bytes=MEMORY,
            readers=2,
            encoders=1,
            frames_per_instance=4,
            take_derived=True,
        ),
    )


def _written(content: Iterable[tuple[str, bytes]], folder: Path, *, packed: bool) -> int:
    """Writes files into a folder, or into a zip archive in it; returns how many."""
    folder.mkdir()
    count = 0
    if packed:
        with zipfile.ZipFile(folder / "files.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for count, (name, data) in enumerate(content, 1):
                archive.writestr(f"{count:05}/{name}", data)
        return count
    for count, (name, data) in enumerate(content, 1):
        (folder / f"{count:05} {Path(name).name}").write_bytes(data)
    return count


def _index(archive: Archive, folder: Path, count: int, fates: _Fates) -> IndexingReport:
    """Indexes a folder of ``count`` files and adds up what the report says."""
    source = _Timed([folder])
    with _Watch() as watch:
        report = archive.index(source)
    assert report.unchanged == 0
    assert report.indexed + sum(report.refused.values()) == count
    assert set(report.refused) <= set(RefusalReason)
    fates.counts.update({"indexed": report.indexed, **report.refused})
    fates.points += report.points
    fates.longest = max(fates.longest, source.longest)
    fates.memory = max(fates.memory, watch.most)
    fates.grown = max(fates.grown, watch.grown)
    fates.seconds += report.seconds
    return report


def _accounted(settings: Settings, archive: Archive, fates: _Fates) -> str:
    """Holds ledger, index and thumbnails against the counts; returns what the ledger says of
    refused files, and what the index keeps."""
    c = instances.c
    with (
        open_database(settings, archive.data_dir.ledger) as database,
        database.begin(read=True) as connection,
    ):
        rows = connection.execute(select(c.locator, c.state, c.reason, c.detail)).all()
        ids = connection.execute(select(points.c.locator, points.c.id)).all()
    found = Counter(row.reason if row.state == "refused" else row.state for row in rows)
    found["indexed"] = found.pop("done", 0)
    assert found == fates.counts
    assert {row.locator for row in ids} == {row.locator for row in rows if row.state == "done"}
    stored = list(archive.store.scroll(Filter()))
    assert {point.id for point in stored} == {row.id for row in ids}
    thumbnails = {path.stem for path in archive.data_dir.thumbnails.rglob("*.jpg")}
    assert thumbnails == {row.id for row in ids}
    assert len(stored) == fates.points
    return "\n".join([*(str(row.detail) for row in rows), *(repr(p.record) for p in stored)])


def _check(count: int, seed: int, settings: Settings, files: Path, caplog, capfd) -> _Fates:
    caplog.set_level(logging.DEBUG)
    damaged = mutants(whole_files(), count, seed)
    fates = _Fates()
    with Archive(settings, create=True) as archive:
        # What building the files said is not what reading them says.
        capfd.readouterr()
        caplog.clear()
        said: list[str] = []
        for number, start in enumerate(range(0, count, _AT_ONCE)):
            some = (next(damaged) for _ in range(min(_AT_ONCE, count - start)))
            folder = files / str(number)
            written = _written(some, folder, packed=number % 2 == 1)
            _index(archive, folder, written, fates)
        said.append(_accounted(settings, archive, fates))
    said += [caplog.text, *capfd.readouterr()]
    assert fates.counts.total() == count
    assert fates.longest < SECONDS + SLACK
    assert 0 < fates.memory <= MEMORY
    assert fates.grown <= _OWN_MEMORY
    # Nor part of it: a length may end in the middle of a name.
    assert TOKEN[:6] not in "\n".join(said)
    assert "Traceback" not in "\n".join(said)
    return fates


def _check_archives(
    count: int, seed: int, settings: Settings, files: Path, caplog, capfd
) -> _Fates:
    """Every archive has its pictures in the ledger, or itself."""
    caplog.set_level(logging.DEBUG)
    _written(archive_mutants(count, seed), files, packed=False)
    source, fates = _Timed([files]), _Fates()
    capfd.readouterr()
    with Archive(settings, create=True) as archive:
        with _Watch() as watch:
            report = archive.index(source)
        assert set(report.refused) <= set(RefusalReason)
        fates.counts.update({"indexed": report.indexed, **report.refused})
        fates.points, fates.seconds = report.points, report.seconds
        c = instances.c
        with (
            open_database(settings, archive.data_dir.ledger) as database,
            database.begin(read=True) as connection,
        ):
            rows = connection.execute(select(c.locator, c.detail)).all()
    assert len(rows) == fates.counts.total()
    named = {Path(shown(row.locator).split("!")[0]).name for row in rows}
    assert named >= {path.name for path in files.iterdir()}
    assert source.longest < SECONDS + SLACK
    assert 0 < watch.most <= MEMORY
    assert watch.grown <= _OWN_MEMORY
    assert fates.counts["indexed"] > count // 3
    said = "\n".join([*(str(row.detail) for row in rows), *capfd.readouterr()])
    assert TOKEN[:6] not in said
    assert "Traceback" not in said + caplog.text
    return fates


@pytest.mark.slow
def test_the_whole_files_say_what_they_are_and_name_nobody(settings, capfd):
    files = whole_files()
    named = [content for content in files.values() if TOKEN[:6].encode() in content]
    assert len(named) > 45
    capfd.readouterr()
    with FileReader(settings, Preprocess(), b"key", frames=4, processes=2) as reader:
        results = dict(zip(files, reader.read(files.values()), strict=True))
    refused = {name: one for name, one in results.items() if isinstance(one, ImageRefused)}
    assert {one.reason.value for one in refused.values()} <= {
        "no-pixels",
        "not-a-picture",
        "damaged",
    }
    assert len(files) - len(refused) >= 50
    said = "\n".join([*map(str, refused.values()), *capfd.readouterr()])
    assert TOKEN[:6] not in said
    kept = "\n".join(repr(one.record) for one in results.values() if isinstance(one, Prepared))
    assert TOKEN[:6] not in kept


@pytest.mark.slow
def test_all_of_pydicoms_files(settings, capfd):
    """Of many makers and some of them wrong on purpose; not all of them are images."""
    count = sum(path.is_file() for path in SAMPLES.rglob("*"))
    fates = _Fates()
    with Archive(settings, create=True) as archive:
        capfd.readouterr()
        _index(archive, SAMPLES, count, fates)
        _accounted(settings, archive, fates)
    assert count > 150
    assert fates.counts["indexed"] > 60
    assert not {"too-slow", "reader-died"} & set(fates.counts)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_few_hundred_damaged_files(settings, tmp_path, caplog, capfd):
    fates = _check(300, 17, settings, tmp_path, caplog, capfd)
    # The damage is neither nothing nor everything.
    assert fates.counts["indexed"] > 30
    assert len(fates.counts) >= 5


@pytest.mark.slow
def test_hundreds_of_damaged_archives(settings, tmp_path, caplog, capfd):
    _check_archives(300, 9, settings, tmp_path / "files", caplog, capfd)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_thousand_damaged_files(settings, tmp_path, caplog, capfd):
    """In folders and in zip archives."""
    fates = _check(10_000, 4, settings, tmp_path, caplog, capfd)
    with capfd.disabled():
        rate = fates.counts.total() / fates.seconds
        memory, grown = fates.memory / 2**20, fates.grown / 2**20
        print(f"\n{rate:.0f} files/s, {memory:.0f} MiB at most, {grown:.0f} here, {fates.counts}")
    assert fates.counts["indexed"] > 1000
    # They cost a process each, and one file in a thousand is already many.
    lost = fates.counts["too-slow"] + fates.counts["reader-died"]
    assert lost <= 10
