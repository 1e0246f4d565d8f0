"""Stage 2 of training: trains the decoder for a finished model; seeded and resumable."""

import hashlib
import json
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.errors import ModelError, TrainingDataError
from engine.model.checkpoint import load_checkpoint
from engine.model.config import to_dict
from engine.model.decoder import (
    Decoder,
    DecoderSize,
    load_decoder,
    reconstruction_scores,
    reconstruction_target,
    save_decoder,
)
from engine.model.encoder import Precision, autocast
from engine.model.network import HashingNetwork
from engine.training.augment import AugmentConfig, augment
from engine.training.data import TrainingSet, batches
from engine.training.schedule import learning_rate

__all__ = ["DecoderConfig", "train_decoder"]

_log = logging.getLogger(__name__)
_STATE = "decoder-state.pt"


def _known_polarity() -> AugmentConfig:
    # A decoder that learned reversed polarity would rebuild foreign images too, such as text pages.
    return AugmentConfig(invert=0.0)


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Schedule and options. The defaults suit a small model on a CPU.

    learning_rate falls along a cosine to final_learning_rate after warmup_epochs.
    augment: changes of the training images; images with reversed polarity are not known images.
    half_weights: store the weights as float16.
    """

    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 2e-3
    final_learning_rate: float = 2e-5
    warmup_epochs: float = 0.1
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    seed: int = 0
    precision: Precision = "auto"
    half_weights: bool = True
    size: DecoderSize = field(default_factory=DecoderSize)
    augment: AugmentConfig = field(default_factory=_known_polarity)


def train_decoder(
    model_dir: Path, data: TrainingSet, config: DecoderConfig, *, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Trains a decoder for the model in ``model_dir``, writes it there, returns the history.

    The model itself is not changed. Called again with the same model, data and configuration, an
    interrupted run continues after its last finished epoch and ends with the same weights as an
    uninterrupted one; a finished run is not repeated. An existing decoder is replaced at the end;
    an OOD gate that was calibrated with it must be calibrated again.

    Returns:
        One entry for each epoch: epoch, loss, one_minus_pearson, seconds.

    Raises:
        ModelError: the folder holds no model.
        TrainingDataError: there are too few images for one batch, the canvases have another size
            than the model's, or the folder holds the state of another run.
    """
    network, manifest = load_checkpoint(model_dir)
    data.check_read_as(manifest.preprocess)
    if len(data) < config.batch_size:
        raise TrainingDataError(
            f"{len(data)} images do not fill one batch of {config.batch_size}; "
            "give more images or a smaller batch"
        )
    network = network.requires_grad_(False).to(device).to(memory_format=torch.channels_last)
    torch.manual_seed(config.seed)
    decoder = Decoder(network.tower.shapes[1], config.size).to(device)
    decoder = decoder.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(
        decoder.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=config.weight_decay
    )
    run = {
        # A fit of the codes leaves what the decoder sees as it was.
        "model": manifest.training.get("codes", {}).get("of", manifest.fingerprint),
        "train": to_dict(config),
        "data": data.digest(),
    }
    digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
    with suppress(ModelError):  # a decoder that cannot be used is replaced
        finished = load_decoder(model_dir, manifest.fingerprint)
        if finished is not None and finished.made.get("run") == digest:
            known: list[dict[str, Any]] = finished.made["history"]
            return known
    history = _resume(model_dir, run, decoder, optimiser)
    for epoch in range(len(history), config.epochs):
        history.append(_epoch(epoch, data, config, network, decoder, optimiser, device))
        _log.info(
            "decoder, epoch %(epoch)d of %(epochs)d: loss %(loss).4f",
            {**history[-1], "epochs": config.epochs},
        )
        _save_state(model_dir, run, decoder, optimiser, history)
    save_decoder(
        model_dir,
        decoder,
        manifest.fingerprint,
        {"config": to_dict(config), "images": len(data), "history": history, "run": digest},
        dtype=torch.float16 if config.half_weights else torch.float32,
    )
    (model_dir / _STATE).unlink(missing_ok=True)
    return history


def _epoch(
    epoch: int,
    data: TrainingSet,
    config: DecoderConfig,
    network: HashingNetwork,
    decoder: Decoder,
    optimiser: torch.optim.Optimizer,
    device: str,
) -> dict[str, Any]:
    # Seeded by epoch, so that a resumed run draws the same numbers as an uninterrupted one.
    generator = torch.Generator().manual_seed(config.seed * 100_003 + epoch)
    steps = len(data) // config.batch_size
    decoder.train()
    started = time.monotonic()
    loss_sum = error_sum = 0.0
    for step, (images, _) in enumerate(batches(data, config.batch_size, generator)):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(epoch + step / steps, config)
        views = augment(images, config.augment, generator).to(
            device, memory_format=torch.channels_last
        )
        with autocast(device, config.precision):
            with torch.no_grad():  # and BatchNorm in evaluation mode: the network is frozen
                _, deep = network.maps(views)
            rebuilt = decoder(deep).float()
        target, weight = reconstruction_target(views, config.size.resolution)
        loss = ((rebuilt - target) ** 2 * weight).sum() / weight.sum()
        if not torch.isfinite(loss):
            raise TrainingDataError(
                f"the decoder's loss is {loss.item()} at epoch {epoch + 1}, step {step + 1}; "
                "lower the learning rate or use precision fp32"
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), config.clip_norm)
        optimiser.step()
        loss_sum += loss.item()
        error_sum += reconstruction_scores(views, rebuilt.detach()).pearson.mean().item()
        if step % 100 == 0:
            _log.info(
                "decoder, epoch %d, step %d of %d: loss %.4f",
                epoch + 1,
                step,
                steps,
                loss.item(),
            )
    return {
        "epoch": epoch + 1,
        "loss": round(loss_sum / steps, 5),
        "one_minus_pearson": round(error_sum / steps, 5),
        "seconds": round(time.monotonic() - started, 1),
    }


def _save_state(
    model_dir: Path,
    run: dict[str, Any],
    decoder: Decoder,
    optimiser: torch.optim.Optimizer,
    history: list[dict[str, Any]],
) -> None:
    temporary = model_dir / f".{_STATE}"
    torch.save(
        {
            "run": json.dumps(run, sort_keys=True),
            "decoder": decoder.state_dict(),
            "optimiser": optimiser.state_dict(),
            "history": json.dumps(history),
        },
        temporary,
    )
    temporary.replace(model_dir / _STATE)


def _resume(
    model_dir: Path,
    run: dict[str, Any],
    decoder: Decoder,
    optimiser: torch.optim.Optimizer,
) -> list[dict[str, Any]]:
    path = model_dir / _STATE
    if not path.exists():
        return []
    state = torch.load(path, weights_only=True, map_location="cpu")
    if state["run"] != json.dumps(run, sort_keys=True):
        raise TrainingDataError(
            f"{path} belongs to a run with another model, configuration or other data; "
            "delete that file to start over"
        )
    decoder.load_state_dict(state["decoder"])
    optimiser.load_state_dict(state["optimiser"])
    history: list[dict[str, Any]] = json.loads(state["history"])
    _log.info("the decoder goes on after epoch %d", len(history))
    return history
