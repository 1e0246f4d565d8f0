"""Known images for the OOD gate: drawn evenly, observed by the model, kept apart by patient."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from api.cli.terminal import tracked
from engine.errors import ImageRefused, TrainingDataError
from engine.model.encoder import Encoder
from engine.records import Observations
from engine.settings import Settings
from indexer.files.locators import file_path
from indexer.pipeline.file_reader import FileReader
from indexer.sources.folder import FolderSource

__all__ = ["Known", "drawn", "files_of", "observe"]


@dataclass(frozen=True, slots=True)
class Known:
    """Observations of N images and, for each, whose and of what kind it is.

    owners: the patient, else the study, else the file by its content. kinds: modality and body
    part, as far as the file says.
    """

    observations: Observations
    owners: tuple[str, ...]
    kinds: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.owners)

    def split(self, seed: int) -> tuple["Known", "Known"]:
        """Two halves about equal in images of each kind that share no owner.

        Without regard to kinds, one of few patients often goes to one half as a whole. If it is
        missing among the references, its calibration images are as odd as foreign ones, and
        these pass. Of a kind with a single owner the first half has all.

        The same for the same images and seed, in whatever order they come.
        """
        first = _first_half(self.owners, self.kinds, seed)
        return self._part(first), self._part(~first)

    def without_owners_of(self, others: "Known") -> "Known":
        """Those images whose owner has none among ``others``."""
        theirs = set(others.owners)
        return self._part(np.array([owner not in theirs for owner in self.owners], dtype=bool))

    def _part(self, mask: NDArray[np.bool_]) -> "Known":
        owners = tuple(compress(self.owners, mask))
        return Known(self.observations[mask], owners, tuple(compress(self.kinds, mask)))


def files_of(folder: Path) -> list[Path]:
    """All files below ``folder``. Raises QueryError: it does not exist."""
    return [
        file_path(found.locator)
        for found in FolderSource([folder], open_archives=False).instances()
    ]


def drawn(paths: Sequence[Path], count: int, seed: int) -> list[Path]:
    """At most ``count`` of the files, as evenly from their folders as these allow, sorted.

    Drawn without regard to folders, a class with few images gets few into the reference, lies
    far from it, and is called foreign too often.
    """
    rng = np.random.default_rng(seed)
    folders: dict[Path, list[Path]] = {}
    for path in sorted(paths):
        folders.setdefault(path.parent, []).append(path)
    turns = [
        (turn, float(rng.random()), files[i])
        for files in folders.values()
        for turn, i in enumerate(rng.permutation(len(files)))
    ]
    return sorted(path for _, _, path in sorted(turns)[:count])


def observe(
    encoder: Encoder, settings: Settings, paths: Sequence[Path], refused: Counter[str]
) -> Known:
    """What the model sees of the middle frames of ``paths``, in their order.

    Args:
        encoder: the model.
        settings: limits of images, reading processes.
        paths: DICOM, PNG and JPEG files.
        refused: files that cannot be read are counted here, by reason.

    Raises:
        TrainingDataError: that is none of the files.
    """
    owners: list[str] = []
    kinds: list[str] = []
    seen: list[Observations] = []
    with FileReader(
        settings,
        encoder.manifest.preprocess,
        bytes(32),  # of pseudonyms that are never stored; always the same, so that splits are
        frames=1,
        processes=settings.indexing.readers,
    ) as reader:
        canvases: list[NDArray[np.uint8]] = []
        for result in tracked(reader.read(paths), "looking at known images", len(paths)):
            if isinstance(result, ImageRefused):
                refused[result.code] += 1
                continue
            record = result.record
            owners.append(record.patient or record.study or result.content_sha256)
            kinds.append(f"{record.modality or ''} {record.body_part or ''}")
            canvases.append(result.pictures[0].canvas)
            if len(canvases) == encoder.batch_size:
                seen.append(encoder.observe(canvases))
                canvases.clear()
        if canvases:
            seen.append(encoder.observe(canvases))
    if not seen:
        raise TrainingDataError(
            f"none of {len(paths)} files is an image that can be read; name a folder of DICOM, "
            "PNG or JPEG files"
        )
    return Known(Observations.joined(seen), tuple(owners), tuple(kinds))


def _first_half(owners: Sequence[str], kinds: Sequence[str], seed: int) -> NDArray[np.bool_]:
    """Mask (N,): owners in the order of their hashes, each to the half that has fewer images of
    its kinds."""
    images: dict[str, Counter[str]] = {}
    for owner, kind in zip(owners, kinds, strict=True):
        images.setdefault(owner, Counter())[kind] += 1
    first: set[str] = set()
    lead: Counter[str] = Counter()
    for owner in sorted(images, key=lambda o: hashlib.sha256(f"{seed}:{o}".encode()).digest()):
        if sum(lead[kind] * count for kind, count in images[owner].items()) <= 0:
            first.add(owner)
            lead.update(images[owner])
        else:
            lead.subtract(images[owner])
    return np.array([owner in first for owner in owners], dtype=bool)
