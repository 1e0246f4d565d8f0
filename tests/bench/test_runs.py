"""A run's key is all that decides it, and nothing else; what is kept can be read back."""

from dataclasses import fields, replace

import numpy as np
import pytest
from PIL import Image

from bench.collection import Collection
from bench.phantoms import KNOWN, OTHER, phantom_images
from bench.runs import Run, Scale, packed, unpacked
from bench.shifted_queries import SHIFTS
from bench.shifts import GROUPS
from engine.model.preprocess import Preprocess
from engine.training.augment import AugmentConfig
from engine.training.peers import PeerConfig
from engine.training.sch import SchConfig

RUN = Run("full", Scale(), 64, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 16},
        {"seed": 1},
        {"fusion": "deep"},
        {"head": "mlp"},
        {"loss": PeerConfig("csq")},
        {"loss": SchConfig(spread=0.3)},
        {"augment": AugmentConfig()},
        {"images_per_class": 8},
        {"by": "class"},
        {"judged_by": "class"},
        {"shifts": True},
        {"scale": Scale(epochs=5)},
        {"scale": Scale(warm_epochs=0)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_a_run_changes_its_key(change):
    assert replace(RUN, **change).key("data") != RUN.key("data")


def test_other_images_change_the_key_and_the_name_in_a_table_does_not():
    assert RUN.key("other") != RUN.key("data")
    assert replace(RUN, row="renamed").key("data") == RUN.key("data")


def test_scores_of_queries_survive_packing():
    values = np.random.default_rng(0).random(500)
    assert np.abs(unpacked(packed(values)) - values).max() < 1e-5
    assert unpacked(packed(np.array([np.nan, 1.0, 0.0]))).tolist() == [0, 1, 0]


def test_a_group_in_two_splits_is_refused(tmp_path):
    (tmp_path / "manifest.csv").write_text(
        "file,split,class,subclass,group\na.png,train,A,A,1\nb.png,query,A,A,1\n"
    )
    with pytest.raises(SystemExit, match="A/1 is in two splits"):
        Collection(tmp_path, Preprocess(size=16))


def test_phantoms_are_seeded_and_of_every_kind():
    def drawn(seed):
        return [(name, image.tobytes()) for name, image in phantom_images(1, seed, kinds)]

    kinds = {**KNOWN, **OTHER}
    once = drawn(0)
    assert [name for name, _ in once] == list(kinds)
    assert once == drawn(0)
    assert all(a != b for a, b in zip(once, drawn(1), strict=True))
    assert all(np.frombuffer(image, np.uint8).std() > 5 for _, image in once)


def test_every_strength_of_augmentation_belongs_to_one_group():
    grouped = [field for group in GROUPS.values() for field in group]
    assert sorted([*grouped, "flip"]) == sorted(field.name for field in fields(AugmentConfig))


@pytest.mark.parametrize("shift", list(SHIFTS))
def test_shifts_keep_size_and_kind(shift):
    grey = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    changed = SHIFTS[shift](Image.fromarray(grey))
    assert (changed.size, changed.mode) == ((64, 64), "L")
    assert (np.asarray(changed) == grey).all() == (shift == "as they are")
