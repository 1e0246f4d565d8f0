"""Describes the machine of a measurement, and writes results."""

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import engine
from engine.model.encoder import has_bfloat16

__all__ = ["machine", "remember", "write_results"]

_MEASURED = Path(__file__).parents[1] / "api" / "measured.json"
_RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """The processor, number of cores, versions of libraries, and commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "cpu": torch.cpu.get_capabilities().get("cpu_name") or platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "kernels": kernels(),
        "precedent": engine.__version__,
        "commit": commit,
    }


def kernels() -> dict[str, str]:
    """Which CPU kernels PyTorch uses here, and the environment variables that influence it."""
    asked = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
    return {
        "aten": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": "native" if has_bfloat16("cpu") else "emulated",
        **{name: os.environ[name] for name in asked if name in os.environ},
    }


def write_results(name: str, figures: dict[str, Any]) -> Path:
    """Writes bench/results/NAME.json and returns its path."""
    _RESULTS.mkdir(exist_ok=True)
    path = _RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=2) + "\n")
    return path


def remember(**parts: Any) -> Path:
    """Replaces some of the figures that ``precedent plan`` uses, and returns their file's path."""
    known = json.loads(_MEASURED.read_text()) if _MEASURED.is_file() else {}
    _MEASURED.write_text(json.dumps({**known, **parts}, indent=2, ensure_ascii=False) + "\n")
    return _MEASURED
