"""``precedent adapt``: makes a model of an archive, and puts it in force if it is better."""

import logging
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from api.cli.options import DataDirOption, JsonOption, write_json
from api.cli.training_choices import device_named, precision_named
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
    TrainSeedOption,
    at_least,
    check_folder,
    check_learning_rate,
)
from engine.errors import QueryError, SourceError
from engine.settings import Settings, load_settings

if TYPE_CHECKING:
    from api.cli.adaptation import Adaptation
    from engine.training.parts import Parts

__all__ = ["adapt"]


def adapt(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Folder for the model and what is known of it.")],
    labels: Annotated[
        str,
        typer.Option(
            help="'folder' (one a class), 'csv', 'dicom-tags' (modality, body part, view)."
        ),
    ] = "folder",
    file_column: FileColumnOption = "file",
    label_column: LabelColumnOption = "label",
    group_column: GroupColumnOption = None,
    min_class_size: MinClassSizeOption = 10,
    leave_out_rare: Annotated[
        bool,
        typer.Option(
            "--leave-out-rare",
            help="Do without classes of too few patients to be in every part.",
        ),
    ] = False,
    calibration: Annotated[
        float, typer.Option(help="Share of images, by patient, that calibrates the gate.")
    ] = 0.2,
    evaluation: Annotated[
        float, typer.Option(help="Share of images, by patient, that both models are asked.")
    ] = 0.2,
    epochs: EpochsOption = 10,
    batch_size: BatchSizeOption = 64,
    learning_rate: LearningRateOption = 1e-3,
    validation: Annotated[
        float,
        typer.Option(help="Share of the training part, by patient, that judges the epochs."),
    ] = 0.1,
    patience: Annotated[
        int, typer.Option(help="Stop after so many epochs without a better one; 0: never.")
    ] = 3,
    alpha: Annotated[
        float, typer.Option(help="Share of known images that may be called foreign.")
    ] = 0.03,
    catch: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Refuse a gate that catches less of any kind of drawn picture; 0: do not look.",
        ),
    ] = 0.5,
    force: Annotated[
        bool, typer.Option("--force", help="Take a gate that catches less nevertheless.")
    ] = False,
    k: Annotated[int, typer.Option("--k", "-k", help="Hits that count.")] = 100,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "cpu",
    seed: TrainSeedOption = 0,
    data_dir: DataDirOption = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Encode the archive anew without asking.")
    ] = False,
    no_reencode: Annotated[
        bool, typer.Option("--no-reencode", help="End with the comparison.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a model of an archive, compare it with the one in force, and use it if it is better.

    The images are divided once, by patient (by study where no patient is named, else by file), into
    a part to train on, one to calibrate on and one for the comparison; --out keeps the table. The
    model starts from the shipped weights. It is compared with the model in force (that of the data
    folder, else the shipped one) on images that it was not trained on. A model that is not better
    is not recommended, and not put in force.

    Then the archive in the data folder, if there is one, is encoded anew, as `precedent reencode`
    does it, after a question or with --yes; it stays in use meanwhile. Stopped at any moment, the
    same command goes on, and repeats no step that is done.
    """
    at_least(0, seed=seed, patience=patience)
    at_least(1, epochs=epochs, min_class_size=min_class_size, k=k)
    at_least(2, batch_size=batch_size)
    check_learning_rate(learning_rate)
    if labels == "none":
        raise QueryError("--labels is 'none', and models are compared by classes; use others")
    if yes and no_reencode:
        raise QueryError("--yes and --no-reencode contradict each other; give one")
    check_folder(out)
    source = ExampleSource(
        data, labels, file_column, label_column, group_column, min_class_size, out
    )
    source.check()
    settings = load_settings(data_dir=data_dir)
    has_archive = _has_archive(settings)
    if data_dir is not None and not has_archive:
        raise QueryError(
            f"--data-dir {data_dir} has no archive that could be encoded anew; name one, or leave "
            "it out to make a model alone"
        )
    logging.getLogger("engine.training").setLevel(logging.INFO)
    from api.cli.adaptation import Adaptation, AdaptationOptions
    from engine.ood.calibration import fewest_calibration_images
    from engine.training.config import TrainConfig
    from indexer.datadir.disk_space import check_room

    fewest_calibration_images(alpha)
    config = TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        tower_rate=0.5,
        tower_rest_epochs=0.5,
        seed=seed,
        precision=precision_named(precision),
        validation=validation,
        patience=patience,
    )
    where = {
        "labels": labels,
        "file_column": file_column,
        "label_column": label_column,
        "group_column": group_column,
        "min_class_size": min_class_size,
    }
    options = AdaptationOptions(
        Path(data).absolute(), where, calibration, evaluation, leave_out_rare, config
    )
    device = device_named(device)
    adaptation = Adaptation(out, options, settings.model_copy(update={"device": device}))
    check_room(out, settings.indexing.min_free_bytes)
    console = Console(quiet=as_json)

    _rule(console, "1. Divide the images")
    parts = adaptation.divide(lambda: source.examples(settings.limits), alpha)
    _print_parts(console, adaptation, parts)
    _rule(console, "2. Train")
    adaptation.train(parts, device)
    made = _fingerprint(adaptation.model)
    _print(console, f"model {made} is in {adaptation.model}")
    is_in_force = has_archive and made == _in_force(settings)
    _rule(console, "3. Calibrate")
    calibrated, said = adaptation.calibrate(
        parts, alpha=alpha, catch=catch, force=force, in_force=is_in_force
    )
    for line in said:
        _print(console, line)
    _rule(console, "4. Compare")
    compared = _compared(adaptation, parts, settings, k, is_in_force=is_in_force)
    if not as_json:
        from api.cli.comparison_table import show_comparison

        show_comparison(console, compared)
    _rule(console, "5. Put it in force")
    again = None
    command = _command(adaptation.model, settings, data_dir)
    if is_in_force:
        _print(console, f"model {made} is in force already")
    elif not has_archive:
        _print(
            console,
            f"there is no archive in {settings.data_dir}: index one with the new model by --model "
            f"{adaptation.model}, or name another by --data-dir",
        )
    else:
        again = _put_in_force(
            console,
            adaptation,
            settings,
            command,
            recommended=compared["outcome"] == "better",
            wanted=False if no_reencode else yes or None,
            can_ask=not as_json and sys.stdin.isatty(),
        )
    if as_json:
        write_json(
            {
                "model": made,
                "out": str(out),
                "parts": _sizes(parts),
                "grouped_by": adaptation.plan["grouped_by"],
                "left_out": adaptation.plan["left_out"],
                "calibration": {name: one for name, one in calibrated.items() if name != "said"},
                "comparison": compared,
                "recommended": compared["outcome"] == "better",
                "in_force": is_in_force or again is not None,
                "reencoded": again,
                "next": None if is_in_force or again or not has_archive else command,
            }
        )


def _compared(
    adaptation: "Adaptation", parts: "Parts", settings: Settings, k: int, *, is_in_force: bool
) -> Mapping[str, Any]:
    """The comparison with the model in force, made once. Of a model that is in force itself, with
    the one before it.

    Raises:
        QueryError: it is in force, and was not compared before that.
    """
    from indexer.datadir.models import model_directory

    before = model_directory(settings)
    done = adaptation.evaluated(None if is_in_force else _fingerprint(before))
    if done is not None and done["k"] == k:
        return done
    if is_in_force:
        raise QueryError(
            f"model {_fingerprint(adaptation.model)} is in force already, and there is no other to "
            "compare it with; `precedent evaluate` says how well it finds, `precedent calibrate` "
            "changes its gate"
        )
    return adaptation.evaluate(parts, before, k=k)


def _put_in_force(
    console: Console,
    adaptation: "Adaptation",
    settings: Settings,
    command: str,
    *,
    recommended: bool,
    wanted: bool | None,
    can_ask: bool,
) -> dict[str, Any] | None:
    """Encodes the archive with the model, if that is wanted; the report, None = it was not done.

    wanted: None = whoever is at the terminal says so.

    Raises:
        QueryError: it is wanted, and the model is not better. As ``reencode`` raises them: others.
    """
    by_hand = f"this puts it in force: {command}"
    if not recommended:
        if wanted:
            raise QueryError(
                "the new model is not better than the one in force, which stays; all the same "
                + by_hand
            )
        _print(console, f"the model in force stays; all the same {by_hand}")
        return None
    if wanted is None and can_ask:
        wanted = typer.confirm(f"Encode the archive in {settings.data_dir} with the new model?")
    if not wanted:
        _print(console, f"nothing is encoded; {by_hand}")
        return None
    from api.cli.reencode import print_reencoded
    from api.cli.terminal import indexing_progress
    from indexer.reencoding.reencode import reencode

    errors = Console(stderr=True)
    with indexing_progress(errors, shown=errors.is_terminal and not console.quiet) as progress:
        try:
            report = reencode(settings, adaptation.model, progress=progress)
        except SourceError as error:
            raise SourceError(f"{error} of {command}") from None
    if not console.quiet:
        print_reencoded(report, settings)
    return asdict(report)


def _has_archive(settings: Settings) -> bool:
    from indexer.datadir.layout import DataDir

    return settings.ledger.url is not None or DataDir(settings.data_dir).exists


def _in_force(settings: Settings) -> str:
    """The fingerprint of the model that the index in force was made with, as far as the data folder
    says; else of the one that the settings name."""
    from indexer.datadir.layout import DataDir
    from indexer.datadir.models import model_directory

    kept = DataDir(settings.data_dir).model(settings)
    return _fingerprint(kept or model_directory(settings))


def _fingerprint(directory: Path) -> str:
    from engine.model.manifest import read_manifest

    return read_manifest(directory).fingerprint


def _sizes(parts: "Parts") -> dict[str, dict[str, int]]:
    return {
        name: {"images": len(examples), "groups": len({one.group for one in examples})}
        for name, examples in parts.named().items()
    }


def _print_parts(console: Console, adaptation: "Adaptation", parts: "Parts") -> None:
    by = {
        "patient": "patients",
        "group": "groups of the table",
        "study": "studies that name no patient",
        "file": "files that name neither",
    }
    grouped = ", ".join(
        f"{count:,} {by.get(kind, kind)}" for kind, count in adaptation.plan["grouped_by"].items()
    )
    for name, size in _sizes(parts).items():
        _print(console, f"{name}: {size['images']:,} images of {size['groups']:,} groups")
    _print(console, f"no group is in two parts; groups are: {grouped}")
    left_out = adaptation.plan["left_out"]
    if left_out:
        named = ", ".join(f"{label!r} {count:,}" for label, count in left_out.items())
        _print(console, f"classes of too few patients, left out: {named}")
    _print(console, f"which image is in which part: {adaptation.table}")


def _command(model: Path, settings: Settings, data_dir: Path | None) -> str:
    """What puts the model in force by hand."""
    where = [] if data_dir is None else ["--data-dir", str(settings.data_dir)]
    return shlex.join(["precedent", "reencode", "--model", str(model), *where])


def _rule(console: Console, title: str) -> None:
    console.rule(title, align="left")


def _print(console: Console, words: str) -> None:
    from api.cli.terminal import printable

    console.print(printable(words), soft_wrap=True)
