"""What the shipped model learns from: real pictures of many sources, and drawn ones beside them."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import bench.phantoms
import indexer.sample.phantoms
from bench.manifests import Picture, canvases, plane
from bench.phantoms import KNOWN, OTHER, phantom_images, slices_in_windows
from bench.runs import SCRATCH
from engine.files import writing_atomically
from engine.model.preprocess import Preprocess
from engine.training.data import TrainingSet

__all__ = ["Drawn", "drawn_images", "held_out_set", "training_set"]

DRAWN = "drawn"
"""The source of all drawn images."""

# Drawn before there were real ones of the kind.
_SAME_KIND = {"HeadMR (synthetic)": "BrainMR"}


@dataclass(frozen=True)
class Drawn:
    """Drawn images. kinds: of each its kind. scenes: as in TrainingSet, −1 = none."""

    canvases: NDArray[np.uint8]
    kinds: tuple[str, ...]
    scenes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.kinds)


def drawn_images(per_kind: int, seed: int, kinds: Iterable[str], preprocess: Preprocess) -> Drawn:
    """``per_kind`` images of each known kind, CT as pairs of one slice in two windows, and twice as
    many of each other kind, which has no real ones.

    They are kept, as drawing thousands takes minutes.

    kinds: those of the real images.
    """
    decides = repr((per_kind, seed, sorted(set(kinds)), preprocess)).encode()
    for module in (bench.phantoms, indexer.sample.phantoms):
        decides += Path(str(module.__file__)).read_bytes()
    path = SCRATCH / "drawn" / f"{hashlib.sha256(decides).hexdigest()[:16]}.npz"
    if not path.is_file():
        made = _draw(per_kind, seed, set(kinds), preprocess)
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing_atomically(path) as stream:
            np.savez(stream, canvases=made.canvases, kinds=list(made.kinds), scenes=made.scenes)
    with np.load(path) as kept:
        return Drawn(kept["canvases"], tuple(kept["kinds"].tolist()), kept["scenes"])


def _draw(per_kind: int, seed: int, kinds: set[str], preprocess: Preprocess) -> Drawn:
    names: list[str] = []
    found: list[NDArray[np.uint8]] = []
    scenes: list[int] = []

    def add(name: str, image: NDArray[np.uint8], scene: int = -1) -> None:
        names.append(_SAME_KIND.get(name, name) if _SAME_KIND.get(name) in kinds else name)
        found.append(preprocess.canvas(image))
        scenes.append(scene)

    for scene, (name, windows) in enumerate(slices_in_windows(per_kind // 2, seed, kinds)):
        for image in windows:
            add(name, image, scene)
    paired = set(names)
    known = {name: draw for name, draw in KNOWN.items() if name in kinds - paired}
    for name, image in phantom_images(per_kind, seed, known):
        add(name, image)
    for name, image in phantom_images(2 * per_kind, seed + 1, OTHER):
        add(name, image)
    side = preprocess.size
    canvas = np.stack(found) if found else np.zeros((0, side, side), np.uint8)
    return Drawn(canvas, tuple(names), np.array(scenes, dtype=np.int64))


def training_set(
    pictures: Sequence[Picture], drawn: Drawn, preprocess: Preprocess, *, planes: bool = True
) -> TrainingSet:
    """One training set of both: classes are kinds in a plane ("ChestCT coronal"), parents kinds.

    planes: False = classes are kinds, and nothing is said of parents.
    """
    names = [_class(picture, planes) for picture in pictures]
    names += [_drawn_class(kind, planes) for kind in drawn.kinds]
    kinds = [picture.kind for picture in pictures] + list(drawn.kinds)
    classes, labels = np.unique(np.array(names), return_inverse=True)
    of_class = dict(zip(names, kinds, strict=True))
    every = sorted(set(kinds))
    parents = tuple(every.index(of_class[name]) for name in classes.tolist())
    offset = 1 + max((picture.scene for picture in pictures), default=-1)
    groups = [picture.patient for picture in pictures] + [f"{DRAWN} {i}" for i in range(len(drawn))]
    sources = [picture.source for picture in pictures] + [DRAWN] * len(drawn)
    return TrainingSet(
        np.concatenate([canvases(pictures, preprocess), drawn.canvases]),
        labels.astype(np.int64),
        tuple(classes.tolist()),
        _numbered(groups),
        _numbered(sources),
        np.concatenate(
            [
                np.array([picture.scene for picture in pictures], dtype=np.int64),
                np.where(drawn.scenes >= 0, drawn.scenes + offset, -1),
            ]
        ),
        parents if planes else (),
    )


def held_out_set(
    pictures: Sequence[Picture], learned: TrainingSet, preprocess: Preprocess
) -> TrainingSet:
    """Pictures that judge epochs, with the classes of ``learned``; those of others are left out."""
    planes = bool(learned.parents)
    number = {name: i for i, name in enumerate(learned.classes)}
    judging = [picture for picture in pictures if _class(picture, planes) in number]
    return TrainingSet(
        canvases(judging, preprocess),
        np.array([number[_class(picture, planes)] for picture in judging], dtype=np.int64),
        learned.classes,
        _numbered([picture.patient for picture in judging]),
        _numbered([picture.source for picture in judging]),
        None,
        learned.parents,
    )


def _class(picture: Picture, planes: bool) -> str:
    return f"{picture.kind} {plane(picture)}".strip() if planes else picture.kind


def _drawn_class(kind: str, planes: bool) -> str:
    """Of a kind whose real images lie in one plane, phantoms lie in it too."""
    if kind == "BrainMR":
        return "BrainMR axial" if planes else kind
    return _class(Picture(Path(), kind, "", DRAWN, "", "train"), planes)


def _numbered(names: Sequence[str]) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = np.unique(np.array(names), return_inverse=True)[1]
    return numbers.astype(np.int64)
