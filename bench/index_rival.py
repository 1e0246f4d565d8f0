"""The same pictures through clip-retrieval's reader, runner and writer, with our model as mapper.

clip-retrieval pins older libraries than ours, so it lives in a virtual environment of its own:

    python3 -m venv RIVAL
    RIVAL/bin/pip install clip-retrieval "setuptools<81" "torch==…" "timm==…" pydantic-settings

with the torch and timm that Precedent runs with (its code imports pkg_resources, which later
setuptools do not have); `python -m bench.indexing FOLDER
--rival RIVAL/bin/python` then runs this module in it. Its own mapper takes the CLIP models that
it can download and no others, so the mapper here is ours: the shipped network, in the same
precision and batch size, instead of CLIP. Reading (a PyTorch DataLoader with as many processes
as we have readers), the loop and the writing (a .npy file of float16 embeddings and a Parquet
file of paths) are its code, unchanged. In its favour: the process in which it collects
statistics is left out, and the network has seen a batch before the clock starts.

What comes out is less than an index: no search structure, no thumbnails, no check of what is
read, no record of what was done that survives a kill.
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
    """One run over links to ``files``: ``instances_per_second`` and ``versions``.

    Args:
        python: the interpreter of an environment that has clip-retrieval.
        scratch: an empty folder.

    Raises:
        SystemExit: it failed, or not every file has an embedding.
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
    """A picture → what the network takes, in the reader's processes: float (1 or 3, S, S)."""

    def __init__(self, preprocess: Preprocess) -> None:
        self._preprocess = preprocess

    def __call__(self, image: Image.Image) -> Tensor:
        return canvas_tensor(self._preprocess.canvas(np.asarray(image))[None])[0]


class Mapper:
    """A batch of the reader → what the writer keeps, in the form of clip-retrieval's own."""

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
    """In place of the process that collects them."""

    def start(self) -> None: ...

    def end(self) -> None: ...

    def __call__(self, stats: dict[str, float]) -> None: ...


def main() -> None:
    """In clip-retrieval's environment: prints one line of JSON."""
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
    # Only here: no environment but this one has it.
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
