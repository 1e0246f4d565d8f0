"""Indexing benchmark: speed by format, scaling, memory, and clip-retrieval on the same files.

    python -m bench.indexing FOLDER [--counts 1000] [--memory 1000 20000] [--repeats 3]
        [--parts formats scaling memory] [--rival PYTHON] [--server URL]

FOLDER has grey pictures (PNG, JPEG), of which archives are made in a temporary folder (see
``bench.index_formats``; 1,000 files of each format take 1.5 GB). Rounds are interleaved, and ratios
are formed within a round; tables show medians over the rounds. A first round is not counted. If a
file does not become a point of its own, the benchmark fails. ``PRECEDENT_…`` settings apply to all
measurements.

Times include the start of the reader processes, but not loading the model or opening the index.

``bench/results/indexing.json``:

rows: for each format and count, in instances per second: ``instances_per_second`` of `precedent
    index` in a process of its own; ``decode_alone_per_second`` of the same reader processes, whose
    results are dropped; ``encode_alone_per_second`` of the network on pictures in memory.
    ``share_of_slower``: end to end relative to the slower of the two. ``share_of_both_in_turn``:
    relative to reading everything first and then encoding it, each on all cores, which is the best
    possible on a machine without a GPU. ``stage_seconds`` are those of the median round. When all
    formats were measured, `precedent plan` uses the last row of each (``api/measured.json``).
scaling: readers and encoders, one of each and two, and one of each on a single core.
workers: with --server, workers (`precedent worker`) on one job, with one reader and one encoder
    each. They need a common Qdrant server, as only one process can open an embedded index. If there
    is none, tests/contract/stand_in.py can take its place; ``store`` must say so. The time before
    all of them have finished a first chunk, in which they load the model, is not counted.
memory: peaks in MiB of the main process (``anonymous``: memory not mapped from files) and of all
    readers together, by count; the largest over the rounds. ``growth``: the last over the first.
rival: clip-retrieval, see ``bench.index_rival``; on JPEG files, which it can read.
"""

import argparse
import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.index_formats import DISTINCT, FORMATS, SIDE, SPOKEN, write_archive
from bench.index_rival import run_rival
from bench.index_runs import Alone, Run, index, workers
from bench.machine import machine, remember, write_results
from engine.settings import Settings, load_settings
from indexer.datadir.models import model_directory

_WARM = 64  # files of the round that is not counted
_CANVASES = 256
_PLAIN = "DICOM, uncompressed"
_RESULTS = "indexing"
_PARTS = ("formats", "scaling", "memory")
_RASTER = "JPEG"
_TARGET_SHARE, _TARGET_GROWTH = 0.8, 0.1
_SERVER = "PRECEDENT_TEST_QDRANT_URL"
_LIBRARIES = (
    *("pydicom", "pylibjpeg-openjpeg", "pylibjpeg-rle", "pyjpegls", "pillow", "numpy"),
    *("timm", "qdrant-edge-py", "sqlalchemy"),
)


@dataclass(frozen=True, slots=True)
class Round:
    """The results of one round for a format, in instances per second."""

    run: Run
    decode: float
    encode: float
    rival: float | None = None

    @property
    def share_of_slower(self) -> float:
        return self.run.instances_per_second / min(self.decode, self.encode)

    @property
    def share_of_both_in_turn(self) -> float:
        return self.run.instances_per_second * (1 / self.decode + 1 / self.encode)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="grey pictures, PNG or JPEG")
    parser.add_argument("--counts", type=int, nargs="+", default=[1000], help="files a format")
    parser.add_argument("--memory", type=int, nargs="+", default=[1000, 20_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--formats", choices=FORMATS, nargs="+", default=list(FORMATS))
    parser.add_argument("--parts", choices=_PARTS, nargs="*", default=list(_PARTS))
    parser.add_argument("--rival", type=Path, help="a Python that has clip-retrieval")
    parser.add_argument("--server", default=os.environ.get(_SERVER), help="a Qdrant server")
    parser.add_argument("--server-name", default="Qdrant", help="what to call the server")
    parser.add_argument("--results", default=_RESULTS, help="name of the file of figures")
    arguments = parser.parse_args()
    if arguments.rival and _RASTER not in arguments.formats:
        parser.error(f"clip-retrieval reads no DICOM; add {_RASTER!r} to --formats")
    pictures = sorted(path for path in arguments.folder.rglob("*") if path.is_file())
    if not pictures:
        parser.error(f"{arguments.folder} has no files")
    settings = load_settings()
    with tempfile.TemporaryDirectory() as scratch:
        figures = {
            "measured_with": measured_with(settings, arguments.repeats),
            **measure(arguments, settings, pictures, Path(scratch)),
        }
    show(Console(width=170), figures)
    print(write_results(arguments.results, figures))
    whole = {one["format"] for one in figures.get("rows", ())} == set(FORMATS)
    if whole and arguments.results == _RESULTS:
        print(remember(indexing=planned(figures["rows"])))


def planned(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures that ``precedent plan`` uses: the last row of each format."""
    on = machine()
    return {
        "machine": f"{on['cores']} cores, {on['cpu']}",
        "pixels": f"{SIDE} × {SIDE}",
        "formats": {
            SPOKEN[one["format"]]: {
                "per_second": one["instances_per_second"],
                "kib_a_file": one["kib_a_file"],
            }
            for one in rows
        },
    }


def measured_with(settings: Settings, repeats: int) -> dict[str, Any]:
    return {
        "repeats": repeats,
        "pixels": f"{SIDE} × {SIDE}",
        "distinct_pictures": DISTINCT,
        "readers": settings.indexing.readers,
        "encoders": settings.indexing.encoders,
        "batch_size": settings.indexing.batch_size,
        "device": settings.device,
        "precision": settings.precision,
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


def measure(
    arguments: argparse.Namespace, settings: Settings, pictures: Sequence[Path], scratch: Path
) -> dict[str, Any]:
    """Measures the parts asked for, one after another; the module's docstring lists the results."""
    most = max(arguments.counts)
    archives = {}
    for number, name in enumerate(arguments.formats):
        say(f"writing {most:,} files: {name}")
        archives[name] = write_archive(scratch / str(number), name, pictures, most)
    figures: dict[str, Any] = {}
    if "formats" in arguments.parts:
        figures |= formats(arguments, settings, archives, scratch)
    plain = archives[_PLAIN if _PLAIN in archives else arguments.formats[-1]]
    if "scaling" in arguments.parts:
        figures["scaling"] = scaling(plain, arguments.repeats, scratch)
    if arguments.server:
        found = shared(plain, arguments.server, arguments.repeats)
        figures["workers"] = {"store": arguments.server_name, "rows": found}
    if "memory" in arguments.parts:
        say(f"writing {max(arguments.memory):,} small files")
        small = write_archive(scratch / "small", _PLAIN, pictures, max(arguments.memory), side=None)
        figures["memory"] = memory(small, arguments.memory, arguments.repeats, scratch)
    return figures


def formats(
    arguments: argparse.Namespace,
    settings: Settings,
    archives: dict[str, list[Path]],
    scratch: Path,
) -> dict[str, Any]:
    """The rows by format and count, and the results of clip-retrieval in the same rounds."""
    most = max(arguments.counts)
    bench = Formats(settings, archives, scratch, arguments.rival)
    rounds: dict[tuple[str, int], list[Round]] = {}
    for repeat in range(-1, arguments.repeats):
        counts = arguments.counts if repeat >= 0 else [min(_WARM, most)]
        for count in counts:
            for name in archives:
                say(f"round {repeat + 1}, {count:,}: {name}")
                found = bench.round(name, count)
                if repeat >= 0:
                    rounds.setdefault((name, count), []).append(found)
    figures: dict[str, Any] = {
        "rows": [
            row(name, archives[name][:count], rounds[name, count])
            for count in arguments.counts
            for name in archives
        ]
    }
    if arguments.rival:
        pairs = [(one.run.instances_per_second, one.rival) for one in rounds[_RASTER, most]]
        figures["rival"] = rival(pairs, bench.rival_versions)
    return figures


class Formats:
    """Measures round after round over the same archives."""

    def __init__(
        self,
        settings: Settings,
        archives: dict[str, list[Path]],
        scratch: Path,
        python: Path | None,
    ) -> None:
        self._settings = settings
        self._scratch = scratch
        self._archives = archives
        self._python = python
        self._alone = Alone(settings)
        self._canvases = {
            name: self._alone.canvases(files[:_CANVASES]) for name, files in archives.items()
        }
        self.rival_versions: dict[str, str] = {}

    def round(self, name: str, count: int) -> Round:
        files = self._archives[name][:count]
        return Round(
            index(files, self._scratch),
            self._alone.decode(files),
            self._alone.encode(self._canvases[name], count),
            self._rival(self._python, files) if self._python and name == _RASTER else None,
        )

    def _rival(self, python: Path, files: Sequence[Path]) -> float:
        with tempfile.TemporaryDirectory() as scratch:
            found = run_rival(
                python,
                files,
                Path(scratch),
                model=model_directory(self._settings),
                readers=self._settings.indexing.readers,
                batch=self._settings.indexing.batch_size,
                device=self._settings.device,
                precision=self._settings.precision,
            )
        self.rival_versions = found["versions"]
        speed: float = found["instances_per_second"]
        return speed


def row(name: str, files: Sequence[Path], rounds: Sequence[Round]) -> dict[str, Any]:
    middle = sorted(rounds, key=lambda one: one.run.instances_per_second)[len(rounds) // 2]
    size = sum(path.stat().st_size for path in files)
    return {
        "format": name,
        "images": len(files),
        "kib_a_file": round(size / len(files) / 1024, 1),
        "instances_per_second": round(median(one.run.instances_per_second for one in rounds), 1),
        "decode_alone_per_second": round(median(one.decode for one in rounds), 1),
        "encode_alone_per_second": round(median(one.encode for one in rounds), 1),
        "share_of_slower": round(median(one.share_of_slower for one in rounds), 3),
        "share_of_both_in_turn": round(median(one.share_of_both_in_turn for one in rounds), 3),
        "main_process_mib": round(max(one.run.main_mib for one in rounds), 1),
        "readers_mib": round(max(one.run.readers_mib for one in rounds), 1),
        "stage_seconds": middle.run.stage_seconds,
        "rounds_per_second": [round(one.run.instances_per_second, 1) for one in rounds],
    }


def scaling(files: Sequence[Path], repeats: int, place: Path) -> list[dict[str, Any]]:
    """One reader and one encoder on one core, the same on all cores, and two of each."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    ways: list[tuple[int, list[int] | None]] = [(1, None), (2, None)]
    if cores:
        ways.insert(0, (1, cores[:1]))
    speeds: list[list[float]] = [[] for _ in ways]
    for repeat in range(repeats):
        for (many, allowed), found in zip(ways, speeds, strict=True):
            say(f"scaling, round {repeat + 1}: {many} of each, cores: {allowed or 'all'}")
            both = {"INDEXING__READERS": many, "INDEXING__ENCODERS": many}
            found.append(index(files, place, both, allowed).instances_per_second)
    return [
        {
            "readers_and_encoders": many,
            "cores": len(allowed or cores) or os.cpu_count(),
            "instances_per_second": round(median(found), 1),
            "times_the_first": round(_median_ratio(found, speeds[0]), 3),
        }
        for (many, allowed), found in zip(ways, speeds, strict=True)
    ]


def shared(files: Sequence[Path], server: str, repeats: int) -> list[dict[str, Any]]:
    """One worker and two on one job."""
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for repeat in range(repeats):
        for count, found in speeds.items():
            say(f"workers, round {repeat + 1}: {count}")
            found.append(workers(files, count, server))
    return [
        {
            "workers": count,
            "instances_per_second": round(median(found), 1),
            "times_the_first": round(_median_ratio(found, speeds[1]), 3),
        }
        for count, found in speeds.items()
    ]


def memory(
    files: Sequence[Path], counts: Sequence[int], repeats: int, place: Path
) -> dict[str, Any]:
    """Peaks by count, of files so small that there can be many."""
    runs: dict[int, list[Run]] = {count: [] for count in sorted(counts)}
    for repeat in range(repeats):
        for count, found in runs.items():
            say(f"memory, round {repeat + 1}: {count:,}")
            found.append(index(files[:count], place))
    rows = [
        {
            "images": count,
            "main_process_mib": round(max(run.main_mib for run in found), 1),
            "anonymous_mib": round(max(run.anonymous_mib for run in found), 1),
            "readers_mib": round(max(run.readers_mib for run in found), 1),
            "instances_per_second": round(median(run.instances_per_second for run in found), 1),
        }
        for count, found in runs.items()
    ]
    growth = {
        name: round(rows[-1][name] / rows[0][name] - 1, 4)
        for name in ("main_process_mib", "anonymous_mib", "readers_mib")
    }
    return {"rows": rows, "growth": growth, "target": _TARGET_GROWTH}


def rival(speeds: Sequence[tuple[float, float | None]], versions: dict[str, str]) -> dict[str, Any]:
    """Our results and clip-retrieval's, paired by round."""
    ours = [one for one, _ in speeds]
    theirs = [other for _, other in speeds if other is not None]
    return {
        "what": "clip-retrieval's reader, runner and writer, with our network; embeddings only",
        "versions": versions,
        "format": _RASTER,
        "precedent_per_second": round(median(ours), 1),
        "clip_retrieval_per_second": round(median(theirs), 1),
        "precedent_over_clip_retrieval": round(_median_ratio(ours, theirs), 3),
    }


def _median_ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    return median(one / other for one, other in zip(ones, others, strict=True))


def show(console: Console, figures: dict[str, Any]) -> None:
    here, how = machine(), figures["measured_with"]
    console.print(
        f"{here['cpu']}, {here['cores']} cores; Python {here['python']}, torch {here['torch']}; "
        f"{how['readers']} readers, {how['encoders']} encoders; medians of {how['repeats']} rounds"
    )
    libraries = ", ".join(f"{name} {version}" for name, version in how["libraries"].items())
    console.print(libraries, highlight=False)
    title = f"precedent index, {how['pixels']} pixels; target share of the slower: {_TARGET_SHARE}"
    if "rows" in figures:
        console.print(table(title, figures["rows"]))
    if "scaling" in figures:
        console.print(table("scaling", figures["scaling"]))
    if "workers" in figures:
        shown = figures["workers"]
        console.print(table(f"workers on one job; store: {shown['store']}", shown["rows"]))
    if "memory" in figures:
        found = figures["memory"]
        grown = ", ".join(f"{name[:-4]} {of:+.1%}" for name, of in found["growth"].items())
        title = f"memory ({grown}; target within {found['target']:.0%})"
        console.print(table(title, found["rows"]))
    if "rival" in figures:
        console.print(table(figures["rival"]["what"], [figures["rival"]]))


def table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """A table of the numbers and texts of the rows, without nested values."""
    made = Table(title=title)
    flat = [{k: v for k, v in one.items() if isinstance(v, (str, int, float))} for one in rows]
    for name, value in flat[0].items():
        made.add_column(
            name.replace("_", " "), justify="left" if isinstance(value, str) else "right"
        )
    for one in flat:
        made.add_row(*(value if isinstance(value, str) else f"{value:,}" for value in one.values()))
    return made


def say(what: str) -> None:
    """Prints progress, apart from the tables."""
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
