"""Builds the shipped model: trains network, codes and decoder, and calibrates the OOD gate.

    python -m bench.weights DATA OUT [--fold 1/3 | --leave-out SOURCE…] [--epochs 40]
    python -m bench.weights DATA OUT --folds FOLD… [--epochs 40]

DATA has ``manifest.csv`` and ``more/manifest.csv`` (``bench.manifests``). The same command goes on
where a build was stopped, or killed; ``--epochs`` may be raised then. Until it ends, OUT has the
best model so far in ``epoch-NNNN``. With ``--code-epochs`` the hash head is fitted once more
(``engine.training.codes``) when the network has been trained, also to a build that has ended.

The tower starts from ImageNet weights (``bench.pretrained``). Images are drawn by kind, source and
patient, beside synthetic ones (``bench.phantoms``): of the known kinds as other scanners show them,
and of other things, as kinds of their own, so that the real ones do not fill all of the feature
space. With sources left out it is a fold of ``bench.sources``: ``fold.json`` names them. From
finished folds the gate learns what known kinds look like from sources that nobody has met.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.collection import Part
from bench.held_out import FOLD, fold_model, scores_elsewhere, seen_by
from bench.manifests import (
    Picture,
    canvases,
    colours,
    counted,
    fold_of,
    leave_out,
    read_pictures,
)
from bench.phantoms import KNOWN, OTHER, Draw, phantom_images
from bench.photographs import photograph_crops
from bench.pretrained import TOWER, imagenet_start
from bench.quality import SPREAD
from bench.source_data import drawn_images, held_out_set, training_set
from engine.files import write_atomically
from engine.model.config import small_network
from engine.model.encoder import Encoder
from engine.model.manifest import Manifest
from engine.model.preprocess import Preprocess
from engine.ood.base import Detector
from engine.ood.calibration import OodGate, most_colour
from engine.ood.detectors import ExposureDetector, KnnDetector, detector_kind
from engine.ood.likeness import LikenessScale
from engine.records import Observations
from engine.training.augment import AugmentConfig
from engine.training.data import TrainingSet
from engine.training.decoder import DecoderConfig, train_decoder
from engine.training.trainer import TrainConfig, train
from indexer.sample.foreign import scene_images

REFERENCES = 4096
SHOWN = 100  # drawn pictures of each foreign kind
SHIPPED_DETECTORS = ("knn", "appearance", "exposure")
_log = logging.getLogger(__name__)


def with_phantoms(
    real: Part, preprocess: Preprocess, per_class: int, seed: int, others: dict[str, Draw]
) -> TrainingSet:
    """One training set of the real images and synthetic ones of their classes and ``others``."""
    known = {name: draw for name, draw in KNOWN.items() if name in set(real.classes.tolist())}
    # More of what has no real images, or its few would weigh more than they should.
    images = [
        *phantom_images(per_class, seed, known),
        *phantom_images(2 * per_class, seed + 1, others),
    ]
    names, drawn = zip(*images, strict=True)
    shown = np.stack([preprocess.canvas(image) for image in drawn])
    labels = np.concatenate([real.classes, np.array(names)])
    classes, indices = np.unique(labels, return_inverse=True)
    return TrainingSet(
        np.concatenate([real.canvases, shown]),
        indices.astype(np.int64),
        tuple(classes.tolist()),
    )


def calibrated_gate(
    encoder: Encoder,
    reference: Part,
    calibration: Part,
    seed: int,
    names: tuple[str, ...],
    photographs: Path | None = None,
) -> OodGate:
    """An OOD gate with the detectors named, fitted on real training images."""
    classes = len(np.unique(reference.classes))
    # The same number of images of each class, so that small classes count as known as large ones.
    chosen = reference.balanced(REFERENCES // classes, by="class", seed=seed)
    labels = class_indices(encoder, chosen)
    known = encoder.observe(list(chosen.canvases))
    shown = shown_as_foreign(encoder, photographs, seed)
    detectors = [detector(name, shown).fit(known, labels) for name in names]
    return OodGate.calibrated(detectors, encoder.observe(list(calibration.canvases)))


def shown_as_foreign(encoder: Encoder, photographs: Path | None, seed: int) -> Observations:
    """What the detector "exposure" is shown: drawn pictures of other things and other anatomy,
    scenes, and crops of photographs. Pages and noise are not among them: they judge the gate.

    photographs: a folder, see ``bench.photographs``; None = none.
    """
    images = [image for _, image in phantom_images(SHOWN, seed + 2, OTHER)]
    images += scene_images(3 * SHOWN, seed)
    if photographs is not None:
        images += photograph_crops(photographs, seed)
    return encoder.observe([encoder.manifest.preprocess.canvas(image) for image in images])


def detector(name: str, shown: Observations) -> Detector:
    """The detector of this name, not yet fitted."""
    kind = detector_kind(name)
    return kind(shown) if kind is ExposureDetector else kind()


def class_indices(encoder: Encoder, part: Part) -> NDArray[np.int64]:
    """For each image the index of its class among the classifier's outputs, int64 (N,). Of a model
    whose classes tell planes apart, the class of the first plane: "AbdomenCT axial"."""
    number = {name: i for i, name in enumerate(encoder.manifest.classes)}
    for i, name in enumerate(encoder.manifest.classes):
        number.setdefault(name.partition(" ")[0], i)
    return np.array([number[name] for name in part.classes], dtype=np.int64)


def spread_out(pictures: Sequence[Picture], most: int, seed: int) -> list[Picture]:
    """At most ``most`` pictures: of kinds alike, of a kind's sources, of a source's patients."""
    rng = np.random.default_rng(seed)
    left: dict[str, dict[str, dict[str, list[Picture]]]] = {}
    for at in rng.permutation(len(pictures)):
        picture = pictures[at]
        kind = left.setdefault(picture.kind, {}).setdefault(picture.source, {})
        kind.setdefault(picture.patient, []).append(picture)
    found: list[Picture] = []
    while left and len(found) < most:
        for kind in list(left):
            source = next(iter(left[kind]))
            patient = next(iter(left[kind][source]))
            found.append(left[kind][source][patient].pop())
            # Whoever had a turn goes to the end of the row, or away once there is nothing left.
            of_patient = left[kind][source].pop(patient)
            if of_patient:
                left[kind][source][patient] = of_patient
            of_source = left[kind].pop(source)
            if of_source:
                left[kind][source] = of_source
            if not left[kind]:
                del left[kind]
            if len(found) == most:
                break
    return found


def gate_of_sources(
    encoder: Encoder,
    learned: Sequence[Picture],
    calibrating: Sequence[Picture],
    seed: int,
    elsewhere: dict[str, NDArray[np.float32]] | None = None,
    photographs: Path | None = None,
) -> OodGate:
    """The gate of a model of many sources: each source counts as known as any other.

    elsewhere: scores of sources left out, see ``bench.held_out``; None = nothing is unfamiliar.
    """
    preprocess = encoder.manifest.preprocess
    chosen = spread_out(learned, REFERENCES, seed)
    known = encoder.observe(list(canvases(chosen, preprocess)), colours(chosen))
    kinds = np.unique([picture.kind for picture in chosen], return_inverse=True)[1]
    shown = shown_as_foreign(encoder, photographs, seed)
    detectors = [detector(name, shown).fit(known, kinds) for name in SHIPPED_DETECTORS]
    patients = np.unique([picture.patient for picture in chosen], return_inverse=True)[1]
    (knn,) = (one for one in detectors if isinstance(one, KnnDetector))
    held_out = encoder.observe(list(canvases(calibrating, preprocess)), colours(calibrating))
    return OodGate.calibrated(
        detectors,
        held_out,
        elsewhere=elsewhere,
        colour=most_colour(Observations.joined([known, held_out])),
        likeness=LikenessScale.fitted(knn.reference, patients),
    )


def build(arguments: argparse.Namespace) -> Manifest:
    """Trains what the arguments say, or goes on with it; the manifest of the model."""
    out: Path = arguments.out
    preprocess = Preprocess(size=arguments.size)
    every = read_pictures(arguments.folder)
    out_of = list(arguments.leave_out)
    if arguments.fold is not None:
        out_of += fold_of(every, *arguments.fold)
    pictures = leave_out(every, out_of)
    parts = {
        name: [picture for picture in pictures if picture.part == name]
        for name in ("train", "validation", "calibration")
    }
    if arguments.most:
        parts = {name: spread_out(part, arguments.most, 0) for name, part in parts.items()}
    note_fold(out, sorted(set(out_of)))
    rows = list(counted(parts["train"]))
    for row in rows:
        _log.info("learns from %(images)5d of %(patients)4d: %(class)s, %(source)s", row)
    drawn = drawn_images(
        arguments.per_kind, arguments.seed, {row["class"] for row in rows}, preprocess
    )
    data = training_set(parts["train"], drawn, preprocess, planes=not arguments.flat)
    held_out = held_out_set(parts["validation"], data, preprocess)
    _log.info("%d images, %d of them drawn; %d judge", len(data), len(drawn), len(held_out))
    config = TrainConfig(
        epochs=arguments.epochs,
        steps_per_epoch=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        tower_rate=arguments.tower_rate if arguments.start != "none" else 1.0,
        tower_rest_epochs=arguments.tower_rest if arguments.start != "none" else 0.0,
        ema_decay=arguments.ema_decay,
        images_per_class=4,
        by_source=True,
        temper=arguments.temper,
        seed=arguments.seed,
        precision=arguments.precision,
        keep=arguments.keep,
        code_epochs=arguments.code_epochs,
        code_bits=arguments.code_bits,
        # Batches are balanced already.
        loss=replace(SPREAD, weighted=False),
        augment=AugmentConfig(small=arguments.small),
    )
    manifest = train(
        data,
        small_network(len(data.classes), tower=arguments.tower),
        preprocess,
        config,
        out,
        pretrained=_start(arguments),
        held_out=held_out,
        notes={"trained_on": rows, "left_out": sorted(set(out_of))},
        keep_state=True,
    )
    if arguments.decoder_epochs:
        real = data.subset(np.arange(len(parts["train"])))
        decoder = DecoderConfig(epochs=arguments.decoder_epochs, seed=arguments.seed)
        train_decoder(out, real, decoder)
    encoder = Encoder.load(out)
    folds = [fold_model(folder, every) for folder in arguments.folds]
    judging = [(fold, seen_by(fold, every)) for fold in folds]
    elsewhere = scores_elsewhere(judging) if judging else None
    gate = gate_of_sources(
        encoder,
        parts["train"],
        parts["calibration"],
        arguments.seed,
        elsewhere,
        arguments.photographs,
    )
    gate.save(out, encoder.manifest.fingerprint, encoder.decoder_fingerprint)
    return manifest


def note_fold(out: Path, left_out: Sequence[str]) -> None:
    """Writes which sources the build in ``out`` leaves out.

    Raises:
        SystemExit: it leaves out others.
    """
    if (out / FOLD).is_file():
        before = json.loads((out / FOLD).read_text())["left_out"]
        if before != list(left_out):
            raise SystemExit(f"{out} is a build that leaves out {before}; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    fold = json.dumps({"left_out": list(left_out)}, indent=2) + "\n"
    write_atomically(out / FOLD, fold.encode())


def _start(arguments: argparse.Namespace) -> str | None:
    if arguments.start == "none":
        return None
    if arguments.start != "imagenet":
        return str(arguments.start)
    if arguments.tower != f"timm:{TOWER}":
        raise SystemExit(f"--start imagenet is of timm:{TOWER}; give a file for {arguments.tower}")
    return str(imagenet_start(arguments.pretrained))


def fold_argument(text: str) -> tuple[int, int]:
    """ "2/3" → (2, 3)."""
    number, _, folds = text.partition("/")
    return int(number), int(folds)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("folder", type=Path)
    made.add_argument("out", type=Path)
    made.add_argument("--leave-out", nargs="+", default=[], metavar="SOURCE")
    made.add_argument("--fold", type=fold_argument, metavar="I/K", help="the I-th of K folds")
    made.add_argument("--folds", type=Path, nargs="+", default=[], metavar="DIR")
    made.add_argument("--photographs", type=Path, metavar="DIR", help="shown to the gate")
    made.add_argument("--epochs", type=int, default=40)
    made.add_argument("--keep", choices=("best", "last"), default="last", help="which epoch")
    made.add_argument("--steps", type=int, default=250, help="of an epoch")
    made.add_argument("--batch-size", type=int, default=64)
    made.add_argument("--size", type=int, default=96)
    made.add_argument("--tower", default=f"timm:{TOWER}")
    made.add_argument("--start", default="imagenet", help="imagenet, none, or a file of weights")
    made.add_argument("--pretrained", type=Path, default=Path("build/pretrained"), metavar="DIR")
    # Depthwise convolutions are differentiated slower in bfloat16 than in float32, by half.
    made.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="fp32")
    made.add_argument("--learning-rate", type=float, default=1e-3)
    made.add_argument("--tower-rate", type=float, default=0.4, help="share of that")
    made.add_argument("--tower-rest", type=float, default=1.0, help="epochs until the tower learns")
    made.add_argument("--ema-decay", type=float, default=0.998)
    made.add_argument("--temper", type=float, default=0.4, help="0: sources alike, 1: by images")
    made.add_argument("--small", type=float, default=0.4, help="share shown with few pixels")
    made.add_argument("--per-kind", type=int, default=350, help="drawn images of each kind")
    made.add_argument("--most", type=int, default=0, help="real images of each part; 0: all")
    made.add_argument("--flat", action="store_true", help="classes without planes")
    made.add_argument("--code-epochs", type=int, default=0, help="of the codes' last fit; 0: none")
    made.add_argument("--code-bits", type=int, default=0, help="their length then; 0: as before")
    made.add_argument("--decoder-epochs", type=int, default=3, help="0: no decoder")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--resume", action="store_true", help="what happens anyway; refuses to start")
    return made


def main() -> None:
    arguments = parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if arguments.resume and not (arguments.out / FOLD).is_file():
        raise SystemExit(f"{arguments.out} holds no build to go on with; leave --resume out")
    manifest = build(arguments)
    print(f"model {manifest.fingerprint} is in {arguments.out}")


if __name__ == "__main__":
    main()
