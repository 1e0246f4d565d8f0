"""Images → blended features and codes, in batches."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.codes import pack_signs
from engine.errors import ModelError
from engine.model.checkpoint import Manifest, load_checkpoint
from engine.model.network import HashingNetwork
from engine.records import EncodedImages

__all__ = ["Encoder", "Precision", "autocast", "canvas_tensor"]

Precision = Literal["auto", "fp32", "bf16"]


class Encoder:
    """A model ready to encode.

    Args:
        network: in evaluation mode.
        manifest: what the network is.
        device: "cpu", "cuda", …; "auto" = a GPU where there is one.
        precision: "bf16" computes the network in bfloat16; "auto" does so where the
            hardware gains from it.
        batch_size: images that go through the network at once. Shorter batches are padded
            to this size, because a sum may come out differently in the last digit for
            another shape: so an image's code does not depend on its neighbours.
    """

    def __init__(
        self,
        network: HashingNetwork,
        manifest: Manifest,
        *,
        device: str = "cpu",
        precision: Precision = "auto",
        batch_size: int = 32,
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.manifest = manifest
        self.batch_size = batch_size
        self._device = device
        self._precision = precision
        try:
            self._network = network.to(device).to(memory_format=torch.channels_last)
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
        """The encoder of a checkpoint folder. Raises ModelError as load_checkpoint does."""
        network, manifest = load_checkpoint(directory)
        return cls(network, manifest, device=device, precision=precision, batch_size=batch_size)

    def with_batch_size(self, batch_size: int) -> "Encoder":
        """The same model for batches of another size: small ones answer one query sooner."""
        return Encoder(
            self._network,
            self.manifest,
            device=self._device,
            precision=self._precision,
            batch_size=batch_size,
        )

    def encode(self, canvases: Sequence[NDArray[np.uint8]]) -> EncodedImages:
        """Blended features and codes of N canvases.

        Args:
            canvases: each uint8 (S, S) or (S, S, 3), as ``Preprocess.canvas`` gives them.

        Raises:
            ModelError: a canvas is not of the model's size.
        """
        preprocess = self.manifest.preprocess
        shape = (preprocess.size, preprocess.size, *((3,) if preprocess.colour else ()))
        for canvas in canvases:
            if canvas.shape != shape:
                raise ModelError(
                    f"a canvas has shape {canvas.shape}, the model wants {shape}; "
                    "make it with the model's own Preprocess"
                )
        z = np.empty((len(canvases), self.manifest.dim), dtype=np.float32)
        h = np.empty((len(canvases), self.manifest.bits), dtype=np.float32)
        for start in range(0, len(canvases), self.batch_size):
            chunk = canvases[start : start + self.batch_size]
            stop = start + len(chunk)
            z[start:stop], h[start:stop] = self._forward(np.stack(chunk))
        return EncodedImages(centre_and_normalise(z), pack_signs(h))

    @torch.inference_mode()
    def _forward(self, canvases: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
        n = len(canvases)
        if n < self.batch_size:
            filler = [(0, self.batch_size - n)] + [(0, 0)] * (canvases.ndim - 1)
            canvases = np.pad(canvases, filler)
        images = canvas_tensor(canvases).to(self._device, memory_format=torch.channels_last)
        with autocast(self._device, self._precision):
            output = self._network(images)
        return output.z[:n].float().cpu().numpy(), output.h[:n].float().cpu().numpy()


def canvas_tensor(canvases: NDArray[np.uint8]) -> Tensor:
    """uint8 (N, S, S) or (N, S, S, 3) → float32 (N, 1 or 3, S, S) in [0, 1]."""
    images = torch.from_numpy(canvases).float() / 255
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)


def centre_and_normalise(z: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of z (N, D) minus their mean, at unit length: dot products become Pearson's r."""
    centred = z - z.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (centred / np.maximum(norm, 1e-12)).astype(np.float32)
    return unit


def autocast(device: str, precision: Precision) -> AbstractContextManager[None]:
    """The context that computes in ``precision`` on ``device``."""
    kind = torch.device(device).type
    if precision == "auto":
        gains = torch.cuda.is_bf16_supported() if kind == "cuda" else _cpu_has_bf16()
    else:
        gains = precision == "bf16"
    return torch.autocast(kind, torch.bfloat16, enabled=gains)


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 natively; emulated, it would be slower."""
    capabilities = torch.cpu.get_capabilities()
    return bool(
        capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16")
    )
