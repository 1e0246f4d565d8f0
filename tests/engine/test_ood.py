"""The gate's promise, and that a stored gate is the one that was made."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from engine.errors import ModelError
from engine.ood.base import Detector
from engine.ood.calibration import (
    ALPHA,
    CALIBRATION,
    JointCalibration,
    OodGate,
    conformal_p,
    fewest_calibration_images,
    most_colour,
)
from engine.ood.detectors import (
    DETECTORS,
    ExposureDetector,
    KnnDetector,
    ReconstructionDetector,
)
from engine.ood.likeness import LikenessScale
from engine.records import Observations

scores = st.integers(0, 8).map(float)  # few values, so that there are ties
MODEL = "0123456789abcdef"


def images(rng: np.random.Generator, count: int, centre: int = 0, dim: int = 8) -> Observations:
    """Images around one axis; those around the first are rebuilt well."""
    z = rng.normal(size=(count, dim)) * 0.15
    z[:, centre] += 1
    unit = (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
    # Depends on z in part, as two detectors of one image do.
    badly = np.abs(z[:, 1] + rng.normal(0, 0.1, count)) + (centre != 0)
    looks = z @ np.random.default_rng(9).normal(size=(dim, 384)) / 20
    maps = np.abs(z @ np.random.default_rng(8).normal(size=(dim, 24)))
    return Observations(
        unit,
        np.packbits(z >= 0.1, axis=1),
        9 * unit[:, :3],
        badly.astype(np.float32),
        looks.astype(np.float32),
        maps=(maps / np.linalg.norm(maps, axis=1, keepdims=True)).astype(np.float32),
    )


def unfitted(name: str) -> Detector:
    if name == "exposure":
        return ExposureDetector(images(np.random.default_rng(10), 60, centre=2))
    return DETECTORS[name]()


def bare(observations: Observations) -> Observations:
    """What is known of an indexed image."""
    return Observations(observations.z, observations.codes)


def made(rng, names=("knn",), alpha=ALPHA, reference=200, calibration=199) -> OodGate:
    known = images(rng, reference)
    detectors = [unfitted(name).fit(known) for name in names]
    return OodGate.calibrated(detectors, images(rng, calibration), alpha)


@pytest.fixture
def gate():
    return made(np.random.default_rng(0), ("knn", "reconstruction"))


@given(st.lists(scores, min_size=1, max_size=20), st.lists(scores, min_size=1, max_size=50))
def test_p_values_are_their_formula(queries, calibration):
    found = conformal_p(np.array(queries), np.sort(calibration))
    n = len(calibration)
    naive = [(1 + sum(s_i >= s for s_i in calibration)) / (n + 1) for s in queries]
    assert np.allclose(found, naive)


@pytest.mark.parametrize("alpha", [0.02, ALPHA, 0.2])
@pytest.mark.parametrize("names", [("knn",), ("knn", "reconstruction"), tuple(DETECTORS)])
def test_known_images_are_flagged_at_most_a_share_alpha_of_the_time(names, alpha):
    rng = np.random.default_rng([len(names), int(1000 * alpha)])
    known = images(rng, 100)
    detectors = [unfitted(name).fit(known) for name in names]
    draws, size = 60, 399
    flagged = []
    for _ in range(draws):  # the promise is over calibrations as well as queries
        gate = OodGate.calibrated(detectors, images(rng, size), alpha)
        flagged.append(np.mean([verdict.foreign for verdict in gate.verdicts(images(rng, 100))]))
    assert np.mean(flagged) <= alpha + 4 * np.std(flagged) / np.sqrt(draws)
    assert np.mean(flagged) > 0


def test_one_detector_uses_up_what_it_is_allowed():
    """Not only at most alpha: flagging next to nothing would keep the promise too."""
    rng = np.random.default_rng(7)
    detector = KnnDetector(5).fit(images(rng, 100))
    flagged = []
    for _ in range(60):
        gate = OodGate.calibrated([detector], images(rng, 199), 0.1)
        flagged.append(np.mean([verdict.foreign for verdict in gate.verdicts(images(rng, 100))]))
    assert np.mean(flagged) == pytest.approx(0.1, abs=0.02)


def test_foreign_images_are_flagged_and_say_why(gate):
    verdicts = gate.verdicts(images(np.random.default_rng(1), 50, centre=3))
    assert all(verdict.foreign for verdict in verdicts)
    assert {verdict.p for verdict in verdicts} == {1 / 200}
    assert {verdict.alpha for verdict in verdicts} == {ALPHA}
    for verdict in verdicts:
        assert verdict.p_values == {"knn": 1 / 200, "reconstruction": 1 / 200}
        assert verdict.scores["knn"] > gate.calibration["knn"].max()
        assert verdict.scores["reconstruction"] > gate.calibration["reconstruction"].max()


def naive_joint_p(query: np.ndarray, calibration: np.ndarray) -> float:
    """As its formula is written: everything ranked among all n + 1 images."""
    together = np.vstack([calibration, query])
    sums = [
        sum(
            np.log(1 + sum(other[j] >= one[j] for k, other in enumerate(together) if k != i))
            for j in range(len(query))
        )
        for i, one in enumerate(together)
    ]
    as_odd = sum(total <= sums[-1] + 1e-9 for total in sums[:-1])
    return (1 + as_odd) / (len(calibration) + 1)


@given(st.integers(1, 3), st.integers(1, 15), st.integers(0, 1000))
def test_p_of_several_detectors_is_its_formula(detectors, n, seed):
    rng = np.random.default_rng(seed)
    calibration = rng.integers(0, 6, (n, detectors)).astype(float)  # few values: ties
    queries = rng.integers(-1, 7, (4, detectors)).astype(float)
    found = JointCalibration(calibration).joint(queries)
    assert found == pytest.approx([naive_joint_p(query, calibration) for query in queries])
    if detectors == 1:
        assert found == pytest.approx(conformal_p(queries[:, 0], np.sort(calibration[:, 0])))


def test_p_of_many_queries_is_that_of_each():
    rng = np.random.default_rng(2)
    calibration, queries = rng.normal(size=(80, 2)), rng.normal(size=(2500, 2))
    found = JointCalibration(calibration).joint(queries)
    for i in (0, 1023, 1024, 2499):
        assert found[i] == JointCalibration(calibration).joint(queries[i : i + 1])[0]


def test_a_verdict_shows_all_detectors_together_and_each_alone(gate):
    queries = images(np.random.default_rng(2), 200)
    verdicts = gate.verdicts(queries)
    scores = {detector.name: detector.score(queries) for detector in gate.detectors}
    for name, found in scores.items():
        alone = conformal_p(found, np.sort(gate.calibration[name]))
        assert [v.p_values[name] for v in verdicts] == pytest.approx(alone.tolist())
    calibration = np.stack([gate.calibration[name] for name in scores], axis=1)
    together = JointCalibration(calibration).joint(np.stack(list(scores.values()), axis=1))
    assert [verdict.p for verdict in verdicts] == pytest.approx(together.tolist())
    assert all(verdict.foreign is (verdict.p <= ALPHA) for verdict in verdicts)


def test_what_two_detectors_find_a_little_odd_is_foreign():
    """Which neither would call foreign alone, nor both with Bonferroni's half of alpha each."""
    one = Observations(np.eye(2, dtype=np.float32)[:1], np.zeros((1, 1), np.uint8))
    query = replace(one, reconstruction=np.zeros(1, np.float32))
    detectors = [KnnDetector(1).fit(one), ReconstructionDetector().fit(query)]
    rng = np.random.default_rng(3)
    own = [float(detector.score(query)[0]) for detector in detectors]
    higher = np.arange(199) < 9  # p = 10 / 200 by each, of different calibration images
    calibration = {
        detector.name: (score + np.where(rng.permutation(higher), 1, -1)).astype(np.float32)
        for detector, score in zip(detectors, own, strict=True)
    }
    (verdict,) = OodGate(detectors, calibration).verdicts(query)
    assert verdict.p_values == {"knn": 0.05, "reconstruction": 0.05}
    assert verdict.p <= ALPHA < 2 * 0.05
    assert verdict.foreign


def test_one_detector_is_enough_to_call_an_image_foreign():
    """A picture that lies where known ones do, but is rebuilt badly, and the other way round."""
    rng = np.random.default_rng(3)
    # Of a few images the oddest is not odd enough to say so alone.
    gate = made(rng, ("knn", "reconstruction"), calibration=999)
    known, odd = images(rng, 20), images(rng, 20, centre=3)
    badly = replace(known, reconstruction=odd.reconstruction)
    elsewhere = replace(odd, reconstruction=np.zeros(20, np.float32))
    assert all(verdict.foreign for verdict in gate.verdicts(badly))
    assert all(verdict.foreign for verdict in gate.verdicts(elsewhere))


def test_an_image_without_a_picture_is_judged_by_what_there_is(gate):
    rng = np.random.default_rng(4)
    alone = OodGate(gate.detectors[:1], gate.calibration, gate.alpha)
    for queries in (images(rng, 20), images(rng, 20, centre=3)):
        verdicts = gate.verdicts(bare(queries))
        assert verdicts == alone.verdicts(queries)
        assert {tuple(verdict.p_values) for verdict in verdicts} == {("knn",)}
        assert all(verdict.p == verdict.p_values["knn"] for verdict in verdicts)


def test_when_no_detector_can_look_it_is_said():
    rng = np.random.default_rng(5)
    gate = made(rng, ("reconstruction",))
    queries = bare(images(rng, 3))
    assert gate.detectors_for(queries) == ()
    with pytest.raises(ModelError, match=r"'reconstruction'.*'knn'"):
        gate.verdicts(queries)


def test_no_images_no_verdicts(gate):
    assert gate.verdicts(images(np.random.default_rng(6), 1)[:0]) == []


@pytest.mark.parametrize(
    ("above", "tied", "foreign"), [(49, 0, True), (48, 1, True), (50, 0, False)]
)
def test_a_verdict_is_foreign_up_to_p_equal_alpha(above, tied, foreign):
    one = Observations(np.eye(2, dtype=np.float32)[:1], np.zeros((1, 1), np.uint8))
    detector = KnnDetector(1).fit(one)
    query = replace(one, z=np.array([[0.6, 0.8]], dtype=np.float32))
    (score,) = detector.score(query)
    calibration = [score + 1] * above + [score] * tied + [score - 1] * (99 - above - tied)
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(np.array(calibration, dtype=np.float32))
    verdict = OodGate([detector], {"knn": shuffled}, alpha=0.5).verdicts(query)[0]
    assert verdict.p == pytest.approx((1 + above + tied) / 100)
    assert verdict.foreign is foreign


@pytest.mark.parametrize("names", [("knn",), ("knn", "reconstruction"), tuple(DETECTORS)])
def test_a_stored_gate_gives_the_same_verdicts(names, tmp_path):
    rng = np.random.default_rng(8)
    gate = made(rng, names, alpha=0.05)
    gate.save(tmp_path, MODEL)
    loaded = OodGate.load(tmp_path, MODEL)
    assert [detector.name for detector in loaded.detectors] == list(names)
    for queries in (images(rng, 50), images(rng, 50, centre=3)):
        assert loaded.verdicts(queries) == gate.verdicts(queries)
    assert not loaded.verdicts(images(rng, 50, centre=3))[0].p > loaded.alpha
    loaded.save(tmp_path, MODEL)
    again = OodGate.load(tmp_path, MODEL)
    assert again.verdicts(queries) == loaded.verdicts(queries)


def test_the_reference_takes_two_bytes_a_value(tmp_path):
    rng = np.random.default_rng(9)
    reference = images(rng, 1000, dim=64)
    gate = OodGate.calibrated([KnnDetector().fit(reference)], images(rng, 99, dim=64))
    gate.save(tmp_path, MODEL)
    assert (tmp_path / CALIBRATION).stat().st_size < 1000 * 64 * 2 + 2000


def test_no_calibration_is_no_gate(tmp_path):
    assert OodGate.load(tmp_path, MODEL) is None


def test_the_gate_of_another_model_is_refused(gate, tmp_path):
    gate.save(tmp_path, MODEL)
    with pytest.raises(ModelError, match=rf"{MODEL}.*fedcba9876543210.*calibrate again"):
        OodGate.load(tmp_path, "fedcba9876543210")


def test_the_gate_of_another_decoder_is_refused(gate, tmp_path):
    """Reconstruction scores of two decoders cannot be compared."""
    gate.save(tmp_path, MODEL, "d1")
    with pytest.raises(ModelError, match=r"decoder d1, not d2; calibrate again"):
        OodGate.load(tmp_path, MODEL, "d2")
    queries = images(np.random.default_rng(13), 20, centre=3)
    assert OodGate.load(tmp_path, MODEL, "d1").verdicts(queries) == gate.verdicts(queries)
    # Without the decoder the rest of the gate still works.
    alone = OodGate.load(tmp_path, MODEL).verdicts(bare(queries))
    assert {tuple(verdict.p_values) for verdict in alone} == {("knn",)}
    # One that does not look at reconstructions is good with any.
    made(np.random.default_rng(14)).save(tmp_path, MODEL, "d1")
    assert OodGate.load(tmp_path, MODEL, "d2") is not None


def test_a_damaged_file_is_refused(gate, tmp_path):
    gate.save(tmp_path, MODEL)
    data = (tmp_path / CALIBRATION).read_bytes()
    middle = bytearray(data)
    middle[len(data) // 2] ^= 1
    last = data[:-1] + bytes([data[-1] ^ 1])
    damaged = [b"", data[:4], data[: len(data) // 2], data[:-1], b"\xff" * 200, b"{" + data]
    for text in [*damaged, bytes(middle), last]:
        (tmp_path / CALIBRATION).write_bytes(text)
        with pytest.raises(ModelError, match=rf"{CALIBRATION} is damaged.*calibrate again"):
            OodGate.load(tmp_path, MODEL)


def test_a_calibration_of_an_earlier_version_is_refused(tmp_path):
    tensors = {"reference": np.eye(8, dtype=np.float16), "knn": np.zeros(99, np.float32)}
    old = {"model": MODEL, "alpha": "0.03", "k": "10"}
    for metadata in (old, None, old | {"format": "2"}, old | {"format": "5"}):
        save_file(tensors, tmp_path / CALIBRATION, metadata)
        with pytest.raises(ModelError, match=rf"{CALIBRATION}.*version.*calibrate again"):
            OodGate.load(tmp_path, MODEL)


@pytest.mark.parametrize(
    "change",
    [
        {"alpha": "0.x3"},
        {"alpha": "3"},
        {"detectors": "knn"},
        {"detectors": "[]"},
        {"detectors": '["knn", "knn"]'},
        {"detectors": '["knn", "crystal-ball"]'},
        {"detectors": '["knn", "energy"]'},
        {"sha256": ""},
        {"sha256": None},
        {"model": None},
        {"detectors": None},
    ],
)
def test_a_file_that_does_not_say_what_it_is_is_refused(gate, tmp_path, change):
    gate.save(tmp_path, MODEL)
    path = tmp_path / CALIBRATION
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() | change
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {name: v for name, v in metadata.items() if v is not None})
    with pytest.raises(ModelError):
        OodGate.load(tmp_path, MODEL)


@pytest.mark.parametrize(("alpha", "least"), [(0.03, 33), (0.05, 19), (0.5, 1)])
@pytest.mark.parametrize("names", [("knn",), ("knn", "reconstruction")])
def test_too_few_calibration_images_are_refused_with_the_number_needed(alpha, least, names):
    rng = np.random.default_rng(10)
    known = images(rng, 20)
    fitted = [unfitted(name).fit(known) for name in names]
    assert fewest_calibration_images(alpha) == least
    with pytest.raises(ModelError, match=rf"at least {least}\b"):
        OodGate.calibrated(fitted, images(rng, least - 1), alpha)
    gate = OodGate.calibrated(fitted, images(rng, least), alpha)
    assert gate.verdicts(images(rng, 1, centre=3))[0].foreign


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 3.0])
def test_an_alpha_that_is_no_share_is_refused(alpha):
    with pytest.raises(ModelError, match=str(alpha)):
        made(np.random.default_rng(11), alpha=alpha)


def test_a_gate_that_makes_no_sense_is_refused():
    rng = np.random.default_rng(12)
    detector = KnnDetector().fit(images(rng, 20))
    other = ReconstructionDetector()
    fine = np.zeros(99, np.float32)
    with pytest.raises(ModelError, match="one or more"):
        OodGate([], {})
    with pytest.raises(ModelError, match="each once"):
        OodGate([detector, detector], {"knn": fine})
    with pytest.raises(ModelError, match="same images"):
        OodGate([detector, other], {"knn": fine, "reconstruction": fine[:-1]})
    with pytest.raises(ModelError, match="finite"):
        OodGate([detector], {"knn": np.append(fine, np.nan)})


def shifted(rng: np.random.Generator, count: int) -> Observations:
    """Known images as another scanner shows them: moved in part towards the foreign ones."""
    seen = images(rng, count)
    z = seen.z.copy()
    z[:, 5] += rng.uniform(0.5, 0.8, count)
    unit = (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
    return replace(seen, z=unit)


def of_sources(rng, names=("knn",), **options) -> OodGate:
    """A gate that has seen images of other sources as well."""
    known = images(rng, 200)
    detectors = [unfitted(name).fit(known) for name in names]
    calibration = {one.name: one.score(images(rng, 199)) for one in detectors}
    elsewhere = {one.name: one.score(shifted(rng, 199)) for one in detectors}
    return OodGate(detectors, calibration, elsewhere=elsewhere, **options)


def shares(gate: OodGate, seen: Observations) -> dict[str, float]:
    told = [verdict.verdict for verdict in gate.verdicts(seen)]
    return {word: told.count(word) / len(told) for word in ("known", "unfamiliar", "foreign")}


def test_images_of_other_scanners_are_unfamiliar_and_not_foreign():
    rng = np.random.default_rng(11)
    gates = [of_sources(rng, level=0.05) for _ in range(20)]
    known, elsewhere, foreign = (
        [shares(gate, made(rng)) for gate in gates]
        for made in (
            lambda rng: images(rng, 200),
            lambda rng: shifted(rng, 200),
            lambda rng: images(rng, 200, centre=3),
        )
    )

    def mean(found: list[dict[str, float]], word: str) -> float:
        return float(np.mean([one[word] for one in found]))

    # The promises: alpha of other scanners' images at most, and of known ones no more than level.
    assert mean(elsewhere, "foreign") <= ALPHA + 0.01
    assert mean(known, "foreign") <= ALPHA
    assert mean(known, "unfamiliar") + mean(known, "foreign") <= 0.05 + 0.01
    assert mean(elsewhere, "unfamiliar") > 0.5
    assert mean(foreign, "foreign") > 0.95


def test_a_gate_that_saw_no_other_source_calls_nothing_unfamiliar(gate):
    rng = np.random.default_rng(12)
    for seen in (images(rng, 50), shifted(rng, 50), images(rng, 50, centre=3)):
        verdicts = gate.verdicts(seen)
        assert {(one.p_elsewhere, one.level) for one in verdicts} == {(None, None)}
        assert {one.verdict for one in verdicts} <= {"known", "foreign"}
        assert all(one.foreign is (one.p <= ALPHA) for one in verdicts)


def test_what_is_foreign_is_odd_among_known_images_too():
    """Other sources may be nearer to the references than known images are."""
    rng = np.random.default_rng(13)
    detector = KnnDetector().fit(images(rng, 200))
    near, far = detector.score(images(rng, 99)), detector.score(shifted(rng, 99))
    gate = OodGate([detector], {"knn": far}, elsewhere={"knn": near})
    (verdict,) = gate.verdicts(shifted(rng, 1))
    assert verdict.p_elsewhere <= ALPHA < verdict.p
    assert verdict.verdict == "known"


def test_a_query_of_several_images_is_judged_by_both_p_values():
    gate = of_sources(np.random.default_rng(14), level=0.05)
    strictest = min(
        gate.verdicts(shifted(np.random.default_rng(15), 9)), key=lambda verdict: verdict.p
    )
    several = strictest.of_several(4)
    assert several.p == pytest.approx(4 * strictest.p)
    assert several.p_elsewhere == pytest.approx(min(1, 4 * strictest.p_elsewhere))
    assert strictest.of_several(1) == strictest
    assert strictest.of_several(10_000).p == 1


@pytest.mark.parametrize("level", [ALPHA / 2, 1.0])
def test_the_second_level_is_between_alpha_and_one(level):
    with pytest.raises(ModelError, match=f"level is {level}, alpha {ALPHA}"):
        of_sources(np.random.default_rng(16), level=level)


def test_a_gate_of_sources_says_the_same_once_it_was_stored(tmp_path):
    rng = np.random.default_rng(17)
    gate = of_sources(rng, ("knn", "appearance"), level=0.08)
    gate.likeness = LikenessScale.fitted(gate.detectors[0].reference)
    gate.save(tmp_path, MODEL)
    again = OodGate.load(tmp_path, MODEL)
    seen = Observations.joined([images(rng, 20), shifted(rng, 20), images(rng, 20, centre=3)])
    assert again.verdicts(seen) == gate.verdicts(seen)
    assert again.level == 0.08
    asked = np.linspace(-1, 1, 50)
    assert again.likeness.of(seen.z[:1], asked) == pytest.approx(
        gate.likeness.of(seen.z[:1], asked), abs=0.02
    )


def test_a_gate_of_the_format_before_is_read(gate, tmp_path):
    gate.save(tmp_path, MODEL)
    path = tmp_path / CALIBRATION
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() | {"format": "3"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del metadata["level"]
    save_file(tensors, path, metadata)
    again = OodGate.load(tmp_path, MODEL)
    seen = images(np.random.default_rng(18), 20)
    assert again.verdicts(seen) == gate.verdicts(seen)
    assert (again.elsewhere, again.likeness) == (None, None)


@pytest.mark.parametrize("sources", [False, True])
def test_more_colour_than_anything_known_is_foreign_whatever_the_detectors_say(sources, tmp_path):
    rng = np.random.default_rng(19)
    known = replace(images(rng, 100), colour=np.full(100, 0.02, np.float32))
    detector = KnnDetector().fit(known)
    scores = {"knn": detector.score(images(rng, 99))}
    gate = OodGate(
        [detector], scores, elsewhere=scores if sources else None, colour=most_colour(known)
    )
    gate.save(tmp_path, MODEL)
    shares = np.array([0.0, 0.1, 0.2, 0.9], np.float32)
    seen = replace(known[:4], colour=shares)
    for one in (gate, OodGate.load(tmp_path, MODEL)):
        verdicts = one.verdicts(seen)
        assert [verdict.foreign for verdict in verdicts] == [False, False, True, True]
        assert verdicts[3].p == 1 / 100
        assert verdicts[3].p_values["colour"] == 1 / 100
        assert verdicts[3].scores["colour"] == pytest.approx(0.9)
        assert "colour" not in verdicts[0].p_values
        # Of an indexed image nobody knows it.
        assert not any(verdict.foreign for verdict in one.verdicts(bare(known[:4])))


def test_known_images_in_colour_make_colour_known():
    rng = np.random.default_rng(20)
    known = replace(images(rng, 50), colour=np.linspace(0, 0.8, 50, dtype=np.float32))
    assert most_colour(known) == pytest.approx(0.9)
    assert most_colour(replace(known, colour=np.ones(50, np.float32))) == 1
    assert most_colour(images(rng, 50)) is None
