"""Which images to train on, as options of the command line say, and how they are read."""

from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from api.cli.options import check_writable
from api.cli.training_choices import quoted
from engine.errors import ImageRefused, QueryError
from engine.settings import ImageLimits, Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from engine.model.preprocess import Preprocess
    from engine.training.data import Example, TrainingSet

__all__ = [
    "BatchSizeOption",
    "DataArgument",
    "DeviceOption",
    "EpochsOption",
    "ExampleSource",
    "FileColumnOption",
    "GroupColumnOption",
    "LabelColumnOption",
    "LearningRateOption",
    "MinClassSizeOption",
    "PrecisionOption",
    "TrainSeedOption",
    "TrainingLabelsOption",
    "at_least",
    "check_folder",
    "check_learning_rate",
    "read_training_set",
]

DataArgument = Annotated[Path, typer.Argument(help="Folder of images, or CSV table.")]
TrainingLabelsOption = Annotated[
    str,
    typer.Option(
        "--labels",
        help="'folder' (one a class), 'csv', 'dicom-tags' (modality, body part, view), 'none'.",
    ),
]
FileColumnOption = Annotated[str, typer.Option(help="Column of a table's file names.")]
LabelColumnOption = Annotated[str, typer.Option(help="Column of a table's classes.")]
GroupColumnOption = Annotated[
    str | None,
    typer.Option(help="Column of a table's patients; where empty, a DICOM header's."),
]
MinClassSizeOption = Annotated[
    int, typer.Option(help="With dicom-tags, classes of fewer images are left out.")
]
EpochsOption = Annotated[int, typer.Option(help="Rounds through the images.")]
BatchSizeOption = Annotated[int, typer.Option(help="Images of one step.")]
LearningRateOption = Annotated[float, typer.Option(help="Its highest value.")]
PrecisionOption = Annotated[str, typer.Option(help="'auto', 'fp32' or 'bf16'.")]
DeviceOption = Annotated[str, typer.Option(help="'cpu', 'cuda', …, or 'auto'.")]
TrainSeedOption = Annotated[int, typer.Option(help="Another seed, another model.")]

_LABELS = ("folder", "csv", "dicom-tags", "none")


@dataclass(frozen=True, slots=True)
class ExampleSource:
    """The options that say which files to train on, and where their labels come from."""

    data: Path
    labels: str
    file_column: str
    label_column: str
    group_column: str | None
    min_class_size: int
    out: Path

    def check(self) -> None:
        """Raises QueryError: the options contradict each other, or name nothing."""
        if self.labels not in _LABELS:
            raise QueryError(f"--labels is {self.labels!r}; use one of {quoted(_LABELS)}")
        if self.group_column is not None and self.labels != "csv":
            raise QueryError(
                f"--group-column is of a table, not of --labels {self.labels}; leave it out"
            )

    def examples(self, limits: ImageLimits) -> "list[Example]":
        """The files with their labels; with their patients, as far as a column or a header says.

        Raises:
            TrainingDataError: there are none, or the table or folder cannot be read as asked.
        """
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
        listed = [
            one if one.group is None else replace(one, group=f"group {one.group}") for one in listed
        ]
        return grouped_by_patient(listed, limits)


def at_least(least: int, **options: int) -> None:
    """Checks numbers by the name of their options. Raises QueryError: one is less."""
    for name, value in options.items():
        if value < least:
            raise QueryError(f"--{name.replace('_', '-')} is {value}; use {least} or more")


def check_learning_rate(rate: float) -> None:
    if not 0 < rate < inf:
        raise QueryError(f"--learning-rate is {rate}; use a number above 0")


def check_folder(out: Path) -> None:
    """Checks that --out is a folder that can be written, or made. Raises QueryError."""
    if out.exists() and not out.is_dir():
        raise QueryError(f"--out is {str(out)!r}, which is a file; name a folder")
    check_writable(out, "--out")


def read_training_set(
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
