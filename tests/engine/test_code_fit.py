"""The last fit of the codes: they find what lies near by z, and nothing else of a model changes."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_training import CLASSES, CONFIG, NETWORK, PREPROCESS, shapes

from engine.codes import pack_signs
from engine.errors import TrainingDataError
from engine.model.checkpoint import save_checkpoint
from engine.model.config import HeadConfig
from engine.model.encoder import Encoder, centre_and_normalise
from engine.model.hashing import HashHead
from engine.model.manifest import read_manifest
from engine.model.network import HashingNetwork
from engine.ood.calibration import OodGate
from engine.ood.detectors import detector_kind
from engine.training import code_fit
from engine.training.code_fit import fit_codes
from engine.training.codes import CodeFitConfig, Known, codes_of, fitted_head, found_by_codes
from engine.training.neighbours import neighbour_loss, neighbourhoods
from engine.training.peers import PeerConfig
from engine.training.trainer import train

HEAD = HeadConfig(bits=32, hidden=32)
FIT = CodeFitConfig(epochs=6, steps=10, batch_size=256, warmup_epochs=0.5)


def clusters(count: int, seed: int) -> Known:
    """Three classes far from each other, each a cloud in four directions around its centre."""
    drawn = np.random.default_rng(0)
    centres, axes = 2 * drawn.normal(size=(3, 1, 24)), drawn.normal(size=(3, 4, 24))
    rng = np.random.default_rng(seed)
    z = (centres + rng.normal(size=(3, count, 4)) @ axes).reshape(-1, 24).astype(np.float32)
    return Known(
        centre_and_normalise(z),
        np.arange(3).repeat(count),
        3,
        torch.from_numpy(rng.random((3 * count, 1, 16, 16), dtype=np.float32)),
    )


def found(head: HashHead, share: float = 0.05) -> float:
    """Of images that the head has not seen, which share of the ten nearest its codes find."""
    held, asked = clusters(300, seed=1), clusters(40, seed=2)
    shares = found_by_codes(
        (asked.z, codes_of(head, asked.z)), (held.z, codes_of(head, held.z)), int(share * 900)
    )
    return float(shares.mean())


def test_a_fit_finds_more_of_the_nearest_than_labels_alone_do():
    known = clusters(300, seed=1)
    labels_alone = fitted_head(known, HEAD, replace(FIT, neighbours=0.0, independence=0.0))
    fitted = fitted_head(known, HEAD, FIT)
    assert found(fitted.head) > found(labels_alone.head) + 0.05
    assert fitted.history[-1]["neighbours"] < fitted.history[0]["neighbours"]
    asked = clusters(40, seed=2)
    assert fitted.classifier is not None
    with torch.no_grad():
        hidden, _ = fitted.head(torch.from_numpy(asked.z))
        told = fitted.classifier(hidden).argmax(dim=1).numpy()
    assert (told == asked.labels).mean() > 0.95


def test_the_same_seed_gives_the_same_head_and_another_length_is_possible():
    known, short = clusters(60, seed=1), replace(FIT, epochs=1, steps=3, bits=64)
    one, same = (fitted_head(known, HEAD, short) for _ in range(2))
    for name, value in one.head.state_dict().items():
        assert torch.equal(value, same.head.state_dict()[name]), name
    other = fitted_head(known, HEAD, replace(short, seed=1))
    assert codes_of(one.head, known.z).shape == (180, 8)
    assert (codes_of(one.head, known.z) != codes_of(other.head, known.z)).any()


@pytest.mark.parametrize("peer", ["csq", "greedyhash", "hashnet"])
def test_the_loss_of_a_peer_can_be_fitted_as_well(peer):
    config = replace(FIT, epochs=2, loss=PeerConfig(peer), neighbours=0.0, independence=0.0)
    history = fitted_head(clusters(60, seed=1), HEAD, config).history
    assert history[1]["loss"] < history[0]["loss"]
    assert "neighbours" not in history[0]


def test_without_labels_the_neighbours_alone_are_learned():
    labelled = clusters(60, seed=1)
    known = replace(labelled, labels=np.arange(180), classes=0)
    fitted = fitted_head(known, HEAD, replace(FIT, epochs=3))
    assert fitted.classifier is None
    assert fitted.history[-1]["neighbours"] < fitted.history[0]["neighbours"]
    with pytest.raises(TrainingDataError, match="csq"):
        fitted_head(known, HEAD, replace(FIT, loss=PeerConfig("csq")))


def test_too_few_images_and_impossible_options_are_refused():
    with pytest.raises(TrainingDataError, match="too few"):
        fitted_head(clusters(6, seed=1), HEAD, FIT)
    for change in ({"epochs": 0}, {"batch_size": 8}, {"far": 1.0}, {"bits": 12}):
        with pytest.raises(TrainingDataError, match=next(iter(change))):
            replace(FIT, **change)


def test_the_share_found_is_that_of_a_sort_with_ties_at_random():
    rng = np.random.default_rng(0)
    z = centre_and_normalise(rng.normal(size=(60, 8)).astype(np.float32))
    codes = pack_signs(rng.normal(size=(60, 8)))
    asked, held = (z[:4], codes[:4]), (z[4:], codes[4:])
    shares = found_by_codes(asked, held, candidates=9, nearest=5)
    for query in range(4):
        nearest = set(np.argsort(-held[0] @ z[query])[:5].tolist())
        distance = np.unpackbits(held[1] ^ codes[query], axis=1).sum(axis=1)
        drawn = []
        for _ in range(3000):
            order = np.lexsort((rng.random(56), distance))[:9]
            drawn.append(len(nearest & set(order.tolist())) / 5)
        assert shares[query] == pytest.approx(np.mean(drawn), abs=0.02)


def test_neighbourhoods_are_those_of_a_full_sort():
    z = torch.from_numpy(clusters(30, seed=1).z)
    around = neighbourhoods(z, 4, 0.2)
    similarity = (z @ z.T).fill_diagonal_(-2)
    order = similarity.argsort(dim=1, descending=True)
    assert torch.equal(around.nearest, order[:, :18])
    assert torch.allclose(around.near, similarity.gather(1, order[:, 3:4])[:, 0])
    assert torch.allclose(around.far, similarity.gather(1, order[:, 17:18])[:, 0])


def test_the_term_is_small_where_codes_order_as_z_does_and_has_a_gradient_everywhere():
    known = torch.from_numpy(clusters(20, seed=1).z)
    around = neighbourhoods(known, 3, 0.2)
    kept = neighbour_loss(20 * known, known, around.near, around.far, 16.0)
    mixed = neighbour_loss(20 * known.flip(0), known, around.near, around.far, 16.0)
    assert kept < mixed
    h = torch.randn(6, 8, requires_grad=True)
    same = known[:1].expand(6, -1)  # nothing is far from anything
    neighbour_loss(h, same, torch.full((6,), 0.9), torch.full((6,), 0.5), 16.0).backward()
    assert torch.isfinite(h.grad).all()


# On a model in its folder


@pytest.fixture
def model(tmp_path):
    """A network of random weights in a folder, in half precision."""
    torch.manual_seed(0)
    network = HashingNetwork(NETWORK, PREPROCESS).eval()
    folder = tmp_path / "model"
    save_checkpoint(
        folder, network, NETWORK, PREPROCESS, CLASSES, {"run": "x"}, dtype=torch.float16
    )
    return folder


def gate(folder, name: str) -> None:
    encoder = Encoder.load(folder)
    known = encoder.observe(list(shapes(20, 5).canvases))
    fitted = detector_kind(name)().fit(known, np.arange(3).repeat(20))
    OodGate.calibrated([fitted], known).save(folder, encoder.manifest.fingerprint)


SHORT = replace(FIT, epochs=1, steps=3)


def test_everything_but_the_head_stays_as_it_was_to_the_bit(model):
    before, old = load_file(model / "model.safetensors"), read_manifest(model)
    z = Encoder.load(model).encode(list(shapes(4, 9).canvases)).z
    gate(model, "knn")
    manifest = fit_codes(model, shapes(40, 0), SHORT, held_out=shapes(8, 1))
    after = load_file(model / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(("head.", "classifier.")) for name in changed)
    assert {value.dtype for value in after.values()} <= {torch.float16, torch.int64}
    assert manifest == read_manifest(model)
    assert manifest.fingerprint != old.fingerprint
    assert manifest.training["run"] == "x"
    noted = manifest.training["codes"]
    assert noted["of"] == noted["replaces"] == old.fingerprint
    assert set(noted["found_in_nearest_percent"]) == {"before", "after"}
    encoder = Encoder.load(model)
    np.testing.assert_array_equal(encoder.encode(list(shapes(4, 9).canvases)).z, z)
    assert OodGate.load(model, manifest.fingerprint) is not None
    assert not [path for path in model.iterdir() if path.is_dir()]


def test_a_fit_is_not_repeated_and_may_change_the_number_of_bits(model):
    first = fit_codes(model, shapes(40, 0), SHORT)
    weights = (model / "model.safetensors").stat().st_mtime_ns
    assert fit_codes(model, shapes(40, 0), SHORT) == first
    assert (model / "model.safetensors").stat().st_mtime_ns == weights
    longer = fit_codes(model, shapes(40, 0), replace(SHORT, bits=128))
    assert longer.bits == 128
    assert longer.training["codes"]["of"] == first.training["codes"]["of"]
    assert Encoder.load(model).encode(list(shapes(1, 9).canvases)).codes.shape == (3, 16)


def test_a_fit_that_is_killed_while_its_files_are_moved_ends_the_next_time(
    model, tmp_path, monkeypatch
):
    whole = tmp_path / "whole"
    shutil.copytree(model, whole)
    made = fit_codes(whole, shapes(40, 0), SHORT)

    def killed(folder):
        if (folder / "codes-fitted").is_dir():
            (folder / "codes-fitted/model.safetensors").replace(folder / "model.safetensors")
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(code_fit, "_put_in_place", killed)
        with pytest.raises(KeyboardInterrupt):
            fit_codes(model, shapes(40, 0), SHORT)
    assert fit_codes(model, shapes(40, 0), SHORT).fingerprint == made.fingerprint
    Encoder.load(model)
    assert sorted(path.name for path in model.iterdir()) == ["manifest.json", "model.safetensors"]


def test_a_gate_that_looks_at_codes_and_images_of_other_classes_are_refused(model):
    gate(model, "hamming")
    with pytest.raises(TrainingDataError, match=r"calibrate again"):
        fit_codes(model, shapes(40, 0), SHORT)
    with pytest.raises(TrainingDataError, match="classes"):
        fit_codes(model, replace(shapes(40, 0), classes=("a", "b", "c")), SHORT)


@pytest.mark.slow
def test_training_ends_with_the_fit_where_it_is_asked_for(tmp_path):
    config = replace(CONFIG, epochs=1, validation=0.2, code_epochs=1)
    plain = train(shapes(40, 0), NETWORK, PREPROCESS, replace(config, code_epochs=0), tmp_path)
    fitted = train(shapes(40, 0), NETWORK, PREPROCESS, config, tmp_path)
    assert fitted.training["codes"]["of"] == plain.fingerprint
    assert fitted.training["run"] == plain.training["run"]
    assert train(shapes(40, 0), NETWORK, PREPROCESS, config, tmp_path) == fitted
    at_once = train(shapes(40, 0), NETWORK, PREPROCESS, config, tmp_path / "at once")
    assert at_once.fingerprint == fitted.fingerprint
