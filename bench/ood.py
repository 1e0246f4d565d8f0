"""OOD benchmark: how many foreign images the gate and each detector find, of several kinds.

    python -m bench.ood FOLDER [--model DIR] [--folds] [--jobs 2]

FOLDER as in ``bench.collection``, with photographs in the split ``ood``. Far: photographs,
documents and noise (``indexer.sample.foreign``). Adversarial: FGSM and PGD on the hash logits of
the queries. Near: with ``--folds``, models are trained without two of the classes and queried with
images of these. Known, but changed: the queries as other archives would show them
(``bench.shifts``), with the shipped gate and with one calibrated on such images; and synthetic
images of known kinds.
"""

import argparse
import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from bench.collection import Collection, Part
from bench.machine import machine, write_results
from bench.phantoms import KNOWN, OTHER, phantom_images
from bench.runs import RESULTS, SCRATCH, train_identity
from bench.shifted_queries import SHIFTS, shifted
from bench.tables import show
from bench.weights import SHIPPED_DETECTORS, calibrated_gate, with_phantoms
from engine.evaluation.ood import detection
from engine.files import write_atomically
from engine.model.checkpoint import load_checkpoint
from engine.model.config import small_network, to_dict
from engine.model.encoder import Encoder, canvas_tensor
from engine.model.manifest import SHIPPED
from engine.model.preprocess import Preprocess
from engine.ood.adversarial import as_canvases, fgsm, pgd
from engine.ood.calibration import OodGate
from engine.ood.detectors import DETECTORS
from engine.records import Observations
from engine.training.decoder import DecoderConfig, train_decoder
from engine.training.trainer import TrainConfig, train
from indexer.sample.foreign import document_images, noise_images

COUNT = 600
REFERENCE = 256  # changed images of each class, for a gate of their own
EPS = (1, 2, 4, 8)  # in steps of 1/255
ATTACKED = 150

# Held out together; between them every class is held out once. What is drawn of the same
# anatomy, in another modality, is held out with it.
FOLDS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("Hand", "CardiacMR"): (),
    ("HeadCT", "KneeXR"): ("HeadMR (synthetic)",),
    ("BreastMRI", "AbdomenCT"): ("Mammogram (synthetic)",),
    ("CXR", "ChestCT"): (),
}


def gate_rows(gate: OodGate, sets: dict[str, Observations]) -> list[dict[str, Any]]:
    """For each set of images the share that the gate calls foreign."""
    return [
        {
            "images": name,
            "count": len(observed),
            "flagged": round(flagged(gate, observed), 4),
            **{
                f"by {detector.name} alone": round(
                    float((detector.score(observed) > threshold(gate, detector.name)).mean()), 4
                )
                for detector in gate.detectors
            },
        }
        for name, observed in sets.items()
    ]


def mean_row(rows: Sequence[dict[str, Any]], of: str) -> dict[str, Any]:
    """The unweighted mean of the rows whose name contains ``of``."""
    chosen = [row for row in rows if of in row["images"]]
    shares = [name for name in chosen[0] if name not in ("images", "count")]
    return {
        "images": f"mean of {len(chosen)}, {of}",
        "count": sum(row["count"] for row in chosen),
        **{name: round(float(np.mean([row[name] for row in chosen])), 4) for name in shares},
    }


def flagged(gate: OodGate, observed: Observations) -> float:
    return float(np.mean([verdict.foreign for verdict in gate.verdicts(observed)]))


def threshold(gate: OodGate, name: str) -> float:
    """The score above which the detector by itself calls an image foreign, at the gate's alpha."""
    scores = np.sort(gate.calibration[name])
    allowed = int(gate.alpha * (len(scores) + 1)) - 1
    return float(scores[-1 - max(allowed, 0)])


def detector_rows(gate: OodGate, known: Observations, sets: dict[str, Observations]) -> Any:
    """AUROC, AUPR, FPR@95TPR and detection rate at alpha, for each detector and kind of image."""
    rows = []
    for detector in gate.detectors:
        scores = detector.score(known)
        limit = threshold(gate, detector.name)
        for name, observed in sets.items():
            foreign = detector.score(observed)
            found = detection(scores, foreign)
            rows.append(
                {
                    "detector": detector.name,
                    "foreign": name,
                    "AUROC": round(found.auroc, 4),
                    "AUPR": round(found.aupr, 4),
                    "FPR@95TPR": round(found.fpr_at_95_tpr, 4),
                    "caught": round(float((foreign > limit).mean()), 4),
                    "known flagged": round(float((scores > limit).mean()), 4),
                }
            )
    return rows


def far_sets(encoder: Encoder, photographs: Part) -> dict[str, Observations]:
    canvas = encoder.manifest.preprocess.canvas
    return {
        "photographs": encoder.observe(list(photographs.canvases)),
        "documents": encoder.observe([canvas(image) for image in document_images(COUNT, 0)]),
        "noise": encoder.observe([canvas(image) for image in noise_images(COUNT, 0)]),
    }


def changed_rows(
    encoder: Encoder, gate: OodGate, collection: Collection, photographs: Observations
) -> list[dict[str, Any]]:
    """Share called foreign of known images changed as in other archives, and of synthetic ones.

    For changed images also the share by a gate that was calibrated on images changed in that way.
    """
    reference = collection["train"].balanced(REFERENCE, by="class")
    queries = collection["query"].balanced(100, by="class")
    rows = []
    for name, shift in SHIFTS.items():
        asked = encoder.observe(shifted(queries.canvases, shift))
        own = calibrated_gate(
            encoder,
            changed(reference, shift),
            changed(collection["calibration"], shift),
            0,
            SHIPPED_DETECTORS,
        )
        (row,) = gate_rows(gate, {name: asked})
        row["calibrated on such"] = round(flagged(own, asked), 4)
        row["photographs then"] = round(flagged(own, photographs), 4)
        rows.append(row)
    canvas = encoder.manifest.preprocess.canvas
    drawn = [canvas(image) for _, image in phantom_images(25, 999, KNOWN)]
    return [*rows, *gate_rows(gate, {"drawn": encoder.observe(drawn)})]


def changed(part: Part, shift: Callable[[Image.Image], Image.Image]) -> Part:
    return replace(part, canvases=np.stack(shifted(part.canvases, shift)))


def adversarial_rows(model: Path, encoder: Encoder, gate: OodGate, queries: Part) -> Any:
    """Share of attacked queries called foreign, and share of bits that the attack changed."""
    chosen = np.random.default_rng(0).permutation(len(queries))[:ATTACKED]
    canvases = queries.canvases[np.sort(chosen)]
    network, _ = load_checkpoint(model)
    clean = encoder.observe(list(canvases))
    share = round(flagged(gate, clean), 4)
    rows = [{"attack": "none", "eps × 255": 0, "flagged": share, "bits turned": 0.0}]
    for eps in EPS:
        for attack in ("fgsm", "pgd"):
            moved = attacked(network, canvases, attack, eps / 255)
            observed = encoder.observe(list(moved))
            rows.append(
                {
                    "attack": attack,
                    "eps × 255": eps,
                    "flagged": round(flagged(gate, observed), 4),
                    "bits turned": round(bits_turned(clean.codes, observed.codes), 4),
                }
            )
    return rows


def attacked(network: Any, canvases: NDArray[np.uint8], attack: str, eps: float) -> Any:
    parts = []
    for start in range(0, len(canvases), 50):
        images = canvas_tensor(canvases[start : start + 50])
        moved = fgsm(network, images, eps) if attack == "fgsm" else pgd(network, images, eps)
        parts.append(as_canvases(moved))
    return np.concatenate(parts)


def bits_turned(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> float:
    return float(np.bitwise_count(before ^ after).mean() / 8)


def fold(folder: Path, held_out: tuple[str, ...], size: int, epochs: int) -> dict[str, Any]:
    """Trains a model without two classes and queries it with these; kept as in ``bench.runs``."""
    torch.set_num_threads(1)
    config = TrainConfig(epochs=epochs, seed=0)
    decider = {
        "fold": [list(held_out), list(FOLDS[held_out])],
        "size": size,
        "train": train_identity(config),
        "decoder": to_dict(DecoderConfig()),
        "gate": list(SHIPPED_DETECTORS),
    }
    key = hashlib.sha256(json.dumps(decider, sort_keys=True).encode()).hexdigest()[:16]
    path = RESULTS / f"ood-{key}.json"
    if path.exists():
        known: dict[str, Any] = json.loads(path.read_text())
        return known
    preprocess = Preprocess(size=size)
    collection = Collection(folder, preprocess)
    parts = {s: collection[s].without(held_out) for s in ("train", "calibration", "query")}
    scratch = SCRATCH / path.stem
    real = parts["train"].balanced(500, by="class")
    others = {name: draw for name, draw in OTHER.items() if name not in FOLDS[held_out]}
    data = with_phantoms(real, preprocess, 100, 0, others)
    network = small_network(len(data.classes), 64, "timm:regnetx_002")
    if not (scratch / "manifest.json").exists():
        train(data, network, preprocess, config, scratch)
    train_decoder(scratch, real.training_set("class"), DecoderConfig())
    encoder = Encoder.load(scratch)
    queries = encoder.observe(list(parts["query"].canvases))
    sets, development = (
        {
            f"{name}, never seen": encoder.observe(list(collection[split].only([name]).canvases))
            for name in held_out
        }
        for split in ("query", "calibration")
    )
    gate = calibrated_gate(encoder, real, parts["calibration"], 0, SHIPPED_DETECTORS)
    every = calibrated_gate(encoder, real, parts["calibration"], 0, tuple(DETECTORS))
    result = {
        "config": decider,
        "machine": machine(),
        "gate": gate_rows(gate, {"known queries": queries, **sets}),
        "detectors": detector_rows(every, queries, sets),
        # For choosing detectors, which must not be done on the queries that are reported.
        "development": detector_rows(
            every, encoder.observe(list(parts["calibration"].canvases)), development
        ),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
    shutil.rmtree(scratch)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--folds", action="store_true")
    parser.add_argument("--size", type=int, default=64, help="of the folds' models")
    parser.add_argument("--epochs", type=int, default=8, help="of the folds' models")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    console = Console(width=150)
    encoder = Encoder.load(arguments.model)
    gate = OodGate.load(arguments.model, encoder.manifest.fingerprint, encoder.decoder_fingerprint)
    if gate is None:
        raise SystemExit(f"{arguments.model} has no gate; run precedent calibrate")
    collection = Collection(arguments.folder, encoder.manifest.preprocess)
    known = encoder.observe(list(collection["query"].canvases))
    by_class = {
        f"known: {name}": encoder.observe(list(collection["query"].only([name]).canvases))
        for name in np.unique(collection["query"].classes).tolist()
    }
    far = far_sets(encoder, collection["ood"])
    results: dict[str, Any] = {"model": encoder.manifest.fingerprint, "alpha": gate.alpha}
    results["gate"] = gate_rows(gate, {"known: all": known, **by_class, **far})
    show(console, "called foreign by the shipped gate", results["gate"], list(results["gate"][0]))
    every = calibrated_gate(
        encoder, collection["train"], collection["calibration"], 0, tuple(DETECTORS)
    )
    results["detectors"] = detector_rows(every, known, far)
    show(console, "detectors", results["detectors"], list(results["detectors"][0]))
    results["adversarial"] = adversarial_rows(arguments.model, encoder, gate, collection["query"])
    show(console, "attacked queries", results["adversarial"], list(results["adversarial"][0]))
    results["changed"] = changed_rows(encoder, gate, collection, far["photographs"])
    show(console, "known, as elsewhere", results["changed"], list(results["changed"][0]))
    if arguments.folds:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.jobs, context) as pool:
            futures = [
                pool.submit(fold, arguments.folder, held_out, arguments.size, arguments.epochs)
                for held_out in FOLDS
            ]
            folds = [future.result() for future in futures]
        near = [row for one in folds for row in one["gate"]]
        near += [mean_row(near, "known"), mean_row(near, "never seen")]
        show(console, "anatomy held out of training", near, list(near[0]))
        rows = [row for one in folds for row in one["detectors"]]
        show(console, "detectors on held-out anatomy", rows, list(rows[0]))
        print(write_results("ood-anatomy", {"folds": folds}))
    print(write_results("ood", results))


if __name__ == "__main__":
    main()
