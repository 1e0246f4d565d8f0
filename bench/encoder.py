"""Encoder benchmark: speed of the network and of its bare tower, and codes in bfloat16 and fp32.

    python -m bench.encoder [FOLDER] [--model DIR] [--repeats 9] [--device cpu]

FOLDER holds the images whose codes are compared; the default is a synthetic archive.
The timings alternate, so that other load on the machine affects all of them alike. Speeds are those
of batches in memory, from images in [0, 1] to codes, on all cores: of the bare tower and the whole
network as PyTorch computes them, and of the network as the encoder computes it, batch-invariantly.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from bench.machine import write_results
from engine.errors import ImageRefused
from engine.model.checkpoint import load_checkpoint
from engine.model.encoder import Encoder, Precision, autocast, canvas_tensor, resolved
from engine.model.invariance import BatchInvariant
from engine.model.manifest import SHIPPED, WEIGHTS
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess
from engine.settings import ImageLimits
from indexer.imaging.read import read_image
from indexer.sample import write_sample

BATCH = 32
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
_BATCHES = 4  # of one timing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--images", type=int, default=512, help="at most so many of FOLDER")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    network, manifest = load_checkpoint(arguments.model)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder
        if folder is None:
            folder = Path(scratch) / "sample"
            write_sample(folder, patients=40, include_pydicom=False)
        canvases = canvases_of(folder, manifest.preprocess, arguments.images)
    if not canvases:
        parser.error(f"{arguments.folder} holds no image that can be read")
    codes = {
        precision: Encoder(
            network, manifest, device=arguments.device, precision=precision, batch_size=BATCH
        )
        .encode(canvases)
        .codes
        for precision in PRECISIONS
    }
    speeds = speed(network, canvases, arguments.device, arguments.repeats)
    results = {
        "model": manifest.fingerprint,
        "device": arguments.device,
        "threads": torch.get_num_threads(),
        "auto_precision": resolved(arguments.device, "auto"),
        "batch": BATCH,
        "repeats": arguments.repeats,
        "speed": speeds,
        "parts": parts(network, arguments.model / WEIGHTS),
        "bf16_codes": {
            "images_of": "a synthetic archive" if arguments.folder is None else folder.name,
            **differing_bits(codes["fp32"], codes["bf16"]),
        },
    }
    console = Console(width=120)
    console.print(
        f"model {manifest.fingerprint}, {manifest.network.tower.name} at "
        f"{manifest.preprocess.size} pixels, on {arguments.device} with "
        f"{results['threads']} threads; 'auto' computes in {results['auto_precision']}"
    )
    for title in ("speed", "parts"):
        console.print(table(title, results[title]))
    console.print(table("codes in bf16 against fp32", [results["bf16_codes"]]))
    print(write_results("encoder", results))


def canvases_of(folder: Path, preprocess: Preprocess, most: int) -> list[NDArray[np.uint8]]:
    """Middle frames of up to ``most`` files, evenly from the folder; refused files are skipped."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    count = min(most, len(files))
    canvases = []
    for path in (files[i * len(files) // count] for i in range(count)):
        try:
            instance = read_image(
                path, ImageLimits(), frames_per_instance=1, pseudonym_key=bytes(32)
            )
        except ImageRefused:
            continue
        canvases.append(preprocess.canvas(instance.frames[0].pixels))
    return canvases


@torch.inference_mode()
def speed(
    network: HashingNetwork, canvases: Sequence[NDArray[np.uint8]], device: str, repeats: int
) -> list[dict[str, object]]:
    """Images per second of the tower, the whole network and the encoder; median of the repeats."""
    network = network.to(device).to(memory_format=torch.channels_last)
    every = canvas_tensor(np.stack(list(islice(cycle(canvases), BATCH * _BATCHES))))
    every = every.to(device, memory_format=torch.channels_last)
    images = every.split(BATCH)
    normalised = [network.normalise(batch) for batch in images]
    on_cpu = torch.device(device).type == "cpu"

    def encoder(batch: Tensor) -> object:
        with BatchInvariant() if on_cpu else nullcontext():
            return network(batch)

    rounds: list[tuple[Precision, str, Callable[[Tensor], object], Sequence[Tensor]]] = [
        (precision, part, run, batches)
        for precision in PRECISIONS
        for part, run, batches in (
            ("tower", network.tower, normalised),
            ("whole", network, images),
            ("encoder", encoder, images),
        )
    ]
    seconds: dict[tuple[str, str], list[float]] = {}
    for repeat in range(-1, repeats):
        for precision, part, run, batches in rounds:
            started = time.perf_counter()
            with autocast(device, precision):
                for batch in batches:
                    run(batch)
            if device != "cpu":
                torch.accelerator.synchronize()
            if repeat >= 0:  # the first one warms up
                seconds.setdefault((precision, part), []).append(time.perf_counter() - started)
    rows = []
    for precision in PRECISIONS:
        tower, whole, invariant = (
            statistics.median(seconds[precision, part]) for part in ("tower", "whole", "encoder")
        )
        rows.append(
            {
                "precision": precision,
                "tower_images_per_second": round(BATCH * _BATCHES / tower, 1),
                "whole_images_per_second": round(BATCH * _BATCHES / whole, 1),
                "whole_share_of_tower": round(tower / whole, 3),
                "encoder_images_per_second": round(BATCH * _BATCHES / invariant, 1),
                "encoder_share_of_whole": round(whole / invariant, 3),
            }
        )
    return rows


def parts(network: HashingNetwork, weights: Path) -> list[dict[str, object]]:
    """Number of parameters, and bytes in the weights file, of each part of the network."""
    modules = {"tower": network.tower}
    for number, branch in enumerate(network.darf.branches):
        modules[f"darf.branches.{number}"] = branch
    modules["head"] = network.head
    if network.classifier is not None:
        modules["classifier"] = network.classifier
    tensors = load_file(weights)
    return [
        {
            "part": name,
            "kind": type(module).__name__.strip("_"),
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
            "file_bytes": sum(
                tensor.nbytes for key, tensor in tensors.items() if key.startswith(f"{name}.")
            ),
        }
        for name, module in modules.items()
    ] + [
        {
            "part": "all",
            "kind": "",
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "file_bytes": weights.stat().st_size,
        }
    ]


def differing_bits(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> dict[str, object]:
    """In how many bits the codes of the same images differ; uint8 (N, B/8) each."""
    flips = np.unpackbits(one ^ other, axis=1)
    a_code = flips.sum(axis=1)
    return {
        "images": len(flips),
        "distinct_codes": len(np.unique(one, axis=0)),
        "share_of_bits": round(float(flips.mean()), 6),
        "share_of_codes": round(float((a_code > 0).mean()), 4),
        "most_bits_of_a_code": int(a_code.max()),
    }


def table(title: str, rows: Sequence[dict[str, object]]) -> Table:
    made = Table(title=title)
    for name, value in rows[0].items():
        made.add_column(
            name.replace("_", " "), justify="left" if isinstance(value, str) else "right"
        )
    for row in rows:
        made.add_row(*(v if isinstance(v, str) else f"{v:,}" for v in row.values()))
    return made


if __name__ == "__main__":
    main()
