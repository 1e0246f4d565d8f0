"""``precedent train``: trains a model on images and writes its checkpoint."""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from api.cli.training_choices import (
    SCH_LOSS,
    device_named,
    loss_named,
    network_named,
    precision_named,
    preprocess_for,
    side_of,
    start_of,
)
from api.cli.training_data import (
    BatchSizeOption,
    DataArgument,
    DeviceOption,
    EpochsOption,
    ExampleSource,
    FileColumnOption,
    GroupColumnOption,
    LabelColumnOption,
    LearningRateOption,
    MinClassSizeOption,
    PrecisionOption,
    TrainingLabelsOption,
    TrainSeedOption,
    at_least,
    check_folder,
    check_learning_rate,
    read_training_set,
)
from engine.errors import QueryError
from engine.settings import load_settings

if TYPE_CHECKING:
    from engine.model.manifest import Manifest
    from engine.model.preprocess import Preprocess
    from engine.training.config import TrainConfig
    from engine.training.data import TrainingSet

__all__ = ["train"]


def train(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    labels: TrainingLabelsOption = "folder",
    file_column: FileColumnOption = "file",
    label_column: LabelColumnOption = "label",
    group_column: GroupColumnOption = None,
    min_class_size: MinClassSizeOption = 10,
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
    words: Annotated[
        bool,
        typer.Option(
            "--words",
            help="Keep the whole CLIP model of the --tower folder beside the model: images can "
            "then be searched by words. Each takes another pass through its tower.",
        ),
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
    epochs: EpochsOption = 10,
    batch_size: BatchSizeOption = 64,
    images_per_class: Annotated[
        int, typer.Option(help="Of each class in a batch; 0: as they come.")
    ] = 0,
    learning_rate: LearningRateOption = 1e-3,
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
    precision: PrecisionOption = "auto",
    device: DeviceOption = "cpu",
    seed: TrainSeedOption = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Train a model on an archive, labelled or not. If stopped, the same command goes on."""
    at_least(0, seed=seed, patience=patience, images_per_class=images_per_class)
    at_least(0, decoder_epochs=decoder_epochs, code_epochs=code_epochs)
    at_least(1, epochs=epochs, min_class_size=min_class_size)
    at_least(2, batch_size=batch_size)
    check_learning_rate(learning_rate)
    check_folder(out)
    source = ExampleSource(
        data, labels, file_column, label_column, group_column, min_class_size, out
    )
    source.check()
    if images_per_class and labels == "none":
        raise QueryError("--images-per-class needs classes; use other --labels than none")
    logging.getLogger("engine.training").setLevel(logging.INFO)
    from engine.model.network import HashingNetwork
    from engine.model.tower_folder import read_tower_folder
    from engine.model.words import add_words, read_words
    from engine.training.decoder import DecoderConfig, train_decoder
    from engine.training.trainer import TrainConfig, train as run

    network_config = network_named(network, tower, taps, fusion, head, bits)
    side = side_of(network, size)
    told = read_tower_folder(Path(tower)) if tower and Path(tower).is_dir() else None
    if told is not None:
        network_config = replace(network_config, tower=told.tower(network_config.tower.taps))
        pretrained = pretrained or str(told.weights)
    if words:
        if told is None:
            raise QueryError("--words needs the folder of a CLIP model as --tower")
        read_words(Path(tower or ""))  # so that what is wrong with it is said now
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
    training_set = read_training_set(source.examples(settings.limits), preprocess, settings)
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
    if words:
        manifest = add_words(out, Path(tower or ""))
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
