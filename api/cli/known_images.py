"""Draws, observes and splits the known images with which the OOD gate is calibrated."""

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
    """Observations of N images, with the owner and the kind of each.

    owners: the patient's pseudonym, else the Study Instance UID, else the SHA-256 of the file.
    kinds: modality and body part, as far as the file says.
    """

    observations: Observations
    owners: tuple[str, ...]
    kinds: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.owners)

    def split(self, seed: int) -> tuple["Known", "Known"]:
        """Two halves that share no owner and have about as many images of each kind.

        Kinds are balanced because a kind with few owners could otherwise end up in one half. If the
        reference lacks it, its calibration images score as high as foreign ones, and foreign images
        then pass the gate. A kind with a single owner is wholly in the first half.

        The result depends only on the images and the seed, not on their order.
        """
        first = _first_half(self.owners, self.kinds, seed)
        return self._part(first), self._part(~first)

    def without_owners_of(self, others: "Known") -> "Known":
        """The images whose owner has no image among ``others``."""
        theirs = set(others.owners)
        return self._part(np.array([owner not in theirs for owner in self.owners], dtype=bool))

    def _part(self, mask: NDArray[np.bool_]) -> "Known":
        owners = tuple(compress(self.owners, mask))
        return Known(self.observations[mask], owners, tuple(compress(self.kinds, mask)))


def files_of(folder: Path) -> list[Path]:
    """The paths of all files below ``folder``. Raises QueryError if it does not exist."""
    return [
        file_path(found.locator)
        for found in FolderSource([folder], open_archives=False).instances()
    ]


def drawn(paths: Sequence[Path], count: int, seed: int) -> list[Path]:
    """A random sample of at most ``count`` files, sorted, in equal parts from each folder.

    A folder with too few files gives all it has. Folders are balanced because each may hold a
    class: one with few images would have few in the reference, and be called foreign too often.
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
    """Reads the middle frame of each file and observes it with the model; keeps their order.

    Args:
        encoder: the model.
        settings: limits of images; number of reading processes.
        paths: image files.
        refused: files that cannot be read are counted in it, by reason.

    Raises:
        TrainingDataError: no file can be read.
    """
    owners: list[str] = []
    kinds: list[str] = []
    seen: list[Observations] = []
    with FileReader(
        settings,
        encoder.manifest.preprocess,
        bytes(32),  # a fixed key: pseudonyms are never stored here, and splits are repeatable
        frames=1,
        processes=settings.indexing.readers,
    ) as reader:
        canvases: list[NDArray[np.uint8]] = []
        colour: list[float] = []
        for result in tracked(reader.read(paths), "looking at known images", len(paths)):
            if isinstance(result, ImageRefused):
                refused[result.code] += 1
                continue
            record = result.record
            owners.append(record.patient or record.study or result.content_sha256)
            kinds.append(f"{record.modality or ''} {record.body_part or ''}")
            canvases.append(result.pictures[0].canvas)
            colour.append(result.pictures[0].colour)
            if len(canvases) == encoder.batch_size:
                seen.append(encoder.observe(canvases, colour))
                canvases.clear()
                colour.clear()
        if canvases:
            seen.append(encoder.observe(canvases, colour))
    if not seen:
        raise TrainingDataError(
            f"none of {len(paths)} files is an image that can be read; name a folder of DICOM, "
            "PNG or JPEG files"
        )
    return Known(Observations.joined(seen), tuple(owners), tuple(kinds))


def _first_half(owners: Sequence[str], kinds: Sequence[str], seed: int) -> NDArray[np.bool_]:
    """Which images go to the first half, bool (N,).

    Owners are taken in the order of their hashes; each goes to the half that has fewer images of
    the owner's kinds so far.
    """
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
