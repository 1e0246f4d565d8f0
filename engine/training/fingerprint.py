"""Image fingerprints: a measure of the structural similarity of images, independent of labels.

Source: Nan et al., Medical Image Analysis 2025, 103553; the mean-centred form is added here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["image_fingerprint", "structural_similarity"]

_SIDE = 16


def image_fingerprint(images: Tensor) -> Tensor:
    """The fingerprints of images: grey thumbnails of 16 × 16 area means, flattened.

    Args:
        images: float (N, 1 or 3, H, W) in [0, 1], as the network sees them.

    Returns:
        float32 (N, 256) in [0, 1].
    """
    grey = images.float().mean(dim=1, keepdim=True)
    return F.interpolate(grey, size=(_SIDE, _SIDE), mode="area").flatten(1)


@torch.no_grad()
def structural_similarity(fingerprints: Tensor, *, centred: bool) -> Tensor:
    """S_ij = max(0, cos(f_i, f_j)), or max(0, Pearson) when ``centred``.

    Args:
        fingerprints: float (N, F). A black one, and a constant one when ``centred``, has
            similarity 0 to all.

    Returns:
        float32 (N, N) in [0, 1]; carries no gradient.
    """
    f = fingerprints.float()
    if centred:
        f = f - f.mean(dim=1, keepdim=True)
    norm = f.norm(dim=1, keepdim=True)
    f = torch.where(norm > 1e-6, f / norm.clamp_min(1e-6), torch.zeros_like(f))
    with torch.autocast(f.device.type, enabled=False):
        return (f @ f.T).clamp(0.0, 1.0)
