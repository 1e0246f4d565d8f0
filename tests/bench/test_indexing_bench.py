"""`make bench-index` runs, on a few files, and says what its documentation promises."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from bench import indexing, machine
from bench.index_runs import Peaks, TaskSpan, pace
from engine.model.checkpoint import save_checkpoint
from engine.model.config import small_network
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess

Bench = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Bench:
    """What the command writes to its file of figures, and what it prints."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (40, 50)).astype(np.uint8)
        Image.fromarray(noise).save(pictures / f"{number}.png")

    torch.manual_seed(0)
    config, preprocess = small_network(0, tower="timm:test_resnet"), Preprocess(size=64)
    network = HashingNetwork(config, preprocess).eval()
    save_checkpoint(tmp_path / "model", network, config, preprocess, (), {})

    def run(*arguments: str) -> tuple[dict[str, Any], str]:
        monkeypatch.setattr("sys.argv", ["bench.indexing", str(pictures), *arguments])
        monkeypatch.setattr(machine, "_RESULTS", tmp_path / "results")
        monkeypatch.setattr(machine, "_MEASURED", tmp_path / "measured.json")
        monkeypatch.setenv("PRECEDENT_INDEXING__READERS", "1")
        monkeypatch.setenv("PRECEDENT_MODEL", str(tmp_path / "model"))
        indexing.main()
        return json.loads((tmp_path / "results" / "indexing.json").read_text()), (
            capsys.readouterr().out
        )

    return run


@pytest.mark.slow
def test_a_format_is_measured_beside_its_stages(bench: Bench) -> None:
    figures, printed = bench(
        *("--counts", "4", "--repeats", "1", "--formats", "JPEG", "--parts", "formats")
    )
    (row,) = figures["rows"]
    assert (row["format"], row["images"]) == ("JPEG", 4)
    slower = min(row["decode_alone_per_second"], row["encode_alone_per_second"])
    assert row["share_of_slower"] == pytest.approx(
        row["instances_per_second"] / slower, rel=0.05, abs=0.002
    )
    assert {"encode", "write", "flush", "wait for readers"} <= set(row["stage_seconds"])
    assert row["main_process_mib"] > row["readers_mib"] > 0
    assert figures["measured_with"]["readers"] == 1
    assert "share of slower" in printed
    assert set(figures) == {"machine", "measured_with", "rows"}


@pytest.mark.slow
def test_all_parts_are_measured(bench: Bench, tmp_path: Path) -> None:
    figures, printed = bench("--counts", "4", "--memory", "3", "6", "--repeats", "1")
    assert [row["format"] for row in figures["rows"]] == list(indexing.FORMATS)
    assert [row["readers_and_encoders"] for row in figures["scaling"]][-2:] == [1, 2]
    assert [row["images"] for row in figures["memory"]["rows"]] == [3, 6]
    assert set(figures["memory"]["growth"]) == {
        "main_process_mib",
        "anonymous_mib",
        "readers_mib",
    }
    assert "memory" in printed
    planned = json.loads((tmp_path / "measured.json").read_text())["indexing"]["formats"]
    last = figures["rows"][-1]["instances_per_second"]
    assert planned["uncompressed"]["per_second"] == last
    assert planned.keys() == {"uncompressed", "rle", "jpeg-ls", "jpeg-2000", "jpeg"}


_CHILD = "import sys; kept = b'x' * (64 << 20); print('up', flush=True); sys.stdin.read()"
_PARENT = f"""
import subprocess, sys
from subprocess import PIPE
reader = subprocess.Popen([sys.executable, "-c", {_CHILD!r}], stdin=PIPE, stdout=PIPE)
other = subprocess.Popen(["sleep", "60"])
reader.stdout.readline()
print(reader.pid, flush=True)
sys.stdin.read()
other.kill()
"""


def test_memory_of_readers_is_seen_beside_that_of_the_process_and_of_no_other_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = [sys.executable, "-c", _PARENT]
    with psutil.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        with monkeypatch.context() as patch:
            # As it is for a moment after a start, which is longer on a busy machine.
            patch.setattr(psutil.Process, "cmdline", lambda _: [])
            peaks = Peaks(process)
        reader = int(process.stdout.readline())
        peaks.sample()
        process.stdin.close()
        process.stdout.read()
    assert set(peaks.readers) == {reader}
    assert 64 * 2**20 < peaks.readers[reader] < 256 * 2**20
    assert 0 < peaks.anonymous <= peaks.main < peaks.readers[reader]


def test_the_pace_of_workers_counts_from_when_each_has_ended_its_first_chunk() -> None:
    spans = [
        TaskSpan(0, 0.0, 4.0, 10),
        TaskSpan(1, 0.0, 6.0, 10),
        TaskSpan(0, 4.0, 8.0, 10),
        TaskSpan(1, 6.0, 10.0, 10),
    ]
    # From 6 to 10: half of a chunk, and a whole one.
    assert pace(spans) == pytest.approx(15 / 4)
