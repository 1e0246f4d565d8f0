"""A model on disk: the files model.safetensors and manifest.json, with a common fingerprint."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors, save as save_tensors

from engine.errors import ModelError
from engine.files import write_atomically
from engine.model.config import NetworkConfig, WordsConfig
from engine.model.manifest import (
    MANIFEST,
    WEIGHTS,
    Manifest,
    fingerprint_of,
    read_manifest,
    write_manifest,
)
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(
    directory: Path,
    network: HashingNetwork,
    config: NetworkConfig,
    preprocess: Preprocess,
    classes: tuple[str, ...],
    training: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    words: WordsConfig | None = None,
) -> Manifest:
    """Writes both files, the manifest last, and returns the manifest.

    words: what is in the folder for searches by words.
    dtype: number format of the stored weights; float16 halves the size of the file.
    """
    tensors = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous().cpu()
        for name, value in network.state_dict().items()
    }
    data = save_tensors(tensors)
    digest = hashlib.sha256(data).hexdigest()
    fingerprint = fingerprint_of(digest, config, preprocess, words)
    manifest = Manifest(config, preprocess, classes, digest, fingerprint, training, words)
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / WEIGHTS, data)
    write_manifest(directory, manifest)
    return manifest


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
    expected = fingerprint_of(digest, manifest.network, manifest.preprocess, manifest.words)
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
