"""The gate's promise, and that a stored gate is the one that was made."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from safetensors.numpy import save_file

from engine.errors import ModelError
from engine.ood.calibration import ALPHA, CALIBRATION, OodGate, conformal_p
from engine.ood.detectors import KnnDetector

scores = st.integers(0, 8).map(float)  # few values, so that there are ties


def unit(rng: np.random.Generator, count: int, centre: int = 0, dim: int = 8) -> np.ndarray:
    """Rows of unit length around one axis."""
    z = rng.normal(size=(count, dim)) * 0.15
    z[:, centre] += 1
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def gate():
    rng = np.random.default_rng(0)
    detector = KnnDetector(unit(rng, 200), k=5)
    return OodGate(detector, detector.score(unit(rng, 199)))


@given(st.lists(scores, min_size=1, max_size=20), st.lists(scores, min_size=1, max_size=50))
def test_p_values_are_their_formula(queries, calibration):
    found = conformal_p(np.array(queries), np.sort(calibration))
    n = len(calibration)
    naive = [(1 + sum(s_i >= s for s_i in calibration)) / (n + 1) for s in queries]
    assert np.allclose(found, naive)


@pytest.mark.parametrize("alpha", [0.01, ALPHA, 0.2])
def test_known_images_are_flagged_at_most_a_share_alpha_of_the_time(alpha):
    rng = np.random.default_rng(int(1000 * alpha))
    detector = KnnDetector(unit(rng, 100), k=5)
    flagged = asked = 0
    for _ in range(40):  # the promise is over calibrations as well as queries
        calibration = detector.score(unit(rng, 150))
        verdicts = OodGate(detector, calibration, alpha).verdicts(unit(rng, 150))
        flagged += sum(verdict.foreign for verdict in verdicts)
        asked += len(verdicts)
    # Flags of one calibration go together: their spread is that of the threshold's rank.
    slack = 4 * np.sqrt(alpha * (1 - alpha) * (1 / asked + 1 / (40 * 150)))
    assert flagged / asked <= alpha + slack
    assert flagged > 0


def test_foreign_images_are_flagged_and_say_why(gate):
    rng = np.random.default_rng(1)
    verdicts = gate.verdicts(unit(rng, 50, centre=3))
    assert all(verdict.foreign for verdict in verdicts)
    assert {verdict.p for verdict in verdicts} == {1 / 200}
    assert {verdict.alpha for verdict in verdicts} == {ALPHA}
    assert min(verdict.scores["knn"] for verdict in verdicts) > gate.calibration.max()


@pytest.mark.parametrize(
    ("above", "tied", "foreign"), [(49, 0, True), (48, 1, True), (50, 0, False)]
)
def test_a_verdict_is_foreign_up_to_p_equal_alpha(above, tied, foreign):
    detector = KnnDetector(np.eye(2, dtype=np.float32)[:1], k=1)
    z = np.array([[0.6, 0.8]], dtype=np.float32)
    (score,) = detector.score(z)
    calibration = [score + 1] * above + [score] * tied + [score - 1] * (99 - above - tied)
    rng = np.random.default_rng(0)
    gate = OodGate(detector, rng.permutation(np.array(calibration, dtype=np.float32)), alpha=0.5)
    verdict = gate.verdicts(z)[0]
    assert verdict.p == pytest.approx((1 + above + tied) / 100)
    assert verdict.foreign is foreign


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000))
def test_knn_is_the_sorted_distance(known, k, seed):
    rng = np.random.default_rng(seed)
    reference, queries = unit(rng, known), unit(rng, 4)
    found = KnnDetector(reference, k).score(queries)
    for query, score in zip(queries, found, strict=True):
        distances = sorted(1 - float(query @ row) for row in reference)
        assert score == pytest.approx(distances[min(k, known) - 1], abs=1e-6)


def test_further_away_is_more_foreign():
    detector = KnnDetector(np.eye(3, dtype=np.float32)[:1], k=1)
    angles = np.linspace(0, np.pi, 20)
    z = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1).astype(np.float32)
    found = detector.score(z)
    assert (np.diff(found) > 0).all()
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found[-1] == pytest.approx(2, abs=1e-6)


def test_a_stored_gate_gives_the_same_verdicts(gate, tmp_path):
    gate.save(tmp_path, "0123456789abcdef")
    loaded = OodGate.load(tmp_path, "0123456789abcdef")
    assert (loaded.alpha, loaded.detector.k) == (gate.alpha, gate.detector.k)
    assert np.array_equal(loaded.calibration, gate.calibration)
    rng = np.random.default_rng(2)
    z = np.concatenate([unit(rng, 50), unit(rng, 50, centre=3)])
    for before, after in zip(gate.verdicts(z), loaded.verdicts(z), strict=True):
        # The reference is kept as float16.
        assert after.scores["knn"] == pytest.approx(before.scores["knn"], abs=2e-3)
        assert after.p == pytest.approx(before.p, abs=0.03)
    assert [v.foreign for v in loaded.verdicts(z[50:])] == [True] * 50
    loaded.save(tmp_path, "0123456789abcdef")
    again = OodGate.load(tmp_path, "0123456789abcdef")
    assert again.verdicts(z) == loaded.verdicts(z)


def test_no_calibration_is_no_gate(tmp_path):
    assert OodGate.load(tmp_path, "0123456789abcdef") is None


def test_the_gate_of_another_model_is_refused(gate, tmp_path):
    gate.save(tmp_path, "0123456789abcdef")
    with pytest.raises(ModelError, match=r"0123456789abcdef.*fedcba9876543210"):
        OodGate.load(tmp_path, "fedcba9876543210")


def test_a_damaged_file_is_refused(gate, tmp_path):
    gate.save(tmp_path, "model")
    data = (tmp_path / CALIBRATION).read_bytes()
    damaged = [b"", data[:4], data[: len(data) // 2], data[:-1], b"\xff" * 200, b"{" + data]
    for text in damaged:
        (tmp_path / CALIBRATION).write_bytes(text)
        with pytest.raises(ModelError, match=CALIBRATION):
            OodGate.load(tmp_path, "model")


@pytest.mark.parametrize(
    "metadata",
    [
        {"model": "model"},
        None,
        {"model": "model", "alpha": "0.x3", "k": "5"},
        {"model": "model", "alpha": "0.03", "k": "five"},
    ],
)
def test_a_file_that_does_not_say_what_it_is_is_refused(gate, tmp_path, metadata):
    tensors = {"reference": gate.detector.reference, "knn": gate.calibration}
    save_file(tensors, tmp_path / CALIBRATION, metadata)
    with pytest.raises(ModelError, match=CALIBRATION):
        OodGate.load(tmp_path, "model")


@pytest.mark.parametrize(("alpha", "least"), [(0.03, 33), (0.05, 19), (0.5, 1)])
def test_too_few_calibration_images_are_refused_with_the_number_needed(alpha, least):
    detector = KnnDetector(np.eye(2, dtype=np.float32), k=1)
    too_few = np.zeros(least - 1, dtype=np.float32)
    with pytest.raises(ModelError, match=rf"at least {least}\b"):
        OodGate(detector, too_few, alpha)
    gate = OodGate(detector, np.zeros(least, dtype=np.float32), alpha)
    foreign = np.array([[-1, 0]], dtype=np.float32)
    assert gate.verdicts(foreign)[0].foreign


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 3.0])
def test_an_alpha_that_is_no_share_is_refused(alpha):
    detector = KnnDetector(np.eye(2, dtype=np.float32), k=1)
    with pytest.raises(ModelError, match=str(alpha)):
        OodGate(detector, np.zeros(100, dtype=np.float32), alpha)
