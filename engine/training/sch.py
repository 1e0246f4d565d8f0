"""Structure-aware Contrastive Hashing (SCH): the loss that shapes the codes.

Source: Nan et al., Medical Image Analysis 2025, 103553. Three departures: the quantisation
term uses the un-centred cosine (centred, it is constant and has no gradient), positives and
negatives may be averaged apart, and alike labels may be placed apart by their structure.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import TrainingDataError
from engine.training.fingerprint import image_fingerprint, structural_similarity
from engine.training.losses import LossTerms

__all__ = [
    "SchConfig",
    "SchLoss",
    "bit_distance",
    "class_weights",
    "pair_loss",
    "quantisation_loss",
]

_EPSILON = 1e-6
_MOST_SPREAD = 0.5


@dataclass(frozen=True, slots=True)
class SchConfig:
    """Options of the loss.

    fingerprint: "cosine" (the paper's), "pearson" (mean-centred, more contrast) or "none".
    weighted: weigh pairs by w_c = N / (C n_c), so that rare classes count.
    separate_means: average positive and negative pairs apart; positives are rare in a
        batch with many classes.
    spread: how far apart alike labels of unlike structure are placed, as a share of the bits.
        0, the paper's, pulls all of them onto one code. Best with separate_means.
    pairs, quantisation, classification: weights of the terms.
    centred_quantisation: the quantisation term as the paper's released code has it, for
        comparison: it has no gradient.
    """

    fingerprint: str = "pearson"
    weighted: bool = True
    separate_means: bool = False
    spread: float = 0.0
    pairs: float = 1.0
    quantisation: float = 0.5
    classification: float = 0.5
    centred_quantisation: bool = False

    def __post_init__(self) -> None:
        if self.fingerprint not in ("cosine", "pearson", "none"):
            raise TrainingDataError(
                f"fingerprint is {self.fingerprint!r}; use 'cosine', 'pearson' or 'none'"
            )
        if not 0 <= self.spread <= _MOST_SPREAD:
            raise TrainingDataError(
                f"spread is {self.spread}; use 0 to {_MOST_SPREAD}, or alike labels would lie as "
                "far apart as unlike ones"
            )
        if self.spread and self.fingerprint == "none":
            raise TrainingDataError(
                f"spread is {self.spread}, and without fingerprints no structure is unlike; "
                "use fingerprint 'pearson', or spread 0"
            )

    @property
    def of_originals(self) -> bool:
        """Whether fingerprints are of the images before augmentation: with a spread, two views of
        one image are to have one code.
        """
        return self.spread > 0


class SchLoss(nn.Module):
    """L = L_SC + a·L_Q + b·CE. Args: options; images per class, (C,), for the weights."""

    weights: Tensor

    def __init__(self, config: SchConfig, class_counts: Tensor) -> None:
        super().__init__()
        self.config = config
        weights = (
            class_weights(class_counts)
            if config.weighted
            else torch.ones_like(class_counts, dtype=torch.float32)
        )
        self.register_buffer("weights", weights)

    def forward(
        self, h: Tensor, logits: Tensor | None, images: Tensor, labels: Tensor
    ) -> LossTerms:
        """Of hash logits (N, B), class logits (N, C), images (N, 1|3, S, S), labels (N,).

        Images are those that the logits are of, or, ``config.of_originals``, those that these
        were made of. Without class logits there is no classification term.
        """
        h = h.float()
        if self.config.fingerprint == "none":
            structure = None
        else:
            structure = structural_similarity(
                image_fingerprint(images), centred=self.config.fingerprint == "pearson"
            )
        pairs = pair_loss(
            h,
            labels,
            structure,
            self.weights[labels],
            separate_means=self.config.separate_means,
            spread=self.config.spread,
        )
        quantisation = quantisation_loss(h, centred=self.config.centred_quantisation)
        parts = {"pairs": pairs, "quantisation": quantisation}
        total = self.config.pairs * pairs + self.config.quantisation * quantisation
        if logits is not None:
            parts["classification"] = F.cross_entropy(logits.float(), labels)
            total = total + self.config.classification * parts["classification"]
        return LossTerms(total, parts)


def class_weights(counts: Tensor) -> Tensor:
    """w_c = N / (C n_c), float32 (C,), of images per class; 0 for a class without any."""
    counts = counts.float()
    return torch.where(counts > 0, counts.sum() / (len(counts) * counts.clamp_min(1)), 0.0)


def bit_distance(h: Tensor) -> Tensor:
    """d_ij = (1 − Pearson over bits(h_i, h_j)) / 2, float32 (N, N) within (0, 1)."""
    # In bfloat16 d would round to 1, and its logarithm to minus infinity.
    with torch.autocast(h.device.type, enabled=False):
        h = h.float()
        h = F.normalize(h - h.mean(dim=1, keepdim=True), dim=1, eps=_EPSILON)
        return ((1 - h @ h.T) / 2).clamp(_EPSILON, 1 - _EPSILON)


def pair_loss(
    h: Tensor,
    labels: Tensor,
    structure: Tensor | None,
    weights: Tensor,
    *,
    separate_means: bool = False,
    spread: float = 0.0,
) -> Tensor:
    """L_SC: alike pairs pull, unlike ones push, each as far as their structure says.

    Unlike labels: −e^S log d. Alike ones: −S log(1 − d), least at d = 0 whatever S is. With a
    spread, which is ours: −(1 − t) log(1 − d) − t log d, t = spread · (1 − S), least at d = t.

    Args:
        h: float (N, B), hash logits. labels: int64 (N,).
        structure: float (N, N), S_ij in [0, 1]; None = labels only (S = 1 where they
            agree, 0 where they differ).
        weights: float (N,), the weight of each item's class.
        spread: in [0, 0.5], the distance that alike labels are given where S is 0.
    """
    d = bit_distance(h)
    alike = labels[:, None] == labels[None, :]
    off_diagonal = ~torch.eye(len(h), dtype=torch.bool, device=h.device)
    if structure is None:
        structure = alike.float()
    if spread:
        apart = spread * (1 - structure)
        pull = -(1 - apart) * torch.log1p(-d) - apart * torch.log(d)
    else:
        pull = -structure * torch.log1p(-d)
    push = -torch.exp(structure) * torch.log(d)
    loss = torch.where(alike, pull, push) * weights[:, None] * weights[None, :]
    if not separate_means:
        return loss[off_diagonal].mean()
    positive, negative = loss[alike & off_diagonal], loss[~alike]
    zero = loss.sum() * 0
    return (positive.mean() if positive.numel() else zero) + (
        negative.mean() if negative.numel() else zero
    )


def quantisation_loss(h: Tensor, *, centred: bool = False) -> Tensor:
    """L_Q = mean log(1 + (1 − cos(|h_i|, 1)) / 2): all bits of an image equally sure.

    centred: subtract the means first. The cosine with a constant vector is then 0 whatever
    h is, and L_Q the constant log 1.5.
    """
    magnitude = h.float().abs()
    target = torch.ones_like(magnitude)
    if centred:
        magnitude = magnitude - magnitude.mean(dim=1, keepdim=True)
        target = target - target.mean(dim=1, keepdim=True)
    cosine = F.cosine_similarity(magnitude, target, dim=1, eps=_EPSILON)
    return torch.log1p((1 - cosine) / 2).mean()
