"""The loss, term by term, beside its formula written as loops."""

from math import exp, log

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, one_hot

from engine.codes import hamming, pack_signs
from engine.errors import TrainingDataError
from engine.training.fingerprint import image_fingerprint, structural_similarity
from engine.training.sch import (
    SchConfig,
    SchLoss,
    bit_distance,
    class_weights,
    pair_loss,
    quantisation_loss,
)

LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3])


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_distance(h: torch.Tensor, i: int, j: int) -> float:
    r = np.corrcoef(h[i].double().numpy(), h[j].double().numpy())[0, 1]
    return min(max((1 - r) / 2, 1e-6), 1 - 1e-6)


def naive_pair_loss(h, labels, structure, weights, separate_means, spread=0.0) -> float:
    positive, negative = [], []
    for i in range(len(h)):
        for j in range(len(h)):
            if i == j:
                continue
            alike = bool(labels[i] == labels[j])
            s = float(alike) if structure is None else structure[i, j].item()
            d = naive_distance(h, i, j)
            w = (weights[i] * weights[j]).item()
            if alike and spread:
                t = spread * (1 - s)
                positive.append(-w * ((1 - t) * log(1 - d) + t * log(d)))
            elif alike:
                positive.append(-w * s * log(1 - d))
            else:
                negative.append(-w * exp(s) * log(d))
    if separate_means:
        return sum(sum(part) / len(part) for part in (positive, negative) if part)
    return sum(positive + negative) / len(positive + negative)


@pytest.mark.parametrize("separate_means", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("with_structure", [False, True])
def test_the_pair_loss_is_the_double_loop(with_structure, weighted, separate_means):
    h = noise(7, 16)
    generator = torch.Generator().manual_seed(1)
    structure = torch.rand(7, 7, generator=generator) if with_structure else None
    weights = torch.rand(7, generator=generator) + 0.5 if weighted else torch.ones(7)
    found = pair_loss(h, LABELS, structure, weights, separate_means=separate_means)
    expected = naive_pair_loss(h, LABELS, structure, weights, separate_means)
    assert found.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("separate_means", [False, True])
@pytest.mark.parametrize("spread", [0.1, 0.5])
def test_the_pair_loss_with_a_spread_is_the_double_loop(spread, separate_means):
    h, weights = noise(7, 16), torch.rand(7, generator=torch.Generator().manual_seed(2)) + 0.5
    structure = torch.rand(7, 7, generator=torch.Generator().manual_seed(1))
    options = {"separate_means": separate_means, "spread": spread}
    found = pair_loss(h, LABELS, structure, weights, **options)
    expected = naive_pair_loss(h, LABELS, structure, weights, **options)
    assert found.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("structure", [0.0, 0.4, 0.9])
def test_with_a_spread_alike_labels_cost_least_at_the_distance_of_their_structure(structure):
    one = torch.tensor([1.0] * 20 + [-1.0] * 20)

    def cost(apart: int) -> float:
        other = one.clone()
        other[:apart], other[20 : 20 + apart] = -1, 1  # d is 2 · apart / 40
        s = torch.full((2, 2), structure)
        labels = torch.zeros(2, dtype=torch.int64)
        return pair_loss(torch.stack([one, other]), labels, s, torch.ones(2), spread=0.5).item()

    costs = [cost(apart) for apart in range(20)]
    assert np.argmin(costs) == round(0.5 * (1 - structure) * 20)


def test_the_pair_loss_is_bounded_where_codes_are_equal_or_opposite():
    h = noise(3, 16)
    h[1], h[2] = h[0], -h[0]  # labels differ though equal, agree though opposite
    found = pair_loss(h, torch.tensor([0, 1, 0]), None, torch.ones(3))
    # Four of the six pairs are at an end of the logarithm, the two others cost nothing.
    assert found.item() == pytest.approx(-log(1e-6) * 4 / 6, rel=5e-3)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_separate_means_bear_a_batch_of_one_kind_of_pair(labels):
    h, labels = noise(3, 16), torch.tensor(labels)
    found = pair_loss(h, labels, None, torch.ones(3), separate_means=True)
    expected = naive_pair_loss(h, labels, None, torch.ones(3), separate_means=True)
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_bit_distance_is_numpy_s_correlation():
    h = noise(9, 32)
    expected = (1 - np.corrcoef(h.double().numpy())) / 2
    assert np.allclose(bit_distance(h), np.clip(expected, 1e-6, 1 - 1e-6), atol=1e-6)


def test_bit_distance_stays_inside_the_logarithm():
    h = torch.stack([noise(16), torch.zeros(16), torch.ones(16)])
    h = torch.cat([h, -h])
    d = bit_distance(h)
    assert torch.isfinite(torch.log(d)).all()
    assert torch.isfinite(torch.log1p(-d)).all()


def test_distances_are_float32_under_autocast():
    h = noise(6, 16)
    h[1] = -h[0]
    outside = bit_distance(h)
    with torch.autocast("cpu", torch.bfloat16):
        inside = bit_distance(h)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


def test_structural_similarity_is_float32_under_autocast():
    f = torch.rand(4, 256, generator=torch.Generator().manual_seed(0))
    outside = structural_similarity(f, centred=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside = structural_similarity(f, centred=True)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


def test_the_loss_is_finite_under_autocast():
    h = noise(6, 16)
    h[1] = -h[0]
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    loss = SchLoss(SchConfig(), torch.bincount(labels))
    images = torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    outside = loss(h, noise(6, 2), images, labels).total
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(h, noise(6, 2), images, labels).total
    assert inside.item() == pytest.approx(outside.item(), rel=1e-5)


def test_class_weights_are_n_over_c_times_count():
    found = class_weights(torch.tensor([10, 5, 0, 1]))
    assert found.tolist() == pytest.approx([16 / 40, 16 / 20, 0, 16 / 4])
    # Weighted, every class that has images counts the same.
    counts = torch.tensor([10, 5, 1])
    assert torch.allclose(class_weights(counts) * counts, torch.full((3,), 16 / 3))


# Fingerprints


def test_the_fingerprint_is_the_grey_thumbnail():
    images = torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    found = image_fingerprint(images)
    assert (found.shape, found.dtype) == ((2, 256), torch.float32)
    for row, column in [(0, 0), (3, 15), (15, 7)]:
        block = images[1, :, 4 * row : 4 * row + 4, 2 * column : 2 * column + 2]
        assert found[1, 16 * row + column].item() == pytest.approx(block.mean().item(), abs=1e-6)
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("centred", [False, True])
def test_structural_similarity_is_the_clipped_cosine(centred):
    f = torch.rand(5, 256, generator=torch.Generator().manual_seed(0))
    f[1] = 1 - f[0]  # the negative of another: correlation −1
    found = structural_similarity(f, centred=centred)
    for i in range(5):
        for j in range(5):
            a, b = f[i].double().numpy(), f[j].double().numpy()
            if centred:
                expected = np.corrcoef(a, b)[0, 1]
            else:
                expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            assert found[i, j].item() == pytest.approx(max(0, expected), abs=1e-5)
    assert (found[0, 1] == 0) == centred


@pytest.mark.parametrize("centred", [False, True])
def test_a_black_image_is_like_no_other(centred):
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    images[2] = 0
    found = structural_similarity(image_fingerprint(images), centred=centred)
    others = [0, 1, 3]
    assert found[2, others].tolist() == [0, 0, 0]
    assert found[others, 2].tolist() == [0, 0, 0]
    assert torch.isfinite(found).all()


def test_structural_similarity_carries_no_gradient():
    images = torch.rand(3, 1, 32, 32, requires_grad=True)
    fingerprints = image_fingerprint(images)
    assert fingerprints.requires_grad
    assert not structural_similarity(fingerprints, centred=False).requires_grad


# Quantisation


def test_quantisation_is_its_formula():
    h = noise(5, 16)
    expected = []
    for row in h.double().abs().numpy():
        cosine = row.sum() / (np.linalg.norm(row) * 4)
        expected.append(log(1 + (1 - cosine) / 2))
    assert quantisation_loss(h).item() == pytest.approx(np.mean(expected), rel=1e-5)
    assert quantisation_loss(torch.where(h >= 0, 2.0, -2.0)).item() == pytest.approx(0, abs=1e-6)


def centred_quantisation(h: torch.Tensor) -> torch.Tensor:
    """The released code's form: both sides minus their means; a vector of ones becomes zero."""
    magnitude = h.abs()
    magnitude = magnitude - magnitude.mean(dim=1, keepdim=True)
    ones = torch.ones_like(h)
    ones = ones - ones.mean(dim=1, keepdim=True)
    return torch.log1p((1 - cosine_similarity(magnitude, ones, dim=1)) / 2).mean()


def test_quantisation_has_a_gradient_and_the_centred_form_has_none():
    h = noise(5, 16).requires_grad_()
    assert centred_quantisation(h).item() == pytest.approx(log(1.5))
    (gradient,) = torch.autograd.grad(centred_quantisation(h), h)
    assert gradient.abs().max() < 1e-6
    (gradient,) = torch.autograd.grad(quantisation_loss(h), h)
    assert gradient.abs().amax(dim=1).min() > 1e-3
    stepped = (h - gradient).detach()
    assert quantisation_loss(stepped) < quantisation_loss(h)


def test_quantisation_sees_the_constant_that_the_pair_loss_does_not():
    h = noise(7, 16)
    shifted = h + 50  # every code collapses to ones
    weights = torch.ones(7)
    pairs = [pair_loss(x, LABELS, None, weights).item() for x in (h, shifted)]
    assert pairs[0] == pytest.approx(pairs[1], rel=1e-3)
    assert len(np.unique(pack_signs(shifted.numpy()), axis=0)) == 1
    assert abs(quantisation_loss(h).item() - quantisation_loss(shifted).item()) > 0.05


# The whole


def test_the_total_is_the_weighted_sum():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(7, 1, 32, 32, generator=generator)
    h, logits = noise(7, 16), noise(7, 4)
    counts = torch.tensor([3, 2, 1, 1])
    for fingerprint in ("cosine", "pearson", "none"):
        config = SchConfig(fingerprint, quantisation=0.3, classification=0.7)
        terms = SchLoss(config, counts)(h, logits, images, LABELS)
        structure = (
            None
            if fingerprint == "none"
            else structural_similarity(image_fingerprint(images), centred=fingerprint == "pearson")
        )
        pairs = naive_pair_loss(h, LABELS, structure, class_weights(counts)[LABELS], False)
        assert terms.parts["pairs"].item() == pytest.approx(pairs, rel=2e-4)
        expected = pairs + 0.3 * quantisation_loss(h) + 0.7 * cross_entropy(logits, LABELS)
        assert terms.total.item() == pytest.approx(expected.item(), rel=2e-4)


def test_unweighted_means_every_pair_counts_once():
    h, logits, images = noise(7, 16), noise(7, 4), torch.rand(7, 1, 32, 32)
    config = SchConfig("none", weighted=False)
    terms = SchLoss(config, torch.tensor([100, 2, 1, 1]))(h, logits, images, LABELS)
    expected = naive_pair_loss(h, LABELS, None, torch.ones(7), False)
    assert terms.parts["pairs"].item() == pytest.approx(expected, rel=2e-4)


def test_an_unknown_fingerprint_is_refused():
    with pytest.raises(TrainingDataError, match="ssim"):
        SchConfig(fingerprint="ssim")


@pytest.mark.parametrize("separate_means", [False, True])
def test_minimising_the_loss_parts_classes_and_keeps_codes_apart_within(separate_means):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(20)
    images = torch.rand(60, 1, 16, 16, generator=generator)
    features = one_hot(labels).float().repeat(1, 4) + noise(60, 12) * 0.4
    hash_layer, classifier = torch.nn.Linear(12, 32), torch.nn.Linear(32, 3)
    with torch.no_grad():
        for number, parameter in enumerate([*hash_layer.parameters(), *classifier.parameters()]):
            parameter.copy_(noise(*parameter.shape, seed=number) * 0.3)
    loss = SchLoss(SchConfig(separate_means=separate_means), torch.bincount(labels))
    parameters = [*hash_layer.parameters(), *classifier.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=0.03)
    first = None
    for _ in range(150):
        h = hash_layer(features)
        terms = loss(h, classifier(h), images, labels)
        first = terms.total.item() if first is None else first
        optimiser.zero_grad()
        terms.total.backward()
        optimiser.step()
    assert terms.total.item() < first
    codes = pack_signs(hash_layer(features).detach().numpy())
    distances = hamming(codes[:, None], codes[None])
    same = (labels[:, None] == labels[None]).numpy()
    within = distances[same & ~np.eye(60, dtype=bool)].mean()
    between = distances[~same].mean()
    assert between > 2 * within
    assert between > 8  # of 32 bits
    for label in range(3):
        assert len(np.unique(codes[labels == label], axis=0)) > 1


@pytest.mark.slow
def test_a_spread_keeps_unlike_images_of_one_label_apart():
    """One label, two kinds of images: with a spread their codes tell them apart."""
    labels, kinds = torch.arange(2).repeat_interleave(40), torch.arange(4).repeat_interleave(20)
    images = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))[kinds]
    features = one_hot(kinds).float().repeat(1, 3) + noise(80, 12) * 0.2

    def bits_apart(spread: float) -> float:
        layer = torch.nn.Linear(12, 32)
        with torch.no_grad():
            for number, parameter in enumerate(layer.parameters()):
                parameter.copy_(noise(*parameter.shape, seed=number) * 0.3)
        loss = SchLoss(SchConfig(spread=spread, separate_means=True), torch.bincount(labels))
        optimiser = torch.optim.Adam(layer.parameters(), lr=0.03)
        for _ in range(200):
            optimiser.zero_grad()
            loss(layer(features), None, images, labels).total.backward()
            optimiser.step()
        codes = pack_signs(layer(features).detach().numpy())
        distances = hamming(codes[:, None], codes[None])
        return float(distances[:20, 20:40].mean())  # first kind and second, both of label 0

    assert bits_apart(0.0) < 2
    assert 3 < bits_apart(0.3) < 16


@pytest.mark.parametrize("spread", [-0.1, 0.6, float("nan")])
def test_a_spread_out_of_range_is_refused(spread):
    with pytest.raises(TrainingDataError, match=f"spread is {spread}"):
        SchConfig(spread=spread)


def test_a_spread_without_fingerprints_is_refused():
    with pytest.raises(TrainingDataError, match="fingerprint"):
        SchConfig(fingerprint="none", spread=0.3)
