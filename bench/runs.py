"""Training runs whose results are cached by their whole configuration.

A run that has been made before, on this or another machine, is not repeated: its result is in
``bench/results/runs/KEY.json``, where KEY is a hash of everything that the result depends on.
"""

import base64
import hashlib
import json
import multiprocessing
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from bench.collection import Collection, Part
from bench.machine import machine
from bench.shifted_queries import shifted_precision
from bench.structure import structure_kept
from engine.evaluation.quality import EvaluationSet, QualityReport, evaluate
from engine.files import write_atomically
from engine.model.checkpoint import load_checkpoint
from engine.model.config import NetworkConfig, TowerConfig, small_network, to_dict
from engine.model.encoder import Encoder
from engine.model.preprocess import Preprocess
from engine.training.augment import AugmentConfig
from engine.training.sch import SchConfig
from engine.training.trainer import TrainConfig, train

__all__ = [
    "RESULTS",
    "SCRATCH",
    "Bench",
    "Run",
    "Scale",
    "make_all",
    "packed",
    "train_identity",
    "unpacked",
]

RESULTS = Path(__file__).parent / "results" / "runs"
SCRATCH = Path(__file__).parent / ".scratch"
_VERSION = 1  # of what is measured: a new number makes all cached results invalid

# What the paper's schedule has (crops), with little change of grey; no flips.
PLAIN = AugmentConfig(
    narrow=0, tone=0, shade=0, window=0.1, gamma=0.2, invert=0, rotate=10, scale=0.15, shift=0.08,
    coarsen=0, noise=0.02, border=0, marker=0,
)  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """The size of the runs of a table.

    size: side of the canvas, in pixels. tower: see :class:`engine.model.config.TowerConfig`.
    train, database, queries: most images of each label. epochs: after the warm start.
    warm_epochs: epochs for which the tower that all runs of the table start from is trained, as a
        plain classifier on the same training images; it stands in for the pretrained towers of the
        published methods. 0 = start from random weights.
    normalise: see :class:`engine.model.preprocess.Preprocess`.
    classes: the classes used; empty = all.
    """

    size: int = 64
    tower: str = "timm:regnetx_002"
    train: int = 250
    database: int = 200
    queries: int = 100
    epochs: int = 4
    warm_epochs: int = 12
    batch_size: int = 64
    learning_rate: float = 1e-3
    normalise: str = "standardise"
    classes: tuple[str, ...] = ()

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(size=self.size, normalise=self.normalise)

    def identity(self) -> dict[str, Any]:
        """For keys. What came later is left out while at its default: earlier keys stay."""
        values = to_dict(self)
        return values if self.classes else {k: v for k, v in values.items() if k != "classes"}


@dataclass(frozen=True)
class Run:
    """A training run: its name in a table (``row``), and everything that its result depends on.

    by: labels used for training, "class" or "subclass". judged_by: labels used for evaluation.
    shifts: evaluate changed queries too, see ``bench.shifts``.
    """

    row: str
    scale: Scale
    bits: int
    seed: int
    fusion: str = "darf"
    head: str = "kan"
    loss: Any = field(default_factory=SchConfig)
    augment: AugmentConfig = PLAIN
    images_per_class: int = 0
    by: str = "subclass"
    judged_by: str = "subclass"
    shifts: bool = False

    def network(self, classes: int) -> NetworkConfig:
        small = small_network(classes, self.bits, self.scale.tower)
        return replace(
            small,
            tower=TowerConfig(self.scale.tower),
            darf=replace(small.darf, fusion=self.fusion),
            head=replace(small.head, kind=self.head),
        )

    @property
    def training(self) -> TrainConfig:
        return TrainConfig(
            epochs=self.scale.epochs,
            batch_size=self.scale.batch_size,
            learning_rate=self.scale.learning_rate,
            warmup_epochs=0.5,
            seed=self.seed,
            loss=self.loss,
            augment=self.augment,
            images_per_class=self.images_per_class,
        )

    def key(self, data: str) -> str:
        """data: digest of the images."""
        decides = {
            "version": _VERSION,
            "data": data,
            "scale": self.scale.identity(),
            "network": to_dict(self.network(0)),
            "train": train_identity(self.training),
            "by": [self.by, self.judged_by, self.shifts],
        }
        text = json.dumps(decides, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def train_identity(config: TrainConfig) -> dict[str, Any]:
    """For keys. What came later is left out while at its default: earlier keys stay."""
    values = to_dict(config)
    if not values["loss"].get("spread"):
        values["loss"].pop("spread", None)
    plain = to_dict(TrainConfig())
    for name in (
        "tower_rate", "tower_rest_epochs", "by_source", "temper", "steps_per_epoch", "code_epochs",
        "code_bits",
    ):  # fmt: skip
        if values[name] == plain[name]:
            del values[name]
    if not values["augment"]["small"]:
        del values["augment"]["small"]
    return values


class Bench:
    """The images of a scale, and the runs on them."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        self.scale = scale
        collection = Collection(folder, scale.preprocess)
        self.train, self.database, self.queries = (
            (
                collection[split].only(scale.classes) if scale.classes else collection[split]
            ).balanced(count)
            for split, count in (
                ("train", scale.train),
                ("database", scale.database),
                ("query", scale.queries),
            )
        )
        digest = hashlib.sha256()
        for part in (self.train, self.database, self.queries):
            digest.update(part.canvases.data)
            digest.update("\n".join([*part.subclasses, *part.groups]).encode())
        self.digest = digest.hexdigest()

    def make(self, run: Run) -> dict[str, Any]:
        """The result of a run, computed now or cached."""
        path = RESULTS / f"{run.key(self.digest)}.json"
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text())
            return found
        scratch = SCRATCH / path.stem
        data = self.train.training_set(run.by)
        started = time.monotonic()
        train(
            data,
            run.network(len(data.classes)),
            self.scale.preprocess,
            run.training,
            scratch,
            pretrained=str(self.warm(run.by)) if self.scale.warm_epochs else None,
        )
        trained = time.monotonic() - started
        encoder = Encoder.load(scratch, batch_size=64)
        report = self.measure(encoder, run.judged_by)
        result = {
            "row": run.row,
            "bits": run.bits,
            "seed": run.seed,
            "config": {"scale": to_dict(run.scale), "train": to_dict(run.training)},
            "by": [run.by, run.judged_by],
            "seconds": {"training": round(trained, 1)},
            "machine": machine(),
            **figures(report),
        }
        if run.by != run.judged_by:
            result["structure"] = structure_kept(encoder, self.database, self.queries)
        if run.shifts:
            result["shifts"] = shifted_precision(
                encoder, self.scale.preprocess, self.database, self.queries
            )
        RESULTS.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
        shutil.rmtree(scratch)
        return result

    def measure(self, encoder: Encoder, by: str) -> QualityReport:
        return evaluate(
            encoded(encoder, self.database, by), encoded(encoder, self.queries, by), shuffles=2
        )

    def warm(self, by: str) -> Path:
        """The weights of the tower that all runs start from, as a state dict of timm's model."""
        decides = json.dumps([_VERSION, self.digest, self.scale.identity(), by], sort_keys=True)
        name = "warm-" + hashlib.sha256(decides.encode()).hexdigest()[:16]
        path = SCRATCH / f"{name}.safetensors"
        if path.exists():
            return path
        data = self.train.training_set(by)
        plain = Run("warm start", self.scale, 64, 0, fusion="deep", by=by)
        loss = SchConfig(pairs=0.0, quantisation=0.0, classification=1.0, weighted=False)
        config = replace(plain.training, epochs=self.scale.warm_epochs, loss=loss)
        network = plain.network(len(data.classes))
        train(data, network, self.scale.preprocess, config, SCRATCH / name)
        trained, _ = load_checkpoint(SCRATCH / name)
        weights = {
            key.removeprefix("trunk."): value.contiguous()
            for key, value in trained.tower.tower.state_dict().items()
            if key.startswith("trunk.")
        }
        part = path.with_suffix(".part")
        save_file(weights, part)
        part.replace(path)
        shutil.rmtree(SCRATCH / name)
        return path


def encoded(encoder: Encoder, part: Part, by: str) -> EvaluationSet:
    images = encoder.encode(list(part.canvases))
    return EvaluationSet(images.z, images.codes, part.labels(by), part.files.tolist())


def figures(report: QualityReport) -> dict[str, Any]:
    """The figures that tables use: means by order and class, and the packed AP of each query."""
    document = report.to_dict()
    return {
        "orders": {
            order: {
                "map_found": round(scores["map_found"]["mean"], 5),
                "map_relevant": round(scores["map_relevant"]["mean"], 5),
                "precision_at_1": round(scores["precision_at_1"], 5),
            }
            for order, scores in document["orders"].items()
        },
        "classes": {
            name: {
                order: round(scores["map_relevant"]["mean"], 5)
                for order, scores in found["orders"].items()
            }
            for name, found in document["classes"].items()
        },
        "stability": document["stability"],
        "distinct_codes": document["codes"]["distinct"],
        "average_precision": {
            order: packed(values)
            for order, values in report.average_precision.items()
            if order in ("hamming_random", "content")
        },
    }


def packed(values: NDArray[np.float64]) -> str:
    """Values in [0, 1] as text: 16 bits each, compressed, in base 64; NaN becomes 0."""
    steps = np.round(np.nan_to_num(values) * 65535).astype("<u2")
    return base64.b64encode(zlib.compress(steps.tobytes(), 9)).decode()


def unpacked(text: str) -> NDArray[np.float64]:
    steps = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u2")
    return steps.astype(np.float64) / 65535


_bench: Bench | None = None


def _start(folder: Path, scale: Scale) -> None:
    global _bench  # one collection for each worker, not for each run
    torch.set_num_threads(1)
    _bench = Bench(folder, scale)


def _make(run: Run) -> dict[str, Any]:
    assert _bench is not None
    return _bench.make(run)


def make_all(
    folder: Path,
    runs: Iterable[Run],
    *,
    jobs: int,
    done: Callable[[Run, dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """The results of runs of one scale, in order; ``done`` is called with each run and result."""
    runs = list(runs)
    bench = Bench(folder, runs[0].scale)
    missing = [run for run in runs if not _known(bench, run)]
    for by in sorted({run.by for run in missing if run.scale.warm_epochs}):
        print(f"warm start on {by}", file=sys.stderr)
        bench.warm(by)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _start, (folder, runs[0].scale)) as pool:
        futures = [None if _known(bench, run) else pool.submit(_make, run) for run in runs]
        results = []
        for run, future in zip(runs, futures, strict=True):
            result = bench.make(run) if future is None else future.result()
            done(run, result)
            results.append(result)
    return results


def _known(bench: Bench, run: Run) -> bool:
    return (RESULTS / f"{run.key(bench.digest)}.json").exists()
