"""Validation during training: the retrieval quality of a network on held-out images."""

import numpy as np
import torch
from torch import Tensor

from engine.errors import TrainingDataError
from engine.evaluation.metrics import average_precision
from engine.model.encoder import Precision, autocast, canvas_tensor
from engine.model.network import HashingNetwork
from engine.training.augment import AugmentConfig, augment
from engine.training.data import TrainingSet

__all__ = ["validation_map"]

_BATCH = 64


@torch.inference_mode()
def validation_map(
    network: HashingNetwork, held_out: TrainingSet, device: str, precision: Precision = "auto"
) -> float:
    """The mAP of rankings by similarity of the blended features, by which hits are ranked.

    Codes do not judge: which epoch has the best ones says little of which ranks best, and they can
    be fitted anew at the end.

    With labels, each image is a query among all the others, and those of its kind are relevant.
    Where sources are known, a query is not answered by its own, as long as its kind has others,
    and the kinds count alike: a network is judged by how it finds one source from another.
    Without labels, the query is one seeded augmented view of each image, and only the image itself
    is relevant to it.

    Raises:
        TrainingDataError: no held-out image has another one of its class among them.
    """
    training = network.training
    network.eval()
    images = canvas_tensor(held_out.canvases)
    z = _encoded(network, images, device, precision)
    labels = torch.from_numpy(held_out.kinds() if held_out.classes else held_out.labels)
    if held_out.classes:
        score = z @ z.T
        score.fill_diagonal_(-torch.inf)
        score[_own_source(held_out, labels)] = -torch.inf
    else:
        views = augment(images, AugmentConfig(), torch.Generator().manual_seed(0))
        score = _encoded(network, views, device, precision) @ z.T
    network.train(training)
    order = score.argsort(dim=1, descending=True)
    asked_for = score.gather(1, order).isfinite()  # not the query itself
    hits = ((labels[order] == labels[:, None]) & asked_for).numpy()
    answerable = hits.any(axis=1)
    if not answerable.any():
        raise TrainingDataError(
            f"none of the {len(held_out)} images held out has another of its class among them; "
            "hold out a larger share"
        )
    found = average_precision(hits[answerable])
    if held_out.sources is None or not held_out.classes:
        return round(float(found.mean()), 5)
    asked = labels.numpy()[answerable]
    return round(float(np.mean([found[asked == kind].mean() for kind in np.unique(asked)])), 5)


def _own_source(held_out: TrainingSet, kinds: Tensor) -> Tensor:
    """Which images are not to answer which, bool (N, N): those of the query's source, where its
    kind has others."""
    if held_out.sources is None:
        return torch.zeros(len(kinds), len(kinds), dtype=torch.bool)
    sources = torch.from_numpy(held_out.sources)
    same = sources[:, None] == sources[None, :]
    elsewhere = ((kinds[:, None] == kinds[None, :]) & ~same).any(dim=1)
    return same & elsewhere[:, None]


def _encoded(network: HashingNetwork, images: Tensor, device: str, precision: Precision) -> Tensor:
    """Centred z of unit length, float32 (N, D)."""
    parts = []
    for batch in torch.split(images, _BATCH):
        with autocast(device, precision):
            output = network(batch.to(device, memory_format=torch.channels_last))
        parts.append(output.z.float().cpu())
    z = torch.cat(parts)
    return torch.nn.functional.normalize(z - z.mean(dim=1, keepdim=True), dim=1)
