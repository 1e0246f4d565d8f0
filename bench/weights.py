"""Builds the shipped model: trains the network and the decoder, and calibrates the OOD gate.

    python -m bench.weights FOLDER OUT [--per-class 350] [--size 96] [--epochs 10 6 12]

FOLDER as in ``bench.collection``: the splits train and calibration are used, database and query are
not. Besides the real images the model is trained on synthetic ones (``bench.phantoms``): of its own
classes as other scanners show them, and of other things, as classes of their own, so that the real
classes do not fill all of the feature space. It is trained several times, each time starting from
the tower of the training before; only the last training, which determines the codes, separates
images of one class by their structure. The same command continues an interrupted build.
"""

import argparse
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.collection import Collection, Part
from bench.phantoms import KNOWN, OTHER, Draw, phantom_images
from bench.quality import SPREAD
from engine.model.config import small_network
from engine.model.encoder import Encoder
from engine.model.manifest import WEIGHTS
from engine.model.preprocess import Preprocess
from engine.ood.calibration import OodGate
from engine.ood.detectors import detector_kind
from engine.training.data import TrainingSet
from engine.training.decoder import DecoderConfig, train_decoder
from engine.training.sch import SchConfig
from engine.training.trainer import TrainConfig, train

REFERENCES = 4096
SHIPPED_DETECTORS = ("knn", "appearance")


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
    canvases = np.stack([preprocess.canvas(image) for image in drawn])
    labels = np.concatenate([real.classes, np.array(names)])
    classes, indices = np.unique(labels, return_inverse=True)
    return TrainingSet(
        np.concatenate([real.canvases, canvases]),
        indices.astype(np.int64),
        tuple(classes.tolist()),
    )


def calibrated_gate(
    encoder: Encoder, reference: Part, calibration: Part, seed: int, names: tuple[str, ...]
) -> OodGate:
    """An OOD gate with the detectors named, fitted on real training images."""
    classes = len(np.unique(reference.classes))
    # The same number of images of each class, so that small classes count as known as large ones.
    chosen = reference.balanced(REFERENCES // classes, by="class", seed=seed)
    labels = class_indices(encoder, chosen)
    known = encoder.observe(list(chosen.canvases))
    detectors = [detector_kind(name)().fit(known, labels) for name in names]
    return OodGate.calibrated(detectors, encoder.observe(list(calibration.canvases)))


def class_indices(encoder: Encoder, part: Part) -> NDArray[np.int64]:
    """For each image the index of its class among the classifier's outputs, int64 (N,)."""
    number = {name: i for i, name in enumerate(encoder.manifest.classes)}
    return np.array([number[name] for name in part.classes], dtype=np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--per-class", type=int, default=350, help="drawn images of each class")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, nargs="+", default=[10, 6, 12], help="each time")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    preprocess = Preprocess(size=arguments.size)
    collection = Collection(arguments.folder, preprocess)
    data = with_phantoms(
        collection["train"], preprocess, arguments.per_class, arguments.seed, OTHER
    )
    tower = None
    for number, epochs in enumerate(arguments.epochs, start=1):
        last = number == len(arguments.epochs)
        out = arguments.out if last else arguments.out / f"time-{number}"
        config = TrainConfig(
            epochs=epochs,
            ema_decay=0.998,
            seed=arguments.seed,
            loss=SPREAD if last else SchConfig(),
        )
        train(data, small_network(len(data.classes)), preprocess, config, out, pretrained=tower)
        tower = str(out / WEIGHTS)
    train_decoder(
        arguments.out, collection["train"].training_set("class"), DecoderConfig(seed=arguments.seed)
    )
    encoder = Encoder.load(arguments.out)
    gate = calibrated_gate(
        encoder,
        collection["train"],
        collection["calibration"],
        arguments.seed,
        SHIPPED_DETECTORS,
    )
    gate.save(arguments.out, encoder.manifest.fingerprint, encoder.decoder_fingerprint)


if __name__ == "__main__":
    main()
