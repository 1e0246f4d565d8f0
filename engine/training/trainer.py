"""Stage 1 of training: trains the hashing network; seeded and resumable, with a history."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from engine.codes import pack_signs
from engine.errors import TrainingDataError
from engine.files import write_atomically
from engine.model.checkpoint import save_checkpoint
from engine.model.config import NetworkConfig, to_dict
from engine.model.encoder import Precision, autocast
from engine.model.manifest import MANIFEST, Manifest, read_manifest
from engine.model.network import HashingNetwork, NetworkOutput
from engine.model.preprocess import Preprocess
from engine.training.augment import AugmentConfig, augment
from engine.training.data import TrainingSet, batches
from engine.training.losses import LossTerms
from engine.training.peers import PeerConfig, PeerLoss
from engine.training.sch import SchConfig, SchLoss
from engine.training.schedule import learning_rate
from engine.training.validation import validation_map

__all__ = ["TrainConfig", "train"]

_log = logging.getLogger(__name__)
_STATE = "state.pt"
_HISTORY = "history.json"


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Schedule and options. The defaults suit a small model on a CPU.

    learning_rate falls along a cosine to final_learning_rate after warmup_epochs.
    half_weights: store the weights as float16.
    images_per_class: see :func:`engine.training.data.batches`; 0 = plain random order.
    freeze_tower: keep the weights of the tower; train only the layers on top of it.
    ema_decay: decay of an exponential moving average of the weights, which is validated and saved
        in place of the weights; 0 = none.
    validation: share of the images that is held out, whole groups together, to validate each
        epoch; 0 = none. The weights of the best epoch are saved.
    patience: stop after this many epochs without a better one; 0 = never. Needs validation.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    warmup_epochs: float = 0.5
    weight_decay: float = 0.05
    clip_norm: float = 5.0
    seed: int = 0
    precision: Precision = "auto"
    half_weights: bool = True
    images_per_class: int = 0
    freeze_tower: bool = False
    ema_decay: float = 0.0
    validation: float = 0.0
    patience: int = 0
    loss: SchConfig | PeerConfig = field(default_factory=SchConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        for name in ("ema_decay", "validation"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise TrainingDataError(f"{name} is {value}; use a share from 0 up to 1")
        if self.patience and not self.validation:
            raise TrainingDataError(
                f"patience is {self.patience}, but nothing is held out to judge an epoch by; "
                "give validation a share, or patience 0"
            )


def train(
    data: TrainingSet,
    network_config: NetworkConfig,
    preprocess: Preprocess,
    config: TrainConfig,
    out: Path,
    *,
    pretrained: str | None = None,
    device: str = "cpu",
) -> Manifest:
    """Trains, writes the checkpoint and history.json to ``out``, returns the manifest.

    Called again with the same data, configuration and folder, an interrupted run continues after
    its last finished epoch and ends with the same weights as an uninterrupted one; a finished run
    is not repeated.

    Without classes in ``data``, the only positive pairs are two views of the same image.

    Raises:
        TrainingDataError: there are too few images for one batch, the network has another number
            of classes than the data, the loss needs labels and there are none, or ``out`` holds
            another run or model.
    """
    if network_config.classes != len(data.classes):
        raise TrainingDataError(
            f"the network has a classifier for {network_config.classes} classes, the data "
            f"have {len(data.classes)}; set classes in its config to that"
        )
    run = {
        "network": to_dict(network_config),
        "preprocess": to_dict(preprocess),
        "train": to_dict(config),
        "pretrained": pretrained,
        "data": data.digest(),
    }
    if (out / MANIFEST).is_file():
        return _finished(out, run)
    held_out = None
    if config.validation:
        data, held_out = data.split(config.validation, config.seed)
    if len(data) < config.batch_size:
        raise TrainingDataError(
            f"{len(data)} images do not fill one batch of {config.batch_size}; "
            "give more images or a smaller batch"
        )
    learner = _Learner(data, network_config, preprocess, config, pretrained, device)
    out.mkdir(parents=True, exist_ok=True)
    learner.resume(out, run)
    while not learner.finished:
        entry = learner.epoch(held_out)
        _log.info("epoch %d of %d: %s", entry["epoch"], config.epochs, entry)
        learner.save(out, run)
    manifest = save_checkpoint(
        out,
        learner.best_network(),
        network_config,
        preprocess,
        data.classes,
        {
            "config": to_dict(config),
            "images": len(data),
            "history": learner.history,
            "run": _digest(run),
        },
        dtype=torch.float16 if config.half_weights else torch.float32,
    )
    write_atomically(out / _HISTORY, (json.dumps(learner.history, indent=2) + "\n").encode())
    (out / _STATE).unlink(missing_ok=True)
    return manifest


def _finished(out: Path, run: dict[str, Any]) -> Manifest:
    """The manifest in ``out``. Raises TrainingDataError: it is of another run."""
    manifest = read_manifest(out)
    if manifest.training.get("run") != _digest(run):
        raise TrainingDataError(
            f"{out} holds model {manifest.fingerprint}, made with another configuration or other "
            "data; choose another folder"
        )
    (out / _STATE).unlink(missing_ok=True)
    return manifest


def _digest(run: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()


class _Learner:
    """The state of a training run: network, loss, optimiser and history."""

    def __init__(
        self,
        data: TrainingSet,
        network_config: NetworkConfig,
        preprocess: Preprocess,
        config: TrainConfig,
        pretrained: str | None,
        device: str,
    ) -> None:
        torch.manual_seed(config.seed)
        self.data, self.config, self.device = data, config, device
        network = HashingNetwork(network_config, preprocess, pretrained).to(device)
        self.network: HashingNetwork = network.to(memory_format=torch.channels_last)
        self.loss = _loss(config, data, network_config.head.bits).to(device)
        if config.freeze_tower:
            self.network.tower.requires_grad_(requires_grad=False)
        self.averaged = (
            AveragedModel(
                self.network,
                multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay),  # type: ignore[no-untyped-call]
                use_buffers=True,
            )
            if config.ema_decay
            else None
        )
        self.learnable = [
            parameter
            for module in (self.network, self.loss)
            for parameter in module.parameters()
            if parameter.requires_grad
        ]
        self.optimiser = torch.optim.AdamW(
            self.learnable, lr=0.0, betas=(0.9, 0.95), weight_decay=config.weight_decay
        )
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] | None = None

    @property
    def finished(self) -> bool:
        done = len(self.history)
        patience = self.config.patience
        return done >= self.config.epochs or (
            patience > 0 and done > 0 and done - self._best_epoch() >= patience
        )

    def best_network(self) -> HashingNetwork:
        """The network to save: with the weights of the best validated epoch, else of the last."""
        network = self._measured()
        if self.best is not None:
            network.load_state_dict(self.best)
        return network

    def epoch(self, held_out: TrainingSet | None) -> dict[str, Any]:
        """Trains one epoch and adds its entry to the history."""
        started = time.monotonic()
        number = len(self.history)
        # Seeded by epoch, so that a resumed run draws the same numbers as an uninterrupted one.
        generator = torch.Generator().manual_seed(self.config.seed * 100_003 + number)
        steps = len(self.data) // self.config.batch_size
        self.network.train()
        if self.config.freeze_tower:
            self.network.tower.eval()
        sums: dict[str, float] = {}
        codes: list[Tensor] = []
        for step, (images, views, labels) in enumerate(self._views(generator)):
            output, terms = self._step(images, views, labels, number + step / steps)
            for name, value in self._measures(output, terms, labels):
                sums[name] = sums.get(name, 0.0) + value.item()
            codes.append(output.h.detach().float().cpu())
            if step % 50 == 0:
                loss = terms.total.item()
                _log.info("epoch %d, step %d of %d: loss %.4f", number + 1, step, steps, loss)
        h = torch.cat(codes)
        entry = {
            "epoch": number + 1,
            **{name: round(total / (step + 1), 5) for name, total in sums.items()},
            "distinct_codes": len({code.tobytes() for code in pack_signs(h.numpy())}),
            "bit_balance": round((h >= 0).float().mean(dim=0).sub(0.5).abs().mean().item(), 4),
        }
        if held_out is not None:
            entry["validation_map"] = validation_map(
                self._measured(), held_out, self.device, self.config.precision
            )
        self.history.append(entry)
        if held_out is not None and self._best_epoch() == len(self.history):
            state = self._measured().state_dict()
            self.best = {name: value.clone() for name, value in state.items()}
        entry["seconds"] = round(time.monotonic() - started, 1)
        return entry

    def _views(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The batches of an epoch: original images, their augmented views, and labels."""
        config = self.config
        if self.data.classes:
            drawn = batches(self.data, config.batch_size, generator, config.images_per_class)
            for images, labels in drawn:
                yield images, augment(images, config.augment, generator), labels
        else:
            for images, labels in batches(self.data, config.batch_size // 2, generator):
                pair = [augment(images, config.augment, generator) for _ in range(2)]
                yield images.repeat(2, 1, 1, 1), torch.cat(pair), labels.repeat(2)

    def _step(
        self, images: Tensor, views: Tensor, labels: Tensor, epoch: float
    ) -> tuple[NetworkOutput, LossTerms]:
        config = self.config
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(epoch, config)
        views = views.to(self.device, memory_format=torch.channels_last)
        labels = labels.to(self.device)
        with autocast(self.device, config.precision):
            output: NetworkOutput = self.network(views)
        if isinstance(self.loss, SchLoss):
            seen = images.to(self.device) if self.loss.config.of_originals else views
            terms = self.loss(output.h, output.logits, seen, labels)
        else:
            terms = self.loss(output.h, labels, epoch / config.epochs)
        if not torch.isfinite(terms.total):
            raise TrainingDataError(
                f"the loss is {terms.total.item()} in epoch {int(epoch) + 1}; "
                "lower the learning rate or use precision fp32"
            )
        self.optimiser.zero_grad(set_to_none=True)
        terms.total.backward()
        torch.nn.utils.clip_grad_norm_(self.learnable, config.clip_norm)
        self.optimiser.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)
        return output, terms

    def _measures(
        self, output: NetworkOutput, terms: LossTerms, labels: Tensor
    ) -> Iterator[tuple[str, Tensor]]:
        yield "loss", terms.total
        yield from terms.parts.items()
        if output.logits is not None and isinstance(self.loss, SchLoss):
            yield "accuracy", (output.logits.argmax(dim=1).cpu() == labels).float().mean()

    def _measured(self) -> HashingNetwork:
        if self.averaged is None:
            return self.network
        return cast(HashingNetwork, self.averaged.module)

    def _best_epoch(self) -> int:
        """The number of the best epoch, from 1; the first of equally good ones."""
        best = max(self.history, key=lambda entry: float(entry.get("validation_map", 0)))
        number: int = best["epoch"]
        return number

    def _modules(self) -> dict[str, Any]:
        modules = {"network": self.network, "loss": self.loss, "optimiser": self.optimiser}
        return modules if self.averaged is None else {**modules, "averaged": self.averaged}

    def save(self, out: Path, run: dict[str, Any]) -> None:
        state = {name: module.state_dict() for name, module in self._modules().items()}
        state["run"] = json.dumps(run, sort_keys=True)
        state["history"] = json.dumps(self.history)
        state["best"] = self.best
        temporary = out / f".{_STATE}"
        torch.save(state, temporary)
        temporary.replace(out / _STATE)

    def resume(self, out: Path, run: dict[str, Any]) -> None:
        """Loads the state in ``out``, if any. Raises TrainingDataError: it is of another run."""
        path = out / _STATE
        if not path.exists():
            return
        state = torch.load(path, weights_only=True, map_location="cpu")
        if state["run"] != json.dumps(run, sort_keys=True):
            raise TrainingDataError(
                f"{path} belongs to a run with another configuration or other data; "
                "choose another folder, or delete that file to start over"
            )
        for name, module in self._modules().items():
            module.load_state_dict(state[name])
        self.history, self.best = json.loads(state["history"]), state["best"]
        _log.info("going on after epoch %d", len(self.history))


def _loss(config: TrainConfig, data: TrainingSet, bits: int) -> nn.Module:
    if isinstance(config.loss, SchConfig):
        return SchLoss(config.loss, data.counts())
    if not data.classes:
        raise TrainingDataError(f"loss {config.loss.method!r} needs labels; use SCH, or label")
    return PeerLoss(config.loss, len(data.classes), bits, config.seed)
