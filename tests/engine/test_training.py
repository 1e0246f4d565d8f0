"""Training learns, can be repeated to the bit, and survives being killed."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import ImageRefused, RefusalReason, TrainingDataError
from engine.model.checkpoint import load_checkpoint
from engine.model.config import DarfConfig, HeadConfig, NetworkConfig, TowerConfig
from engine.model.encoder import canvas_tensor
from engine.model.manifest import unfinished_models
from engine.model.preprocess import Preprocess
from engine.training.data import Example, TrainingSet, batches, from_csv, from_folder
from engine.training.trainer import TrainConfig, train

ROOT = Path(__file__).parents[2]
SIZE = 48
CLASSES = ("disc", "ring", "stripes")
PREPROCESS = Preprocess(size=SIZE)
NETWORK = NetworkConfig(
    tower=TowerConfig("timm:test_resnet", taps=(2, 4)),
    darf=DarfConfig(
        window=3,
        attention_heads=2,
        attention_head_dim=8,
        grid=2,
        cross_heads=2,
        cross_head_dim=8,
        cross_dim=16,
        width=16,
        depth=1,
        heads=2,
        last_blocks=1,
        global_dim=16,
        local_dim=16,
    ),
    head=HeadConfig(bits=32, hidden=32),
    classes=3,
)
CONFIG = TrainConfig(
    epochs=5, batch_size=24, learning_rate=3e-3, seed=3, precision="fp32", half_weights=False
)


def shapes(count: int, seed: int) -> TrainingSet:
    """``count`` images of each class, at random places and sizes, on grey noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    canvases, labels = [], []
    for label in np.arange(3).repeat(count):
        r = np.hypot(y - rng.uniform(20, 28), x - rng.uniform(20, 28))
        size = rng.uniform(10, 18)
        if CLASSES[label] == "disc":
            shape = r < size
        elif CLASSES[label] == "ring":
            shape = (r < size) & (r > size - 4)
        else:
            shape = ((x + rng.integers(8)) % 8 < 3) & (r < 22)
        grey = 40 + 150 * shape + rng.normal(0, 12, (SIZE, SIZE))
        canvases.append(grey.clip(0, 255).astype(np.uint8))
        labels.append(label)
    return TrainingSet(np.stack(canvases), np.array(labels, dtype=np.int64), CLASSES)


def run(out: Path, config: TrainConfig = CONFIG, data_seed: int = 0):
    torch.set_num_threads(1)
    return train(shapes(40, data_seed), NETWORK, PREPROCESS, config, out)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    return run(out), out


@pytest.mark.slow
def test_training_learns_to_tell_unseen_images_apart(trained):
    manifest, out = trained
    network, loaded = load_checkpoint(out)
    assert loaded == manifest
    assert loaded.classes == CLASSES
    fresh = shapes(40, seed=99)
    with torch.no_grad():
        output = network(canvas_tensor(fresh.canvases))
    labels = torch.from_numpy(fresh.labels)
    assert (output.logits.argmax(dim=1) == labels).float().mean() > 0.7  # chance is 1/3
    signs = torch.where(output.h >= 0, 1.0, -1.0)
    likeness = signs @ signs.T - 100 * torch.eye(len(labels))
    nearest = labels[likeness.argmax(dim=1)]
    assert (nearest == labels).float().mean() > 0.7
    assert len(torch.unique(signs, dim=0)) > 3


def test_training_writes_its_history(trained):
    manifest, out = trained
    history = json.loads((out / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5]
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["accuracy"] > history[0]["accuracy"]
    assert history[-1]["distinct_codes"] > 3
    assert manifest.training["history"] == history
    assert manifest.training["images"] == 120
    assert sorted(path.name for path in out.iterdir()) == [
        "history.json",
        "manifest.json",
        "model.safetensors",
    ]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_where_an_undisturbed_one_does(trained, tmp_path):
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests/engine');"
        "from test_training import run; run(Path(sys.argv[1]))"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "state.pt").exists() and child.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        child.kill()
        assert child.wait() == -signal.SIGKILL  # it was not through before
    assert not (tmp_path / "manifest.json").exists()
    load_checkpoint(unfinished_models(tmp_path)[-1])  # which is whole, at any moment
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(TrainingDataError, match="another configuration"):
        run(tmp_path, replace(CONFIG, learning_rate=1e-3))
    assert (tmp_path / "state.pt").read_bytes() == before
    manifest = run(tmp_path)
    assert manifest.weights_sha256 == trained[0].weights_sha256
    history = json.loads((tmp_path / "history.json").read_text())
    assert [entry["loss"] for entry in history] == [
        entry["loss"] for entry in trained[0].training["history"]
    ]
    assert not (tmp_path / "state.pt").exists()


@pytest.mark.slow
def test_a_seed_decides_the_weights(tmp_path):
    short = replace(CONFIG, epochs=1, batch_size=60)
    digests = [
        run(tmp_path / name, replace(short, seed=seed)).weights_sha256
        for name, seed in [("a", 1), ("b", 1), ("c", 2)]
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """The folder of a run that was stopped after its first epoch."""
    folder = tmp_path / "stopped"
    # A folder in the manifest's place makes the end of the run fail, after its epochs.
    (folder / "manifest.json").mkdir(parents=True)
    with pytest.raises(OSError, match="manifest"):
        run(folder, replace(CONFIG, epochs=1, batch_size=60))
    (folder / "manifest.json").rmdir()
    return folder


def test_a_run_that_failed_at_its_end_only_repeats_the_end(stopped):
    history = run(stopped, replace(CONFIG, epochs=1, batch_size=60)).training["history"]
    assert [entry["epoch"] for entry in history] == [1]


def test_other_data_in_the_folder_of_a_stopped_run_are_refused(stopped):
    with pytest.raises(TrainingDataError, match="other data"):
        run(stopped, replace(CONFIG, epochs=1, batch_size=60), data_seed=1)


def test_a_finished_run_is_neither_repeated_nor_overwritten(trained):
    manifest, out = trained
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run(out).fingerprint == manifest.fingerprint
    with pytest.raises(TrainingDataError, match="another folder"):
        run(out, replace(CONFIG, seed=4))
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_too_few_images_for_a_batch_are_refused(tmp_path):
    with pytest.raises(TrainingDataError, match=r"120 images.*121"):
        run(tmp_path, replace(CONFIG, batch_size=121))


def test_a_network_for_other_classes_is_refused(tmp_path):
    network = replace(NETWORK, classes=0)
    with pytest.raises(TrainingDataError, match="0 classes"):
        train(shapes(10, 0), network, PREPROCESS, replace(CONFIG, batch_size=8), tmp_path)


# Lists of files


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_a_folder_gives_one_class_a_subfolder(tmp_path):
    deep = touch(tmp_path / "b" / "deeper" / "1.png")
    first, second = touch(tmp_path / "a" / "1.png"), touch(tmp_path / "a" / "2.dcm")
    touch(tmp_path / "a" / ".DS_Store")
    touch(tmp_path / "beside.png")
    assert from_folder(tmp_path) == [
        Example(first, "a"),
        Example(second, "a"),
        Example(deep, "b"),
    ]


def test_a_folder_that_is_none_or_holds_nothing_is_refused(tmp_path):
    with pytest.raises(TrainingDataError, match="nowhere"):
        from_folder(tmp_path / "nowhere")
    touch(tmp_path / "beside.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingDataError, match="folder per class"):
        from_folder(tmp_path)


def test_a_table_gives_one_example_a_row(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text('path,kind,more\na/1.png,"CT, chest",x\n/abs/2.png,Schädel,y\n', "utf-8")
    assert from_csv(table, file_column="path", label_column="kind") == [
        Example(tmp_path / "a/1.png", "CT, chest"),
        Example(Path("/abs/2.png"), "Schädel"),
    ]


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"file,kind\na,b\n", "'label'"),
        (b"", "'file'"),
        (b"file,label\n", "no rows"),
        (b"file,label\n\xff\xfe,b\n", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, data, named):
    table = tmp_path / "t.csv"
    if data is not None:
        table.write_bytes(data)
    with pytest.raises(TrainingDataError, match=named):
        from_csv(table)


@pytest.mark.parametrize("columns", ["label,file", "file,label"])
def test_a_row_that_is_cut_short_is_refused(tmp_path, columns):
    table = tmp_path / "t.csv"
    table.write_text(f"{columns}\nchest,a.png\nhand\n")
    with pytest.raises(TrainingDataError):
        from_csv(table)


def test_refused_files_are_left_out_and_logged(caplog):
    def read(path):
        if path.name.startswith("bad"):
            raise ImageRefused(RefusalReason.TRUNCATED, "half of it")
        return np.full((SIZE, SIZE), int(path.name), dtype=np.uint8)

    names = [("3", "b"), ("bad", "a"), ("5", "a"), ("bad", "never"), ("7", "b")]
    data = TrainingSet.read([Example(Path(file), label) for file, label in names], read)
    assert data.classes == ("a", "b")
    assert data.labels.tolist() == [1, 0, 1]
    assert data.canvases[:, 0, 0].tolist() == [3, 5, 7]
    assert data.counts().tolist() == [1, 2]
    assert caplog.text.count("truncated") == 2


def test_one_class_is_nothing_to_learn_from():
    examples = [Example(Path("1"), "only"), Example(Path("2"), "only")]
    with pytest.raises(TrainingDataError, match="2 of 2 files"):
        TrainingSet.read(examples, lambda _: np.zeros((SIZE, SIZE), np.uint8))


def test_an_epoch_shows_every_image_at_most_once_in_seeded_order():
    data = TrainingSet(
        np.arange(10, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2),
        np.arange(10) % 2,
        ("a", "b"),
    )

    def epoch(seed):
        drawn = list(batches(data, 3, torch.Generator().manual_seed(seed)))
        assert [images.shape for images, _ in drawn] == [(3, 1, 4, 4)] * 3
        images = (torch.cat([x for x, _ in drawn])[:, 0, 0, 0] * 255).round().int().tolist()
        assert torch.cat([y for _, y in drawn]).tolist() == [value % 2 for value in images]
        return images

    assert len(set(epoch(0))) == 9
    assert epoch(0) == epoch(0) != epoch(1)
