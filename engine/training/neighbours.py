"""The neighbour term of hashing losses: codes that keep which images lie nearest by z.

A code is asked for few candidates, among which the images most similar by z have to be. So what
counts is an order: an image that is among the nearest of a query has to lie nearer by its code than
one that is not even near. Inside a class, where losses on labels have little to say, this is what
places codes. The order is learned as a softmax over the images that are not near, as
contrastive losses do it (van den Oord et al., "Representation Learning with Contrastive Predictive
Coding", 2018); near and far are counted in neighbours, since z is dense in one class and thin in
another.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.errors import TrainingDataError

__all__ = ["Neighbourhoods", "independence_loss", "neighbour_loss", "neighbourhoods"]

_CHUNK = 1024
_NOTHING = -1e4


@dataclass(frozen=True)
class Neighbourhoods:
    """What lies around each of N images by z.

    nearest: int64 (N, F), the F nearest other images, the nearest first.
    count: how many of these are *near*; what comes after the F is *far*.
    near, far: float32 (N,), the similarity of the last near image, and of the last that is not far.
    """

    nearest: Tensor
    count: int
    near: Tensor
    far: Tensor


def neighbourhoods(z: Tensor, count: int, share: float) -> Neighbourhoods:
    """The neighbourhoods of images, compared with all others.

    Args:
        z: float32 (N, D), of unit length.
        count: how many other images are near, ≥ 1.
        share: of all images, how many are not far, in (0, 1); at least twice those that are near.

    Raises:
        TrainingDataError: there are too few images for any to be far.
    """
    reach = max(2 * count, round(share * len(z)))
    if reach > len(z) - 2:
        raise TrainingDataError(
            f"{len(z)} images are too few to tell the {count} nearest from others; give at least "
            f"{2 * count + 2}"
        )
    nearest, near, far = [], [], []
    for start in range(0, len(z), _CHUNK):
        similarity = z[start : start + _CHUNK] @ z.T
        rows = torch.arange(len(similarity))
        similarity[rows, rows + start] = -torch.inf
        found = similarity.topk(reach, dim=1)
        nearest.append(found.indices)
        near.append(found.values[:, count - 1])
        far.append(found.values[:, -1])
    return Neighbourhoods(torch.cat(nearest), count, torch.cat(near), torch.cat(far))


def neighbour_loss(h: Tensor, z: Tensor, near: Tensor, far: Tensor, scale: float) -> Tensor:
    """mean log(1 + Σ_k exp(s (c_ik − c_ij))) over the pairs i, j that are near.

    c_ij = tanh(h_i)·tanh(h_j) / B is the relaxed agreement of two codes; k are the images of the
    batch that are far from i. 0 where no pair is near.

    Args:
        h: float (N, B), hash logits. z: float32 (N, D), of unit length.
        near, far: float32 (N,), for each image the similarities from which others are near, and
            below which they are far.
        scale: s, > 0, the inverse temperature of the softmax.
    """
    codes = torch.tanh(h.float())
    agreement = scale / h.shape[1] * codes @ codes.T
    similarity = z @ z.T
    others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    wanted = (similarity >= near[:, None]) & others
    if not wanted.any():
        return h.sum() * 0
    unwanted = (similarity < far[:, None]) & others
    # Not −∞: of an image that nothing is far from, the gradient would be NaN.
    beside = agreement.masked_fill(~unwanted, _NOTHING).logsumexp(dim=1, keepdim=True)
    return F.softplus(beside - agreement)[wanted].mean()


def independence_loss(h: Tensor) -> Tensor:
    """Σ mean_k² / B + Σ_{k ≠ l} cov_kl² / (B (B − 1)) of tanh(h), of hash logits float (N, B).

    It is 0 where every bit is 1 for half of the images, and no two bits say the same (Weiss et al.,
    "Spectral Hashing", NeurIPS 2008).
    """
    codes = torch.tanh(h.float())
    bits = codes.shape[1]
    products = codes.T @ codes / len(codes)
    apart = products - torch.diag(products.diagonal())
    return codes.mean(dim=0).square().mean() + apart.square().sum() / (bits * max(bits - 1, 1))
