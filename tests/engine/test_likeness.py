"""Likeness: one scale for kinds of images whose similarities are not alike."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from engine.errors import ModelError
from engine.ood.likeness import LikenessScale

DIM = 16
TIGHT, LOOSE = 0.05, 0.3


def unit(z: np.ndarray) -> np.ndarray:
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def kind(rng: np.random.Generator, axis: int, spread: float, count: int) -> np.ndarray:
    """Images around one axis; the smaller the spread, the more alike."""
    z = rng.normal(size=(count, DIM)) * spread
    z[:, axis] += 1
    return unit(z)


@pytest.fixture(scope="module")
def known() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.concatenate([kind(rng, 0, TIGHT, 200), kind(rng, 1, LOOSE, 200)])


@pytest.fixture(scope="module")
def scale(known) -> LikenessScale:
    return LikenessScale.fitted(known)


def naive(known: np.ndarray, owners: np.ndarray, z: np.ndarray, similarity: float) -> float:
    """The share of known neighbours that are less similar, counted one by one."""
    shares = []
    for row in np.argsort(-(known @ z))[:10]:
        others = np.flatnonzero(owners != owners[row])
        neighbours = np.sort(known[others] @ known[row])[::-1][:50]
        shares.append(np.mean(neighbours < similarity))
    return float(np.mean(shares))


@pytest.mark.parametrize(("axis", "spread"), [(0, TIGHT), (1, LOOSE)])
def test_it_is_the_share_of_known_neighbours_that_are_less_similar(known, scale, axis, spread):
    (z,) = kind(np.random.default_rng(5), axis, spread, 1)
    asked = np.linspace(0.3, 0.999, 40)
    expected = [naive(known, np.arange(400), z, one) for one in asked]
    assert scale.of(z[None], asked) == pytest.approx(expected, abs=0.05)


def test_one_similarity_means_other_things_for_other_kinds(scale):
    """.9 is far away for images that are all alike, and near for those that are not."""
    rng = np.random.default_rng(6)
    tight, loose = kind(rng, 0, TIGHT, 1), kind(rng, 1, LOOSE, 1)
    assert scale.of(tight, np.array([0.9]))[0] < 0.1
    assert scale.of(loose, np.array([0.9]))[0] > 0.9


def test_the_nearest_known_images_of_both_kinds_are_about_as_alike(known, scale):
    rng = np.random.default_rng(7)
    found = []
    for axis, spread in ((0, TIGHT), (1, LOOSE)):
        queries = kind(rng, axis, spread, 40)
        nearest = (queries @ known.T).max(axis=1)
        each = [scale.of(z[None], s[None])[0] for z, s in zip(queries, nearest, strict=True)]
        found.append(np.mean(each))
    assert min(found) > 0.75
    assert abs(found[0] - found[1]) < 0.1


def test_nothing_is_like_a_foreign_query(known, scale):
    z = kind(np.random.default_rng(8), 9, TIGHT, 1)
    best = np.sort(known @ z[0])[::-1][:10]
    found = scale.of(z, best)
    assert np.median(found) < 0.05
    # Where known images differ much, one of them may be as near as it is to others.
    assert found.max() < 0.3


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=20), st.integers(1, 3), st.integers()
)
def test_it_never_falls_while_the_similarity_rises(similarities, images, seed):
    rng = np.random.default_rng(abs(seed))
    known = kind(rng, 0, LOOSE, 30)
    scale = LikenessScale.fitted(known)
    asked = np.sort(np.array(similarities))
    found = scale.of(kind(rng, 0, LOOSE, images), asked)
    assert (np.diff(found) >= 0).all()
    assert found.min() >= 0
    assert found.max() <= 1


def test_the_image_itself_has_likeness_one(known, scale):
    assert scale.of(known[:1], np.array([1.0]))[0] == pytest.approx(1)


def test_images_of_one_patient_are_no_neighbours_of_each_other():
    rng = np.random.default_rng(9)
    several = kind(rng, 0, LOOSE, 40)
    slices = unit(np.repeat(several, 10, axis=0) + rng.normal(size=(400, DIM)) * 0.001)
    patients = np.repeat(np.arange(40), 10)
    by_patient = LikenessScale.fitted(slices, patients)
    as_if_none = LikenessScale.fitted(slices)
    # Just nearer than any other patient.
    near = np.array([np.sort(slices[0] @ slices[10:].T)[-1] + 1e-4])
    assert by_patient.of(slices[:1], near)[0] > as_if_none.of(slices[:1], near)[0] + 0.1
    expected = naive(slices, patients, slices[0], float(near[0]))
    assert by_patient.of(slices[:1], near)[0] == pytest.approx(expected, abs=0.05)


def test_what_was_stored_says_the_same(known, scale):
    again = LikenessScale.from_state(scale.state(), known)
    rng = np.random.default_rng(10)
    asked = np.linspace(-1, 1, 200)
    for axis, spread in ((0, TIGHT), (1, LOOSE)):
        z = kind(rng, axis, spread, 1)
        assert again.of(z, asked) == pytest.approx(scale.of(z, asked), abs=0.02)


def test_one_patient_is_not_enough():
    with pytest.raises(ModelError, match="two patients"):
        LikenessScale.fitted(kind(np.random.default_rng(0), 0, TIGHT, 5), np.zeros(5, np.int64))
    with pytest.raises(ModelError, match="0 known images"):
        LikenessScale(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32))
