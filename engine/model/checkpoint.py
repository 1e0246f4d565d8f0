"""A model on disk: the files model.safetensors and manifest.json, with a common fingerprint."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors, save as save_tensors

import engine
from engine.errors import ModelError
from engine.files import write_atomically
from engine.model.config import NetworkConfig, from_dict, to_dict
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess

__all__ = [
    "MANIFEST",
    "SHIPPED",
    "WEIGHTS",
    "Manifest",
    "load_checkpoint",
    "read_manifest",
    "save_checkpoint",
]

WEIGHTS = "model.safetensors"
MANIFEST = "manifest.json"
SHIPPED = Path(engine.__file__).parent / "weights"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """The description of a checkpoint.

    weights_sha256: of model.safetensors, hex.
    fingerprint: 16 hex digits of a hash of everything that the encoding of an image depends on.
        An index records it, and accepts no points of a model with another fingerprint.
    classes: names of the classifier's outputs.
    training: how the model was trained, for people to read.
    """

    network: NetworkConfig
    preprocess: Preprocess
    classes: tuple[str, ...]
    weights_sha256: str
    fingerprint: str
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def bits(self) -> int:
        return self.network.head.bits

    @property
    def dim(self) -> int:
        """Length of z."""
        return self.network.darf.dim


def save_checkpoint(
    directory: Path,
    network: HashingNetwork,
    config: NetworkConfig,
    preprocess: Preprocess,
    classes: tuple[str, ...],
    training: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
) -> Manifest:
    """Writes both files, the manifest last, and returns the manifest.

    dtype: number format of the stored weights; float16 halves the size of the file.
    """
    tensors = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous().cpu()
        for name, value in network.state_dict().items()
    }
    data = save_tensors(tensors)
    digest = hashlib.sha256(data).hexdigest()
    manifest = Manifest(
        config, preprocess, classes, digest, _fingerprint(digest, config, preprocess), training
    )
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / WEIGHTS, data)
    document = {"format": _FORMAT, "precedent": engine.__version__, **to_dict(manifest)}
    write_atomically(directory / MANIFEST, (json.dumps(document, indent=2) + "\n").encode())
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """Reads the manifest of a checkpoint folder, without the weights.

    Raises:
        ModelError: the folder holds no checkpoint, or one of an unknown format.
    """
    try:
        document = json.loads((directory / MANIFEST).read_bytes())
        found = document.pop("format")
        document.pop("precedent")
        if found != _FORMAT:
            raise ModelError(
                f"{directory / MANIFEST} has format {found}, this version reads {_FORMAT}; "
                "update precedent, or train again"
            )
        return from_dict(Manifest, document)
    except OSError as error:
        raise ModelError(
            f"no model in {directory} ({error.strerror}: {MANIFEST}); name a folder that "
            "`precedent train --out` wrote"
        ) from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{directory / MANIFEST} is damaged ({error}); restore it, or train again"
        ) from None


def load_checkpoint(directory: Path) -> tuple[HashingNetwork, Manifest]:
    """Loads the network, in evaluation mode, with its manifest.

    Raises:
        ModelError: files are missing or damaged, or the weights are not the manifest's.
    """
    manifest = read_manifest(directory)
    path = directory / WEIGHTS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); restore the file") from None
    digest = hashlib.sha256(data).hexdigest()
    expected = _fingerprint(digest, manifest.network, manifest.preprocess)
    if (digest, expected) != (manifest.weights_sha256, manifest.fingerprint):
        raise ModelError(
            f"{path} (sha256 {digest[:12]}…) is not what {MANIFEST} describes "
            f"({manifest.weights_sha256[:12]}…); restore both files from one training"
        )
    network = HashingNetwork(manifest.network, manifest.preprocess)
    state = {
        name: value.float() if value.is_floating_point() else value
        for name, value in load_tensors(data).items()
    }
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ModelError(
            f"{path} does not fit its network: {first}; was it written with another "
            "version of open_clip or timm? Train again, or install that version"
        ) from None
    return network.eval(), manifest


def _fingerprint(digest: str, config: NetworkConfig, preprocess: Preprocess) -> str:
    decides = {
        "format": _FORMAT,
        "weights": digest,
        "network": to_dict(config),
        "preprocess": to_dict(preprocess),
    }
    canonical = json.dumps(decides, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
