"""Intervals of shares, and how often a gate calls known images foreign."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from engine.evaluation.intervals import wilson
from engine.ood.calibration import OodGate
from engine.ood.curve import EXPECTED, calibration_curve
from engine.ood.detectors import AppearanceDetector, KnnDetector
from engine.records import Observations

Z = 1.959963984540054


@given(n=st.integers(1, 5000), share=st.floats(0, 1))
def test_the_ends_are_the_shares_that_what_was_seen_just_allows(n: int, share: float) -> None:
    hits = round(share * n)
    seen = hits / n
    low, high = wilson(hits, n)
    assert 0 <= low <= seen <= high <= 1
    for end in (low, high):
        # The obvious definition: so far from the true share, in its own standard deviations.
        away = Z * math.sqrt(end * (1 - end) / n)
        assert abs(seen - end) == pytest.approx(away, abs=1e-9)


def test_without_observations_every_share_is_possible() -> None:
    assert wilson(0, 0) == (0, 1)
    assert wilson(0, 10) == (0, pytest.approx(0.27753, abs=1e-5))
    assert wilson(10, 10) == (pytest.approx(1 - 0.27753, abs=1e-5), 1)


def gate_of(known: int, seed: int, *, alpha: float = 0.03) -> OodGate:
    rng = np.random.default_rng(seed)

    def some(count: int) -> Observations:
        z = rng.normal(0, 1, (count, 16)).astype(np.float32)
        z[:, 0] += 3 * rng.random(count)
        z /= np.linalg.norm(z, axis=1, keepdims=True)
        appearance = rng.normal(0, 1, (count, 384)).astype(np.float32)
        return Observations(z, np.zeros((count, 8), np.uint8), appearance=appearance)

    reference = some(300)
    detectors = [KnnDetector().fit(reference), AppearanceDetector().fit(reference)]
    return OodGate.calibrated(detectors, some(known), alpha)


def test_known_images_are_called_foreign_as_often_as_is_allowed() -> None:
    curve = calibration_curve(gate_of(600, seed=1))
    assert [one.expected for one in curve] == list(EXPECTED)
    for one in curve:
        low, high = wilson(one.flagged, one.images)
        assert one.images == 600
        assert low <= one.expected <= high
    assert [one.flagged for one in curve] == sorted(one.flagged for one in curve)


def test_the_gates_own_alpha_is_among_them_and_what_too_few_images_cannot_tell_is_not() -> None:
    curve = calibration_curve(gate_of(40, seed=2, alpha=0.07))
    assert 0.07 in [one.expected for one in curve]
    # Of 20 images none can have a p below 1 in 21.
    assert min(one.expected for one in curve) >= 1 / 21
    assert calibration_curve(gate_of(40, 2, alpha=0.07)) == curve
    assert calibration_curve(gate_of(1, 3, alpha=0.6)) == []


def test_the_level_of_a_gate_that_knows_other_sources_is_among_them() -> None:
    gate = gate_of(100, seed=4)
    assert 0.08 not in [one.expected for one in calibration_curve(gate)]
    other = gate.with_elsewhere(gate.calibration, level=0.08)
    assert 0.08 in [one.expected for one in calibration_curve(other)]
