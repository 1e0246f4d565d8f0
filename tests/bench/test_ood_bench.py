"""What the OOD benchmark says of a detector alone is what a gate of it alone would say."""

import numpy as np
import pytest

from bench.ood import gate_rows, mean_row, threshold
from engine.ood.calibration import OodGate
from engine.ood.detectors import KnnDetector, MahalanobisDetector
from engine.records import Observations


def images(seed: int, count: int, spread: float) -> Observations:
    z = np.random.default_rng(seed).normal(size=(count, 8)) * spread
    z[:, 0] += 1
    unit = (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
    return Observations(unit, np.packbits(z >= 0, axis=1))


@pytest.mark.parametrize("alpha", [0.03, 0.1, 0.5])
def test_a_threshold_is_where_the_detector_alone_calls_foreign(alpha: float) -> None:
    known = images(0, 100, 0.2)
    gate = OodGate.calibrated([KnnDetector().fit(known)], images(1, 199, 0.2), alpha)
    queries = images(2, 300, 0.3)
    (detector,) = gate.detectors
    above = detector.score(queries) > threshold(gate, "knn")
    assert above.tolist() == [verdict.foreign for verdict in gate.verdicts(queries)]
    assert 0 < above.mean() < 1


def test_rows_are_shares_and_their_mean_is_plain() -> None:
    known = images(0, 100, 0.2)
    detectors = [KnnDetector().fit(known), MahalanobisDetector().fit(known, np.zeros(100, int))]
    gate = OodGate.calibrated(detectors, images(1, 199, 0.2))
    rows = gate_rows(
        gate, {"one, never seen": images(3, 50, 0.5), "two, never seen": images(4, 150, 0.6)}
    )
    for row, seen in zip(rows, (images(3, 50, 0.5), images(4, 150, 0.6)), strict=True):
        flagged = np.mean([verdict.foreign for verdict in gate.verdicts(seen)])
        assert row["flagged"] == pytest.approx(flagged, abs=1e-4)
    mean = mean_row([*rows, {**rows[0], "images": "known"}], "never seen")
    assert mean["images"] == "mean of 2, never seen"
    assert mean["count"] == 200
    assert mean["flagged"] == pytest.approx((rows[0]["flagged"] + rows[1]["flagged"]) / 2, abs=1e-4)
    assert set(mean) == set(rows[0])
