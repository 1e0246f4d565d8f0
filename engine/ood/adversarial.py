"""Adversarial attacks on the code: imperceptible changes of an image that give it another code.

The attacks are untargeted, within an L∞ ball: they lower the cosine of the hash logits h and the
code of the unchanged image. FGSM: Goodfellow et al., "Explaining and Harnessing Adversarial
Examples", ICLR 2015. PGD: Madry et al., "Towards Deep Learning Models Resistant to Adversarial
Attacks", ICLR 2018. Attacks on codes: Yang et al., "Adversarial Examples for Hamming Space Search",
IEEE Transactions on Cybernetics 2020.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity

from engine.errors import ModelError
from engine.model.network import HashingNetwork

__all__ = ["as_canvases", "fgsm", "pgd"]


def fgsm(network: HashingNetwork, images: Tensor, eps: float) -> Tensor:
    """Images attacked by one step of length ``eps``: float32 of the same shape, in [0, 1].

    Args:
        network: not changed; attacked in evaluation mode and float32.
        images: float (N, 1 or 3, S, S) in [0, 1], on the network's device.
        eps: largest change of a pixel, in grey values of [0, 1].

    Raises:
        ModelError: eps is not positive.
    """
    _check_positive("eps", eps)
    with _attacked(network, images) as (clean, code):
        return (clean + eps * _ascent(network, clean, code)).clamp(0, 1)


def pgd(
    network: HashingNetwork,
    images: Tensor,
    eps: float,
    steps: int = 10,
    step_size: float | None = None,
    seed: int = 0,
) -> Tensor:
    """Images attacked by several steps, each projected back to within ``eps`` of the image.

    Args:
        network, images, eps: as for :func:`fgsm`.
        steps: number of steps, at least 1.
        step_size: length of a step, in grey values of [0, 1]; None = 2.5 eps / steps (Madry et
            al.), which reaches the border of the ball from any start.
        seed: seed of the start, which is drawn uniformly from the ball.

    Returns:
        float32 of the images' shape, in [0, 1].

    Raises:
        ModelError: eps, steps or step_size is not positive.
    """
    length = 2.5 * eps / max(steps, 1) if step_size is None else step_size
    for name, value in (("eps", eps), ("steps", steps), ("step_size", length)):
        _check_positive(name, value)
    # Drawn on the CPU, so that a seed means the same on every device.
    draw = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed))
    with _attacked(network, images) as (clean, code):
        low, high = (clean - eps).clamp_min(0), (clean + eps).clamp_max(1)
        found = (clean + eps * (2 * draw - 1).to(clean.device)).clamp(low, high)
        for _ in range(steps):
            found = (found + length * _ascent(network, found, code)).clamp(low, high)
        return found


def as_canvases(images: Tensor) -> NDArray[np.uint8]:
    """The images as canvases: uint8 (N, S, S), or (N, S, S, 3) in colour.

    Rounding to whole grey values keeps an attack within its eps if that is a multiple of 1/255.

    Args:
        images: float (N, 1 or 3, S, S) in [0, 1].
    """
    grey = (images.detach().cpu() * 255).round().to(torch.uint8)
    pixels = grey[:, 0] if grey.shape[1] == 1 else grey.permute(0, 2, 3, 1)
    canvases: NDArray[np.uint8] = pixels.contiguous().numpy()
    return canvases


def _ascent(network: HashingNetwork, images: Tensor, code: Tensor) -> Tensor:
    """Sign of the gradient of −cos(h, code) with respect to the images, of their shape."""
    moved = images.detach().requires_grad_()
    away = -cosine_similarity(network(moved).h, code, dim=1).sum()
    # With respect to the images alone: the gradients of the parameters are left as they are.
    (gradient,) = torch.autograd.grad(away, moved)
    return gradient.sign()


@contextmanager
def _attacked(network: HashingNetwork, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """A context with the clean images and their codes in {−1, +1}.

    Within it the network is in evaluation mode and float32, as when it encodes queries.
    """
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with (
            torch.inference_mode(mode=False),
            torch.enable_grad(),
            torch.autocast(images.device.type, enabled=False),
        ):
            clean = images.detach().float().clone()
            with torch.no_grad():
                code = torch.where(network(clean).h >= 0, 1.0, -1.0)
            yield clean, code
    finally:
        for module in training:
            module.training = True


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ModelError(
            f"{name} of an attack is {value}; use more than 0 (eps and step_size are in grey "
            "values of [0, 1]: 4/255 is hardly seen)"
        )
