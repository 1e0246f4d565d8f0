"""The decoder rebuilds known images, says how badly it does, and survives being killed."""

import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from engine.errors import ModelError, TrainingDataError
from engine.model.checkpoint import save_checkpoint
from engine.model.decoder import (
    DECODER,
    Decoder,
    DecoderSize,
    load_decoder,
    reconstruction_scores,
    reconstruction_target,
    save_decoder,
)
from engine.model.encoder import Encoder
from engine.model.manifest import read_manifest
from engine.model.preprocess import Preprocess
from engine.training.augment import AugmentConfig
from engine.training.data import TrainingSet
from engine.training.decoder import DecoderConfig, train_decoder

ROOT = Path(__file__).parents[2]
SIZE = 48
CONFIG = DecoderConfig(
    epochs=4,
    batch_size=8,
    learning_rate=1e-2,
    seed=3,
    precision="fp32",
    half_weights=False,
    size=DecoderSize(bottleneck=8, width=16),
    augment=AugmentConfig(invert=0, narrow=0, border=0, noise=0, coarsen=0),
)


# What it computes


@pytest.mark.parametrize("resolution", [8, 16, 30, 64])
@pytest.mark.parametrize("deep", [(384, 4, 4), (16, 7, 7), (5, 3, 2), (1, 1, 1), (8, 20, 20)])
def test_maps_of_any_size_become_images_of_the_size_asked_for(deep, resolution):
    decoder = Decoder(deep, DecoderSize(bottleneck=3, width=20, resolution=resolution))
    assert decoder(torch.randn(2, *deep)).shape == (2, 1, resolution, resolution)


def test_a_decoder_is_small_beside_the_network():
    for deep, size in [((2048, 7, 7), DecoderSize()), ((384, 4, 4), DecoderSize(resolution=64))]:
        assert sum(p.numel() for p in Decoder(deep, size).parameters()) < 100_000


@pytest.mark.parametrize(
    "wrong",
    [{"bottleneck": 0}, {"width": 0}, {"resolution": 7}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_sizes_that_make_no_decoder_are_refused(wrong):
    with pytest.raises(ModelError, match=f"{next(iter(wrong))}.*{next(iter(wrong.values()))}"):
        DecoderSize(**wrong)


def framed(rows: slice, columns: slice, *, channels: int = 1) -> torch.Tensor:
    """Three noise images of 32 pixels that are black outside of the frame."""
    image = torch.zeros(3, channels, 32, 32)
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    image[..., rows, columns] = 0.1 + 0.8 * noise[..., rows, columns]
    return image


def answers(seed: int = 1, side: int = 16) -> torch.Tensor:
    return torch.randn(3, 1, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("rows", "columns"), [(slice(0, 32), slice(0, 32)), (slice(4, 20), slice(10, 32))]
)
def test_scores_are_their_formulas_over_the_image_s_own_area(rows, columns, channels):
    images, rebuilt = framed(rows, columns, channels=channels), answers()
    found = reconstruction_scores(images, rebuilt)
    small_rows = slice(rows.start // 2, rows.stop // 2)
    small_columns = slice(columns.start // 2, columns.stop // 2)
    for i in range(3):
        grey = images[i].mean(dim=0).double().numpy()
        small = grey.reshape(16, 2, 16, 2).mean(axis=(1, 3))[small_rows, small_columns]
        answer = rebuilt[i, 0, small_rows, small_columns].double().numpy()
        one_minus_r = 1 - np.corrcoef(small.ravel(), answer.ravel())[0, 1]
        squared = np.mean((answer - (small - small.mean()) / small.std()) ** 2)
        assert found.pearson[i] == pytest.approx(one_minus_r, abs=1e-4)
        assert found.squared[i] == pytest.approx(squared, abs=1e-3)
    assert {score.dtype for score in found} == {torch.float32}
    assert {score.shape for score in found} == {(3,)}


def test_what_is_rebuilt_outside_of_the_own_area_does_not_count():
    images = framed(slice(8, 24), slice(0, 32))
    rebuilt = answers()
    elsewhere = rebuilt.clone()
    elsewhere[:, :, :4] = 99
    elsewhere[:, :, 12:] = -99
    for one, other in zip(
        reconstruction_scores(images, rebuilt),
        reconstruction_scores(images, elsewhere),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_grey_window_of_an_image_does_not_change_its_target():
    images = framed(slice(0, 32), slice(0, 32))
    one, _ = reconstruction_target(images, 16)
    other, _ = reconstruction_target(0.3 + 0.5 * images, 16)
    assert torch.allclose(one, other, atol=1e-4)


def test_a_perfect_answer_scores_zero_and_its_negative_two():
    images = framed(slice(4, 20), slice(10, 32))
    target, _ = reconstruction_target(images, 16)
    perfect = reconstruction_scores(images, target)
    assert torch.allclose(torch.stack(perfect), torch.zeros(3, 3), atol=1e-5)
    assert torch.allclose(reconstruction_scores(images, -target).pearson, torch.tensor(2.0))


@pytest.mark.parametrize("grey", [0.0, 0.3, 1.0])
def test_an_image_without_contrast_has_no_correlation_with_anything(grey):
    images = torch.full((3, 1, 50, 50), grey)
    images[1, :, :9] = images[2, :, :, 31:] = 0  # what brought it to a square
    for rebuilt in (answers(), torch.zeros(3, 1, 16, 16)):
        found = reconstruction_scores(images, rebuilt)
        assert found.pearson.tolist() == [1, 1, 1]
        assert all(torch.isfinite(score).all() for score in found)


def test_an_answer_without_contrast_has_no_correlation_with_anything():
    found = reconstruction_scores(framed(slice(0, 32), slice(0, 32)), torch.full((3, 1, 16, 16), 7))
    assert torch.allclose(found.pearson, torch.ones(3), atol=1e-6)


def test_relative_to_what_is_easy_a_blurred_answer_fares_alike_for_smooth_and_for_fine_images():
    y, x = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij")
    fine = framed(slice(0, 32), slice(0, 32))[0, 0]
    images = torch.stack([0.1 + 0.4 * (x + y), 0.2 * (x + y) + 0.5 * fine])[:, None]
    means = torch.nn.functional.interpolate(images, size=(2, 2), mode="area")
    blurred = torch.nn.functional.interpolate(means, size=(16, 16), mode="bilinear")
    found = reconstruction_scores(images, blurred)
    assert found.pearson[1] > 5 * found.pearson[0]
    assert found.relative[1] < 3 * found.relative[0]
    assert found.relative.max() < 1
    better = 0.7 * reconstruction_target(images, 16)[0] + 0.3 * blurred
    assert (reconstruction_scores(images, better).relative < found.relative).all()


# How it learns


def discs(count: int, seed: int) -> TrainingSet:
    """Discs on grey noise, of random place and size."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    canvases = []
    for _ in range(count):
        r = np.hypot(y - rng.uniform(16, 32), x - rng.uniform(16, 32))
        grey = 40 + 150 * (r < rng.uniform(8, 16)) + rng.normal(0, 8, (SIZE, SIZE))
        canvases.append(grey.clip(0, 255).astype(np.uint8))
    return TrainingSet(np.stack(canvases), np.arange(count) % 2, ("a", "b"))


def run(folder: Path, config: DecoderConfig = CONFIG, data_seed: int = 0):
    torch.set_num_threads(1)
    return train_decoder(folder, discs(64, data_seed), config)


@pytest.fixture(scope="module")
def model(build, tiny_config, preprocess, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(folder, build(), tiny_config, preprocess, ("a", "b", "c"), {})
    return folder


@pytest.fixture
def copied(model, tmp_path):
    def made(name: str = "copy") -> Path:
        return shutil.copytree(model, tmp_path / name)

    return made


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "model"
    shutil.copytree(model, folder)
    return run(folder), folder


def fingerprint(folder: Path) -> str:
    decoder = load_decoder(folder, read_manifest(folder).fingerprint)
    assert decoder is not None
    assert decoder.fingerprint is not None
    return decoder.fingerprint


def test_training_lowers_the_error_and_leaves_the_model_as_it_is(trained, model):
    history, folder = trained
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4]
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert history[-1]["one_minus_pearson"] < 0.7 * history[0]["one_minus_pearson"]
    for path in model.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    names = sorted(path.name for path in folder.iterdir())
    assert names == [DECODER, "manifest.json", "model.safetensors"]


def test_images_of_another_kind_are_rebuilt_worse_than_unseen_ones_of_the_same(trained):
    encoder = Encoder.load(trained[1], precision="fp32")
    y, x = np.mgrid[:SIZE, :SIZE]
    stripes = [(127 + 100 * np.sin((x + k * y) / 2)).astype(np.uint8) for k in range(8)]
    known = encoder.observe(list(discs(20, seed=99).canvases)).reconstruction
    foreign = encoder.observe(stripes).reconstruction
    assert np.median(foreign) > 2 * np.median(known)
    assert foreign.min() > np.median(known)


def test_the_file_says_how_the_decoder_came_to_be(trained):
    with safe_open(trained[1] / DECODER, "pt") as file:
        notes = json.loads(file.metadata()["training"])
    assert notes["history"] == trained[0]
    assert notes["images"] == 64
    assert notes["config"]["seed"] == 3


def test_a_finished_run_is_not_repeated_and_another_replaces_it(copied):
    folder = copied()
    config = replace(CONFIG, epochs=1)
    history = run(folder, config)
    written = (folder / DECODER).stat().st_mtime_ns
    assert run(folder, config) == history
    assert (folder / DECODER).stat().st_mtime_ns == written
    before = fingerprint(folder)
    run(folder, replace(config, seed=5))
    assert fingerprint(folder) != before


def test_a_seed_decides_the_weights(copied):
    found = []
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        run(folder := copied(name), replace(CONFIG, epochs=1, seed=seed))
        found.append(fingerprint(folder))
    assert found[0] == found[1] != found[2]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_where_an_undisturbed_one_does(trained, copied):
    folder = copied()
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests/engine');"
        "from test_decoder import run; run(Path(sys.argv[1]))"
    )
    state = folder / "decoder-state.pt"
    child = subprocess.Popen([sys.executable, "-c", script, str(folder)], cwd=ROOT)
    try:
        deadline = time.monotonic() + 120
        while not state.exists() and child.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        child.kill()
        assert child.wait() == -signal.SIGKILL  # it was not through before
    assert not (folder / DECODER).exists()
    before = state.read_bytes()
    for other in ({"config": replace(CONFIG, learning_rate=1e-3)}, {"data_seed": 1}):
        with pytest.raises(TrainingDataError, match="another model, configuration or other data"):
            run(folder, **other)
    assert state.read_bytes() == before
    history = run(folder)
    assert [entry["loss"] for entry in history] == [entry["loss"] for entry in trained[0]]
    assert fingerprint(folder) == fingerprint(trained[1])
    assert not state.exists()


def test_data_that_do_not_fit_are_refused(copied, tmp_path):
    with pytest.raises(TrainingDataError, match=r"64 images.*65"):
        run(copied(), replace(CONFIG, batch_size=65))
    small = TrainingSet(np.zeros((9, 32, 32), np.uint8), np.arange(9) % 2, ("a", "b"))
    with pytest.raises(TrainingDataError, match=r"\(32, 32\).*48 pixels"):
        train_decoder(copied("other"), small, CONFIG)
    with pytest.raises(ModelError, match="nowhere"):
        run(tmp_path / "nowhere")


def test_colour_models_get_decoders_too(build, tiny_config, tmp_path):
    pre = Preprocess(size=SIZE, colour=True, normalise="fixed")
    save_checkpoint(tmp_path, build(preprocess=pre), tiny_config, pre, ("a", "b", "c"), {})
    grey = discs(16, 0)
    with pytest.raises(TrainingDataError, match="coloured"):
        train_decoder(tmp_path, grey, CONFIG)
    colour = replace(grey, canvases=grey.canvases[..., None].repeat(3, axis=3))
    train_decoder(tmp_path, colour, replace(CONFIG, epochs=1))
    encoder = Encoder.load(tmp_path)
    assert encoder.observe(list(colour.canvases)).reconstruction.shape == (16,)


# On disk

MODEL = "0123456789abcdef"


def stored(folder: Path, seed: int = 0, **keywords) -> Decoder:
    torch.manual_seed(seed)
    decoder = Decoder((6, 3, 3), DecoderSize(bottleneck=4, width=8)).eval()
    save_decoder(folder, decoder, MODEL, {"epochs": 1}, **keywords)
    return decoder


@torch.no_grad()
def test_a_decoder_comes_back_as_it_was(tmp_path):
    saved = stored(tmp_path, dtype=torch.float32)
    loaded = load_decoder(tmp_path, MODEL)
    maps = torch.randn(2, 6, 3, 3)
    assert torch.equal(loaded(maps), saved(maps))
    assert not loaded.training
    full = loaded.fingerprint
    assert len(bytes.fromhex(full)) == 8
    stored(tmp_path)
    half = load_decoder(tmp_path, MODEL)
    assert torch.allclose(half(maps), saved(maps), atol=0.02)
    stored(tmp_path, seed=1)
    other = load_decoder(tmp_path, MODEL)
    assert len({full, half.fingerprint, other.fingerprint}) == 3


def test_a_folder_without_decoder_gives_none(tmp_path):
    assert load_decoder(tmp_path, MODEL) is None
    assert load_decoder(tmp_path / "nowhere", MODEL) is None


def test_a_decoder_of_another_model_is_refused(tmp_path):
    stored(tmp_path)
    with pytest.raises(ModelError, match=rf"{MODEL}, not f00d.*train the decoder again"):
        load_decoder(tmp_path, "f00d")


def test_a_damaged_decoder_is_refused(tmp_path):
    stored(tmp_path)
    path = tmp_path / DECODER
    whole = path.read_bytes()
    maps = torch.randn(2, 6, 3, 3)
    with torch.no_grad():
        before = load_decoder(tmp_path, MODEL)(maps)
    refused = 0
    positions = range(0, len(whole), 23)
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        found = None
        with suppress(ModelError):
            found = load_decoder(tmp_path, MODEL)
        if found is None:
            refused += 1
        else:
            with torch.no_grad():
                assert torch.equal(found(maps), before)
    assert refused > 0.95 * len(positions)  # the rest are notes for people
    for size in (0, 8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=rf"{DECODER}.*delete the file"):
            load_decoder(tmp_path, MODEL)
