"""Commands that make models: ``precedent train`` and ``precedent calibrate``."""

import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from engine.errors import QueryError
from engine.settings import load_settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from engine.model.preprocess import Preprocess
    from engine.training.data import Example

__all__ = ["calibrate", "train"]

LabelsOption = Annotated[
    str, typer.Option(help="'folder': a subfolder per class; 'csv': DATA is a table.")
]
FileColumnOption = Annotated[str, typer.Option(help="Column of the file names in a table.")]
LabelColumnOption = Annotated[str, typer.Option(help="Column of the classes in a table.")]


def train(
    data: Annotated[Path, typer.Argument(help="Folder or CSV table.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    labels: LabelsOption = "folder",
    file_column: FileColumnOption = "file",
    label_column: LabelColumnOption = "label",
    tower: Annotated[
        str, typer.Option(help="An open_clip model, or 'timm:' and a timm model.")
    ] = "timm:regnetx_004",
    pretrained: Annotated[
        str | None, typer.Option(help="open_clip tag or checkpoint file for a named tower.")
    ] = None,
    bits: Annotated[int, typer.Option(help="Length of the code.")] = 64,
    size: Annotated[int, typer.Option(help="Side of the input, in pixels.")] = 112,
    epochs: Annotated[int, typer.Option()] = 10,
    batch_size: Annotated[int, typer.Option()] = 64,
    learning_rate: Annotated[float, typer.Option()] = 1e-3,
    seed: Annotated[int, typer.Option()] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Train a model on labelled images. Stopped, the same command goes on."""
    logging.getLogger("engine.training").setLevel(logging.INFO)
    from engine.model.config import small_network
    from engine.model.preprocess import Preprocess
    from engine.training.data import TrainingSet
    from engine.training.trainer import TrainConfig, train as run

    preprocess = Preprocess(size=size)
    examples = _examples(data, labels, file_column, label_column)
    training_set = TrainingSet.read(examples, _canvas_reader(preprocess))
    manifest = run(
        training_set,
        small_network(len(training_set.classes), bits, tower),
        preprocess,
        TrainConfig(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed),
        out,
        pretrained=pretrained,
        device=device,
    )
    document = {
        "model": manifest.fingerprint,
        "out": str(out),
        "images": len(training_set),
        "classes": list(training_set.classes),
        "history": manifest.training["history"],
    }
    if as_json:
        sys.stdout.write(json.dumps(document) + "\n")
        return
    Console().print(
        f"model {manifest.fingerprint} of {len(training_set):,} images in "
        f"{len(training_set.classes)} classes is in {out}; "
        f"use it with --model {out}",
        highlight=False,
    )


def calibrate(
    reference: Annotated[Path, typer.Argument(help="Images the model was trained on.")],
    calibration: Annotated[Path, typer.Argument(help="Known images that it was not.")],
    model: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
    references: Annotated[int, typer.Option(help="Reference images to keep.")] = 4096,
    alpha: Annotated[
        float, typer.Option(help="Share of known images that may be called foreign.")
    ] = 0.03,
    seed: Annotated[int, typer.Option()] = 0,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Teach a model's OOD gate what is known: fit on one folder, calibrate on another."""
    import numpy as np

    from engine.model.encoder import Encoder
    from engine.ood.calibration import OodGate
    from engine.ood.detectors import KnnDetector
    from engine.training.data import from_folder

    encoder = Encoder.load(model)
    read = _canvas_reader(encoder.manifest.preprocess)

    def encode(examples: "Sequence[Example]") -> "NDArray[np.float32]":
        return encoder.encode([read(example.path) for example in examples]).z

    known = from_folder(reference)
    chosen = np.random.default_rng(seed).permutation(len(known))[:references]
    detector = KnnDetector(encode([known[i] for i in sorted(chosen)]))
    scores = detector.score(encode(from_folder(calibration)))
    gate = OodGate(detector, scores, alpha)
    gate.save(model, encoder.manifest.fingerprint)
    document = {
        "model": encoder.manifest.fingerprint,
        "references": len(detector.reference),
        "calibration": len(scores),
        "alpha": alpha,
    }
    if as_json:
        sys.stdout.write(json.dumps(document) + "\n")
    else:
        Console().print(f"calibrated {model} on {len(scores):,} images", highlight=False)


def _examples(data: Path, labels: str, file_column: str, label_column: str) -> "list[Example]":
    from engine.training.data import from_csv, from_folder

    if labels == "folder":
        return from_folder(data)
    if labels == "csv":
        return from_csv(data, file_column=file_column, label_column=label_column)
    raise QueryError(f"--labels is {labels!r}; use 'folder' or 'csv'")


def _canvas_reader(preprocess: "Preprocess") -> "Callable[[Path], NDArray[np.uint8]]":
    """Path → canvas of the middle frame, under the limits in force."""
    from indexer.imaging.read import read_image

    limits = load_settings().limits

    def read(path: Path) -> "NDArray[np.uint8]":
        # No patient is recorded in training, so any key will do.
        instance = read_image(path, limits, frames_per_instance=1, pseudonym_key=bytes(32))
        return preprocess.canvas(instance.frames[0].pixels)

    return read
