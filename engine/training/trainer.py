"""Stage 1 of training: trains the hashing network; seeded and resumable, with a history."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch

from engine.errors import TrainingDataError
from engine.files import write_atomically
from engine.model.checkpoint import save_checkpoint
from engine.model.config import NetworkConfig, to_dict
from engine.model.manifest import MANIFEST, Manifest, read_manifest
from engine.model.preprocess import Preprocess
from engine.training.code_fit import fit_codes
from engine.training.codes import CodeFitConfig
from engine.training.config import TrainConfig
from engine.training.data import TrainingSet
from engine.training.interim import remove_interim, write_interim
from engine.training.learner import STATE, Learner

__all__ = ["TrainConfig", "train"]

_log = logging.getLogger(__name__)
_HISTORY = "history.json"


def train(
    data: TrainingSet,
    network_config: NetworkConfig,
    preprocess: Preprocess,
    config: TrainConfig,
    out: Path,
    *,
    pretrained: str | None = None,
    device: str = "cpu",
    held_out: TrainingSet | None = None,
    notes: dict[str, Any] | None = None,
    keep_state: bool = False,
) -> Manifest:
    """Trains, writes the checkpoint and history.json to ``out``, returns the manifest.

    Called again with the same data, configuration and folder, an interrupted run continues after
    its last finished epoch and ends with the same weights as an uninterrupted one; a finished run
    is not repeated. With more epochs than before it goes on, along the longer schedule. Until it
    ends, the best weights so far are a model in ``out/epoch-NNNN``. With ``code_epochs`` the hash
    head is fitted once more after that; other ``code_epochs`` repeat nothing but this.

    Without classes in ``data``, the only positive pairs are two views of the same image.

    Args:
        held_out: images that judge each epoch, in place of a share of ``data``.
        notes: what else the manifest is to say of the training, for people and benchmarks.
        keep_state: keep what more epochs would need after the end, a few times the weights' size.

    Raises:
        TrainingDataError: there are too few images for one batch, the network has another number
            of classes than the data, the loss needs labels and there are none, ``out`` holds
            another run or model, or a finished run whose state was not kept is to go on.
    """
    if network_config.classes != len(data.classes):
        raise TrainingDataError(
            f"the network has a classifier for {network_config.classes} classes, the data "
            f"have {len(data.classes)}; set classes in its config to that"
        )
    run = _identity(data, network_config, preprocess, config, pretrained, held_out)
    if config.validation and held_out is None:
        data, held_out = data.split(config.validation, config.seed)
    if (out / MANIFEST).is_file():
        manifest = _of_this_run(out, run)
        trained = manifest.training["config"]
        same_kept = trained.get("keep", "best") == config.keep or held_out is None
        if trained["epochs"] >= config.epochs and same_kept:
            remove_interim(out)
            _clear(out, keep_state)
            return _with_codes(manifest, data, config, out, device, held_out)
        if not (out / STATE).exists():
            raise TrainingDataError(
                f"{out} holds a run that ended after {trained['epochs']} "
                "epochs, and its state was not kept; start another one from its weights"
            )
    if len(data) < config.batch_size:
        raise TrainingDataError(
            f"{len(data)} images do not fill one batch of {config.batch_size}; "
            "give more images or a smaller batch"
        )
    learner = Learner(data, network_config, preprocess, config, pretrained, device)

    def write(folder: Path, **more: Any) -> Manifest:
        return save_checkpoint(
            folder,
            learner.best_network(),
            network_config,
            preprocess,
            data.classes,
            {
                **(notes or {}),
                "config": to_dict(config),
                "images": len(data),
                "history": learner.history,
                "run": _digest(run),
                **more,
            },
            dtype=torch.float16 if config.half_weights else torch.float32,
        )

    out.mkdir(parents=True, exist_ok=True)
    if not learner.resume(out, run):
        remove_interim(out)
    while not learner.finished:
        entry = learner.epoch(held_out)
        _log.info("epoch %d of %d: %s", entry["epoch"], config.epochs, entry)
        # Before the state: of an epoch that is not repeated, the weights are there.
        if config.keep == "last" or learner.best_epoch() == entry["epoch"]:
            usable = write_interim(
                out, entry["epoch"], lambda folder: write(folder, unfinished=True)
            )
            _log.info("usable from now on: %s", usable)
        learner.save(out, run)
    manifest = write(out)
    write_atomically(out / _HISTORY, (json.dumps(learner.history, indent=2) + "\n").encode())
    remove_interim(out)
    _clear(out, keep_state)
    return _with_codes(manifest, data, config, out, device, held_out)


def _with_codes(
    manifest: Manifest,
    data: TrainingSet,
    config: TrainConfig,
    out: Path,
    device: str,
    held_out: TrainingSet | None,
) -> Manifest:
    """The model of a training that has ended, with its codes fitted where that is asked for."""
    if not config.code_epochs:
        return manifest
    fit = CodeFitConfig(epochs=config.code_epochs, bits=config.code_bits, seed=config.seed)
    return fit_codes(out, data, fit, held_out=held_out, device=device)


def _identity(
    data: TrainingSet,
    network_config: NetworkConfig,
    preprocess: Preprocess,
    config: TrainConfig,
    pretrained: str | None,
    held_out: TrainingSet | None,
) -> dict[str, Any]:
    """What makes a run this one. How long it goes on is not in it, nor which epoch is kept, what is
    done with the codes afterwards, or where a file lies."""
    schedule = to_dict(config)
    for name in ("epochs", "patience", "keep", "code_epochs", "code_bits"):
        del schedule[name]
    run = {
        "network": to_dict(network_config),
        "preprocess": to_dict(preprocess),
        "train": schedule,
        "pretrained": pretrained and _content(pretrained),
        "data": data.digest(),
    }
    return run if held_out is None else {**run, "held_out": held_out.digest()}


def _content(pretrained: str) -> str:
    """The digest of a file; of weights that have a name, the name."""
    path = Path(pretrained)
    if not path.is_file():
        return pretrained
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def _clear(out: Path, keep_state: bool) -> None:
    if not keep_state:
        (out / STATE).unlink(missing_ok=True)


def _of_this_run(out: Path, run: dict[str, Any]) -> Manifest:
    """The manifest in ``out``. Raises TrainingDataError: it is of another run."""
    manifest = read_manifest(out)
    if manifest.training.get("run") != _digest(run):
        raise TrainingDataError(
            f"{out} holds model {manifest.fingerprint}, made with another configuration or other "
            "data; choose another folder"
        )
    return manifest


def _digest(run: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
