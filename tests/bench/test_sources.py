"""A source that is left out is in nothing that a model learns from, and no other is judged."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.held_out import FOLD, Model, fold_model, model_of, scores_elsewhere
from bench.manifests import (
    Picture,
    colours,
    fold_of,
    leave_out,
    plane,
    read_pictures,
    shared_patients,
)
from bench.source_judging import Seen, judged, kind_row, overall_row, source_row
from bench.weights import note_fold, spread_out
from engine.model.config import small_network, to_dict
from engine.model.manifest import FORMAT, MANIFEST, Manifest
from engine.model.preprocess import Preprocess
from engine.ood.calibration import OodGate
from engine.ood.detectors import KnnDetector
from engine.records import Observations


def manifests(folder: Path) -> Path:
    """Two manifests without their pictures: two kinds, of one source and of three."""
    (folder / "more").mkdir(parents=True)
    base = ["file,split,class,subclass,source,group,licence"]
    base += [
        f"{split}/{kind}{i}.jpg,{split},{kind},{kind},mednist,{split}{i % 15},x"
        for kind in ("ChestCT", "Hand")
        for split in ("train", "calibration", "database", "query")
        for i in range(30)
    ]
    base.append("ood/1.jpg,ood,photo,photo,elsewhere,,x")
    more = ["file,class,subclass,source,group,licence,origin"]
    more += [
        f"ChestCT/a/p{i // 4}_{i % 4 + 1}_{window}.jpg,ChestCT,axial-{window},a,a:p{i // 4},x,x"
        for i in range(48)
        for window in (("lung", "soft")[i % 2],)
    ]
    more += [f"ChestCT/b/{i}.jpg,ChestCT,axial-soft,b,b:{i},x,x" for i in range(3)]
    more += [f"PelvisCT/b/{i}.jpg,PelvisCT,axial-bone,b,b:{i},x,x" for i in range(3)]
    more += [f"SpineMR/c/{i}.jpg,SpineMR,sagittal-T2,c,c:{i // 5},x,x" for i in range(100)]
    (folder / "manifest.csv").write_text("\n".join(base))
    (folder / "more" / "manifest.csv").write_text("\n".join(more))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Picture]:
    return read_pictures(manifests(tmp_path_factory.mktemp("data") / "data"))


def test_patients_are_in_one_part_and_sources_of_few_are_learned_whole(pictures):
    assert shared_patients(pictures) == []
    assert "photo" not in {one.kind for one in pictures}
    parts = {
        name: {one.part for one in pictures if one.source == name}
        for name in ("a", "b", "c", "mednist-Hand")
    }
    assert parts["a"] == parts["c"] == {"train", "validation", "calibration"}
    assert parts["b"] == {"train"}
    assert parts["mednist-Hand"] == {"train", "validation", "calibration", "database", "query"}


def test_a_slice_in_two_windows_is_one_scene(pictures):
    scenes: dict[int, list[Picture]] = {}
    for one in pictures:
        if one.scene >= 0:
            scenes.setdefault(one.scene, []).append(one)
    assert len(scenes) == 24
    for pair in scenes.values():
        assert sorted(one.view for one in pair) == ["axial-lung", "axial-soft"]
        assert len({one.patient for one in pair}) == 1
    assert plane(pictures[0]) == "axial"


def test_each_shared_source_is_left_out_by_one_fold_and_its_patients_with_it(pictures):
    folds = [fold_of(pictures, number, 3) for number in (1, 2, 3)]
    # Those of a class that no other source has stay.
    assert sorted(source for fold in folds for source in fold) == ["a", "b", "mednist-ChestCT"]
    assert all(len(fold) == 1 for fold in folds)
    for fold in folds:
        kept = leave_out(pictures, fold)
        gone = [one for one in pictures if one not in kept]
        assert {one.source for one in gone} == set(fold)
        assert shared_patients(kept, gone) == []
    with pytest.raises(SystemExit, match="'nowhere'"):
        leave_out(pictures, ["nowhere"])
    elsewhere = replace(pictures[0], source="again")
    with pytest.raises(SystemExit, match="left out and learned from"):
        leave_out([*pictures, elsewhere], ["again"])


def seen(pictures: list[Picture]) -> Seen:
    """A chest of source b looks like a hand to the model, most of all like another of b; every
    other picture looks like its kind."""
    directions = {"ChestCT": 0, "Hand": 1, "PelvisCT": 2, "SpineMR": 3}
    rng = np.random.default_rng(0)
    z = rng.normal(0, 0.01, (len(pictures), 5)).astype(np.float32)
    for at, one in enumerate(pictures):
        odd = one.source == "b" and one.kind == "ChestCT"
        z[at, directions["Hand" if odd else one.kind]] += 1
        z[at, 4] += odd / 2
    # The first of b is foreign, and the next unfamiliar.
    odd_of_b = {"0": 9.0, "1": 1.5}
    scores = [odd_of_b.get(one.path.stem, 0.0) * (one.source == "b") for one in pictures]
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    return Seen(pictures, unit, {"knn": np.array(scores, dtype=np.float32)})


@pytest.fixture(scope="module")
def gate() -> OodGate:
    known = Observations(np.eye(3, dtype=np.float32), np.zeros((3, 1), np.uint8))
    calibration = {"knn": np.linspace(0, 1, 99, dtype=np.float32)}
    elsewhere = {"knn": np.linspace(0, 3, 99, dtype=np.float32)}
    return OodGate([KnnDetector(1).fit(known)], calibration, elsewhere=elsewhere)


LEARNED = [
    {"class": "ChestCT", "source": "mednist-ChestCT", "images": 30, "patients": 15},
    {"class": "Hand", "source": "mednist-Hand", "images": 30, "patients": 15},
]


def test_a_source_is_judged_by_what_other_sources_answer(pictures, gate):
    found = {(one.kind, one.source): one for one in judged(seen(pictures), LEARNED, gate=gate)}
    a, b = source_row(found["ChestCT", "a"]), source_row(found["ChestCT", "b"])
    assert (a["P@1 base"], a["P@1 others"], a["P@1 enriched"]) == (1, 1, 1)
    assert (a["held out"], a["patients"], a["queries"]) == (True, 12, 48)
    # It finds hands, of other sources; with its own other patients it finds those.
    assert (b["P@1 base"], b["P@1 others"]) == (0, 0)
    assert b["P@1 enriched"] == 1
    assert (b["foreign"], b["unfamiliar"], b["wrong"], b["passed"]) == (0.3333, 0.3333, 3, 1)
    assert not source_row(found["ChestCT", "mednist-ChestCT"])["held out"]
    # No other source has the kind: there is nothing to find, and the gate is to say so.
    assert source_row(found["SpineMR", "c"])["P@1 others"] is None
    assert not found["SpineMR", "c"].taught
    row = kind_row("ChestCT", list(found.values()))
    assert (row["sources"], row["P@1 others"], row["wrong"], row["passed"]) == (2, 0.5, 3, 1)
    assert row["95 %"] == [0, 1]
    assert overall_row(list(found.values()), ["ChestCT"])["P@1 others"] == 0.5


def test_a_model_is_not_judged_by_a_source_that_it_learned_from(pictures):
    assert {one.source for one in judged(seen(pictures), LEARNED, ["a", "b"])} == {"a", "b"}
    with pytest.raises(SystemExit, match="learned from mednist-ChestCT"):
        judged(seen(pictures), LEARNED, ["a", "mednist-ChestCT"])


def checkpoint(folder: Path, trained_on: list[dict[str, object]]) -> Path:
    """A manifest, without weights."""
    folder.mkdir()
    training = {"trained_on": trained_on}
    made = Manifest(small_network(2), Preprocess(), ("a", "b"), "0", "abc", training)
    document = {"format": FORMAT, "precedent": "0", **to_dict(made)}
    (folder / MANIFEST).write_text(json.dumps(document))
    return folder


def test_a_fold_that_learned_from_what_it_left_out_is_refused(pictures, tmp_path):
    good = checkpoint(tmp_path / "good", LEARNED)
    with pytest.raises(SystemExit, match=rf"no {FOLD}"):
        fold_model(good, pictures)
    note_fold(good, ["a", "b"])
    assert fold_model(good, pictures).only == ["a", "b"]
    with pytest.raises(SystemExit, match="leaves out"):
        note_fold(good, ["a"])
    bad = checkpoint(tmp_path / "bad", [*LEARNED, {"class": "ChestCT", "source": "a"}])
    note_fold(bad, ["a", "b"])
    with pytest.raises(SystemExit, match="left out a, but its model learned from it"):
        fold_model(bad, pictures)
    whole = checkpoint(tmp_path / "whole", LEARNED)
    note_fold(whole, [])
    with pytest.raises(SystemExit, match="--model"):
        fold_model(whole, pictures)


def test_a_model_that_does_not_say_what_it_learned_from_is_refused(pictures, tmp_path):
    folder = checkpoint(tmp_path / "mute", LEARNED)
    document = json.loads((folder / MANIFEST).read_text())
    document["training"] = {}
    (folder / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(SystemExit, match="which sources it learned from"):
        model_of(folder, pictures)


def test_references_are_spread_over_kinds_sources_and_patients(pictures):
    chosen = spread_out([one for one in pictures if one.part == "train"], 60, 0)
    assert len(chosen) == len({one.path for one in chosen}) == 60
    kinds = [one.kind for one in chosen]
    assert kinds.count("PelvisCT") == 3  # all that there are
    assert all(kinds.count(kind) == 19 for kind in ("ChestCT", "Hand", "SpineMR"))
    chest = [one.source for one in chosen if one.kind == "ChestCT"]
    assert chest.count("b") == 3
    assert chest.count("a") == chest.count("mednist-ChestCT") == 8


def test_scores_of_other_sources_are_of_what_a_fold_left_out_and_knows(pictures, tmp_path):
    manifest = Manifest.__new__(Manifest)  # only the rows that were learned from count here
    learned = [{"class": "ChestCT", "source": "a"}, {"class": "Hand", "source": "mednist-Hand"}]
    fold = Model("one", tmp_path, manifest, learned, ["b"])
    found = scores_elsewhere([(fold, seen(pictures))])
    # The three chests of b, and not its pelvis, which the fold does not know.
    assert sorted(found["knn"].tolist()) == [0, 1.5, 9]
    # It has no say where it is judged itself.
    with pytest.raises(SystemExit, match="left out nothing"):
        scores_elsewhere([(fold, seen(pictures))], "b")
    twice = scores_elsewhere([(fold, seen(pictures))] * 2)
    assert len(twice["knn"]) == 6
    with pytest.raises(SystemExit, match="has no gate"):
        scores_elsewhere([(fold, replace(seen(pictures), scores=None))])
    stranger = replace(fold, trained_on=[{"class": "Hand", "source": "mednist-Hand"}])
    with pytest.raises(SystemExit, match="left out nothing"):
        scores_elsewhere([(stranger, seen(pictures))])


def test_colours_are_those_of_the_files(tmp_path):
    half = np.zeros((40, 40, 3), np.uint8)
    half[:20, :, 0] = 200
    images = {"grey.png": half[..., 0], "grey as three.png": half[..., :1].repeat(3, 2)}
    pictures = []
    for name, image in {**images, "half red.png": half}.items():
        Image.fromarray(image).save(tmp_path / name)
        pictures.append(Picture(tmp_path / name, "Hand", "", "a", "1", "train"))
    assert colours(pictures) == [0.0, 0.0, 0.5]
