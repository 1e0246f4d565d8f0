"""The last fit of the codes: the hash head alone learns again, from the z that it will be given.

While the network trains, z moves under its head, and a loss on labels says nothing of images inside
a class. Afterwards z stands still: all of them are computed once, the nearest others of each are
known, and a new head learns to keep them near (:mod:`engine.training.neighbours`), beside the loss
on labels, in minutes. All other weights stay as they are, to the bit, and so do the decoder and any
detector that does not look at codes or class logits.
"""

import hashlib
import logging
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.codes import pack_signs
from engine.errors import TrainingDataError
from engine.model.config import HeadConfig
from engine.model.hashing import HashHead
from engine.training.losses import LossTerms
from engine.training.neighbours import (
    Neighbourhoods,
    independence_loss,
    neighbour_loss,
    neighbourhoods,
)
from engine.training.peers import PeerConfig, PeerLoss
from engine.training.sch import SchConfig, SchLoss
from engine.training.schedule import learning_rate

__all__ = [
    "CodeFitConfig",
    "FittedHead",
    "Known",
    "codes_of",
    "digest_of",
    "fitted_head",
    "found_by_codes",
]

_log = logging.getLogger(__name__)
_NEAR_MATES, _FAR_MATES = 4, 3  # of an image of a batch: of the near ones, of those between
_OF_SEED = 1 + _NEAR_MATES + _FAR_MATES
_CHUNK = 2048
_TOLD = 10


def _beside_neighbours() -> SchConfig:
    # The neighbour term spreads a class over the bits, until kinds are told apart less by codes.
    return SchConfig(spread=0.3, separate_means=True, weighted=False, pairs=5.0)


@dataclass(frozen=True, slots=True)
class CodeFitConfig:
    """Schedule and options of the fit.

    epochs: rounds of ``steps`` batches. learning_rate falls along a cosine to final_learning_rate
        after warmup_epochs.
    batch_size: images of a batch; an eighth is drawn, the others are neighbours of these.
    bits: length of the new code; 0 = as long as the model's.
    images: at most so many, drawn at random, are learned from. They are compared all with all.
    near, far: the ``near`` nearest by z are to be found among a share ``far`` of the images.
    scale: inverse temperature of the neighbour term. neighbours, independence: weights of that
        term, and of the one that keeps bits balanced and unlike each other.
    loss: what else is learned, from labels. Where there are none, of SCH the quantisation alone.
    """

    epochs: int = 15
    steps: int = 20
    batch_size: int = 1024
    learning_rate: float = 2e-3
    final_learning_rate: float = 2e-5
    warmup_epochs: float = 1.0
    weight_decay: float = 0.01
    clip_norm: float = 5.0
    seed: int = 0
    bits: int = 0
    images: int = 20_000
    near: int = 10
    far: float = 0.01
    scale: float = 48.0
    neighbours: float = 1.0
    independence: float = 0.1
    loss: SchConfig | PeerConfig = field(default_factory=_beside_neighbours)

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("steps", 1), ("near", 1), ("images", 2)):
            if getattr(self, name) < least:
                raise TrainingDataError(
                    f"{name} is {getattr(self, name)}; use {least} or more for the fit of codes"
                )
        if self.batch_size < 2 * _OF_SEED:
            raise TrainingDataError(
                f"batch_size is {self.batch_size}; the fit of codes needs {2 * _OF_SEED} or more, "
                "so that a batch has images that are not neighbours"
            )
        if not 0 < self.far < 1:
            raise TrainingDataError(f"far is {self.far}; use a share between 0 and 1")
        if self.bits % 8:
            raise TrainingDataError(
                f"bits is {self.bits}; codes are packed in bytes, so use a multiple of 8"
            )


@dataclass(frozen=True, eq=False)
class Known:
    """What a head is fitted on.

    z: float32 (N, D), centred and of unit length. labels: int64 (N,). classes: how many there are;
        0 = the images have no labels. parents, scenes: as in
        :class:`engine.training.data.TrainingSet`.
    thumbnails: float32 (N, 1, 16, 16) in [0, 1], the images as SCH compares their structure.
    """

    z: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: int
    thumbnails: Tensor
    parents: tuple[int, ...] = ()
    scenes: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.z)


@dataclass(frozen=True, eq=False)
class FittedHead:
    """A head, the classifier on its hidden values (None = there are no classes), and one entry for
    each epoch: epoch, the loss and its terms, seconds."""

    head: HashHead
    classifier: nn.Linear | None
    history: list[dict[str, Any]]


def fitted_head(
    known: Known,
    head_config: HeadConfig,
    config: CodeFitConfig,
    start: tuple[HashHead, nn.Linear | None] | None = None,
) -> FittedHead:
    """A new hash head for z, and the classifier beside it.

    The same arguments give the same head, on one machine with one number of threads.

    Args:
        start: what both start from, a head of ``head_config``; its last layer only where the code
            stays as long as it is. None = from a seeded start.

    Raises:
        TrainingDataError: there are too few images to tell near ones from far ones, a peer's loss
            lacks labels, or the loss is no finite number.
    """
    if isinstance(config.loss, PeerConfig) and not known.classes:
        raise TrainingDataError(f"loss {config.loss.method!r} needs labels; use SCH, or label")
    bits = config.bits or head_config.bits
    torch.manual_seed(config.seed)
    z = _scaled(known.z)
    head = HashHead(z.shape[1], replace(head_config, bits=bits))
    classifier = nn.Linear(head_config.hidden, known.classes) if known.classes else None
    if start is not None:
        _begin(head, classifier, start, same_bits=bits == head_config.bits)
    loss = _Loss(known, bits, config)
    learned = nn.ModuleList([head, loss, *([classifier] if classifier is not None else [])])
    optimiser = torch.optim.AdamW(
        learned.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=config.weight_decay
    )
    rng = np.random.default_rng(config.seed)
    around = neighbourhoods(torch.from_numpy(known.z), config.near, config.far)
    chances = _evenly(known.labels) if known.classes else None
    history: list[dict[str, Any]] = []
    for epoch in range(config.epochs):
        started = time.monotonic()
        sums: dict[str, float] = {}
        for step in range(config.steps):
            at = epoch + step / config.steps
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(at, config)
            rows = _drawn(around, config.batch_size, chances, rng)
            hidden, h = head(z[rows])
            logits = None if classifier is None else classifier(hidden)
            terms = loss(h, logits, rows, around, at / config.epochs)
            if not torch.isfinite(terms.total):
                raise TrainingDataError(
                    f"the loss of the codes is {terms.total.item()} in epoch {epoch + 1}; lower "
                    "the learning rate"
                )
            optimiser.zero_grad(set_to_none=True)
            terms.total.backward()
            nn.utils.clip_grad_norm_(learned.parameters(), config.clip_norm)
            optimiser.step()
            for name, value in {"loss": terms.total, **terms.parts}.items():
                sums[name] = sums.get(name, 0.0) + value.item()
        means = {name: round(total / config.steps, 5) for name, total in sums.items()}
        seconds = round(time.monotonic() - started, 1)
        history.append({"epoch": epoch + 1, **means, "seconds": seconds})
        if (epoch + 1) % _TOLD == 0 or epoch + 1 == config.epochs:
            _log.info("codes, epoch %d of %d: %s", epoch + 1, config.epochs, means)
    learned.eval().requires_grad_(requires_grad=False)
    return FittedHead(head, classifier, history)


def _begin(
    head: HashHead,
    classifier: nn.Linear | None,
    start: tuple[HashHead, nn.Linear | None],
    *,
    same_bits: bool,
) -> None:
    head.first.load_state_dict(start[0].first.state_dict())
    if same_bits:
        head.second.load_state_dict(start[0].second.state_dict())
    if classifier is not None and start[1] is not None:
        classifier.load_state_dict(start[1].state_dict())


class _Loss(nn.Module):
    """The loss on labels, joined with what keeps neighbours and independent bits."""

    z: Tensor
    labels: Tensor

    def __init__(self, known: Known, bits: int, config: CodeFitConfig) -> None:
        super().__init__()
        self.config, self.known = config, known
        self.z, self.labels = torch.from_numpy(known.z), torch.from_numpy(known.labels)
        self.scenes = None if known.scenes is None else torch.from_numpy(known.scenes)
        self.told: SchLoss | PeerLoss
        if isinstance(config.loss, PeerConfig):
            self.told = PeerLoss(config.loss, known.classes, bits, config.seed)
        else:
            # Each image without a label is a class of its own: no pair is alike, and none unlike.
            sch = config.loss if known.classes else replace(config.loss, pairs=0.0)
            counts = torch.from_numpy(np.bincount(known.labels, minlength=known.classes))
            self.told = SchLoss(sch, counts, known.parents)

    def forward(
        self,
        h: Tensor,
        logits: Tensor | None,
        rows: Tensor,
        around: Neighbourhoods,
        progress: float,
    ) -> LossTerms:
        """The loss of a batch, the images ``rows`` (N,)."""
        config, labels = self.config, self.labels[rows]
        if isinstance(self.told, PeerLoss):
            told = self.told(h, labels, progress)
        else:
            scenes = None if self.scenes is None else self.scenes[rows]
            told = self.told(h, logits, self.known.thumbnails[rows], labels, scenes)
        total, parts = told.total, dict(told.parts)
        if isinstance(self.told, PeerLoss) and logits is not None:
            # The classifier belongs to the hidden values, which are new too.
            total = total + nn.functional.cross_entropy(logits, labels)
        if config.neighbours:
            parts["neighbours"] = neighbour_loss(
                h, self.z[rows], around.near[rows], around.far[rows], config.scale
            )
            total = total + config.neighbours * parts["neighbours"]
        if config.independence:
            parts["independence"] = independence_loss(h)
            total = total + config.independence * parts["independence"]
        return LossTerms(total, parts)


def codes_of(head: HashHead, z: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The codes of z, float32 (N, D) of unit length, packed: uint8 (N, B/8)."""
    with torch.inference_mode():
        parts = [head(part)[1].numpy() for part in torch.split(_scaled(z), _CHUNK)]
    return pack_signs(np.concatenate(parts))


def found_by_codes(
    asked: tuple[NDArray[np.float32], NDArray[np.uint8]],
    held: tuple[NDArray[np.float32], NDArray[np.uint8]],
    candidates: int,
    nearest: int = 10,
) -> NDArray[np.float64]:
    """Of each query the share of the images nearest by z that are among the nearest by code.

    Among codes equally far, those that are candidates are drawn at random; the share is its mean.

    Args:
        asked, held: z of unit length, float32 (Q, D) and (N, D), and packed codes, uint8 (Q, B/8)
            and (N, B/8), of the queries and of the images searched.
        candidates: how many of the nearest codes are looked at.
        nearest: how many images are to be found.

    Returns:
        float64 (Q,) in [0, 1].
    """
    z, codes = asked
    held_z, held_codes = held
    most = 8 * codes.shape[1]
    signs = _signs(held_codes)
    shares = []
    for start in range(0, len(z), 256):
        part = slice(start, start + 256)
        similarity = z[part] @ held_z.T
        wanted = np.argpartition(-similarity, nearest - 1, axis=1)[:, :nearest]
        distance = np.rint((most - _signs(codes[part]) @ signs.T) / 2).astype(np.int64)
        at = np.arange(len(distance))[:, None] * (most + 1) + distance
        counts = np.bincount(at.ravel(), minlength=len(distance) * (most + 1))
        counts = counts.reshape(len(distance), most + 1)
        nearer = np.cumsum(counts, axis=1) - counts
        own = np.take_along_axis(distance, wanted, axis=1)
        left = candidates - np.take_along_axis(nearer, own, axis=1)
        chance = np.clip(left / np.take_along_axis(counts, own, axis=1), 0, 1)
        shares.append(chance.mean(axis=1))
    return np.concatenate(shares)


def digest_of(tensors: dict[str, Tensor]) -> str:
    """SHA-256, hex, of tensors and their names."""
    running = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        running.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        running.update(value.numpy().tobytes())
    return running.hexdigest()


def _signs(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Packed codes (N, B/8) as float32 (N, B) of ±1."""
    return np.unpackbits(codes, axis=1).astype(np.float32) * 2 - 1


def _scaled(z: NDArray[np.float32]) -> Tensor:
    """z as the head takes it best: with a deviation of 1, beside which LayerNorm's ε is nothing."""
    return torch.from_numpy(z) * float(np.sqrt(z.shape[1]))


def _evenly(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """How often each image is drawn: classes by the root of their size, so that none drowns."""
    counts = np.bincount(labels)
    chances: NDArray[np.float64] = 1 / np.sqrt(counts[labels])
    shares: NDArray[np.float64] = chances / chances.sum()
    return shares


def _drawn(
    around: Neighbourhoods,
    size: int,
    chances: NDArray[np.float64] | None,
    rng: np.random.Generator,
) -> Tensor:
    """The images of a batch, int64, each once: some, and of each some that are near, and some that
    are neither near nor far."""
    count, reach = around.nearest.shape
    drawn = rng.choice(count, min(size // _OF_SEED, count), p=chances)
    near = rng.integers(0, around.count, (len(drawn), _NEAR_MATES))
    between = rng.integers(around.count, reach, (len(drawn), _FAR_MATES))
    mates = around.nearest.numpy()[drawn[:, None], np.concatenate([near, between], axis=1)]
    return torch.from_numpy(np.unique(np.concatenate([drawn, mates.ravel()])))
