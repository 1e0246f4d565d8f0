"""Structure-aware Contrastive Hashing (SCH): the training loss of the codes.

Source: Nan et al., Medical Image Analysis 2025, 103553, with three changes: the quantisation term
uses the un-centred cosine (centred, it is constant and has no gradient); positive and negative
pairs may be averaged separately; and images of one class may get different codes if their structure
differs (``spread``).
"""

from collections.abc import Sequence
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
    "known_structure",
    "pair_loss",
    "quantisation_loss",
]

_EPSILON = 1e-6
_MOST_SPREAD = 0.5


@dataclass(frozen=True, slots=True)
class SchConfig:
    """Options of the loss.

    fingerprint: similarity of structure: "cosine" (as in the paper), "pearson" (mean-centred, more
        contrast) or "none".
    weighted: weight pairs by w_c = N / (C n_c), so that rare classes count as much as others.
    separate_means: average positive and negative pairs separately; positives are rare in a batch
        with many classes.
    spread: target distance of images of one class with unlike structure, as a share of the bits, in
        [0, 0.5]. 0, as in the paper, pulls all of them to one code. Best with separate_means.
    pairs, quantisation, classification: weights of the terms.
    centred_quantisation: compute the quantisation term as in the code released with the paper, for
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
        """Whether fingerprints are computed of the images before augmentation.

        True with a spread, as two views of one image must have the same target code.
        """
        return self.spread > 0


class SchLoss(nn.Module):
    """The loss L = L_SC + a·L_Q + b·CE.

    Args:
        config: options.
        class_counts: int64 (C,), images of each class, for the class weights.
        parents: for each class the kind that it belongs to. Pairs of one kind are alike; those of
            several classes of it are of unlike structure, whatever their fingerprints say. Empty =
            every class is a kind of its own.
    """

    weights: Tensor
    parents: Tensor

    def __init__(
        self, config: SchConfig, class_counts: Tensor, parents: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.config = config
        weights = (
            class_weights(class_counts)
            if config.weighted
            else torch.ones_like(class_counts, dtype=torch.float32)
        )
        self.register_buffer("weights", weights)
        kinds = torch.tensor(list(parents), dtype=torch.int64)
        self.register_buffer("parents", kinds, persistent=False)

    def forward(
        self,
        h: Tensor,
        logits: Tensor | None,
        images: Tensor,
        labels: Tensor,
        scenes: Tensor | None = None,
    ) -> LossTerms:
        """The loss for one batch.

        Args:
            h: float (N, B), hash logits. logits: float (N, C), class logits; None = no
                classification term.
            images: float (N, 1|3, S, S) in [0, 1], of which fingerprints are computed: the images
                that the logits belong to or, with ``config.of_originals``, those before
                augmentation.
            labels: int64 (N,).
            scenes: int64 (N,), equal for images that show one slice, −1 = no other does.
        """
        h = h.float()
        if self.config.fingerprint == "none":
            structure = None
        else:
            structure = structural_similarity(
                image_fingerprint(images), centred=self.config.fingerprint == "pearson"
            )
        kinds = self.parents[labels] if len(self.parents) else labels
        if structure is not None:
            structure = known_structure(structure, labels, kinds, scenes)
        pairs = pair_loss(
            h,
            kinds,
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


def known_structure(
    structure: Tensor, labels: Tensor, kinds: Tensor, scenes: Tensor | None
) -> Tensor:
    """The similarity of structure where more is known of it than fingerprints say.

    One slice in two windows is the same structure, S = 1, however unlike the pictures look. Two
    classes of one kind, as planes of one region, are not alike, S = 0.

    Args:
        structure: float (N, N). labels, kinds, scenes: int64 (N,).
    """
    siblings = (kinds[:, None] == kinds[None, :]) & (labels[:, None] != labels[None, :])
    structure = structure.masked_fill(siblings, 0.0)
    if scenes is None:
        return structure
    same = (scenes[:, None] == scenes[None, :]) & (scenes[:, None] >= 0)
    return structure.masked_fill(same, 1.0)


def class_weights(counts: Tensor) -> Tensor:
    """Class weights w_c = N / (C n_c), float32 (C,), from the images of each class, n_c (C,).

    0 for a class without images.
    """
    counts = counts.float()
    return torch.where(counts > 0, counts.sum() / (len(counts) * counts.clamp_min(1)), 0.0)


def bit_distance(h: Tensor) -> Tensor:
    """Soft Hamming distances d_ij = (1 − Pearson(h_i, h_j)) / 2, float32 (N, N) within (0, 1)."""
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
    """The pair loss L_SC: attracts codes of one class and repels others, weighted by structure.

    Pairs of different classes: −e^S log d. Pairs of one class: −S log(1 − d), with its minimum at
    d = 0 for any S; with a spread −(1 − t) log(1 − d) − t log d, t = spread · (1 − S), with its
    minimum at d = t.

    Args:
        h: float (N, B), hash logits. labels: int64 (N,).
        structure: float (N, N), S_ij in [0, 1], similarity of structure; None = from labels alone
            (S = 1 if they agree, else 0).
        weights: float (N,), the weight of each item's class.
        separate_means: average the pairs of one class and the others separately.
        spread: in [0, 0.5], the target distance d of a pair of one class with S = 0.
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
    """The quantisation loss L_Q = mean log(1 + (1 − cos(|h_i|, 1)) / 2).

    It is least when all hash logits of an image have the same magnitude.

    centred: subtract the means first. The cosine with a constant vector is then 0 for any h, and
        L_Q the constant log 1.5.
    """
    magnitude = h.float().abs()
    target = torch.ones_like(magnitude)
    if centred:
        magnitude = magnitude - magnitude.mean(dim=1, keepdim=True)
        target = target - target.mean(dim=1, keepdim=True)
    cosine = F.cosine_similarity(magnitude, target, dim=1, eps=_EPSILON)
    return torch.log1p((1 - cosine) / 2).mean()
