"""Encodes the same pictures with clip-retrieval's pipeline and our model, to compare the speed.

clip-retrieval pins older libraries than ours, so it needs a virtual environment of its own:

    python3 -m venv RIVAL
    RIVAL/bin/pip install clip-retrieval "setuptools<81" "torch==…" "timm==…" pydantic-settings

with the versions of torch and timm that Precedent uses (clip-retrieval imports pkg_resources, which
later versions of setuptools lack). `python -m bench.indexing FOLDER --rival RIVAL/bin/python` then
runs this module in it. clip-retrieval's own mapper supports only CLIP models that it downloads, so
the mapper is replaced by ours: the shipped network, with the same precision and batch size as in
our pipeline. Its reader (a PyTorch DataLoader with as many processes as our readers), runner and
writer (a .npy file of float16 embeddings and a Parquet file of paths) are unchanged. In its favour,
its process that collects statistics is left out, and the network has encoded a batch before the
clock starts.

The result is less than an index: it has no search structure, no thumbnails, no validation of the
files, and no record of progress that survives a kill.
"""

import argparse
import importlib.metadata
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.model.checkpoint import load_checkpoint
from engine.model.encoder import Precision, autocast, canvas_tensor, centre_and_normalise
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess

__all__ = ["Mapper", "Transform", "run_rival"]

_ROOT = Path(__file__).parents[1]


def run_rival(
    python: Path,
    files: Sequence[Path],
    scratch: Path,
    *,
    model: Path,
    readers: int,
    batch: int,
    device: str,
    precision: str,
) -> dict[str, Any]:
    """Runs clip-retrieval once over links to ``files``.

    Args:
        python: interpreter of an environment with clip-retrieval.
        scratch: an empty folder.

    Returns:
        ``instances_per_second`` and ``versions``.

    Raises:
        SystemExit: the run failed, or a file has no embedding.
    """
    folder = scratch / "archive"
    folder.mkdir()
    for path in files:
        (folder / path.name).symlink_to(path.resolve())
    command = [str(python), "-W", "ignore", "-m", "bench.index_rival", str(folder)]
    command += [str(scratch / "out"), "--model", str(model), "--readers", str(readers)]
    command += ["--batch", str(batch), "--device", device, "--precision", precision]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"clip-retrieval failed in {python}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if found["embeddings"] != len(files):
        raise SystemExit(f"clip-retrieval embedded {found['embeddings']} of {len(files)} files")
    return {
        "instances_per_second": len(files) / found["seconds"],
        "versions": found["versions"],
    }


class Transform:
    """Converts a picture to the network's input, float (1 or 3, S, S); used by the reader."""

    def __init__(self, preprocess: Preprocess) -> None:
        self._preprocess = preprocess

    def __call__(self, image: Image.Image) -> Tensor:
        return canvas_tensor(self._preprocess.canvas(np.asarray(image))[None])[0]


class Mapper:
    """Encodes a batch of the reader for the writer; has the interface of the original mapper."""

    def __init__(self, network: HashingNetwork, device: str, precision: Precision) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._network = network.to(device).to(memory_format=torch.channels_last)
        self._device = device
        self._precision = precision

    @torch.inference_mode()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        images = batch["image_tensor"].to(self._device, memory_format=torch.channels_last)
        with autocast(self._device, self._precision):
            z = self._network(images).z.float().cpu().numpy()
        return {
            "image_embs": centre_and_normalise(z).astype(np.float16),
            "image_filename": batch["image_filename"],
            "text_embs": None,
            "text": None,
            "metadata": None,
        }


class _NoStatistics:
    """Replaces clip-retrieval's process that collects statistics; does nothing."""

    def start(self) -> None: ...

    def end(self) -> None: ...

    def __call__(self, stats: dict[str, float]) -> None: ...


def main() -> None:
    """Runs in clip-retrieval's environment, and prints one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--readers", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--precision", required=True)
    arguments = parser.parse_args()
    network, manifest = load_checkpoint(arguments.model)
    mapper = Mapper(network, arguments.device, arguments.precision)
    size = manifest.preprocess.size
    channels = 3 if manifest.preprocess.colour else 1
    warm = torch.zeros(arguments.batch, channels, size, size)
    for _ in range(2):
        mapper({"image_tensor": warm, "image_filename": []})
    run = _runner(arguments, Transform(manifest.preprocess), mapper)
    started = time.perf_counter()
    run(0)
    seconds = time.perf_counter() - started
    rows = [np.load(path).shape[0] for path in (arguments.out / "img_emb").glob("*.npy")]
    names = ("clip-retrieval", "torch", "timm", "numpy", "pillow")
    versions = {name: importlib.metadata.version(name) for name in names}
    print(json.dumps({"seconds": seconds, "embeddings": sum(rows), "versions": versions}))


def _runner(
    arguments: argparse.Namespace, transform: Transform, mapper: Mapper
) -> Callable[[int], None]:
    # Imported here, as only clip-retrieval's environment has it.
    reader, runner, writer = (
        import_module(f"clip_retrieval.clip_inference.{part}")
        for part in ("reader", "runner", "writer")
    )
    images_only = {"enable_text": False, "enable_image": True, "enable_metadata": False}
    run: Callable[[int], None] = runner.Runner(
        reader_builder=lambda sampler: reader.FilesReader(
            sampler,
            transform,
            None,
            str(arguments.folder),
            arguments.batch,
            arguments.readers,
            **images_only,
        ),
        mapper_builder=lambda: mapper,
        writer_builder=lambda part: writer.NumpyWriter(
            part, str(arguments.out), output_partition_count=1, **images_only
        ),
        logger_builder=lambda _: _NoStatistics(),
        output_partition_count=1,
    )
    return run


if __name__ == "__main__":
    main()
