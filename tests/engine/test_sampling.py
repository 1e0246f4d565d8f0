"""Batches by source: no collection drowns another, and a class comes from several of them."""

import numpy as np
import pytest
import torch

from engine.errors import TrainingDataError
from engine.training.augment import AugmentConfig, augment
from engine.training.config import TrainConfig
from engine.training.data import TrainingSet
from engine.training.sampling import source_batches, tempered
from engine.training.sch import SchConfig, SchLoss

# Class, source, images: the first class has a large source and two small ones.
SOURCES = ((0, 0, 900), (0, 1, 40), (0, 2, 10), (1, 3, 300), (2, 4, 20))


def data(scenes: bool = False) -> TrainingSet:
    labels = np.concatenate([np.full(n, c) for c, _, n in SOURCES])
    sources = np.concatenate([np.full(n, s) for _, s, n in SOURCES])
    # Patients of five images; in source 4 one has all but one of them.
    groups = np.arange(len(labels)) // 5
    groups[sources == 4] = np.where(np.arange(20) < 19, 5000, 5001)
    shown = np.where(sources == 1, np.arange(len(labels)) // 2, -1) if scenes else None
    canvases = np.zeros((len(labels), 4, 4), np.uint8)
    return TrainingSet(canvases, labels, ("a", "b", "c"), groups, sources, shown)


def drawn(temper: float, scenes: bool = False) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return np.stack(
        list(source_batches(data(scenes), 16, 400, generator, per_class=4, temper=temper))
    )


@pytest.mark.parametrize("temper", [0.0, 0.4, 1.0])
def test_classes_and_sources_are_drawn_as_tempered(temper):
    counts = np.bincount(data().labels[drawn(temper).ravel()], minlength=3)
    asked = tempered(np.array([950, 300, 20]), temper)
    assert counts / counts.sum() == pytest.approx(asked, abs=0.03)


def test_a_class_of_several_sources_never_comes_from_one_alone():
    sources = data().sources
    for batch in drawn(1.0):
        for start in range(0, 16, 4):
            four = batch[start : start + 4]
            assert len(set(data().labels[four])) == 1
            if data().labels[four[0]] == 0:
                assert len(set(sources[four])) > 1


def test_patients_are_drawn_alike_however_many_images_they_have():
    groups = data().groups[drawn(0.0).ravel()]
    assert (groups == 5001).sum() == pytest.approx((groups == 5000).sum(), rel=0.15)


def test_one_slice_in_two_windows_comes_together():
    scenes = data(scenes=True).scenes
    batches = drawn(0.0, scenes=True)
    together = sum(
        any(scenes[a] >= 0 and a != b and scenes[a] == scenes[b] for b in batch)
        for batch in batches
        for a in batch
    )
    alone = (scenes[batches] >= 0).sum() - together
    assert together > alone / 2


def test_draws_depend_on_the_seed_alone_and_need_sources():
    assert (drawn(0.4) == drawn(0.4)).all()
    bare = TrainingSet(data().canvases, data().labels, data().classes)
    with pytest.raises(TrainingDataError, match="sources"):
        next(source_batches(bare, 8, 1, torch.Generator(), per_class=4, temper=0))
    for wrong in ({"by_source": True}, {"temper": 2.0}, {"tower_rest_epochs": 10.0}):
        with pytest.raises(TrainingDataError):
            TrainConfig(**wrong)


def test_windows_of_a_slice_are_pulled_together_and_planes_of_a_kind_stay_apart():
    """What the loss asks of four images: two of one slice, and of one kind in two planes."""
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 1, 2])
    scenes = torch.tensor([7, 7, -1, -1])
    loss = SchLoss(SchConfig(spread=0.3, weighted=False, quantisation=0), torch.ones(3), (0, 0, 1))
    h = torch.randn(4, 256, generator=torch.Generator().manual_seed(1)).requires_grad_()
    optimiser = torch.optim.Adam([h], 0.1)
    for _ in range(300):
        optimiser.zero_grad()
        loss(h, None, images, labels, scenes).total.backward()
        optimiser.step()
    code = torch.sign(h.detach())
    apart = (code[:, None] != code[None, :]).float().mean(dim=2)
    assert apart[0, 1] < 0.05  # one slice, however unlike the pictures are
    assert 0.2 < apart[0, 2] < 0.4  # planes of one kind: as far as the spread goes
    assert apart[0, 3] > 0.6  # another kind


def test_few_pixels_are_an_image_of_its_own_matter():
    generator = torch.Generator().manual_seed(0)
    still = AugmentConfig(
        narrow=0, tone=0, shade=0, window=0, gamma=0, invert=0, rotate=0, scale=0, shift=0,
        coarsen=0, noise=0, border=0, marker=0,
    )  # fmt: skip
    images = torch.rand(64, 1, 48, 48, generator=generator)
    kept = augment(images, still, generator)
    assert torch.allclose(kept, images, atol=1e-3)
    small = augment(images, AugmentConfig(**{**vars_of(still), "small": 0.5}), generator)
    detail = [(one - images[at]).abs().mean().item() for at, one in enumerate(small)]
    assert 0.3 < np.mean(np.array(detail) > 0.05) < 0.7
    assert len({round(value, 2) for value in detail if value > 0.05}) > 2


def vars_of(config: AugmentConfig) -> dict[str, float]:
    return {name: getattr(config, name) for name in AugmentConfig.__slots__}
