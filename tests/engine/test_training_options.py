"""What a training run may be asked for besides its defaults."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import CLASSES, CONFIG, NETWORK, PREPROCESS, SIZE, run, shapes

from engine.errors import ModelError, TrainingDataError
from engine.model.checkpoint import load_checkpoint
from engine.model.manifest import Manifest, unfinished_models
from engine.model.network import HashingNetwork
from engine.training.augment import AugmentConfig
from engine.training.data import Example, TrainingSet, batches
from engine.training.learner import Learner
from engine.training.peers import PEERS, PeerConfig
from engine.training.sch import SchConfig, SchLoss
from engine.training.trainer import TrainConfig, train
from engine.training.validation import validation_map

SHORT = replace(CONFIG, epochs=2, batch_size=30)


@pytest.mark.slow
@pytest.mark.parametrize("peer", PEERS)
def test_every_peer_trains_on_the_same_network(tmp_path, peer):
    manifest = run(tmp_path, replace(SHORT, loss=PeerConfig(peer)))
    first, last = manifest.training["history"]
    assert last["loss"] < first["loss"]
    assert manifest.training["config"]["loss"]["method"] == peer


@pytest.mark.slow
def test_a_stopped_run_with_everything_on_ends_where_an_undisturbed_one_does(tmp_path):
    config = replace(
        SHORT, ema_decay=0.9, validation=0.2, images_per_class=5, loss=PeerConfig("greedyhash")
    )
    whole = run(tmp_path / "whole", config)
    stopped = tmp_path / "stopped"
    (stopped / "manifest.json").mkdir(parents=True)  # makes the end of the run fail
    with pytest.raises(OSError, match="manifest"):
        run(stopped, config)
    (stopped / "manifest.json").rmdir()
    assert run(stopped, config).weights_sha256 == whole.weights_sha256


@pytest.mark.slow
def test_the_moving_average_is_what_is_saved(tmp_path):
    plain = run(tmp_path / "plain", SHORT)
    averaged = run(tmp_path / "averaged", replace(SHORT, ema_decay=0.9))
    assert [e["loss"] for e in plain.training["history"]] == [
        e["loss"] for e in averaged.training["history"]
    ]
    assert plain.weights_sha256 != averaged.weights_sha256

    def weight(folder):
        return load_checkpoint(tmp_path / folder)[0].head.second.base.weight

    assert not torch.equal(weight("plain"), weight("averaged"))


def test_a_frozen_tower_stays_as_it_was_given(tmp_path):
    manifest = run(tmp_path, replace(SHORT, freeze_tower=True))
    torch.manual_seed(SHORT.seed)
    start = HashingNetwork(NETWORK, PREPROCESS)
    trained, _ = load_checkpoint(tmp_path)
    for name, value in start.tower.state_dict().items():
        assert torch.equal(trained.tower.state_dict()[name], value), name
    assert not torch.equal(start.head.first.base.weight, trained.head.first.base.weight)
    assert manifest.training["history"][1]["loss"] < manifest.training["history"][0]["loss"]


@pytest.mark.slow
def test_the_best_epoch_by_validation_is_kept_and_patience_ends_a_run(tmp_path):
    # A rate that wrecks the weights: no epoch is better than an early one.
    config = replace(
        SHORT, epochs=30, learning_rate=0.1, validation=0.25, patience=2, half_weights=False
    )
    manifest = run(tmp_path, config)
    history = manifest.training["history"]
    scores = [entry["validation_map"] for entry in history]
    best = scores.index(max(scores))
    assert len(history) == best + 1 + 2 < 30
    assert manifest.training["images"] == 90
    network, _ = load_checkpoint(tmp_path)
    _, held_out = shapes(40, 0).split(0.25, config.seed)
    assert validation_map(network, held_out, "cpu", "fp32") == pytest.approx(scores[best], abs=1e-3)


@pytest.mark.parametrize("change", [{"validation": 1.0}, {"ema_decay": -0.1}, {"patience": 3}])
def test_shares_out_of_range_and_patience_without_validation_are_refused(change):
    with pytest.raises(TrainingDataError, match=next(iter(change))):
        TrainConfig(**change)


# Without labels


def unlabelled(count: int) -> TrainingSet:
    canvases = shapes(count // 3, 0).canvases
    return TrainingSet(canvases, np.arange(len(canvases)), ())


@pytest.mark.slow
def test_without_labels_two_views_of_an_image_find_each_other(tmp_path):
    mild = AugmentConfig(
        narrow=0, tone=0, shade=0, invert=0, coarsen=0, noise=0.01, border=0, marker=0, gamma=0.2
    )
    config = replace(
        CONFIG, epochs=10, loss=SchConfig(fingerprint="none", separate_means=True), augment=mild,
        validation=0.2,
    )  # fmt: skip
    network = replace(NETWORK, classes=0)
    manifest = train(unlabelled(120), network, PREPROCESS, config, tmp_path)
    scores = [entry["validation_map"] for entry in manifest.training["history"]]
    assert manifest.classes == ()
    assert max(scores) > 0.3  # chance among 24 images is about 0.16
    assert "classification" not in manifest.training["history"][0]


@pytest.mark.slow
def test_a_spread_goes_by_the_images_before_augmentation(tmp_path, monkeypatch):
    """Two views of one image are to have one code, however unlike the views are."""
    seen, data = [], shapes(40, 0)
    forward = SchLoss.forward

    def watched(self, h, logits, images, labels):
        seen.append(images)
        return forward(self, h, logits, images, labels)

    monkeypatch.setattr(SchLoss, "forward", watched)
    given = {canvas.tobytes() for canvas in data.canvases}
    for spread, as_given in ((0.0, False), (0.3, True)):
        seen.clear()
        config = replace(CONFIG, epochs=1, loss=SchConfig(spread=spread))
        train(data, NETWORK, PREPROCESS, config, tmp_path / str(spread))
        images = (torch.cat(seen)[:, 0] * 255).round().to(torch.uint8).numpy()
        assert len(images) == 120
        assert all((image.tobytes() in given) == as_given for image in images)


def test_a_peer_without_labels_is_refused(tmp_path):
    config = replace(SHORT, loss=PeerConfig("csq"))
    with pytest.raises(TrainingDataError, match="csq"):
        train(unlabelled(120), replace(NETWORK, classes=0), PREPROCESS, config, tmp_path)


def test_examples_are_labelled_all_or_none(tmp_path):
    examples = [Example(tmp_path / "1", "a"), Example(tmp_path / "2")]
    with pytest.raises(TrainingDataError, match="1 of 2"):
        TrainingSet.read(examples, lambda _: np.zeros((SIZE, SIZE), np.uint8))


# Splits and batches


def test_no_group_is_on_both_sides_of_a_split():
    data = shapes(40, 0)
    groups = np.random.default_rng(0).integers(0, 25, len(data))
    data = TrainingSet(data.canvases, data.labels, data.classes, groups)
    for seed in range(5):
        large, small = data.split(0.2, seed)
        assert len(large) + len(small) == len(data)
        assert not set(large.groups) & set(small.groups)
        assert 0.1 < len(small) / len(data) < 0.35
        assert large.classes == small.classes == CLASSES
    assert not np.array_equal(data.split(0.2, 0)[1].groups, data.split(0.2, 1)[1].groups)


def test_one_group_cannot_be_split():
    data = shapes(4, 0)
    data = TrainingSet(data.canvases, data.labels, data.classes, np.zeros(12, np.int64))
    with pytest.raises(TrainingDataError, match="1 groups of 12"):
        data.split(0.2, 0)


def test_class_batches_hold_as_many_of_each_class():
    rare = TrainingSet(
        np.zeros((100, 4, 4), np.uint8), np.array([0] * 90 + [1] * 7 + [2] * 3), CLASSES
    )
    drawn = list(batches(rare, 12, torch.Generator().manual_seed(0), images_per_class=4))
    assert len(drawn) == 8
    for _, labels in drawn:
        assert labels.bincount(minlength=3).tolist() == [4, 4, 4]


# Runs that stop, and go on


def stopping(monkeypatch, after: int) -> None:
    """A run ends as if somebody pressed Ctrl-C once ``after`` epochs are done."""
    epoch = Learner.epoch

    def or_stop(self, held_out):
        if len(self.history) == after:
            raise KeyboardInterrupt
        return epoch(self, held_out)

    monkeypatch.setattr(Learner, "epoch", or_stop)


TINY = replace(SHORT, epochs=3, steps_per_epoch=1, ema_decay=0.5)


def test_a_stopped_run_leaves_a_model_and_takes_more_epochs(tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stopping(patched, after=2)
        run(tmp_path, TINY)
    assert [path.name for path in unfinished_models(tmp_path)] == ["epoch-0002"]
    _, manifest = load_checkpoint(tmp_path / "epoch-0002")
    assert len(manifest.training["history"]) == 2
    with pytest.raises(ModelError, match=r"has not ended.*epoch-0002"):
        load_checkpoint(tmp_path)
    # Longer than was meant at first.
    longer = replace(TINY, epochs=4)
    data = shapes(40, 0)
    whole = train(data, NETWORK, PREPROCESS, longer, tmp_path, keep_state=True)
    assert len(whole.training["history"]) == 4
    assert not unfinished_models(tmp_path)
    again = train(data, NETWORK, PREPROCESS, replace(TINY, epochs=5), tmp_path)
    assert [entry["epoch"] for entry in again.training["history"]] == [1, 2, 3, 4, 5]
    assert again.fingerprint != whole.fingerprint
    with pytest.raises(TrainingDataError, match="its state was not kept"):
        train(data, NETWORK, PREPROCESS, replace(TINY, epochs=6), tmp_path)


def test_a_tower_rests_first_and_learns_slower_then(tmp_path, monkeypatch):
    config = replace(TINY, ema_decay=0.0, tower_rest_epochs=1.0, tower_rate=0.5, warmup_epochs=0.0)
    torch.manual_seed(config.seed)
    start = HashingNetwork(NETWORK, PREPROCESS)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stopping(patched, after=1)
        run(tmp_path, config)

    def weights(folder):
        network, _ = load_checkpoint(folder)
        return network.tower.tower.trunk.layer1[0].conv1.weight, network.head.first.base.weight

    tower, head = weights(tmp_path / "epoch-0001")
    assert torch.equal(tower, start.tower.tower.trunk.layer1[0].conv1.weight)
    assert not torch.equal(head, start.head.first.base.weight)
    run(tmp_path, config)
    assert not torch.equal(weights(tmp_path)[0], tower)


def test_weights_that_moved_are_the_same_start(tmp_path, caplog):
    caplog.set_level("WARNING")
    made = HashingNetwork(NETWORK, PREPROCESS).tower.tower.trunk.state_dict()
    lacking = {name: value for name, value in made.items() if not name.startswith("conv1")}
    torch.save(lacking, tmp_path / "here.pth")
    data, config = shapes(40, 0), replace(TINY, epochs=1)

    def trained(name: str):
        path = str(tmp_path / name)
        return train(data, NETWORK, PREPROCESS, config, tmp_path / "out", pretrained=path)

    first = trained("here.pth")
    (record,) = caplog.records  # told once
    assert "lacks 11 tensors" in record.getMessage()
    assert "conv1.0.weight" in record.getMessage()
    (tmp_path / "here.pth").rename(tmp_path / "there.pth")
    assert trained("there.pth").fingerprint == first.fingerprint


def test_epochs_are_judged_by_what_other_sources_find():
    """Images of one source are alike, whatever they show: they are not to answer each other."""
    data = shapes(20, 0)
    # Discs of two sources; the others of one, so that they are answered by their own.
    sources = np.where(data.labels == 0, np.arange(60) % 2, 2)
    judging = TrainingSet(data.canvases, data.labels, CLASSES, None, sources)
    torch.manual_seed(0)
    network = HashingNetwork(NETWORK, PREPROCESS).eval()
    plain = TrainingSet(data.canvases, data.labels, CLASSES)
    scores = [validation_map(network, one, "cpu", "fp32") for one in (judging, plain)]
    assert 0 < scores[0] < 1
    assert scores[0] != scores[1]


@pytest.mark.slow
def test_the_last_epoch_is_kept_where_that_is_asked_for_and_a_run_that_ended_is_not_repeated(
    tmp_path,
):
    config = replace(SHORT, epochs=3, validation=0.25, half_weights=False)
    data = shapes(40, 0)

    def kept(keep: str, folder: Path) -> Manifest:
        wanted = replace(config, keep=keep)
        return train(data, NETWORK, PREPROCESS, wanted, folder, keep_state=True)

    best, last = kept("best", tmp_path), kept("last", tmp_path)
    assert last.training["history"] == best.training["history"]
    assert kept("best", tmp_path).weights_sha256 == best.weights_sha256
    assert kept("last", tmp_path / "other").weights_sha256 == last.weights_sha256
    scores = [entry["validation_map"] for entry in last.training["history"]]
    network, _ = load_checkpoint(tmp_path / "other")
    _, held_out = data.split(0.25, config.seed)
    assert validation_map(network, held_out, "cpu", "fp32") == pytest.approx(scores[-1], abs=1e-3)
    assert (last.weights_sha256 == best.weights_sha256) == (scores.index(max(scores)) == 2)


def test_epochs_are_judged_by_the_blended_features_alone():
    data = shapes(20, 0)
    torch.manual_seed(0)
    network = HashingNetwork(NETWORK, PREPROCESS).eval()
    before = validation_map(network, data, "cpu", "fp32")
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.zero_()
    assert validation_map(network, data, "cpu", "fp32") == before
