"""The pictures of ``DATA/manifest.csv`` and ``DATA/more/manifest.csv``: kind, source, patient.

A source is one hospital's, scanner's or collection's images. MedNIST was put together of several
collections, one a class, so that each class of it is a source of its own. No patient is in two
parts, and none is left out and learned from.
"""

import csv
import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.model.colour import coloured_share
from engine.model.preprocess import Preprocess

__all__ = [
    "PARTS",
    "Picture",
    "canvases",
    "colours",
    "counted",
    "fold_of",
    "leave_out",
    "plane",
    "read_pictures",
    "shared_patients",
]

PARTS = ("train", "validation", "calibration", "database", "query")
"""What the models learn from; what judges their epochs; what their gate is calibrated on; what is
searched, and asked. Of ``more``, the first three are also what is searched and asked."""

_ASSEMBLED = {"mednist"}
_PLANES = {"axial", "coronal", "sagittal", "frontal"}
_PLANE_OF_KIND = {
    "AbdomenCT": "axial", "BreastMRI": "axial", "CXR": "frontal", "ChestCT": "axial",
    "Hand": "frontal", "HeadCT": "axial", "KneeXR": "frontal",
}  # fmt: skip
_WINDOWS = {"lung", "soft", "bone", "brain"}
_VALIDATION, _CALIBRATION = 0.04, 0.12
_FEWEST_PATIENTS = 10  # a source of fewer is learned from as a whole
_NUMBERED = re.compile(r"^(?P<series>.*)_(?P<number>\d+)_(?P<window>[a-z]+)$")


@dataclass(frozen=True, slots=True)
class Picture:
    """A file of a manifest.

    kind: the class, modality and region: "ChestCT". view: the subclass, plane and window or
        sequence: "axial-lung". patient: unlike that of any other patient of any source.
    part: one of :data:`PARTS`. more: whether it is of ``DATA/more``.
    scene: equal for pictures of one slice in several windows; −1 = no other shows it.
    """

    path: Path
    kind: str
    view: str
    source: str
    patient: str
    part: str
    more: bool = False
    scene: int = -1


def read_pictures(folder: Path) -> list[Picture]:
    """All pictures below ``folder`` but those of the split ``ood``, in the manifests' order.

    Raises:
        SystemExit: a manifest cannot be read, or a patient is in two parts.
    """
    base = [
        Picture(
            folder / row["file"],
            row["class"],
            row["subclass"],
            f"{row['source']}-{row['class']}" if row["source"] in _ASSEMBLED else row["source"],
            # A group's name alone says little ("1"): with its class it is one patient or block.
            f"{row['class']}/{row['group']}",
            row["split"],
        )
        for row in _rows(folder / "manifest.csv")
        if row["split"] != "ood"
    ]
    more = [
        Picture(
            folder / "more" / row["file"],
            row["class"],
            row["subclass"],
            row["source"],
            row["group"],
            "train",
            more=True,
        )
        for row in _rows(folder / "more" / "manifest.csv")
    ]
    pictures = [*_parted(base), *_with_scenes(_parted(more))]
    if found := shared_patients(pictures):
        raise SystemExit(f"{found[0]} is in two parts; a patient must be in one")
    return pictures


def _rows(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))
    except OSError as error:
        raise SystemExit(
            f"{table} cannot be read ({error.strerror}); name the data folder"
        ) from None


def _parted(pictures: Sequence[Picture]) -> list[Picture]:
    """The same; of the patients to train on, some of each source judge epochs, and of ``more``,
    which has no split of its own, some calibrate. Which ones depends on their names alone."""
    patients: dict[str, set[str]] = {}
    for picture in pictures:
        if picture.part == "train":
            patients.setdefault(picture.source, set()).add(picture.patient)
    part: dict[str, str] = {}
    more = any(picture.more for picture in pictures)
    for names in patients.values():
        if len(names) < _FEWEST_PATIENTS:
            continue
        drawn = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
        judging = max(1, round(_VALIDATION * len(drawn)))
        calibrating = max(1, round(_CALIBRATION * len(drawn))) if more else 0
        part |= dict.fromkeys(drawn[:judging], "validation")
        part |= dict.fromkeys(drawn[judging : judging + calibrating], "calibration")
    return [
        replace(picture, part=part.get(picture.patient, picture.part))
        if picture.part == "train"
        else picture
        for picture in pictures
    ]


def _with_scenes(pictures: Sequence[Picture]) -> list[Picture]:
    """The same, with the slices that stand in several windows.

    Files of a series are numbered slice by slice, and window by window within: 1 lung, 2 soft, 3
    lung, 4 soft are two slices.
    """
    found = list(pictures)
    numbered: dict[tuple[str, str, str], dict[int, tuple[int, str]]] = {}
    for at, picture in enumerate(pictures):
        match = _NUMBERED.match(picture.path.stem)
        if match and match["window"] in _WINDOWS:
            series = (str(picture.path.parent), match["series"], plane(picture))
            numbered.setdefault(series, {})[int(match["number"])] = (at, match["window"])
    scene = 0
    for slices in numbered.values():
        taken: set[int] = set()
        for number in sorted(slices):
            if number in taken or number + 1 not in slices:
                continue
            (one, window), (other, next_window) = slices[number], slices[number + 1]
            if window != next_window:
                taken |= {number, number + 1}
                found[one] = replace(found[one], scene=scene)
                found[other] = replace(found[other], scene=scene)
                scene += 1
    return found


def plane(picture: Picture) -> str:
    """How the picture lies in the body, "axial" or "frontal" for example; "" where it is open."""
    named = picture.view.partition("-")[0]
    return named if named in _PLANES else _PLANE_OF_KIND.get(picture.kind, "")


def shared_patients(*parts: Iterable[Picture]) -> list[str]:
    """The patients that are in more than one of these lists; of one list, in two of its parts."""
    where: dict[str, set[str]] = {}
    for number, part in enumerate(parts):
        for picture in part:
            name = picture.part if len(parts) == 1 else str(number)
            where.setdefault(picture.patient, set()).add(name)
    return sorted(patient for patient, names in where.items() if len(names) > 1)


def leave_out(pictures: Sequence[Picture], sources: Collection[str]) -> list[Picture]:
    """The pictures of all other sources.

    Raises:
        SystemExit: there is no such source, nothing would be left, or a patient of a source left
            out is in another as well.
    """
    known = sorted({picture.source for picture in pictures})
    if unknown := sorted(set(sources) - set(known)):
        raise SystemExit(f"no source {unknown[0]!r} to leave out; there are {', '.join(known)}")
    kept = [picture for picture in pictures if picture.source not in sources]
    if not kept:
        raise SystemExit("every source is left out; leave some to learn from")
    gone = [picture for picture in pictures if picture.source in sources]
    if shared := shared_patients(kept, gone):
        raise SystemExit(f"{shared[0]} is left out and learned from; leave out both sources")
    return kept


def fold_of(pictures: Sequence[Picture], number: int, folds: int) -> list[str]:
    """The sources that fold ``number`` of ``folds`` leaves out, from 1.

    Each source whose kinds others have too is left out by exactly one fold, and those of one kind
    by different ones as far as they go. Sources that are alone with all of their kinds stay.
    """
    if not 1 <= number <= folds:
        raise SystemExit(f"fold {number} of {folds}; number them from 1")
    kinds: dict[str, set[str]] = {}
    for picture in pictures:
        kinds.setdefault(picture.source, set()).add(picture.kind)
    shared = {
        source
        for source, own in kinds.items()
        if any(own & others for other, others in kinds.items() if other != source)
    }
    out: list[list[str]] = [[] for _ in range(folds)]
    for source in sorted(shared, key=lambda name: (-len(kinds[name]), name)):

        def crowded(at: int, source: str = source) -> tuple[int, int]:
            alike = sum(len(kinds[source] & kinds[other]) for other in out[at])
            return alike, len(out[at])

        out[min(range(folds), key=crowded)].append(source)
    return sorted(out[number - 1])


def canvases(pictures: Sequence[Picture], preprocess: Preprocess) -> NDArray[np.uint8]:
    """Their canvases, uint8 (N, S, S), read by several threads."""

    def one(picture: Picture) -> NDArray[np.uint8]:
        with Image.open(picture.path) as image:
            return preprocess.canvas(np.asarray(image.convert("L")))

    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(one, pictures)))


def colours(pictures: Sequence[Picture]) -> list[float]:
    """Of each the share of its pixels that have a colour, which its canvas does not tell."""

    def one(picture: Picture) -> float:
        with Image.open(picture.path) as image:
            return coloured_share(np.asarray(image if image.mode == "L" else image.convert("RGB")))

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, pictures))


def counted(pictures: Iterable[Picture]) -> Iterator[dict[str, str | int]]:
    """A row for each kind and source: images and patients."""
    of: dict[tuple[str, str], list[Picture]] = {}
    for picture in pictures:
        of.setdefault((picture.kind, picture.source), []).append(picture)
    for (kind, source), some in sorted(of.items()):
        patients = len({picture.patient for picture in some})
        yield {"class": kind, "source": source, "images": len(some), "patients": patients}
