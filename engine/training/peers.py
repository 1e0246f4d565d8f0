"""The hashing losses that SCH is compared with, implemented from their papers.

HashNet, DCH, GreedyHash, CSQ, DPN and OrthoHash differ only in the loss on the hash logits, so
network, augmentation and schedule are the same for all.
"""

from dataclasses import dataclass
from math import isfinite

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import TrainingDataError
from engine.training.losses import LossTerms

__all__ = ["PEERS", "PeerConfig", "PeerLoss", "target_codes"]

_EPSILON = 1e-6
_CANDIDATES = 256


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """Which loss, and its hyper-parameters; those of the other methods are ignored.

    method: "hashnet", "dch", "greedyhash", "csq", "dpn" or "orthohash".
    hashnet_alpha: slope of the sigmoid of a pair's inner product, > 0. The paper advises
        less than 1, since long codes saturate it.
    hashnet_beta: final value of β in tanh(βh), ≥ 1; it grows linearly from 1 during training.
    dch_gamma: scale of the Cauchy distribution, in bits, > 0.
    dch_quantisation, greedyhash_quantisation, csq_quantisation: weight of that term, ≥ 0.
    dpn_margin: how far beyond 0 each logit must lie, > 0.
    orthohash_scale: inverse temperature of the softmax over cosines, > 0.
    orthohash_margin: subtracted from the cosine with the code of the own class, in [0, 2).
    """

    method: str
    hashnet_alpha: float = 0.1
    hashnet_beta: float = 10.0
    dch_gamma: float = 20.0
    dch_quantisation: float = 0.1
    greedyhash_quantisation: float = 0.1
    csq_quantisation: float = 1e-4
    dpn_margin: float = 1.0
    orthohash_scale: float = 8.0
    orthohash_margin: float = 0.3

    def __post_init__(self) -> None:
        if self.method not in PEERS:
            raise TrainingDataError(f"method is {self.method!r}; use one of {', '.join(PEERS)}")
        for name in ("hashnet_alpha", "dch_gamma", "dpn_margin", "orthohash_scale"):
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise TrainingDataError(f"{name} is {value}; use a number above 0")
        for name in ("dch_quantisation", "greedyhash_quantisation", "csq_quantisation"):
            value = getattr(self, name)
            if not (isfinite(value) and value >= 0):
                raise TrainingDataError(f"{name} is {value}; use a number from 0 on")
        if not (isfinite(self.hashnet_beta) and self.hashnet_beta >= 1):
            raise TrainingDataError(f"hashnet_beta is {self.hashnet_beta}; use a number from 1 on")
        if not 0 <= self.orthohash_margin < 2:
            raise TrainingDataError(
                f"orthohash_margin is {self.orthohash_margin}; "
                "use a number from 0 to below 2, the span of a cosine"
            )


class PeerLoss(nn.Module):
    """The loss of one method.

    The loss of GreedyHash has a learned parameter, its classifier: give ``parameters()`` to the
    optimiser too, and save ``state_dict()`` to resume.

    Args:
        config: method and hyper-parameters.
        classes: number of classes, at least 1. bits: of a code, at least 1.
        seed: of target codes and of the initial weights of GreedyHash.

    Raises:
        TrainingDataError: classes or bits below 1, or more classes than the method's codes.
    """

    def __init__(self, config: PeerConfig, classes: int, bits: int, seed: int = 0) -> None:
        super().__init__()
        _check_counts(classes, bits)
        self.config = config
        self.loss = _METHODS[config.method](config, classes, bits, seed)

    def forward(self, h: Tensor, labels: Tensor, progress: float = 1.0) -> LossTerms:
        """The loss for hash logits, float (N, B), and labels, int64 (N,).

        Args:
            progress: share of the training that is done, in [0, 1]; sets β of HashNet.

        Raises:
            TrainingDataError: progress is outside [0, 1].
        """
        if not 0 <= progress <= 1:
            raise TrainingDataError(
                f"progress is {progress}; give the share of steps done, from 0 to 1"
            )
        # In bfloat16 neighbouring distances and logits of a long code round to the same value.
        with torch.autocast(h.device.type, enabled=False):
            terms: LossTerms = self.loss(h.float(), labels, progress)
        return terms


def target_codes(classes: int, bits: int, seed: int) -> Tensor:
    """A target code for each class, far from each other: float32 (C, B) of ±1, distinct rows.

    If B is a power of two and there are at most 2B classes, they are rows of the Hadamard matrix of
    order B, in random order and with random signs, so that distances are exactly B/2; classes
    beyond B get the negatives of the first ones, at distance B from these. Otherwise they are drawn
    at random, each as the best of 256 draws: the one farthest from the nearest code so far. Source
    of both: Yuan et al., "Central Similarity Quantization for Efficient Image and Video Retrieval",
    CVPR 2020.

    Raises:
        TrainingDataError: classes or bits below 1, or more classes than there are codes.
    """
    _check_counts(classes, bits)
    if classes > 2**bits:
        raise TrainingDataError(
            f"{classes} classes have no distinct codes of {bits} bits; "
            f"use {(classes - 1).bit_length()} bits or more"
        )
    generator = torch.Generator().manual_seed(seed)
    if bits.bit_count() == 1 and classes <= 2 * bits:
        order = torch.randperm(bits, generator=generator)
        codes = _hadamard(bits)[order] * _random_signs(bits, 1, generator)
        return torch.cat([codes, -codes])[:classes]
    codes = _random_signs(1, bits, generator)
    while len(codes) < classes:
        candidates = _random_signs(_CANDIDATES, bits, generator)
        # B − 2 × the Hamming distance to the nearest code so far; B = this code is taken already.
        overlap = (candidates @ codes.T).amax(dim=1)
        best = overlap.argmin()
        if overlap[best] < bits:
            codes = torch.cat([codes, candidates[best : best + 1]])
    return codes


def _hadamard(order: int) -> Tensor:
    """Sylvester's matrix, float32 (order, order) of ±1; order is a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < order:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def _random_signs(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (rows, columns), generator=generator).float() * 2 - 1


def _check_counts(classes: int, bits: int) -> None:
    for name, count in (("classes", classes), ("bits", bits)):
        if count < 1:
            raise TrainingDataError(f"{name} is {count}; use 1 or more")


class _HashNet(nn.Module):
    """mean w_ij [log(1 + e^θ) − y_ij θ], θ = α v_i·v_j, v = tanh(βh); β grows from 1.

    Source: Cao, Long, Wang, Yu, "HashNet: Deep Learning to Hash by Continuation", ICCV
    2017. The paper raises β by stages; here it grows with every step.
    """

    def __init__(self, config: PeerConfig, _classes: int, _bits: int, _seed: int) -> None:
        super().__init__()
        self.alpha, self.final_beta = config.hashnet_alpha, config.hashnet_beta

    def forward(self, h: Tensor, labels: Tensor, progress: float) -> LossTerms:
        beta = 1 + (self.final_beta - 1) * progress
        v = torch.tanh(beta * h)
        theta = self.alpha * v @ v.T
        alike = labels[:, None] == labels[None, :]
        pairs = _balanced_mean(F.softplus(theta) - alike * theta, alike)
        return LossTerms(pairs, {"pairs": pairs})


class _Dch(nn.Module):
    """mean w_ij [y log(d/γ) + log(1 + γ/d)] + λ mean log(1 + d(|h_i|, 1)/γ).

    d = (B/2)(1 − cos). For y = 1 the bracket is log(1 + d/γ), which is finite at d = 0.
    Source: Cao, Long, Liu, Wang, "Deep Cauchy Hashing for Hamming Space Retrieval", CVPR
    2018.
    """

    def __init__(self, config: PeerConfig, _classes: int, bits: int, _seed: int) -> None:
        super().__init__()
        self.gamma, self.weight, self.bits = config.dch_gamma, config.dch_quantisation, bits

    def forward(self, h: Tensor, labels: Tensor, _progress: float) -> LossTerms:
        unit = F.normalize(h, dim=1, eps=_EPSILON)
        d = (self.bits / 2 * (1 - unit @ unit.T)).clamp_min(_EPSILON)
        alike = labels[:, None] == labels[None, :]
        loss = torch.where(alike, torch.log1p(d / self.gamma), torch.log1p(self.gamma / d))
        pairs = _balanced_mean(loss, alike)
        to_ones = self.bits / 2 * (1 - unit.abs().sum(dim=1) / self.bits**0.5)
        quantisation = torch.log1p(to_ones.clamp_min(0) / self.gamma).mean()
        total = pairs + self.weight * quantisation
        return LossTerms(total, {"pairs": pairs, "quantisation": quantisation})


class _GreedyHash(nn.Module):
    """CE(W sign(h), c) + α mean ||h| − 1|³; sign has the gradient of the identity.

    W is (C, B), without bias, and learned. Source: Su, Zhang, Han, Tian, "Greedy Hash:
    Towards Fast Optimization for Accurate Hash Coding in CNN", NeurIPS 2018.
    """

    def __init__(self, config: PeerConfig, classes: int, bits: int, seed: int) -> None:
        super().__init__()
        self.quantisation = config.greedyhash_quantisation
        generator = torch.Generator().manual_seed(seed)
        draws = torch.rand(classes, bits, generator=generator) * 2 - 1
        self.weight = nn.Parameter(draws / bits**0.5)

    def forward(self, h: Tensor, labels: Tensor, _progress: float) -> LossTerms:
        # h − h is exactly 0, so the code stays exactly ±1 however large h is.
        code = torch.where(h >= 0, 1.0, -1.0) + (h - h.detach())
        classification = F.cross_entropy(F.linear(code, self.weight), labels)
        quantisation = (h.abs() - 1).abs().pow(3).mean()
        total = classification + self.quantisation * quantisation
        return LossTerms(total, {"classification": classification, "quantisation": quantisation})


class _TargetLoss(nn.Module):
    """Base of losses with a fixed target code for each class."""

    codes: Tensor

    def __init__(self, config: PeerConfig, classes: int, bits: int, seed: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("codes", target_codes(classes, bits, seed))


class _Csq(_TargetLoss):
    """BCE((tanh h + 1)/2, (centre_c + 1)/2) + λ mean (|tanh h| − 1)².

    (tanh h + 1)/2 is the sigmoid of 2h, which keeps the logarithms finite. Source: Yuan et
    al., "Central Similarity Quantization for Efficient Image and Video Retrieval", CVPR
    2020. The paper smooths the second term as log cosh, near 0 half the square.
    """

    def forward(self, h: Tensor, labels: Tensor, _progress: float) -> LossTerms:
        centres = (self.codes[labels] + 1) / 2
        central = F.binary_cross_entropy_with_logits(2 * h, centres)
        quantisation = (torch.tanh(h).abs() - 1).square().mean()
        total = central + self.config.csq_quantisation * quantisation
        return LossTerms(total, {"central_similarity": central, "quantisation": quantisation})


class _Dpn(_TargetLoss):
    """mean max(0, m − h_k t_k), t the target code of the class: pushes h beyond ±m.

    Source: Fan, Ng, Ju, Zhang, Chan, "Deep Polarized Network for Supervised Learning of
    Accurate Binary Hashing Codes", IJCAI 2020.
    """

    def forward(self, h: Tensor, labels: Tensor, _progress: float) -> LossTerms:
        polarisation = F.relu(self.config.dpn_margin - h * self.codes[labels]).mean()
        return LossTerms(polarisation, {"polarisation": polarisation})


class _OrthoHash(_TargetLoss):
    """CE(s (cos(h, o_k) − m [k = c])), o the fixed codes: their cosines are the logits.

    Source: Hoe et al., "One Loss for All: Deep Hashing with a Single Cosine Similarity
    based Learning Objective", NeurIPS 2021. The batch normalisation that the paper puts
    before the codes belongs to the network.
    """

    def forward(self, h: Tensor, labels: Tensor, _progress: float) -> LossTerms:
        unit = F.normalize(h, dim=1, eps=_EPSILON)
        cosine = unit @ F.normalize(self.codes, dim=1).T
        margin = self.config.orthohash_margin * F.one_hot(labels, len(self.codes))
        loss = F.cross_entropy(self.config.orthohash_scale * (cosine - margin), labels)
        return LossTerms(loss, {"classification": loss})


def _balanced_mean(loss: Tensor, alike: Tensor) -> Tensor:
    """Mean of w_ij loss_ij over the pairs i ≠ j, float (N, N) → scalar; 0 without pairs.

    w_ij = |S| / |S_y|, S_y the pairs of the same kind (same class, different class), so that both
    kinds have the same total weight. Source: HashNet's weighted maximum likelihood, also in DCH.
    """
    pairs = ~torch.eye(len(loss), dtype=torch.bool, device=loss.device)
    positives = (alike & pairs).sum()
    count = pairs.sum()
    weights = torch.where(
        alike, count / positives.clamp_min(1), count / (count - positives).clamp_min(1)
    )
    return (weights * loss * pairs).sum() / count.clamp_min(1)


_METHODS: dict[str, type[_HashNet | _Dch | _GreedyHash | _TargetLoss]] = {
    "hashnet": _HashNet,
    "dch": _Dch,
    "greedyhash": _GreedyHash,
    "csq": _Csq,
    "dpn": _Dpn,
    "orthohash": _OrthoHash,
}
PEERS: tuple[str, ...] = tuple(_METHODS)
