"""Image files, read and encoded, as the queries or the database of an evaluation."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from api.cli.terminal import tracked
from engine.errors import ImageRefused, QueryError
from engine.evaluation.quality import EvaluationSet
from engine.model.encoder import Encoder
from engine.ood.calibration import OodGate
from engine.tenants import DEFAULT_TENANT
from engine.training.data import Example
from indexer.pipeline.file_reader import FileReader

__all__ = ["ImageSet", "images_of_files"]

_BATCH = 256  # images in memory between reading and encoding


@dataclass(frozen=True, slots=True)
class ImageSet:
    """The images of the queries or of the database.

    paths: of the files, by image id; empty for an index. refused: number of files by reason.
    unlabelled: number of images left out because they have no label.
    foreign: bool (N,), which images the OOD gate calls foreign; None = no verdicts.
    """

    images: EvaluationSet
    paths: dict[str, Path]
    refused: dict[str, int]
    unlabelled: int
    foreign: NDArray[np.bool_] | None

    def of(self, ids: Sequence[str]) -> "ImageSet":
        """The images of these ids, in their order; without what is told of files."""
        at = {name: row for row, name in enumerate(self.images.ids)}
        rows = [at[name] for name in ids]
        images = self.images
        return ImageSet(
            EvaluationSet(
                images.z[rows],
                images.codes[rows],
                [images.labels[row] for row in rows],
                list(ids),
                None if images.groups is None else [images.groups[row] for row in rows],
            ),
            {},
            {},
            0,
            None if self.foreign is None else self.foreign[rows],
        )


def images_of_files(
    folder: str,
    examples: Sequence[Example],
    reader: FileReader,
    encoder: Encoder,
    gate: OodGate | None,
) -> ImageSet:
    """Reads and encodes files. A file that is in two class folders is one image of two classes.

    Args:
        folder: where the files are from, for people.
        examples: the files and their classes; one without a group is of the patient, study or
            instance that its header names.
        gate: to be asked about them; None = no verdicts.

    Raises:
        QueryError: no file can be read.
    """
    refused: Counter[str] = Counter()
    labels: dict[str, tuple[str, ...]] = {}
    paths: dict[str, Path] = {}
    groups: list[str | None] = []
    waiting: list[NDArray[np.uint8]] = []
    colour: list[float] = []
    seen: list[tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_] | None]] = []
    results = reader.read(example.path for example in examples)
    shown = tracked(results, f"looking at {folder}", len(examples))
    for example, result in zip(examples, shown, strict=True):
        if isinstance(result, ImageRefused):
            refused[result.code] += 1
            continue
        picture = result.pictures[0]
        image_id = picture.id_in(DEFAULT_TENANT)
        before = labels.get(image_id, ())
        labels[image_id] = tuple(sorted({*before, str(example.label)}))
        if before:
            continue
        paths[image_id] = example.path
        record = result.record
        groups.append(example.group or record.patient or record.study or record.sop)
        waiting.append(picture.canvas)
        colour.append(picture.colour)
        if len(waiting) == _BATCH:
            seen.append(_encoded(encoder, gate, waiting, colour))
            waiting.clear()
            colour.clear()
    if waiting:
        seen.append(_encoded(encoder, gate, waiting, colour))
    if not seen:
        reasons = ", ".join(f"{reason} {count}" for reason, count in refused.items())
        raise QueryError(
            f"none of the {len(examples)} files in {folder} can be read ({reasons}); name a "
            "folder of image files"
        )
    z, codes, foreign = zip(*seen, strict=True)
    images = EvaluationSet(
        np.concatenate(z), np.concatenate(codes), list(labels.values()), list(labels), groups
    )
    verdicts = None if gate is None else np.concatenate(foreign)
    return ImageSet(images, paths, dict(sorted(refused.items())), 0, verdicts)


def _encoded(
    encoder: Encoder,
    gate: OodGate | None,
    canvases: Sequence[NDArray[np.uint8]],
    colour: Sequence[float],
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_] | None]:
    """z float32 (N, D), packed codes uint8 (N, B/8) and the verdicts ``foreign`` bool (N,).

    gate: None = the verdicts are None as well.
    """
    if gate is None:
        encoded = encoder.encode(canvases)
        return encoded.z, encoded.codes, None
    observed = encoder.observe(canvases, colour)
    foreign = np.array([verdict.foreign for verdict in gate.verdicts(observed)])
    return observed.z, observed.codes, foreign
