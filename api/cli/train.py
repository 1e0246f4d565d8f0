"""``precedent train``: trains a model on images and writes its checkpoint."""

import json
import logging
import sys
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from api.cli.options import check_writable
from api.cli.training_choices import (
    SCH_LOSS,
    device_named,
    loss_named,
    network_named,
    precision_named,
    preprocess_for,
    quoted,
    side_of,
    start_of,
)
from engine.errors import ImageRefused, QueryError
from engine.settings import ImageLimits, Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from engine.model.manifest import Manifest
    from engine.model.preprocess import Preprocess
    from engine.training.config import TrainConfig
    from engine.training.data import Example, TrainingSet

__all__ = ["train"]

_LABELS = ("folder", "csv", "dicom-tags", "none")


def train(
    data: Annotated[Path, typer.Argument(help="Folder of images, or CSV table.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    labels: Annotated[
        str,
        typer.Option(
            help="'folder' (one a class), 'csv', 'dicom-tags' (modality, body part, view), 'none'."
        ),
    ] = "folder",
    file_column: Annotated[str, typer.Option(help="Column of a table's file names.")] = "file",
    label_column: Annotated[str, typer.Option(help="Column of a table's classes.")] = "label",
    group_column: Annotated[
        str | None,
        typer.Option(help="Column of a table's patients; where empty, a DICOM header's."),
    ] = None,
    min_class_size: Annotated[
        int, typer.Option(help="With dicom-tags, classes of fewer images are left out.")
    ] = 10,
    network: Annotated[str, typer.Option(help="'small' for a CPU, or 'paper'.")] = "small",
    tower: Annotated[
        str | None,
        typer.Option(
            help="An open_clip model, 'timm:' and a timm model, or a folder with a CLIP model as "
            "open_clip saves it, whose weights are then taken.",
            show_default="the shipped model's; the paper's: timm:resnet50",
        ),
    ] = None,
    taps: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Shallow and deep intermediate of the tower.", metavar="S D"),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            help="What the tower starts from: 'shipped', the shipped model's weights; 'none', "
            "nothing; a file of weights, an open_clip tag, 'hub' for timm's own, or "
            "hf-hub:OWNER/NAME.",
            show_default="shipped where the tower and its input are, else none",
        ),
    ] = None,
    freeze_tower: Annotated[
        bool, typer.Option("--freeze-tower", help="Leave the tower's weights as they are.")
    ] = False,
    fusion: Annotated[
        str, typer.Option(help="'darf', 'swapped', 'cross', 'pixels', 'concat' or 'deep'.")
    ] = "darf",
    head: Annotated[str, typer.Option(help="'kan' or 'mlp'.")] = "kan",
    bits: Annotated[int, typer.Option(help="Length of the code.")] = 64,
    size: Annotated[
        int | None,
        typer.Option(
            help="Side of the input, in pixels.",
            show_default="the shipped model's; the paper's: 224",
        ),
    ] = None,
    colour: Annotated[bool, typer.Option("--colour", help="Keep three channels.")] = False,
    normalise: Annotated[
        str,
        typer.Option(
            help="'standardise' each image, or 'fixed': the tower's own mean and deviation."
        ),
    ] = "standardise",
    loss: Annotated[
        str, typer.Option(help="'sch', or a peer to compare with, as 'csq' or 'orthohash'.")
    ] = SCH_LOSS,
    fingerprint: Annotated[
        str | None,
        typer.Option(help="Structure that SCH compares: 'pearson', 'cosine' or 'none'."),
    ] = None,
    spread: Annotated[
        float | None,
        typer.Option(
            help="How far apart SCH places images of one label that look unlike, as a share of the "
            "bits, up to 0.5: for codes that tell them apart. 0: all on one code, as in the paper."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Rounds through the images.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Images of one step.")] = 64,
    images_per_class: Annotated[
        int, typer.Option(help="Of each class in a batch; 0: as they come.")
    ] = 0,
    learning_rate: Annotated[float, typer.Option(help="Its highest value.")] = 1e-3,
    tower_rate: Annotated[
        float | None,
        typer.Option(
            help="The tower's learning rate, as a share of the others'.",
            show_default="0.5 where it starts from weights, else 1",
        ),
    ] = None,
    tower_rest: Annotated[
        float | None,
        typer.Option(
            help="Epochs until the tower learns: the layers on top of it begin.",
            show_default="0.5 where it starts from weights, else 0",
        ),
    ] = None,
    ema_decay: Annotated[
        float, typer.Option(help="Keep a moving average of the weights; 0: the last ones.")
    ] = 0.0,
    validation: Annotated[
        float, typer.Option(help="Share of images, by patient, that judges the epochs.")
    ] = 0.0,
    patience: Annotated[
        int, typer.Option(help="Stop after so many epochs without a better one; 0: never.")
    ] = 0,
    keep_state: Annotated[
        bool,
        typer.Option(
            "--keep-state",
            help="Keep what more --epochs need after the end, several times the model's size.",
        ),
    ] = False,
    code_epochs: Annotated[
        int,
        typer.Option(
            help="After the training the hash head alone learns which images are nearest, for so "
            "many rounds: its codes then find more of them. 0: it stays as it is."
        ),
    ] = 0,
    decoder_epochs: Annotated[
        int,
        typer.Option(help="Of the second stage, a decoder for the OOD gate; 0: no decoder."),
    ] = 3,
    precision: Annotated[str, typer.Option(help="'auto', 'fp32' or 'bf16'.")] = "auto",
    device: Annotated[str, typer.Option(help="'cpu', 'cuda', …, or 'auto'.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Another seed, another model.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Train a model on an archive, labelled or not. If stopped, the same command goes on."""
    _at_least(0, seed=seed, patience=patience, images_per_class=images_per_class)
    _at_least(0, decoder_epochs=decoder_epochs, code_epochs=code_epochs)
    _at_least(1, epochs=epochs, min_class_size=min_class_size)
    _at_least(2, batch_size=batch_size)
    if not 0 < learning_rate < inf:
        raise QueryError(f"--learning-rate is {learning_rate}; use a number above 0")
    if out.exists() and not out.is_dir():
        raise QueryError(f"--out is {str(out)!r}, which is a file; name a folder")
    check_writable(out, "--out")
    source = _ExampleSource(
        data, labels, file_column, label_column, group_column, min_class_size, out
    )
    source.check()
    if images_per_class and labels == "none":
        raise QueryError("--images-per-class needs classes; use other --labels than none")
    logging.getLogger("engine.training").setLevel(logging.INFO)
    from engine.model.network import HashingNetwork
    from engine.model.tower_folder import read_tower_folder
    from engine.training.decoder import DecoderConfig, train_decoder
    from engine.training.trainer import TrainConfig, train as run

    network_config = network_named(network, tower, taps, fusion, head, bits)
    side = side_of(network, size)
    told = read_tower_folder(Path(tower)) if tower and Path(tower).is_dir() else None
    if told is not None:
        network_config = replace(network_config, tower=told.tower(network_config.tower.taps))
        pretrained = pretrained or str(told.weights)
    pretrained = start_of(pretrained, network_config.tower, normalise)
    preprocess = preprocess_for(side, colour, normalise, network_config.tower, pretrained)
    if told is not None and normalise == "fixed" and told.mean and told.std:
        preprocess = replace(preprocess, mean=told.mean, std=told.std)
    begun = pretrained is not None and not freeze_tower
    config = TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        tower_rate=tower_rate if tower_rate is not None else 0.5 if begun else 1.0,
        tower_rest_epochs=tower_rest if tower_rest is not None else 0.5 if begun else 0.0,
        seed=seed,
        precision=precision_named(precision),
        images_per_class=images_per_class,
        freeze_tower=freeze_tower,
        ema_decay=ema_decay,
        validation=validation,
        patience=patience,
        code_epochs=code_epochs,
        loss=loss_named(loss, fingerprint, spread, labels),
    )
    device = device_named(device)
    # Built only so that an unavailable tower fails now, not after the archive has been read.
    HashingNetwork(network_config, preprocess, pretrained)
    settings = load_settings()
    training_set = _read(source.examples(settings.limits), preprocess, settings)
    manifest = run(
        training_set,
        replace(network_config, classes=len(training_set.classes)),
        preprocess,
        config,
        out,
        pretrained=pretrained,
        device=device,
        keep_state=keep_state,
    )
    if decoder_epochs:
        decoder = DecoderConfig(
            epochs=decoder_epochs,
            batch_size=min(batch_size, DecoderConfig().batch_size),
            seed=seed,
            precision=config.precision,
        )
        train_decoder(out, training_set, decoder, device=device)
    document = _document(manifest, len(training_set), out)
    if (theirs := _shipped_map(training_set, config, preprocess, device)) is not None:
        document["shipped_validation_map"] = theirs
    if as_json:
        sys.stdout.write(json.dumps(document) + "\n")
        return
    classes = len(training_set.classes)
    Console().print(
        f"model {manifest.fingerprint} of {len(training_set):,} images "
        + (f"in {classes} classes" if classes else "without labels")
        + (
            f", mAP {document['validation_map']:.4f} on those held out"
            if "validation_map" in document
            else ""
        )
        + (f" (the shipped model: {theirs:.4f})," if theirs is not None else "")
        + f" is in {out}; use it with --model {out}",
        highlight=False,
    )


@dataclass(frozen=True, slots=True)
class _ExampleSource:
    """The options that say which files to train on, and where their labels come from."""

    data: Path
    labels: str
    file_column: str
    label_column: str
    group_column: str | None
    min_class_size: int
    out: Path

    def check(self) -> None:
        if self.labels not in _LABELS:
            raise QueryError(f"--labels is {self.labels!r}; use one of {quoted(_LABELS)}")
        if self.group_column is not None and self.labels != "csv":
            raise QueryError(
                f"--group-column is of a table, not of --labels {self.labels}; leave it out"
            )

    def examples(self, limits: ImageLimits) -> "list[Example]":
        from engine.training.data import from_csv, from_folder
        from indexer.training_examples import from_dicom_tags, grouped_by_patient, unlabelled

        if self.labels == "dicom-tags":
            return from_dicom_tags(
                self.data, limits, min_class_size=self.min_class_size, leave_out=self.out
            )
        if self.labels == "none":
            return unlabelled(self.data, limits, leave_out=self.out)
        if self.labels == "folder":
            return grouped_by_patient(from_folder(self.data), limits)
        listed = from_csv(
            self.data,
            file_column=self.file_column,
            label_column=self.label_column,
            group_column=self.group_column,
        )
        return grouped_by_patient(listed, limits)


def _document(manifest: "Manifest", images: int, out: Path) -> dict[str, Any]:
    history = manifest.training["history"]
    document = {
        "model": manifest.fingerprint,
        "out": str(out),
        "images": images,
        "classes": list(manifest.classes),
        "history": history,
    }
    measured = [entry["validation_map"] for entry in history if "validation_map" in entry]
    return {**document, "validation_map": max(measured)} if measured else document


def _shipped_map(
    data: "TrainingSet", config: "TrainConfig", preprocess: "Preprocess", device: str
) -> float | None:
    """What the shipped model reaches on the images held out; None = there are none, or it takes
    images of another kind."""
    from engine.model.checkpoint import load_checkpoint
    from engine.model.manifest import SHIPPED, read_manifest
    from engine.training.validation import validation_map

    if not config.validation or read_manifest(SHIPPED).preprocess != preprocess:
        return None
    _, held_out = data.split(config.validation, config.seed)
    network, _ = load_checkpoint(SHIPPED)
    return validation_map(network.to(device), held_out, device, config.precision)


def _at_least(least: int, **options: int) -> None:
    for name, value in options.items():
        if value < least:
            raise QueryError(f"--{name.replace('_', '-')} is {value}; use {least} or more")


def _read(
    examples: "Sequence[Example]", preprocess: "Preprocess", settings: Settings
) -> "TrainingSet":
    """Reads the middle frame of each example as indexing does, in separate processes."""
    from engine.training.data import TrainingSet
    from indexer.pipeline.file_reader import FileReader

    errors = Console(stderr=True)
    shown = Progress(console=errors, transient=True, disable=not errors.is_terminal)
    key = bytes(32)  # any key will do: no pseudonym is kept
    processes = settings.indexing.readers
    with FileReader(settings, preprocess, key, frames=1, processes=processes) as reader, shown:
        paths = [example.path for example in examples]
        results = iter(shown.track(reader.read(paths), len(paths), description="reading"))

        def canvas(_: Path) -> "NDArray[np.uint8]":
            # TrainingSet.read calls this once for each example, in order.
            result = next(results)
            if isinstance(result, ImageRefused):
                raise result
            return result.pictures[0].canvas

        return TrainingSet.read(examples, canvas)
