"""Compares encodings of the same images as computed on older processors with those of this one.

    python -m bench.processors [FOLDER] [--model DIR] [--images 256]

FOLDER holds the images; the default is a synthetic archive. Each row is a process that is limited
to the instructions of an older processor, in both precisions. Codes (bit by bit) and the
similarities of all pairs of images are compared with those of this processor in the same precision,
and with those in fp32. Times are CPU milliseconds an image, in batches of 32 on one thread.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from bench.encoder import canvases_of, differing_bits, table
from bench.machine import write_results
from engine.model.encoder import Encoder
from engine.model.manifest import SHIPPED, read_manifest
from engine.records import EncodedImages
from indexer.sample import write_sample

__all__ = ["OURS", "PROCESSORS", "difference", "encoded_as_on"]

OURS = "this processor"
PROCESSORS: Mapping[str, Mapping[str, str]] = {
    OURS: {},
    "AVX-512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "SSE4": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
}
"""What keeps PyTorch and its libraries to the instructions of a kind of processor."""
_PRECISIONS = ("fp32", "bf16")
_ROOT = Path(__file__).parents[1]


def encoded_as_on(
    processor: str, canvases: NDArray[np.uint8], precision: str, model: Path = SHIPPED
) -> tuple[EncodedImages, float]:
    """Encodes images in a process that is limited to the instructions of a processor.

    Returns also the CPU milliseconds that it took for an image.

    Args:
        processor: one of :data:`PROCESSORS`.
        canvases: uint8 (N, S, S) or (N, S, S, 3).
    """
    with tempfile.TemporaryDirectory() as scratch:
        given, made = Path(scratch) / "canvases.npy", Path(scratch) / "encoded.npz"
        np.save(given, canvases)
        command = [sys.executable, "-m", "bench.processors", "--encode", given, made]
        subprocess.run(
            [*command, "--precision", precision, "--model", model],
            check=True,
            cwd=_ROOT,
            env={**os.environ, **PROCESSORS[processor]},
        )
        with np.load(made) as found:
            return EncodedImages(found["z"], found["codes"]), float(found["milliseconds"])


def difference(one: EncodedImages, other: EncodedImages) -> dict[str, float]:
    """How much two encodings of the same images differ.

    share_of_bits: share of the bits of the codes that differ. similarity: the largest difference in
    the similarity of two images. across: the same, when one image has the first encoding and the
    other the second.
    """
    expected = _similarities(other, other)
    return {
        "share_of_bits": float(differing_bits(one.codes, other.codes)["share_of_bits"]),
        "similarity": float(np.abs(_similarities(one, one) - expected).max()),
        "across": float(np.abs(_similarities(one, other) - expected).max()),
    }


def _similarities(one: EncodedImages, other: EncodedImages) -> NDArray[np.float64]:
    return one.z.astype(np.float64) @ other.z.astype(np.float64).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--images", type=int, default=256, help="at most so many of FOLDER")
    parser.add_argument("--encode", type=Path, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="fp32", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.encode:
        _encode(*arguments.encode, arguments.precision, arguments.model)
        return
    preprocess = read_manifest(arguments.model).preprocess
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder
        if folder is None:
            folder = Path(scratch) / "sample"
            write_sample(folder, include_pydicom=False)
        canvases = np.stack(canvases_of(folder, preprocess, arguments.images))
    rows = _rows(canvases, arguments.model)
    Console(width=120).print(table("the same images on other processors", rows))
    print(write_results("processors", {"images": len(canvases), "rows": rows}))


def _rows(canvases: NDArray[np.uint8], model: Path) -> list[dict[str, object]]:
    found = {
        (name, precision): encoded_as_on(name, canvases, precision, model)
        for name in PROCESSORS
        for precision in _PRECISIONS
    }
    return [
        {
            "processor": name,
            "precision": precision,
            "beside_this_in": beside,
            **{
                key: f"{value:.1e}"
                for key, value in difference(encoded, found[OURS, beside][0]).items()
            },
            "ms_an_image": round(milliseconds, 1),
        }
        for (name, precision), (encoded, milliseconds) in found.items()
        for beside in dict.fromkeys((precision, "fp32"))
    ]


def _encode(given: Path, made: Path, precision: str, model: Path) -> None:
    torch.set_num_threads(1)
    encoder = Encoder.load(model, precision=precision)  # type: ignore[arg-type]
    canvases = list(np.load(given))
    encoder.encode(canvases[: encoder.batch_size])  # warms up
    started = time.process_time()
    found = encoder.encode(canvases)
    milliseconds = 1000 * (time.process_time() - started) / len(canvases)
    np.savez(made, z=found.z, codes=found.codes, milliseconds=milliseconds)


if __name__ == "__main__":
    main()
