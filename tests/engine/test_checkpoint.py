"""A model on disk comes back as it was, or not at all."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from engine.errors import ModelError
from engine.files import write_atomically
from engine.model.checkpoint import load_checkpoint, save_checkpoint
from engine.model.config import HeadConfig, TowerConfig
from engine.model.manifest import MANIFEST, WEIGHTS, read_manifest

ROOT = Path(__file__).parents[2]
CLASSES = ("chest", "hand", "skull")


@pytest.fixture
def save(build, tiny_config, preprocess):
    """Saves the network of a seed; keywords replace what is said about it."""

    def saved(directory, seed=0, *, config=tiny_config, pre=preprocess, notes=None, **keywords):
        classes = keywords.pop("classes", CLASSES)
        network = build(seed)
        return save_checkpoint(directory, network, config, pre, classes, notes or {}, **keywords)

    return saved


@pytest.fixture
def folder(tmp_path, save):
    save(tmp_path / "model")
    return tmp_path / "model"


@torch.no_grad()
def test_a_loaded_network_answers_exactly_as_the_saved_one(folder, build, tiny_config, preprocess):
    network, manifest = load_checkpoint(folder)
    assert not network.training
    images = torch.rand(3, 1, 48, 48)
    for found, expected in zip(network(images), build(0)(images), strict=True):
        assert torch.equal(found, expected)
    assert manifest == read_manifest(folder)
    assert (manifest.network, manifest.preprocess) == (tiny_config, preprocess)
    assert (manifest.bits, manifest.dim, manifest.classes) == (64, 16, CLASSES)
    assert len(bytes.fromhex(manifest.fingerprint)) == 8


@torch.no_grad()
def test_half_precision_halves_the_file_and_hardly_moves_the_answers(tmp_path, save, build):
    full = save(tmp_path / "full")
    half = save(tmp_path / "half", dtype=torch.float16)
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("full", "half")]
    assert 0.45 < sizes[1] / sizes[0] < 0.6
    with safe_open(tmp_path / "half" / WEIGHTS, "pt") as tensors:
        kinds = {tensors.get_tensor(name).dtype for name in tensors.keys()}  # noqa: SIM118
    assert kinds == {torch.float16, torch.int64}  # BatchNorm counts its batches
    assert full.fingerprint != half.fingerprint
    network, _ = load_checkpoint(tmp_path / "half")
    images = torch.rand(3, 1, 48, 48)
    found, expected = network(images).z, build(0)(images).z
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=0.05 * expected.abs().max().item())


def test_the_fingerprint_follows_what_decides_the_code(tmp_path, save, tiny_config, preprocess):
    taps = TowerConfig("timm:test_resnet", taps=(1, 4))
    manifests = {
        "as it is": save(tmp_path / "0"),
        "weights": save(tmp_path / "1", 1),
        "size": save(tmp_path / "2", pre=replace(preprocess, size=64)),
        "grey values": save(tmp_path / "3", pre=replace(preprocess, normalise="fixed")),
        "taps": save(tmp_path / "4", config=replace(tiny_config, tower=taps)),
        "bits": save(tmp_path / "5", config=replace(tiny_config, head=HeadConfig(bits=32))),
    }
    fingerprints = {name: manifest.fingerprint for name, manifest in manifests.items()}
    assert len(set(fingerprints.values())) == len(fingerprints)
    assert save(tmp_path / "again").fingerprint == fingerprints["as it is"]


def test_the_fingerprint_ignores_what_is_for_people(tmp_path, save):
    plain = save(tmp_path / "plain")
    noted = save(tmp_path / "noted", notes={"epochs": 12}, classes=("a", "b", "c"))
    assert plain.fingerprint == noted.fingerprint
    assert read_manifest(tmp_path / "noted").training == {"epochs": 12}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 1.0])
def test_one_damaged_byte_of_the_weights_is_noticed(folder, share):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[round(share * (len(data) - 1))] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    with pytest.raises(ModelError, match=WEIGHTS):
        load_checkpoint(folder)


def test_cut_off_weights_are_noticed(folder):
    data = (folder / WEIGHTS).read_bytes()
    for size in (0, 8, len(data) // 2, len(data) - 1):
        (folder / WEIGHTS).write_bytes(data[:size])
        with pytest.raises(ModelError, match=WEIGHTS):
            load_checkpoint(folder)


def test_no_damaged_byte_of_the_manifest_changes_what_an_image_is_encoded_to(folder):
    before = read_manifest(folder)
    text = (folder / MANIFEST).read_bytes()
    refused = 0
    for position in range(len(text)):
        damaged = bytearray(text)
        damaged[position] ^= 1
        (folder / MANIFEST).write_bytes(damaged)
        try:
            found = read_manifest(folder)
            if (found.network, found.preprocess, found.weights_sha256, found.fingerprint) != (
                before.network,
                before.preprocess,
                before.weights_sha256,
                before.fingerprint,
            ):
                load_checkpoint(folder)
                pytest.fail(f"byte {position} of the manifest changed unnoticed")
        except ModelError:
            refused += 1
    assert refused > 0.9 * len(text)


@pytest.mark.parametrize("name", [WEIGHTS, MANIFEST])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ModelError, match=name):
        load_checkpoint(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "not json",
        '{"format": 2, "precedent": "9"}',
        '{"format": 1, "precedent": "0"}',
        "[]",
    ],
)
def test_a_manifest_that_is_none_is_refused(folder, text):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(ModelError):
        read_manifest(folder)


def test_weights_of_another_training_are_refused(tmp_path, save):
    save(tmp_path / "one", 0)
    save(tmp_path / "other", 1)
    shutil.copy(tmp_path / "other" / WEIGHTS, tmp_path / "one" / WEIGHTS)
    with pytest.raises(ModelError, match="one training"):
        load_checkpoint(tmp_path / "one")


def test_weights_of_another_network_are_refused(tmp_path, save, tiny_config):
    save(tmp_path, config=replace(tiny_config, head=HeadConfig(bits=32, hidden=16)))
    with pytest.raises(ModelError, match="does not fit"):
        load_checkpoint(tmp_path)


@contextmanager
def largest_file(size: int):
    """No file of this process may grow beyond ``size`` bytes meanwhile, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_save_that_fails_leaves_no_half_file(tmp_path, save):
    with largest_file(100_000), pytest.raises(OSError, match="large"):
        save(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_save_that_fails_leaves_the_older_model_whole(folder, save):
    before = read_manifest(folder)
    with largest_file(100_000), pytest.raises(OSError, match="large"):
        save(folder, 1)
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, WEIGHTS]
    assert load_checkpoint(folder)[1] == before


_REWRITE = """
import itertools, sys
from pathlib import Path
from engine.files import write_atomically
for number in itertools.count():
    write_atomically(Path(sys.argv[1]), bytes([number % 256]) * 3_000_000)
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    path = tmp_path / "file"
    for wait in (0.0, 0.011, 0.023):
        path.unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", _REWRITE, str(path)], cwd=ROOT)
        try:
            deadline = time.monotonic() + 60
            while not path.exists() and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(wait)
        finally:
            writer.kill()
            assert writer.wait() == -signal.SIGKILL
        data = path.read_bytes()
        assert len(data) == 3_000_000
        assert len(set(data)) == 1


def test_a_written_file_can_be_read_by_others(tmp_path):
    write_atomically(tmp_path / "file", b"data")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_manifest_is_json_that_people_can_read(folder):
    document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert document["network"]["head"]["bits"] == 64
    assert document["classes"] == list(CLASSES)
