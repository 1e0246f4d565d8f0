"""Search by words: the whole CLIP model, image and text side, beside a model that was trained
around its image tower.

It is kept as it was published, whatever the training did to its own copy of the tower: only so do
image and text stay comparable. ``words.safetensors`` has the weights, ``words.json`` open_clip's
configuration and the files of the tokenizer, where it is no tokenizer of open_clip's own.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip.constants import HF_CONFIG_NAME
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from safetensors.torch import load as load_tensors, save as save_tensors
from torch import Tensor, nn

from engine.errors import ModelError
from engine.files import write_atomically
from engine.model.backbone import read_weights
from engine.model.config import WordsConfig
from engine.model.invariance import BatchInvariant
from engine.model.manifest import (
    WORDS,
    WORDS_WEIGHTS,
    Manifest,
    fingerprint_of,
    read_manifest,
    write_manifest,
)
from engine.model.texts import checked_text
from engine.model.tower_folder import read_tower_folder

__all__ = ["Said", "Words", "add_words", "read_words"]

_TOKENIZER_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
"""Of a text tower of transformers and its tokenizer, all of them text."""
_LEAST_FILES = ("config.json", "tokenizer_config.json")


class Said(NamedTuple):
    """An encoded text. vector: float32 (E,), unit length. tokens: how many it has, with those of
    beginning and end. read: how many of them the tower reads."""

    vector: NDArray[np.float32]
    tokens: int
    read: int


class Words:
    """Encodes images and texts so that their dot products say how well they fit.

    Computes in float32, on a CPU to the same bit in every batch.

    Raises:
        ModelError: the files cannot be used, or transformers is needed and is not installed.
    """

    def __init__(self, told: dict[str, Any], weights: dict[str, Tensor], device: str, place: str):
        self._device = torch.device(device)
        self._clip, self._tokenizer = _built(told, place)
        own = self._clip.state_dict()
        lacking = [name for name, one in own.items() if name not in weights and one.numel()]
        other = [n for n, one in own.items() if n in weights and weights[n].shape != one.shape]
        if lacking or other:
            raise ModelError(
                f"the weights in {place} do not fit its configuration: {(lacking + other)[0]} is "
                "missing or of another shape; give both files of one model"
            )
        self._clip.load_state_dict({name: weights[name].float() for name in own})
        self._clip.eval().to(self._device)
        text = told["model_cfg"]["text_cfg"]
        self._context = int(text.get("context_length", 77))
        size = told["model_cfg"]["vision_cfg"].get("image_size", 224)
        self._size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        seen = told.get("preprocess_cfg") or {}
        mean, std = seen.get("mean"), seen.get("std")
        self._mean = torch.tensor(mean or open_clip.OPENAI_DATASET_MEAN).reshape(1, 3, 1, 1)
        self._std = torch.tensor(std or open_clip.OPENAI_DATASET_STD).reshape(1, 3, 1, 1)
        self.dim = int(told["model_cfg"]["embed_dim"])

    @classmethod
    def load(cls, directory: Path, manifest: Manifest, device: str) -> "Words":
        """What a checkpoint folder with this manifest has for words.

        Raises:
            ModelError: the files are missing, or others than the manifest describes.
        """
        try:
            told = (directory / WORDS).read_bytes()
            weights = (directory / WORDS_WEIGHTS).read_bytes()
        except OSError as error:
            raise ModelError(
                f"{directory} lacks what model {manifest.fingerprint} encodes words with "
                f"({error.strerror}: {Path(error.filename).name}); restore {WORDS} and "
                f"{WORDS_WEIGHTS} from the folder that `precedent train` wrote"
            ) from None
        if manifest.words is None or _digest(told, weights) != manifest.words.sha256:
            raise ModelError(
                f"{WORDS} and {WORDS_WEIGHTS} in {directory} are not what its manifest describes; "
                "restore all files from one training"
            )
        return cls(json.loads(told), load_tensors(weights), device, str(directory))

    @torch.inference_mode()
    def images(self, canvases: Sequence[NDArray[np.uint8]], batch_size: int) -> NDArray[np.float32]:
        """The image embeddings of N canvases, each uint8 (S, S) or (S, S, 3): float32 (N, E), of
        unit length. Canvases of another size than the tower's are resized."""
        found = [np.zeros((0, self.dim), np.float32)]
        for start in range(0, len(canvases), batch_size):
            chunk = np.stack(canvases[start : start + batch_size])
            count = len(chunk)
            if self._device.type != "cpu" and count < batch_size:
                filler = [(0, batch_size - count)] + [(0, 0)] * (chunk.ndim - 1)
                chunk = np.pad(chunk, filler)
            with self._products():
                rows = self._clip.encode_image(self.prepared(chunk).to(self._device))
            found.append(_unit(rows[:count].float().cpu().numpy()))
        return np.concatenate(found)

    def prepared(self, canvases: NDArray[np.uint8]) -> Tensor:
        """uint8 (N, S, S) or (N, S, S, 3) → what the image tower takes, float32 (N, 3, H, W)."""
        images = torch.from_numpy(canvases).float() / 255
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        if tuple(images.shape[2:]) != self._size:
            images = F.interpolate(images, self._size, mode="bicubic", antialias=True).clamp(0, 1)
        return (images.expand(-1, 3, -1, -1) - self._mean) / self._std

    @torch.inference_mode()
    def text(self, text: str) -> Said:
        """The embedding of a text. Tokens beyond the tower's context are left out.

        Raises:
            QueryError: the text is empty, too long, or has control characters.
        """
        text = checked_text(text)
        tokens = self._tokenizer.tokens(text)
        with self._products():
            row = self._clip.encode_text(self._tokenizer.row(text).to(self._device))
        count = max(tokens, 1)
        return Said(_unit(row.float().cpu().numpy())[0], count, min(count, self._context))

    def _products(self) -> AbstractContextManager[Any]:
        return BatchInvariant() if self._device.type == "cpu" else nullcontext()


def add_words(directory: Path, folder: Path) -> Manifest:
    """Copies the CLIP model of a folder, image and text side, into a checkpoint folder, and returns
    the new manifest: indexes of the model have a second vector from now on.

    Args:
        directory: of the checkpoint. folder: as open_clip saves a model.

    Raises:
        ModelError: the folder has no text side, or one that cannot be used here.
    """
    manifest = read_manifest(directory)
    told, weights, words = read_words(folder)
    config = WordsConfig(words.dim, _digest(told, weights))
    if manifest.words != config:
        fingerprint = fingerprint_of(
            manifest.weights_sha256, manifest.network, manifest.preprocess, config
        )
        manifest = replace(manifest, fingerprint=fingerprint, words=config)
    write_atomically(directory / WORDS_WEIGHTS, weights)
    write_atomically(directory / WORDS, told)
    write_manifest(directory, manifest)
    return manifest


def read_words(folder: Path) -> tuple[bytes, bytes, Words]:
    """The contents of ``words.json`` and ``words.safetensors`` made of the CLIP model in a folder,
    and the model.

    Raises:
        ModelError: as for :func:`add_words`.
    """
    tower = read_tower_folder(folder)
    found = json.loads((folder / HF_CONFIG_NAME).read_text(encoding="utf-8"))
    model = dict(found["model_cfg"])
    if not isinstance(model.get("text_cfg"), dict) or model.get("multimodal_cfg"):
        raise ModelError(
            f"{folder} has no text side that words can be searched with ({HF_CONFIG_NAME} says "
            "nothing of text_cfg, or describes a captioner); leave out --words, or give the folder "
            "of a CLIP model"
        )
    told: dict[str, Any] = {"model_cfg": model, "preprocess_cfg": found.get("preprocess_cfg")}
    if _is_of_transformers(model["text_cfg"]):
        there = [name for name in _TOKENIZER_FILES if (folder / name).is_file()]
        if lacking := [name for name in _LEAST_FILES if name not in there]:
            raise ModelError(
                f"{folder} lacks {' and '.join(lacking)}: its text side is one of transformers. "
                "Put config.json of the text model (text_cfg names it) and the files of its "
                "tokenizer into the folder"
            )
        told["files"] = {name: (folder / name).read_text(encoding="utf-8") for name in there}
    tensors = read_weights(tower.weights)
    words = Words(told, tensors, "cpu", str(folder))
    own = words._clip.state_dict()
    # The copy has the number format of the file.
    kept = {name: tensors[name].contiguous().clone() for name in own}
    return json.dumps(told, sort_keys=True).encode(), save_tensors(kept), words


def _digest(told: bytes, weights: bytes) -> str:
    parts = hashlib.sha256(told).digest() + hashlib.sha256(weights).digest()
    return hashlib.sha256(parts).hexdigest()


def _is_of_transformers(text: dict[str, Any]) -> bool:
    return bool(text.get("hf_model_name") or text.get("hf_tokenizer_name"))


class _Tokenizer(NamedTuple):
    """row: text → int64 (1, context). tokens: how many tokens a text has, all of them."""

    row: Callable[[str], Tensor]
    tokens: Callable[[str], int]


def _built(told: dict[str, Any], place: str) -> tuple[Any, _Tokenizer]:
    """The CLIP model with random weights, and its tokenizer. Nothing is fetched."""
    model = dict(told["model_cfg"])
    text, vision = dict(model.pop("text_cfg")), dict(model.pop("vision_cfg"))
    vision["timm_model_pretrained"] = False
    custom = bool(model.pop("custom_text", False)) or _is_of_transformers(text)
    known = ("embed_dim", "quick_gelu", "init_logit_bias", "init_logit_scale")
    model = {name: value for name, value in model.items() if name in known}
    kind: Any = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    with tempfile.TemporaryDirectory() as folder:
        if "files" in told:
            for name in _TOKENIZER_FILES:
                if name in told["files"]:
                    (Path(folder) / name).write_text(told["files"][name], encoding="utf-8")
            tokenizer = _of_transformers(Path(folder), text)
            if text.get("hf_model_name"):
                text |= {"hf_model_name": folder, "hf_model_pretrained": False}
        else:
            tokenizer = _of_open_clip(text, place)
        try:
            clip = kind(
                vision_cfg=open_clip.CLIPVisionCfg(**vision),
                text_cfg=open_clip.CLIPTextCfg(**text),
                **model,
            )
        except (TypeError, ValueError, AssertionError, RuntimeError, KeyError, OSError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ModelError(
                f"the CLIP model in {place} cannot be built ({reason}); was it saved for another "
                "version of open_clip? Install that version"
            ) from None
    return cast(nn.Module, clip), tokenizer


def _of_open_clip(text: dict[str, Any], place: str) -> _Tokenizer:
    context = int(text.get("context_length", 77))
    made = SimpleTokenizer(context_length=context, **(text.get("tokenizer_kwargs") or {}))
    size = int(text.get("vocab_size", 49408))
    if size < made.vocab_size:
        raise ModelError(
            f"the text side in {place} knows {size:,} tokens, and open_clip's tokenizer has "
            f"{made.vocab_size:,}; it was trained with another one, which has to be named by "
            "hf_tokenizer_name and be in the folder"
        )
    return _Tokenizer(made, lambda said: len(made.encode(made.clean_fn(said))) + 2)


def _of_transformers(folder: Path, text: dict[str, Any]) -> _Tokenizer:
    try:
        made = HFTokenizer(
            str(folder),
            context_length=int(text.get("context_length", 77)),
            tokenizer_mode=text.get("tokenizer_mode"),
            local_files_only=True,
            **(text.get("tokenizer_kwargs") or {}),
        )
    except ImportError:
        raise ModelError(
            "the text side of this model is one of transformers, which is not installed; run "
            "`pip install 'precedent-imaging[words]'`"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"the tokenizer of the model cannot be read ({reason}); put all of its files beside "
            "the model, tokenizer.json or vocab.txt among them"
        ) from None
    return _Tokenizer(made, lambda said: len(made.tokenizer(made.clean_fn(said)).input_ids))


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (rows / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit
