"""Indexing: instances per second beside the encoder alone, and memory as the archive grows.

python -m bench.indexing FOLDER [--counts 1000 8000] [--repeats 3]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from bench.machine import write_results
from engine.model.checkpoint import SHIPPED
from engine.model.encoder import Encoder
from engine.settings import ImageLimits, load_settings
from indexer.imaging.read import read_image

_MIB = 1024**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 8000])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    files = sorted(path for path in arguments.folder.rglob("*") if path.is_file())
    if len(files) < max(arguments.counts):
        parser.error(f"{arguments.folder} has {len(files)} files, --counts asks for more")
    rows = []
    for count in arguments.counts:
        chosen = [files[i * len(files) // count] for i in range(count)]
        alone = encoder_alone(chosen[: min(count, 1000)])
        runs = [index(chosen) for _ in range(arguments.repeats)]
        speed = statistics.median(run["instances_per_second"] for run in runs)
        rows.append(
            {
                "images": count,
                "instances_per_second": round(speed, 1),
                "encoder_alone_per_second": round(alone, 1),
                "share_of_encoder": round(speed / alone, 3),
                "main_process_mib": round(max(run["main_mib"] for run in runs), 1),
                "readers_mib": round(max(run["readers_mib"] for run in runs), 1),
            }
        )
    table = Table(title=f"precedent index, median of {arguments.repeats} runs")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{value:,}" for value in row.values()))
    Console(width=140).print(table)
    print(write_results("indexing", {"rows": rows}))


def encoder_alone(files: list[Path]) -> float:
    """Images per second of the model on canvases in memory, as many batches at once as the
    pipeline encodes."""
    settings = load_settings().indexing
    encoder = Encoder.load(SHIPPED, batch_size=settings.batch_size)
    canvases = [
        encoder.manifest.preprocess.canvas(
            read_image(path, ImageLimits(), frames_per_instance=1, pseudonym_key=bytes(32))
            .frames[0]
            .pixels
        )
        for path in files
    ]
    batches = [
        canvases[start : start + settings.batch_size]
        for start in range(0, len(canvases), settings.batch_size)
    ]
    with ThreadPoolExecutor(
        settings.encoders, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        list(pool.map(encoder.encode, batches[:4]))
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            list(pool.map(encoder.encode, batches))
            seconds.append(time.perf_counter() - started)
    return len(canvases) / statistics.median(seconds)


def index(files: list[Path]) -> dict[str, float]:
    """One run of the command over a folder of links, with the peak of its resident memory.

    The speed is that of the pipeline as the command reports it; loading the model, which
    takes seconds however large the archive is, comes before.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "archive"
        folder.mkdir()
        for number, path in enumerate(files):
            (folder / f"{number:06d}{path.suffix}").symlink_to(path.resolve())
        command = [sys.executable, "-m", "api", "index", str(folder), "--json"]
        command += ["--data-dir", str(Path(scratch) / "data")]
        process = psutil.Popen(command, stdout=subprocess.PIPE)
        main_peak = readers_peak = 0
        while process.poll() is None:
            try:
                main_peak = max(main_peak, process.memory_info().rss)
                children = process.children(recursive=True)
                readers_peak = max(readers_peak, sum(child.memory_info().rss for child in children))
            except psutil.NoSuchProcess:
                continue
            time.sleep(0.05)
        report = json.loads(process.stdout.read())
    accounted = report["indexed"] + sum(report["refused"].values())
    if accounted != len(files):
        raise SystemExit(f"{accounted} of {len(files)} files accounted for: {report}")
    return {
        "instances_per_second": accounted / report["seconds"],
        "main_mib": main_peak / _MIB,
        "readers_mib": readers_peak / _MIB,
    }


if __name__ == "__main__":
    main()
