"""A model around somebody's CLIP tower, from its folder to an index that changes over to it."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from commands import run
from PIL import Image
from safetensors.torch import load_file, save_file

from engine.errors import ModelError
from engine.model.backbone import TappedTower
from engine.model.manifest import WEIGHTS, read_manifest
from engine.model.tower_folder import read_tower_folder

SIDE = 32
VISION = {"layers": 3, "width": 32, "head_width": 8, "patch_size": 8, "image_size": 64}
TEXT = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}
SPEAKING = {**TEXT, "vocab_size": 49408}
"""Of a text side that open_clip's own tokenizer fits."""


def saved(
    folder: Path, vision: dict, *, quick_gelu: bool = False, name: str, text: dict = TEXT
) -> Path:
    """A CLIP model with random weights, saved as open_clip's own function does it."""
    torch.manual_seed(3)
    folder.mkdir()
    clip = open_clip.CLIP(
        24, open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text), quick_gelu=quick_gelu
    )
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, "quick_gelu": quick_gelu}
    seen = {"mean": [0.2, 0.3, 0.4], "std": [0.3, 0.3, 0.3]}
    told = {"model_cfg": config, "preprocess_cfg": seen}
    (folder / "open_clip_config.json").write_text(json.dumps(told))
    weights = {key: value.clone() for key, value in clip.state_dict().items()}
    if name.endswith(".bin"):
        torch.save(weights, folder / name)
    else:
        save_file(weights, folder / name)
    return folder


@pytest.mark.parametrize(
    ("vision", "name", "tower", "prefix"),
    [
        (VISION, "open_clip_model.safetensors", "clip", "visual."),
        (VISION, "open_clip_pytorch_model.bin", "clip", "visual."),
        (
            {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"},
            "open_clip_model.safetensors",
            "timm:test_vit",
            "visual.trunk.",
        ),
    ],
)
def test_the_tower_of_a_folder_has_its_weights(tmp_path, vision, name, tower, prefix) -> None:
    if "timm_model_name" in vision:
        vision = {**vision, "image_size": 160}
    folder = saved(tmp_path / "clip", vision, quick_gelu=tower == "clip", name=name)
    found = read_tower_folder(folder)
    assert (found.name, found.weights, found.mean) == (tower, folder / name, (0.2, 0.3, 0.4))
    size = 160 if "timm_model_name" in vision else 64
    made = TappedTower(found.tower((0, 2)), size, str(found.weights)).tower
    trunk = getattr(made, "trunk", made)
    weights = torch.load(folder / name) if name.endswith(".bin") else load_file(folder / name)
    for key, value in trunk.state_dict().items():
        assert torch.equal(value, weights[prefix + key]), key
    if tower == "clip":
        assert "QuickGELU" in {type(module).__name__ for module in made.modules()}


@pytest.mark.parametrize(
    ("config", "weights", "says"),
    [
        (None, True, "open_clip_config.json cannot be read"),
        ("{", True, "is no configuration of a CLIP model"),
        ('{"model_cfg": {"embed_dim": 3}}', True, "is no configuration of a CLIP model"),
        ('{"model_cfg": {"embed_dim": 3, "vision_cfg": {}}}', False, "has no weights; put open_c"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, config, weights, says) -> None:
    if config is not None:
        (tmp_path / "open_clip_config.json").write_text(config)
    if weights:
        (tmp_path / "open_clip_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=says):
        read_tower_folder(tmp_path)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Stripes across and down, eight of each."""
    for number in range(16):
        rng = np.random.default_rng(number)
        wave = 127 + 100 * np.sin(np.arange(SIDE) * rng.uniform(0.3, 1.2) + rng.uniform(0, 6))
        rows = np.repeat(wave[:, None], SIDE, axis=1) + rng.normal(0, 10, (SIDE, SIDE))
        pixels = (rows if number % 2 else rows.T).clip(0, 255).astype(np.uint8)
        folder = tmp_path / "archive" / ("across", "down")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "archive"


def said(*arguments: object) -> dict:
    return json.loads(run(*arguments, "--json").splitlines()[-1])


@pytest.mark.slow
def test_an_archive_changes_over_to_a_model_of_a_clip_tower(
    indexed, archive, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("PRECEDENT_INDEXING__READERS", "1")
    clip = saved(tmp_path / "clip", VISION, name="open_clip_model.safetensors")
    model, data = tmp_path / "model", tmp_path / "data"
    quick = ("--size", SIDE, "--taps", 0, 2, "--epochs", 1, "--batch-size", 8)
    options = (*quick, "--decoder-epochs", 0, "--normalise", "fixed", "--freeze-tower")
    trained = said("train", archive, "--out", model, "--tower", clip, *options)
    manifest = read_manifest(model)
    assert trained["model"] == manifest.fingerprint
    assert (manifest.network.tower.name, manifest.preprocess.mean) == ("clip", (0.2, 0.3, 0.4))
    # The tower is the folder's, and the model needs it no more.
    own, theirs = load_file(model / WEIGHTS), load_file(clip / "open_clip_model.safetensors")
    (kept,) = [value for key, value in own.items() if key.endswith("tower.class_embedding")]
    assert torch.allclose(kept.float(), theirs["visual.class_embedding"], atol=1e-3)
    for file in clip.iterdir():
        file.unlink()
    where = ("--data-dir", data)
    report = said("index", archive, *where, "--model", indexed.settings.model)
    assert report["indexed"] == 16
    done = said("reencode", *where, "--model", model)
    assert done["model"] == manifest.fingerprint
    image = archive / "down" / "1.png"
    answer = said("search", image, *where, "--model", model, "-k", 3)
    assert answer["evidence"]["model"] == manifest.fingerprint
    assert answer["hits"][0]["path"] == str(image)
    again = said("index", archive, "--data-dir", tmp_path / "new", "--model", model)
    assert again["indexed"] == 16
