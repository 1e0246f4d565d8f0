"""Trains a hashing network: seeded, resumable, with a history that can be read back."""

import json
import logging
import time
from dataclasses import dataclass, field
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.codes import pack_signs
from engine.errors import TrainingDataError
from engine.files import write_atomically
from engine.model.checkpoint import Manifest, save_checkpoint
from engine.model.config import NetworkConfig, to_dict
from engine.model.encoder import Precision, autocast
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess
from engine.training.augment import AugmentConfig, augment
from engine.training.data import TrainingSet, batches
from engine.training.sch import SchConfig, SchLoss

__all__ = ["TrainConfig", "train"]

_log = logging.getLogger(__name__)
_STATE = "state.pt"
_HISTORY = "history.json"


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Schedule and options. The defaults suit a small model on a CPU.

    learning_rate falls along a cosine to final_learning_rate after warmup_epochs.
    half_weights: store the weights as float16.
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
    loss: SchConfig = field(default_factory=SchConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)


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

    A stopped run goes on after its last finished epoch when called again with the same
    data, configuration and folder, and ends with the weights of an undisturbed run.

    Raises:
        TrainingDataError: too few images for one batch, or ``out`` holds another run.
    """
    if len(data) < config.batch_size:
        raise TrainingDataError(
            f"{len(data)} images do not fill one batch of {config.batch_size}; "
            "give more images or a smaller batch"
        )
    torch.manual_seed(config.seed)
    network = HashingNetwork(network_config, preprocess, pretrained).to(device)
    network = network.to(memory_format=torch.channels_last)
    loss_of = SchLoss(config.loss, data.counts()).to(device)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=config.weight_decay
    )
    run = {
        "network": to_dict(network_config),
        "preprocess": to_dict(preprocess),
        "train": to_dict(config),
        "pretrained": pretrained,
        "data": data.digest(),
    }
    out.mkdir(parents=True, exist_ok=True)
    history = _resume(out, run, network, optimiser)
    for epoch in range(len(history), config.epochs):
        history.append(_epoch(epoch, data, config, network, loss_of, optimiser, device))
        _log.info(
            "epoch %(epoch)d of %(epochs)d: loss %(loss).4f",
            {**history[-1], "epochs": config.epochs},
        )
        _save_state(out, run, network, optimiser, history)
    manifest = save_checkpoint(
        out,
        network,
        network_config,
        preprocess,
        data.classes,
        {"config": to_dict(config), "images": len(data), "history": history},
        dtype=torch.float16 if config.half_weights else torch.float32,
    )
    write_atomically(out / _HISTORY, (json.dumps(history, indent=2) + "\n").encode())
    (out / _STATE).unlink(missing_ok=True)
    return manifest


def _epoch(
    epoch: int,
    data: TrainingSet,
    config: TrainConfig,
    network: HashingNetwork,
    loss_of: SchLoss,
    optimiser: torch.optim.Optimizer,
    device: str,
) -> dict[str, Any]:
    # Seeded by epoch, so that a resumed run draws what an undisturbed one would have drawn.
    generator = torch.Generator().manual_seed(config.seed * 100_003 + epoch)
    steps = len(data) // config.batch_size
    network.train()
    started = time.monotonic()
    sums: dict[str, float] = {}
    codes: list[Tensor] = []
    for step, (images, labels) in enumerate(batches(data, config.batch_size, generator)):
        rate = _learning_rate(epoch + step / steps, config)
        for group in optimiser.param_groups:
            group["lr"] = rate
        views = augment(images, config.augment, generator).to(
            device, memory_format=torch.channels_last
        )
        labels = labels.to(device)
        with autocast(device, config.precision):
            output = network(views)
        if output.logits is None:
            raise TrainingDataError("the network has no classifier; set classes in its config")
        terms = loss_of(output.h, output.logits, views, labels)
        if not torch.isfinite(terms.total):
            raise TrainingDataError(
                f"the loss is {terms.total.item()} at epoch {epoch + 1}, step {step + 1}; "
                "lower the learning rate or use precision fp32"
            )
        optimiser.zero_grad(set_to_none=True)
        terms.total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
        optimiser.step()
        hits = (output.logits.argmax(dim=1) == labels).float().mean()
        for name, value in (*terms._asdict().items(), ("accuracy", hits)):
            sums[name] = sums.get(name, 0.0) + value.item()
        codes.append(output.h.detach().float().cpu())
        if step % 50 == 0:
            _log.info(
                "epoch %d, step %d of %d: loss %.4f, accuracy %.3f, rate %.2e",
                epoch + 1,
                step,
                steps,
                terms.total.item(),
                hits.item(),
                rate,
            )
    h = torch.cat(codes)
    means = {name: round(total / steps, 5) for name, total in sums.items()}
    return {
        "epoch": epoch + 1,
        "loss": means.pop("total"),
        **means,
        "distinct_codes": len({code.tobytes() for code in pack_signs(h.numpy())}),
        "bit_balance": round((h >= 0).float().mean(dim=0).sub(0.5).abs().mean().item(), 4),
        "seconds": round(time.monotonic() - started, 1),
    }


def _learning_rate(epoch: float, config: TrainConfig) -> float:
    if epoch < config.warmup_epochs:
        return config.learning_rate * (epoch / config.warmup_epochs)
    done = (epoch - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * (1 + cos(pi * min(done, 1.0))) / 2


def _save_state(
    out: Path,
    run: dict[str, Any],
    network: HashingNetwork,
    optimiser: torch.optim.Optimizer,
    history: list[dict[str, Any]],
) -> None:
    temporary = out / f".{_STATE}"
    torch.save(
        {
            "run": json.dumps(run, sort_keys=True),
            "network": network.state_dict(),
            "optimiser": optimiser.state_dict(),
            "history": json.dumps(history),
        },
        temporary,
    )
    temporary.replace(out / _STATE)


def _resume(
    out: Path,
    run: dict[str, Any],
    network: HashingNetwork,
    optimiser: torch.optim.Optimizer,
) -> list[dict[str, Any]]:
    path = out / _STATE
    if not path.exists():
        return []
    state = torch.load(path, weights_only=True, map_location="cpu")
    if state["run"] != json.dumps(run, sort_keys=True):
        raise TrainingDataError(
            f"{path} belongs to a run with another configuration or other data; "
            "choose another folder, or delete that file to start over"
        )
    network.load_state_dict(state["network"])
    optimiser.load_state_dict(state["optimiser"])
    history: list[dict[str, Any]] = json.loads(state["history"])
    _log.info("going on after epoch %d", len(history))
    return history
