"""The last fit of the codes of a finished model, in its own folder.

The model gets a new fingerprint, since its codes are others: an index made with the model before
has to be encoded again. A decoder and an OOD gate in the folder go along, as they depend on nothing
that has changed. The files are written beside the old ones, and put in their places at the end: a
process that is killed at any moment leaves a fit that ends, or starts over, when called again.
"""

import hashlib
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from engine.errors import TrainingDataError
from engine.model.checkpoint import load_checkpoint, save_checkpoint
from engine.model.config import to_dict
from engine.model.decoder import DECODER, load_decoder, save_decoder
from engine.model.encoder import Encoder, canvas_tensor
from engine.model.hashing import HashHead
from engine.model.manifest import MANIFEST, WEIGHTS, Manifest, checkpoint_files, read_manifest
from engine.ood.calibration import OodGate
from engine.training.codes import (
    CodeFitConfig,
    Known,
    codes_of,
    digest_of,
    fitted_head,
    found_by_codes,
)
from engine.training.data import TrainingSet
from engine.training.fingerprint import image_fingerprint

__all__ = ["fit_codes", "known_of"]

_log = logging.getLogger(__name__)
_NEW = "codes-fitted"
_PART = f".{_NEW}"
_TOLD = 2048
_SHARE, _NEAREST = 0.01, 10
_CHANGING = ("head.", "classifier.")


def fit_codes(
    model_dir: Path,
    data: TrainingSet,
    config: CodeFitConfig,
    *,
    held_out: TrainingSet | None = None,
    device: str = "cpu",
) -> Manifest:
    """Fits the hash head of the model in ``model_dir`` once more, writes it there, and returns the
    manifest, whose ``training["codes"]`` says what was done.

    Nothing but the hash head and the classifier on its hidden values changes. A fit that has ended
    is not repeated when called again with the same data and configuration.

    Args:
        data: the images that the model learned from, with its classes.
        held_out: images of other patients, which ask for their ten nearest among ``data``: the
            share of these that is among the nearest 1 % by code is noted, before and after.
        device: where the images are encoded.

    Raises:
        ModelError: the folder holds no model, or a decoder or gate of another one.
        TrainingDataError: the images are too few, of another size or of other classes than the
            model's, or the folder has a gate that looks at codes or class logits.
    """
    _put_in_place(model_dir)
    network, manifest = load_checkpoint(model_dir)
    _check(data, manifest)
    rest = digest_of({k: v for k, v in network.state_dict().items() if not k.startswith(_CHANGING)})
    run = {"rest": rest, "data": data.digest(), "config": to_dict(config)}
    digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
    before: dict[str, Any] = manifest.training.get("codes", {})
    if before.get("run") == digest:
        return manifest
    decoder = load_decoder(model_dir, manifest.fingerprint)
    gate = OodGate.load(
        model_dir, manifest.fingerprint, None if decoder is None else decoder.fingerprint
    )
    if gate is not None and gate.looks_at_codes:
        raise TrainingDataError(
            f"the OOD gate in {model_dir} looks at codes or class logits, which the fit changes; "
            "delete its calibration.safetensors, and calibrate again afterwards"
        )
    encoder = Encoder(network, manifest, device=device)
    if len(data) > config.images:
        rng = np.random.default_rng(config.seed)
        data = data.subset(np.sort(rng.permutation(len(data))[: config.images]))
    known = known_of(_encoded(encoder, data.canvases), data)
    asked = None if held_out is None else _encoded(encoder, held_out.canvases)
    found = {} if asked is None else {"before": _found(network.head, asked, known.z)}
    fitted = fitted_head(
        known, manifest.network.head, config, start=(network.head.cpu(), network.classifier)
    )
    if asked is not None:
        found["after"] = _found(fitted.head, asked, known.z)
        _log.info("of the ten nearest by z, found among the nearest 1 %% by code: %s", found)
    network.head, network.classifier = fitted.head, fitted.classifier
    codes = {
        # The weights that have not changed are those of this model.
        "of": before.get("of", manifest.fingerprint),
        "replaces": manifest.fingerprint,
        "config": to_dict(config),
        "images": len(known),
        "history": fitted.history,
        "run": digest,
        **({"found_in_nearest_percent": found} if found else {}),
    }
    part = model_dir / _PART
    shutil.rmtree(part, ignore_errors=True)
    made = save_checkpoint(
        part,
        network.cpu(),
        replace(
            manifest.network,
            head=replace(manifest.network.head, bits=config.bits or manifest.bits),
        ),
        manifest.preprocess,
        manifest.classes,
        {**manifest.training, "codes": codes},
        dtype=_stored_dtype(model_dir / WEIGHTS),
        words=manifest.words,
    )
    rebuilt = None
    if decoder is not None:
        dtype = _stored_dtype(model_dir / DECODER)
        save_decoder(part, decoder, made.fingerprint, decoder.made, dtype=dtype)
        rebuilt = load_decoder(part, made.fingerprint)
    if gate is not None:
        gate.save(part, made.fingerprint, None if rebuilt is None else rebuilt.fingerprint)
    part.replace(model_dir / _NEW)
    _put_in_place(model_dir)
    return made


def known_of(z: NDArray[np.float32], data: TrainingSet) -> Known:
    """What a head is fitted on: images, and their z, float32 (N, D), centred and of unit length."""
    thumbnails = [image_fingerprint(canvas_tensor(part)) for part in _parts(data.canvases)]
    return Known(
        z,
        data.labels,
        len(data.classes),
        torch.cat(thumbnails).reshape(len(data), 1, 16, 16),
        data.parents,
        data.scenes,
    )


def _encoded(encoder: Encoder, canvases: NDArray[np.uint8]) -> NDArray[np.float32]:
    """z of canvases, float32 (N, D); says how far it is."""
    found: list[NDArray[np.float32]] = []
    for part in _parts(canvases):
        found.append(encoder.encode(list(part)).z)
        _log.info("codes: %d of %d images encoded", sum(map(len, found)), len(canvases))
    return np.concatenate(found)


def _parts(canvases: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [canvases[start : start + _TOLD] for start in range(0, len(canvases), _TOLD)]


def _found(head: HashHead, asked: NDArray[np.float32], held: NDArray[np.float32]) -> float:
    """The share of the nearest by z that are among the nearest percent by code."""
    head = head.cpu().eval()
    candidates = max(1, round(_SHARE * len(held)))
    shares = found_by_codes(
        (asked, codes_of(head, asked)),
        (held, codes_of(head, held)),
        candidates,
        min(_NEAREST, candidates),
    )
    return round(float(shares.mean()), 4)


def _check(data: TrainingSet, manifest: Manifest) -> None:
    data.check_read_as(manifest.preprocess)
    if data.classes != manifest.classes:
        raise TrainingDataError(
            f"the images are of {len(data.classes)} classes, the model's are "
            f"{len(manifest.classes)}, or have other names; give the images that it learned from"
        )


def _stored_dtype(path: Path) -> torch.dtype:
    """The number format in which a file keeps its weights."""
    with safe_open(path, framework="pt") as file:
        kept = {str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
    return torch.float16 if "F16" in kept else torch.float32


def _put_in_place(model_dir: Path) -> None:
    """Moves the files of a fit that has ended to those of the model, the manifest last."""
    new = model_dir / _NEW
    if not new.is_dir():
        return
    files = checkpoint_files(new)
    if files and files[-1].name == MANIFEST:
        made, there = read_manifest(new), read_manifest(model_dir)
        # Else the model has been trained on since, and the fit is of what it was.
        if made.training["codes"]["replaces"] == there.fingerprint:
            for path in files:
                path.replace(model_dir / path.name)
    shutil.rmtree(new)
