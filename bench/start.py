"""How soon commands answer, beside an empty Python and one that imports torch.

    python -m bench.start [--runs 11]

Each row is the median, over runs that alternate, of the seconds until the first byte of output (of
a process that prints nothing: until its end), and of the CPU seconds of the whole process. The
commands work on an index of three drawn pictures.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from rich.console import Console

from bench.machine import write_results
from bench.tables import show

__all__ = ["EMPTY", "LIMITS", "TORCH", "start"]

EMPTY, TORCH = "python -c pass", "python -c 'import torch'"
LIMITS: Mapping[str, float] = {"--help": 10, "info": 50, "jobs list": 50, "plan": 50}
"""Most that a command may take, as a multiple of an empty Python."""
_SHARE_OF_TORCH = 0.25
_ARGUMENTS = {"plan": ["--images", "50M"]}


def start(command: Sequence[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """Seconds until the first output of a process, and its CPU seconds.

    Raises:
        CalledProcessError: it failed.
    """
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(environment)) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first = time.perf_counter() - began
        process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    return first, used.ru_utime + used.ru_stime


def commands() -> dict[str, list[str]]:
    """What is measured, by name: a command line each."""
    python, precedent = sys.executable, [sys.executable, "-m", "api"]
    measured = {name: [*precedent, *name.split(), *_ARGUMENTS.get(name, [])] for name in LIMITS}
    return {EMPTY: [python, "-c", "pass"], TORCH: [python, "-c", "import torch"], **measured}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=11)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        pictures, data_dir = Path(scratch) / "pictures", Path(scratch) / "data"
        pictures.mkdir()
        rng = np.random.default_rng(0)
        for number in range(3):
            drawn = rng.integers(0, 255, (64, 64), dtype=np.uint8)
            Image.fromarray(drawn).save(pictures / f"{number}.png")
        environment = {**os.environ, "PRECEDENT_DATA_DIR": str(data_dir)}
        index = [sys.executable, "-m", "api", "index", str(pictures)]
        subprocess.run(index, env=environment, check=True, stdout=subprocess.DEVNULL)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands()}
        for _ in range(arguments.runs):
            for name, command in commands().items():
                found[name].append(start(command, environment))
    seconds = {name: median(first for first, _ in runs) for name, runs in found.items()}
    rows = [
        {
            "start": name,
            "milliseconds": round(1000 * seconds[name], 1),
            "cpu milliseconds": round(1000 * median(cpu for _, cpu in runs), 1),
            "times an empty Python": round(seconds[name] / seconds[EMPTY], 1),
            "of import torch": round(seconds[name] / seconds[TORCH], 3),
            "may be": _limit(name),
        }
        for name, runs in found.items()
    ]
    show(Console(), f"median of {arguments.runs}", rows, list(rows[0]))
    print(write_results("start", {"runs": arguments.runs, "rows": rows}))


def _limit(name: str) -> str:
    if name not in LIMITS:
        return ""
    return f"{LIMITS[name]:g} ×" + ("" if name == "--help" else f", {_SHARE_OF_TORCH:g}")


if __name__ == "__main__":
    main()
