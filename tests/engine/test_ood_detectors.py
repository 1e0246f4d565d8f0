"""Each detector beside the slow obvious version of its formula, and on foreign images."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from engine.errors import ModelError
from engine.ood.base import Detector
from engine.ood.detectors import (
    DETECTORS,
    AppearanceDetector,
    EnergyDetector,
    ExposureDetector,
    HammingDetector,
    KnnDetector,
    MahalanobisDetector,
    MaxSoftmaxDetector,
    ReconstructionDetector,
    VimDetector,
    detector_kind,
)
from engine.ood.mahalanobis import ledoit_wolf
from engine.records import Observations

CLASSES, DIM = 3, 16


def unit(z: np.ndarray) -> np.ndarray:
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def known(rng: np.random.Generator, count: int) -> tuple[Observations, np.ndarray]:
    """Images of three classes, each around an axis of its own, and their labels."""
    labels = rng.integers(0, CLASSES, count)
    z = rng.normal(size=(count, DIM)) * 0.1
    z[np.arange(count), labels] += 1
    return observed(rng, z, 8 * z[:, :CLASSES], 0.1), labels


def foreign(rng: np.random.Generator, count: int) -> Observations:
    """Images along axes that no class has; their logits are small."""
    z = rng.normal(size=(count, DIM)) * 0.1
    z[np.arange(count), rng.integers(CLASSES, DIM, count)] += 1
    return observed(rng, z, 8 * z[:, :CLASSES], 0.5)


def observed(rng, z, logits, reconstruction) -> Observations:
    """Codes: the signs of 64 fixed projections of z."""
    bits = z @ np.random.default_rng(99).normal(size=(DIM, 64)) >= 0
    badly = np.abs(rng.normal(reconstruction, 0.05, len(z)))
    looks = z @ np.random.default_rng(98).normal(size=(DIM, 384)) / 20
    maps = unit(np.abs(z @ np.random.default_rng(97).normal(size=(DIM, 24))))
    return Observations(
        unit(z),
        np.packbits(bits, axis=1),
        logits.astype(np.float32),
        badly.astype(np.float32),
        looks.astype(np.float32),
        maps=maps,
    )


def made(name: str) -> Detector:
    """The detector of this name, not yet fitted."""
    if name == "exposure":
        return ExposureDetector(foreign(np.random.default_rng(96), 60))
    return DETECTORS[name]()


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """The share of pairs in which the foreign image scores higher."""
    higher = (outside[:, None] > inside).mean() + 0.5 * (outside[:, None] == inside).mean()
    return float(higher)


# What all of them have in common


@pytest.mark.parametrize("name", DETECTORS)
def test_foreign_images_score_higher(name):
    rng = np.random.default_rng(0)
    reference, labels = known(rng, 300)
    detector = made(name).fit(reference, labels)
    inside, outside = detector.score(known(rng, 200)[0]), detector.score(foreign(rng, 200))
    assert inside.dtype == outside.dtype == np.float32
    assert inside.shape == (200,)
    assert auroc(inside, outside) > 0.9


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_from_its_state_scores_alike(name):
    rng = np.random.default_rng(1)
    reference, labels = known(rng, 60)
    detector = made(name).fit(reference, labels)
    again = DETECTORS[name].from_state(detector.state())
    images = foreign(rng, 20)
    assert np.array_equal(again.score(images), detector.score(images))


@pytest.mark.parametrize("name", DETECTORS)
def test_labels_are_not_needed(name):
    rng = np.random.default_rng(2)
    inside, outside = known(rng, 100)[0], foreign(rng, 100)
    detector = made(name).fit(known(rng, 300)[0])
    assert auroc(detector.score(inside), detector.score(outside)) > 0.9


@pytest.mark.parametrize("name", ["knn", "mahalanobis", "hamming", "vim"])
def test_a_detector_that_was_not_fitted_says_so(name):
    images, _ = known(np.random.default_rng(3), 5)
    for ask in (lambda d: d.score(images), lambda d: d.state()):
        with pytest.raises(ModelError, match=rf"'{name}' is not fitted"):
            ask(made(name))
    with pytest.raises(ModelError, match=f"'{name}' was given no known images"):
        made(name).fit(images[:0])


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("max-softmax", "logits"),
        ("energy", "logits"),
        ("vim", "logits"),
        ("reconstruction", "decoder"),
        ("appearance", "observe the image"),
    ],
)
def test_what_is_not_there_cannot_be_looked_at(name, missing):
    whole, labels = known(np.random.default_rng(4), 20)
    bare = Observations(whole.z, whole.codes)
    assert DETECTORS[name].needs
    for ask in (
        lambda: made(name).fit(bare, labels),
        lambda: made(name).fit(whole, labels).score(bare),
    ):
        with pytest.raises(ModelError, match=missing) as caught:
            ask()
        assert f"'{name}'" in str(caught.value)
        assert "leave this detector out" in str(caught.value)


def test_a_detector_is_found_by_its_name():
    assert detector_kind("vim") is VimDetector
    assert {kind.name for kind in DETECTORS.values()} == set(DETECTORS)
    with pytest.raises(ModelError, match=r"'knm'.*knn"):
        detector_kind("knm")


# Their formulas


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000))
def test_knn_is_the_sorted_distance(count, k, seed):
    rng = np.random.default_rng(seed)
    reference, queries = known(rng, count)[0], known(rng, 4)[0]
    found = KnnDetector(k).fit(reference).score(queries)
    for query, score in zip(queries.z, found, strict=True):
        distances = sorted(1 - float(query @ row) for row in reference.z)
        # The reference is kept as float16.
        assert score == pytest.approx(distances[min(k, count) - 1], abs=1e-3)


def test_knn_grows_with_the_angle():
    one = Observations(np.eye(3, dtype=np.float32)[:1], np.zeros((1, 8), np.uint8))
    angles = np.linspace(0, np.pi, 20)
    z = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1).astype(np.float32)
    found = KnnDetector(1).fit(one).score(Observations(z, np.zeros((20, 8), np.uint8)))
    assert (np.diff(found) > 0).all()
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found[-1] == pytest.approx(2, abs=1e-6)


def test_knn_of_many_images_is_that_of_each():
    rng = np.random.default_rng(5)
    detector = KnnDetector(3).fit(known(rng, 50)[0])
    images, _ = known(rng, 2500)
    found = detector.score(images)
    for i in (0, 1023, 1024, 2499):
        assert found[i] == pytest.approx(detector.score(images[i : i + 1])[0], abs=1e-6)


def test_appearance_is_its_formula():
    rng = np.random.default_rng(8)
    reference, images = known(rng, 40)[0], known(rng, 5)[0]
    rows = reference.appearance.astype(float)
    for k in (1, 3, 60):
        found = AppearanceDetector(k).fit(reference).score(images)

        def kth(row: np.ndarray, among: np.ndarray, k: int = k) -> float:
            return sorted(np.linalg.norm(among - row, axis=1))[min(k, len(among)) - 1]

        spacing = [kth(row, np.delete(rows, i, axis=0)) for i, row in enumerate(rows)]
        for look, score in zip(images.appearance.astype(float), found, strict=True):
            neighbours = np.linalg.norm(rows - look, axis=1).argsort()[:k]
            naive = kth(look, rows) / np.sqrt(np.mean([spacing[i] for i in neighbours]))
            assert score == pytest.approx(naive, rel=2e-3)  # the reference is kept as float16


def test_appearance_forgives_distance_where_known_images_are_sparse():
    """Between a dense kind and a sparse one, as far from either."""
    rng = np.random.default_rng(9)
    looks = np.zeros((200, 384), np.float32)
    looks[:, :8] = rng.normal(size=(200, 8))
    looks[:100, :8] *= 0.02
    looks[100:, :8] = looks[100:, :8] * 0.2 + 5
    whole, _ = known(rng, 200)
    detector = AppearanceDetector().fit(replace(whole, appearance=looks))
    beside = np.zeros((2, 384), np.float32)
    beside[1, :8] = 5
    beside[:, 9] = 0.3
    near_dense, near_sparse = detector.score(replace(whole[:2], appearance=beside))
    assert near_dense > 2 * near_sparse


def test_copies_of_one_image_are_no_place_without_width():
    whole, _ = known(np.random.default_rng(10), 30)
    same = replace(whole, appearance=np.repeat(whole.appearance[:1], 30, axis=0))
    assert np.isfinite(AppearanceDetector().fit(same).score(whole)).all()


def test_reconstruction_is_judged_among_images_of_the_same_kind():
    rng = np.random.default_rng(6)
    images, labels = known(rng, 300)
    hard = labels == 1  # as a busy kind of image is
    errors = np.where(hard, 5 * images.reconstruction + 2, images.reconstruction)
    images = replace(images, reconstruction=errors)
    detector = ReconstructionDetector().fit(images, labels)
    found = detector.score(images)
    for label in range(CLASSES):
        low, middle, high = np.quantile(errors[labels == label], [0.25, 0.5, 0.75])
        expected = (errors[labels == label] - middle) / (high - low)
        assert np.allclose(found[labels == label], expected, atol=1e-4)
    # Unlabelled, the kinds are what the classifier says; without one, all are one kind.
    assert np.allclose(ReconstructionDetector().fit(images).score(images), found, atol=1e-4)
    pooled = ReconstructionDetector().fit(replace(images, logits=None)).score(images)
    assert pooled[hard].min() > np.median(pooled[~hard])
    assert np.array_equal(pooled.argsort(), errors.argsort())


def test_a_kind_of_few_images_is_judged_by_all_of_them():
    rng = np.random.default_rng(6)
    images, labels = known(rng, 300)
    few = np.flatnonzero(labels == 1)[3:]
    images, labels = images[np.delete(np.arange(300), few)], np.delete(labels, few)
    errors = images.reconstruction
    found = ReconstructionDetector().fit(images, labels).score(images)[labels == 1]
    low, middle, high = np.quantile(errors, [0.25, 0.5, 0.75])
    assert np.allclose(found, (errors[labels == 1] - middle) / (high - low), atol=1e-4)


def test_max_softmax_is_its_formula_and_tells_sure_images_apart():
    rng = np.random.default_rng(7)
    logits = rng.normal(0, 3, (50, 5)).astype(np.float32)
    z = unit(rng.normal(size=(50, DIM)))
    images = Observations(z, np.zeros((50, 8), np.uint8), logits)
    share = np.exp(logits.astype(float))
    share /= share.sum(axis=1, keepdims=True)
    assert np.allclose(MaxSoftmaxDetector().score(images), 1 - share.max(axis=1), atol=1e-6)
    # Where the largest probability is 1 in any floating point number.
    sure = Observations(z[:2], images.codes[:2], np.array([[90, 0, 0], [60, 0, 0]], np.float32))
    surer, less_sure = MaxSoftmaxDetector().score(sure)
    assert 0 < surer < less_sure


def test_energy_is_its_formula_and_does_not_overflow():
    rng = np.random.default_rng(8)
    logits = rng.normal(0, 3, (50, 5)).astype(np.float32)
    z = unit(rng.normal(size=(50, DIM)))
    images = Observations(z, np.zeros((50, 8), np.uint8), logits)
    naive = [-np.log(sum(np.exp(float(x)) for x in row)) for row in logits]
    assert np.allclose(EnergyDetector().score(images), naive, atol=1e-5)
    huge = Observations(z[:1], images.codes[:1], np.array([[1000, 999]], np.float32))
    assert EnergyDetector().score(huge)[0] == pytest.approx(-1000 - np.log(1 + np.exp(-1)))


def test_mahalanobis_is_its_formula():
    rng = np.random.default_rng(9)
    reference, labels = known(rng, 90)
    labels = labels * 7  # any numbers
    queries = known(rng, 10)[0]
    z = reference.z.astype(float)
    means = {c: z[labels == c].mean(axis=0) for c in set(labels.tolist())}
    centred = [x - means[c] for x, c in zip(z, labels.tolist(), strict=True)]
    covariance, _ = naive_ledoit_wolf(np.array(centred))
    inverse = np.linalg.inv(covariance)
    naive = [
        min((x - mean) @ inverse @ (x - mean) for mean in means.values())
        for x in queries.z.astype(float)
    ]
    found = MahalanobisDetector().fit(reference, labels).score(queries)
    assert np.allclose(found, naive, rtol=1e-3)


def test_mahalanobis_takes_centred_rows():
    """Their covariance has a direction without any spread."""
    rng = np.random.default_rng(10)
    raw = rng.normal(size=(40, DIM))
    z = unit(raw - raw.mean(axis=1, keepdims=True))
    images = Observations(z, np.zeros((40, 8), np.uint8))
    scores = MahalanobisDetector().fit(images).score(images)
    assert np.isfinite(scores).all()
    assert scores.mean() == pytest.approx(DIM - 1, rel=0.3)


def test_mahalanobis_needs_classes_that_spread():
    images, _ = known(np.random.default_rng(11), 4)
    with pytest.raises(ModelError, match="4 known images in 4 classes"):
        MahalanobisDetector().fit(images, np.arange(4))


def naive_ledoit_wolf(x: np.ndarray) -> tuple[np.ndarray, float]:
    """As the paper writes it, with ‖A‖² = tr(AAᵀ)/p."""
    n, p = x.shape
    s = sum(np.outer(row, row) for row in x) / n
    m = np.trace(s) / p
    d2 = ((s - m * np.eye(p)) ** 2).sum() / p
    bar_b2 = sum(((np.outer(row, row) - s) ** 2).sum() / p for row in x) / n**2
    b2 = min(bar_b2, d2)
    return b2 / d2 * m * np.eye(p) + (d2 - b2) / d2 * s, b2 / d2


@pytest.mark.parametrize(("n", "dim"), [(5, 8), (30, 8), (2000, 8)])
def test_ledoit_wolf_is_its_formula(n, dim):
    x = np.random.default_rng(n).normal(size=(n, dim)) * np.linspace(0.1, 2, dim)
    found, rho = ledoit_wolf(x - x.mean(axis=0))
    naive, naive_rho = naive_ledoit_wolf(x - x.mean(axis=0))
    assert np.allclose(found, naive)
    assert rho == pytest.approx(naive_rho)


def test_ledoit_wolf_shrinks_less_the_more_is_known():
    rng = np.random.default_rng(12)
    rhos = [ledoit_wolf(rng.normal(size=(n, 6)) * np.arange(1, 7))[1] for n in (4, 40, 4000)]
    assert 1 >= rhos[0] > rhos[1] > rhos[2] > 0


def test_vim_is_its_formula():
    rng = np.random.default_rng(13)
    reference, queries = known(rng, 80)[0], known(rng, 10)[0]
    principal = 5
    origin = reference.z.mean(axis=0)
    _, _, vectors = np.linalg.svd(reference.z.astype(float) - origin)

    def residual(z: np.ndarray) -> float:
        centred = z - origin
        inside = sum((centred @ vector) * vector for vector in vectors[:principal])
        return float(np.linalg.norm(centred - inside))

    alpha = reference.logits.max(axis=1).sum() / sum(residual(z) for z in reference.z)
    naive = []
    for z, logits in zip(queries.z, queries.logits.astype(float), strict=True):
        virtual = np.exp(alpha * residual(z))
        share = virtual / (virtual + np.exp(logits).sum())
        naive.append(np.log(share / (1 - share)))
    found = VimDetector(principal).fit(reference).score(queries)
    assert np.allclose(found, naive, atol=1e-3)


@pytest.mark.parametrize("principal", [-1, DIM, DIM + 1])
def test_vim_needs_a_residual(principal):
    images, _ = known(np.random.default_rng(14), 40)
    with pytest.raises(ModelError, match=str(principal)):
        VimDetector(principal).fit(images)


def test_vim_cannot_match_logits_that_are_negative():
    images, _ = known(np.random.default_rng(15), 40)
    with pytest.raises(ModelError, match="'energy'"):
        VimDetector().fit(Observations(images.z, images.codes, images.logits - 100))


@settings(max_examples=20)
@given(st.integers(1, 20), st.integers(0, 1000))
def test_hamming_is_the_least_count_of_differing_bits(count, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (count, 8), dtype=np.uint8)
    queries = rng.integers(0, 256, (3, 8), dtype=np.uint8)
    bits = [[format(byte, "08b") for byte in code] for code in codes]
    found = (
        HammingDetector()
        .fit(Observations(unit(np.ones((count, 2))), codes))
        .score(Observations(unit(np.ones((3, 2))), queries))
    )
    for query, score in zip(queries, found, strict=True):
        own = "".join(format(byte, "08b") for byte in query)
        naive = min(sum(a != b for a, b in zip(own, "".join(code), strict=True)) for code in bits)
        assert score == naive


def test_exposure_is_ridge_regression_of_two_classes_of_equal_weight():
    rng = np.random.default_rng(30)
    ours, theirs = known(rng, 90)[0], foreign(rng, 40)
    detector = ExposureDetector(theirs).fit(ours)

    def features(seen: Observations) -> np.ndarray:
        return np.concatenate([seen.appearance, seen.maps], axis=1).astype(np.float64)

    middle = (features(ours).mean(axis=0) + features(theirs).mean(axis=0)) / 2
    x = np.concatenate([features(ours), features(theirs)]) - middle
    y = np.r_[-np.ones(90), np.ones(40)]
    weight = np.r_[np.full(90, 0.5 / 90), np.full(40, 0.5 / 40)]
    scatter = sum(w * np.outer(row, row) for w, row in zip(weight, x, strict=True))
    ridge = 0.02 * np.trace(scatter) / len(scatter)
    slope = np.linalg.solve(scatter + ridge * np.eye(len(scatter)), x.T @ (weight * y))
    asked = foreign(rng, 10)
    assert detector.score(asked) == pytest.approx((features(asked) - middle) @ slope, abs=1e-4)


def test_exposure_knows_foreign_images_like_those_that_it_was_shown():
    rng = np.random.default_rng(31)
    detector = ExposureDetector(foreign(rng, 200)).fit(known(rng, 200)[0])
    ours, theirs = detector.score(known(rng, 200)[0]), detector.score(foreign(rng, 200))
    assert np.mean(theirs[:, None] > ours[None, :]) > 0.95
    # Another archive's gate is made of the same foreign images.
    again = ExposureDetector.from_state(detector.state()).unfitted().fit(known(rng, 200)[0])
    assert np.mean(again.score(foreign(rng, 200))[:, None] > ours[None, :]) > 0.9


def test_exposure_says_what_it_lacks():
    rng = np.random.default_rng(32)
    ours = known(rng, 30)[0]
    with pytest.raises(ModelError, match="was shown none"):
        ExposureDetector().fit(ours)
    with pytest.raises(ModelError, match="no known images"):
        ExposureDetector(ours[:0])
    narrow = replace(ours, maps=ours.maps[:, :5])
    with pytest.raises(ModelError, match="408 features, the known ones have 389"):
        ExposureDetector(foreign(rng, 30)).fit(narrow)
