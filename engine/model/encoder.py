"""The encoder: computes blended features, codes and OOD observations of images, in batches."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine import reproducibility
from engine.codes import pack_signs
from engine.errors import ModelError, QueryError
from engine.model.appearance import appearance
from engine.model.checkpoint import load_checkpoint
from engine.model.decoder import Decoder, load_decoder, reconstruction_scores
from engine.model.invariance import BatchInvariant
from engine.model.manifest import Manifest
from engine.model.network import HashingNetwork, NetworkOutput
from engine.model.texts import checked_text
from engine.model.words import Said, Words
from engine.records import EncodedImages, Observations

__all__ = [
    "Encoder",
    "Precision",
    "autocast",
    "canvas_tensor",
    "centre_and_normalise",
    "has_bfloat16",
    "resolved",
]

Precision = Literal["auto", "fp32", "bf16"]


class Encoder:
    """A model ready to encode images.

    On a CPU the encoding of an image is the same to the bit whatever the size of the batch, the
    other images, their order, the number of threads and the process, on one machine with one
    version of PyTorch. Other machines differ in the last digits: docs/model.md says by how
    much. If that cannot be ensured, a :class:`~engine.reproducibility.NotReproducible` warning says
    why.

    Args:
        network: in evaluation mode.
        manifest: describes the network.
        decoder: in evaluation mode; None = observations have no reconstruction errors.
        device: "cpu", "cuda", …; "auto" = a GPU if there is one.
        precision: "bf16" computes the network in bfloat16, "auto" means what :func:`resolved`
            says.
        batch_size: images that go through the network at once. On a GPU shorter batches are
            padded to this size, as sums over another shape may differ in the last digit. So there,
            too, an image's code does not depend on the other images of its batch.

        words: loads what encodes texts, when it is first needed; None = the model knows no words.

    Raises:
        ModelError: the model cannot run on the device.
    """

    def __init__(
        self,
        network: HashingNetwork,
        manifest: Manifest,
        *,
        decoder: Decoder | None = None,
        device: str = "cpu",
        precision: Precision = "auto",
        batch_size: int = 32,
        words: Callable[[], Words] | None = None,
    ) -> None:
        device = _named(device)
        self._words = words
        self.manifest = manifest
        self.batch_size = batch_size
        self._device = device
        self._on_cpu = torch.device(device).type == "cpu"
        self.precision = resolved(device, precision)
        if self._on_cpu and (why := reproducibility.shortfall()) is not None:
            warnings.warn(
                f"the last bits of an encoding may depend on its batch: {why}",
                reproducibility.NotReproducible,
                stacklevel=2,
            )
        try:
            self._network = network.to(device).to(memory_format=torch.channels_last)
            self._decoder = decoder and decoder.to(device).to(memory_format=torch.channels_last)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(
                f"the model cannot run on device {device!r} ({str(error).splitlines()[0]}); "
                "use 'cpu', or 'auto' for a GPU where there is one"
            ) from None

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        device: str = "cpu",
        precision: Precision = "auto",
        batch_size: int = 32,
    ) -> "Encoder":
        """The encoder of a checkpoint folder, with the decoder when it has one.

        Raises:
            ModelError: as load_checkpoint and load_decoder do.
        """
        network, manifest = load_checkpoint(directory)
        once = Lock()
        loaded: list[Words] = []

        def words() -> Words:
            with once:
                if not loaded:
                    loaded.append(Words.load(directory, manifest, _named(device)))
            return loaded[0]

        return cls(
            network,
            manifest,
            decoder=load_decoder(directory, manifest.fingerprint),
            device=device,
            precision=precision,
            batch_size=batch_size,
            words=None if manifest.words is None else words,
        )

    @property
    def decoder_fingerprint(self) -> str | None:
        """The decoder's fingerprint; None = there is no decoder."""
        return None if self._decoder is None else self._decoder.fingerprint

    def with_precision(self, precision: Precision) -> "Encoder":
        """The same model, computed in another precision."""
        return Encoder(
            self._network,
            self.manifest,
            decoder=self._decoder,
            device=self._device,
            precision=precision,
            batch_size=self.batch_size,
            words=self._words,
        )

    def encode(
        self, canvases: Sequence[NDArray[np.uint8]], *, words: bool = False
    ) -> EncodedImages:
        """Blended features and codes of N canvases.

        Args:
            canvases: each uint8 (S, S) or (S, S, 3), as ``Preprocess.canvas`` gives them.
            words: also what a text is compared with, if the model knows words: it takes the CLIP
                model's image side another time.

        Raises:
            ModelError: a canvas is not of the model's size, or what encodes words is not there.
        """
        seen = self._run(canvases, None)
        if not words or self._words is None:
            return EncodedImages(seen.z, seen.codes)
        return EncodedImages(seen.z, seen.codes, self._words().images(canvases, self.batch_size))

    def say(self, text: str) -> Said:
        """A text as a vector that the ``words`` of images are compared with.

        Raises:
            ModelError: what encodes them is not there.
            QueryError: the model knows no words, or the text is empty, too long or has control
                characters.
        """
        if self._words is None:
            raise QueryError(
                f"model {self.manifest.fingerprint} knows no words; search by an image, or train "
                "a model around a CLIP model with `precedent train --tower FOLDER --words` and "
                "bring the index to it with `precedent reencode --model`"
            )
        checked_text(text)
        return self._words().text(text)

    def observe(
        self, canvases: Sequence[NDArray[np.uint8]], colour: Sequence[float] | None = None
    ) -> Observations:
        """The encodings of N canvases, with all that the OOD detectors use.

        One pass through the network. z and codes equal those of :meth:`encode` to the bit.

        Args:
            canvases: as for :meth:`encode`.
            colour: of each picture the share that has a colour, which its canvas may not tell;
                None = not known.

        Raises:
            ModelError: a canvas is not of the model's size.
        """
        seen = self._run(canvases, self._decoder, pooled=True)
        shares = None if colour is None else np.asarray(colour, dtype=np.float32)
        return replace(seen, appearance=appearance(canvases), colour=shares)

    def _run(
        self,
        canvases: Sequence[NDArray[np.uint8]],
        decoder: Decoder | None,
        *,
        pooled: bool = False,
    ) -> Observations:
        preprocess = self.manifest.preprocess
        shape = (preprocess.size, preprocess.size, *((3,) if preprocess.colour else ()))
        for canvas in canvases:
            if canvas.shape != shape:
                raise ModelError(
                    f"a canvas has shape {canvas.shape}, the model wants {shape}; "
                    "make it with the model's own Preprocess"
                )
        count, classes = len(canvases), self.manifest.network.classes
        z = np.empty((count, self.manifest.dim), dtype=np.float32)
        h = np.empty((count, self.manifest.bits), dtype=np.float32)
        logits = np.empty((count, classes), dtype=np.float32) if classes else None
        reconstruction = np.empty(count, dtype=np.float32) if decoder else None
        maps: list[NDArray[np.float32]] = []
        for start in range(0, count, self.batch_size):
            chunk = canvases[start : start + self.batch_size]
            part = slice(start, start + len(chunk))
            output, error, taps = self._forward(np.stack(chunk), decoder)
            if pooled:
                means = [_unit(_means(_rows(one, len(chunk)))) for one in taps]
                maps.append(np.concatenate(means, axis=1))
            z[part], h[part] = _rows(output.z, len(chunk)), _rows(output.h, len(chunk))
            if logits is not None and output.logits is not None:
                logits[part] = _rows(output.logits, len(chunk))
            if reconstruction is not None and error is not None:
                reconstruction[part] = _rows(error, len(chunk))
        return Observations(
            centre_and_normalise(z),
            pack_signs(h),
            logits,
            reconstruction,
            maps=np.concatenate(maps) if maps else None,
        )

    @torch.inference_mode()
    def _forward(
        self, canvases: NDArray[np.uint8], decoder: Decoder | None
    ) -> tuple[NetworkOutput, Tensor | None, tuple[Tensor, Tensor]]:
        """The network's output for a batch, its relative reconstruction errors or None, and the
        tower's maps."""
        if not self._on_cpu and len(canvases) < self.batch_size:
            filler = [(0, self.batch_size - len(canvases))] + [(0, 0)] * (canvases.ndim - 1)
            canvases = np.pad(canvases, filler)
        images = canvas_tensor(canvases).to(self._device, memory_format=torch.channels_last)
        products = BatchInvariant() if self._on_cpu else nullcontext()
        with autocast(self._device, self.precision), products:
            shallow, deep = self._network.maps(images)
            output = self._network.fuse(shallow, deep)
            rebuilt = None if decoder is None else decoder(deep)
        if rebuilt is None:
            return output, None, (shallow, deep)
        return output, reconstruction_scores(images, rebuilt).relative, (shallow, deep)


def _rows(values: Tensor, count: int) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = values[:count].float().cpu().numpy()
    return rows


def _means(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of each channel, float32 (N, C, H, W) → (N, C), added up in one order, whatever the
    batch and its layout in memory."""
    rows = np.ascontiguousarray(maps).reshape(*maps.shape[:2], -1)
    means: NDArray[np.float32] = rows.mean(axis=2)
    return means


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows, scaled to unit length."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = rows / np.maximum(lengths, 1e-12)
    return unit


def canvas_tensor(canvases: NDArray[np.uint8]) -> Tensor:
    """uint8 (N, S, S) or (N, S, S, 3) → float32 (N, 1 or 3, S, S) in [0, 1]."""
    images = torch.from_numpy(canvases).float() / 255
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)


def centre_and_normalise(z: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of z (N, D), centred and scaled to unit length: their dot products are Pearson's r."""
    centred = z - z.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (centred / np.maximum(norm, 1e-12)).astype(np.float32)
    return unit


def autocast(device: str, precision: Precision) -> AbstractContextManager[None]:
    """A context in which ``device`` computes in ``precision``; "auto" is "bf16" where the hardware
    multiplies bfloat16, as it may be in training."""
    enabled = has_bfloat16(device) if precision == "auto" else precision == "bf16"
    return torch.autocast(torch.device(_named(device)).type, torch.bfloat16, enabled=enabled)


def resolved(device: str, precision: Precision) -> Literal["fp32", "bf16"]:
    """The precision that ``precision`` means for an encoding on ``device``.

    "auto" is "fp32" on a CPU, whatever the processor has: only so do machines with other
    processors agree in all but the last digits (docs/model.md). On a GPU it is "bf16" where that
    is supported.
    """
    if precision != "auto":
        return precision
    on_gpu = torch.device(_named(device)).type == "cuda"
    return "bf16" if on_gpu and has_bfloat16(device) else "fp32"


def has_bfloat16(device: str) -> bool:
    """Whether ``device`` multiplies bfloat16 natively; emulated, it is slower than float32."""
    if torch.device(_named(device)).type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return bool(
        capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16")
    )


def _named(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
