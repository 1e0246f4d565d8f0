"""Single timed runs for the indexing benchmark: the command, each of its stages alone, workers."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from qdrant_client import QdrantClient

from engine.errors import ImageRefused
from engine.model.encoder import Encoder
from engine.settings import Settings
from indexer.datadir.models import model_directory
from indexer.imaging.prepare import Prepared
from indexer.pipeline.file_reader import FileReader

__all__ = ["Alone", "Peaks", "Run", "TaskSpan", "index", "link", "pace", "workers"]

_MIB = 1024**2
_SAMPLE_SECONDS = 0.1
_CHILDREN_EVERY = 10  # samples: listing the processes of a machine takes milliseconds
_CHUNKS_A_WORKER = 8
_LOGGED = re.compile(r"job (\d+), task (-?\d+): (begun|[\d.]+ s$)")


@dataclass(frozen=True, slots=True)
class Run:
    """The result of one run of `precedent index`.

    Peaks are those of resident memory, in MiB; anonymous: memory of the main process that is not
    mapped from files; readers: of all reader processes together.
    """

    instances_per_second: float
    stage_seconds: dict[str, float]
    main_mib: float
    anonymous_mib: float
    readers_mib: float


def link(files: Sequence[Path], folder: Path) -> None:
    """Makes a folder of links to ``files``, in their order."""
    folder.mkdir()
    for number, path in enumerate(files):
        (folder / f"{number:06d}{path.suffix}").symlink_to(path.resolve())


def index(
    files: Sequence[Path],
    place: Path,
    settings: Mapping[str, object] | None = None,
    cores: Sequence[int] | None = None,
) -> Run:
    """Runs the command once over a folder of links to ``files``.

    Earlier writes are synced to disk before it starts. Its data folder is left in ``place``: on
    ext4, creating files is several times slower for minutes after many have been deleted, which
    would slow down the next run.

    Args:
        place: a folder that the caller deletes after the last run.
        settings: further settings, as names of ``PRECEDENT_…`` variables without that prefix.
        cores: cores of this machine that it may use; None = those of this process.

    Raises:
        SystemExit: the run failed, or a file did not become a point.
    """
    scratch = Path(tempfile.mkdtemp(dir=place))
    folder = scratch / "archive"
    link(files, folder)
    command = [*_PRECEDENT, "index", str(folder), "--json"]
    command += ["--data-dir", str(scratch / "data")]
    os.sync()
    with psutil.Popen(command, stdout=subprocess.PIPE, env=_environment(settings or {})) as process:
        if cores is not None:
            process.cpu_affinity(list(cores))
        peaks = Peaks(process)
        while process.poll() is None:
            peaks.sample()
            time.sleep(_SAMPLE_SECONDS)
        written = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"`precedent index` ended with exit status {process.returncode}")
    report = json.loads(written)
    if report["indexed"] != len(files) or report["points"] != len(files):
        raise SystemExit(f"not every one of {len(files)} files became a point: {report}")
    return Run(
        len(files) / report["seconds"],
        report["stage_seconds"],
        peaks.main / _MIB,
        peaks.anonymous / _MIB,
        sum(peaks.readers.values()) / _MIB,
    )


_PRECEDENT = (sys.executable, "-m", "api")


def _environment(settings: Mapping[str, object]) -> dict[str, str]:
    return {**os.environ, **{f"PRECEDENT_{name}": str(value) for name, value in settings.items()}}


class Peaks:
    """The peaks of resident memory, in bytes, of a process and of each of its readers so far.

    Readers are the child processes that run the same Python.
    """

    def __init__(self, process: psutil.Popen) -> None:
        self.main = self.anonymous = 0
        self.readers: dict[int, int] = {}
        self._process = process
        # The system's answer would be empty until the process has executed its program.
        self._command = list(process.args)
        self._children: list[psutil.Process] = []
        self._samples = 0

    def sample(self) -> None:
        with suppress(psutil.Error, OSError):
            if not self.readers or self._samples % _CHILDREN_EVERY == 0:
                self._children = self._process.children()
            self._samples += 1
            resident, anonymous = _memory(self._process)
            self.main = max(self.main, resident)
            self.anonymous = max(self.anonymous, anonymous)
        for child in self._children:
            with suppress(psutil.Error, OSError):
                # A child that has only been forked still has its parent's command line and memory.
                command = child.cmdline()
                if command == self._command or command[:1] != self._command[:1]:
                    continue
                resident, _ = _memory(child)
                self.readers[child.pid] = max(self.readers.get(child.pid, 0), resident)


def _memory(process: psutil.Process) -> tuple[int, int]:
    """Resident bytes (the peak so far, if the system records it) and anonymous bytes now."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except FileNotFoundError:
        resident = process.memory_info().rss
        return resident, resident
    said = dict(line.split(":", 1) for line in lines)
    if "VmHWM" not in said:  # a zombie: the process has ended
        return 0, 0
    return 1024 * int(said["VmHWM"].split()[0]), 1024 * int(said["RssAnon"].split()[0])


class Alone:
    """Times the stages of indexing one by one, with the processes and threads of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._encoder = Encoder.load(
            model_directory(settings),
            device=settings.device,
            precision=settings.precision,
            batch_size=settings.indexing.batch_size,
        )

    def decode(self, files: Sequence[Path]) -> float:
        """Files per second of the reader processes, including their start; results are dropped."""
        started = time.perf_counter()
        for _ in self._read(files):
            pass
        return len(files) / (time.perf_counter() - started)

    def canvases(self, files: Sequence[Path]) -> list[NDArray[np.uint8]]:
        """The canvas of each file."""
        return [one.pictures[0].canvas for one in self._read(files)]

    def encode(self, canvases: Sequence[NDArray[np.uint8]], count: int) -> float:
        """Images per second of the model on ``count`` canvases in memory.

        As many batches are encoded at once as in the pipeline; canvases are repeated as needed.
        """
        size = self._settings.indexing.batch_size
        every = list(islice(cycle(canvases), count))
        batches = [every[start : start + size] for start in range(0, count, size)]
        encoders = self._settings.indexing.encoders
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(encoders, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(self._encoder.encode, batches[:1] * (2 * encoders)))
            started = time.perf_counter()
            encoded = sum(len(one.codes) for one in pool.map(self._encoder.encode, batches))
            seconds = time.perf_counter() - started
        torch.set_num_threads(threads)
        if encoded != count:
            raise SystemExit(f"{encoded} of {count} images were encoded")
        return count / seconds

    def _read(self, files: Sequence[Path]) -> Iterator[Prepared]:
        with FileReader(
            self._settings,
            self._encoder.manifest.preprocess,
            bytes(32),
            frames=1,
            processes=self._settings.indexing.readers,
        ) as reader:
            count = 0
            for result in reader.read(files):
                if isinstance(result, ImageRefused):
                    raise SystemExit(f"a file of the benchmark was refused: {result}")
                count += 1
                yield result
        if count != len(files):
            raise SystemExit(f"{count} of {len(files)} files were read")


@dataclass(frozen=True, slots=True)
class TaskSpan:
    """When a worker processed a chunk, and how many instances it had; seconds of one clock."""

    worker: int
    begun: float
    ended: float
    instances: int


def workers(
    files: Sequence[Path], count: int, server: str, settings: Mapping[str, object] | None = None
) -> float:
    """Instances per second of ``count`` workers on one job, in a new collection of the server.

    Each worker has one reader and one encoder. The collection is deleted afterwards.

    Raises:
        SystemExit: a worker failed, or a file did not become a point.
    """
    collection = f"bench-{uuid.uuid4().hex}"
    chunk = max(1, -(-len(files) // (_CHUNKS_A_WORKER * count)))
    environment = _environment(
        {
            "STORE__URL": server,
            "STORE__COLLECTION": collection,
            "JOBS__CHUNK": chunk,
            "INDEXING__READERS": 1,
            "INDEXING__ENCODERS": 1,
            **(settings or {}),
        }
    )
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "archive"
            link(files, folder)
            place = ["--data-dir", str(Path(scratch) / "data")]
            job = _told("jobs", "submit", str(folder), *place, env=environment)["job"]
            command = [*_PRECEDENT, "worker", "--until-idle", *place]
            started = [
                subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
                for _ in range(count)
            ]
            with ThreadPoolExecutor(count) as pool:
                spans = [
                    span for found in pool.map(_spans, range(count), started) for span in found
                ]
            shown = _told("jobs", "show", str(job), *place, env=environment)
    finally:
        _drop(server, collection)
    if any(worker.returncode for worker in started):
        raise SystemExit("a worker failed; what it wrote is above")
    if shown["state"] != "finished" or shown["points"] != len(files):
        raise SystemExit(f"not every one of {len(files)} files became a point: {shown}")
    sizes = dict.fromkeys(range(1, len(files) // chunk + 1), chunk)
    if len(files) % chunk:
        sizes[len(sizes) + 1] = len(files) % chunk
    chunks = [TaskSpan(w, begun, ended, sizes[n]) for w, n, begun, ended in spans if n > 0]
    if len({span.worker for span in chunks}) < count:
        raise SystemExit(f"not all of {count} workers had work; take more files")
    return pace(chunks)


def pace(spans: Sequence[TaskSpan]) -> float:
    """Instances per second, from the moment when all workers have finished a first chunk.

    Of a chunk in progress at that moment, the share of its time after it is counted.
    """
    firsts: dict[int, float] = {}
    for span in spans:
        firsts[span.worker] = min(firsts.get(span.worker, span.ended), span.ended)
    since, until = max(firsts.values()), max(span.ended for span in spans)
    if until <= since:
        raise SystemExit("each worker had one chunk only; take more files")
    done = sum(
        span.instances * max(0.0, span.ended - max(since, span.begun)) / (span.ended - span.begun)
        for span in spans
    )
    return done / (until - since)


def _spans(worker: int, process: "subprocess.Popen[str]") -> list[tuple[int, int, float, float]]:
    """(worker, task, begun, ended) of each task in the log of a worker, while it is written."""
    begun: dict[int, float] = {}
    found = []
    for line in process.stderr or ():
        now = time.monotonic()
        said = _LOGGED.search(line.rstrip())
        if said is None:
            sys.stderr.write(line)
        elif said[3] == "begun":
            begun[int(said[2])] = now
        else:
            found.append((worker, int(said[2]), begun[int(said[2])], now))
    process.wait()
    return found


def _told(*command: str, env: Mapping[str, str]) -> dict[str, Any]:
    """Runs a command with --json and returns its parsed output."""
    done = subprocess.run(
        [*_PRECEDENT, *command, "--json"], stdout=subprocess.PIPE, env=dict(env), check=True
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _drop(server: str, collection: str) -> None:
    key = os.environ.get("PRECEDENT_STORE__API_KEY")
    client = QdrantClient(url=server, api_key=key)
    try:
        client.delete_collection(collection)
    finally:
        client.close()
