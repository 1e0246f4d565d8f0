"""What a checkpoint is, told by its manifest; no weights are loaded."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import engine
from engine.errors import ModelError
from engine.files import write_atomically
from engine.model.config import NetworkConfig, WordsConfig, from_dict, to_dict
from engine.model.preprocess import Preprocess

__all__ = [
    "FORMAT",
    "MANIFEST",
    "SHIPPED",
    "WEIGHTS",
    "WORDS",
    "WORDS_WEIGHTS",
    "Manifest",
    "checkpoint_files",
    "fingerprint_of",
    "read_manifest",
    "unfinished_models",
    "write_manifest",
]

WEIGHTS = "model.safetensors"
MANIFEST = "manifest.json"
WORDS, WORDS_WEIGHTS = "words.json", "words.safetensors"
SHIPPED = Path(engine.__file__).parent / "weights"
FORMAT = 1
"""Version of the checkpoint's files."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The description of a checkpoint.

    weights_sha256: of model.safetensors, hex.
    fingerprint: 16 hex digits of a hash of everything that the encoding of an image depends on.
        An index records it, and accepts no points of a model with another fingerprint.
    classes: names of the classifier's outputs.
    training: how the model was trained, for people to read.
    words: what searches by words are made with; None = the model knows no words.
    """

    network: NetworkConfig
    preprocess: Preprocess
    classes: tuple[str, ...]
    weights_sha256: str
    fingerprint: str
    training: dict[str, Any] = field(default_factory=dict)
    words: WordsConfig | None = None

    @property
    def bits(self) -> int:
        return self.network.head.bits

    @property
    def dim(self) -> int:
        """Length of z."""
        return self.network.darf.dim

    @property
    def words_dim(self) -> int | None:
        """Length of the vectors for searches by words; None = there are none."""
        return None if self.words is None else self.words.dim


def read_manifest(directory: Path) -> Manifest:
    """Reads the manifest of a checkpoint folder, without the weights.

    Raises:
        ModelError: the folder holds no checkpoint, or one of an unknown format.
    """
    try:
        document = json.loads((directory / MANIFEST).read_bytes())
        found = document.pop("format")
        document.pop("precedent")
        if found != FORMAT:
            raise ModelError(
                f"{directory / MANIFEST} has format {found}, this version reads {FORMAT}; "
                "update precedent, or train again"
            )
        return from_dict(Manifest, document)
    except OSError as error:
        if unfinished := unfinished_models(directory):
            raise ModelError(
                f"the training in {directory} has not ended; run its command again to go on, or "
                f"use its best model so far, {unfinished[-1]}"
            ) from None
        raise ModelError(
            f"no model in {directory} ({error.strerror}: {MANIFEST}); name a folder that "
            "`precedent train --out` wrote"
        ) from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{directory / MANIFEST} is damaged ({error}); restore it, or train again"
        ) from None


def write_manifest(directory: Path, manifest: Manifest) -> None:
    document = {"format": FORMAT, "precedent": engine.__version__, **to_dict(manifest)}
    if manifest.words is None:
        # Versions that know no words read it as well.
        del document["words"]
    write_atomically(directory / MANIFEST, (json.dumps(document, indent=2) + "\n").encode())


def unfinished_models(directory: Path) -> list[Path]:
    """The models of single epochs that a training which has not ended left in its folder, the
    latest last."""
    return sorted(path for path in directory.glob("epoch-[0-9]*") if path.is_dir())


def checkpoint_files(directory: Path) -> list[Path]:
    """The files of a checkpoint folder in the order to copy them: the manifest last, since a folder
    that has one is complete.

    Raises:
        OSError: the folder cannot be listed.
    """
    parts = {".safetensors", ".json", ".md"}  # weights, decoder and gate; manifest; model card
    found = [path for path in directory.iterdir() if path.suffix in parts]
    return sorted(found, key=lambda path: (path.name == MANIFEST, path.name))


def fingerprint_of(
    digest: str, config: NetworkConfig, preprocess: Preprocess, words: WordsConfig | None = None
) -> str:
    """16 hex digits over all that decides what an image is encoded to.

    Args:
        digest: SHA-256 of the weights' file, hex.
    """
    decides = {
        "format": FORMAT,
        "weights": digest,
        "network": to_dict(config),
        "preprocess": to_dict(preprocess),
    }
    if words is not None:
        decides["words"] = to_dict(words)
    canonical = json.dumps(decides, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
