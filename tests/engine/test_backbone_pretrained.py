"""Towers that start from somebody's weights: taken over where they fit, refused where not."""

import pickle
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from engine.errors import ModelError
from engine.model.backbone import TappedTower, tower_statistics
from engine.model.checkpoint import save_checkpoint
from engine.model.config import TowerConfig
from engine.model.manifest import WEIGHTS

SIZE = 64
TIMM = TowerConfig("timm:test_resnet", taps=(2, 4))
VIT = TowerConfig("ViT-S-16", {"layers": 3, "width": 32, "head_width": 8}, (0, 2))
RESNET = TowerConfig("RN50", {"layers": [1, 1, 1, 1], "width": 8}, (2, 4))


def stirred(tower: nn.Module, seed: int = 0) -> nn.Module:
    """The tower with every number changed, as training would: norms start out all alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in tower.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand(value.shape, generator=generator) / 10)
    return tower


def clip_of(config: TowerConfig, size: int = SIZE) -> nn.Module:
    """The whole CLIP model, as open_clip would train and save it."""
    known = open_clip.get_model_config(config.name)
    vision = {**known["vision_cfg"], **config.vision, "image_size": size}
    text = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 2, "layers": 1}
    return stirred(open_clip.CLIP(known["embed_dim"], vision, text))


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return stirred(timm.create_model("test_resnet"))


def same(tower: nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    own = tower.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in own.items())


def prefixed(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in weights.items()}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("plain.safetensors", lambda weights: weights),
        ("plain.pth", lambda weights: weights),
        ("trained.pth.tar", lambda weights: {"epoch": 3, "state_dict": weights}),
        ("parallel.pt", lambda weights: {"state_dict": prefixed(weights, "module.")}),
        ("clip.safetensors", lambda weights: prefixed(weights, "visual.trunk.")),
        ("deep.pth", lambda weights: prefixed(weights, "learner.encoder.backbone.")),
    ],
)
def test_a_timm_tower_takes_over_a_file(tmp_path, trained, name, form):
    path = tmp_path / name
    weights = {key: value.clone() for key, value in trained.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(form(weights), path)
    else:
        torch.save(form(weights), path)
    tower = TappedTower(TIMM, SIZE, str(path))
    assert same(tower.tower.trunk, weights)
    assert not same(TappedTower(TIMM, SIZE).tower.trunk, weights)


def test_a_tower_can_come_from_a_model_of_ones_own(tmp_path, build, tiny_config, preprocess):
    network = build()
    save_checkpoint(
        tmp_path, network, tiny_config, preprocess, ("a", "b", "c"), {}, dtype=torch.float16
    )
    tower = TappedTower(tiny_config.tower, 48, str(tmp_path / WEIGHTS))
    halved = {name: v.half().to(v.dtype) for name, v in network.tower.tower.state_dict().items()}
    assert same(tower.tower.trunk, {k.removeprefix("trunk."): v for k, v in halved.items()})
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.float32}


@pytest.mark.parametrize("config", [VIT, RESNET], ids=lambda config: config.name)
@pytest.mark.parametrize("form", ["clip.safetensors", "clip.pt"])
def test_an_open_clip_tower_takes_over_a_file(tmp_path, config, form):
    clip = clip_of(config)
    path = tmp_path / form
    save = save_file if path.suffix == ".safetensors" else torch.save
    save({name: value.clone() for name, value in clip.state_dict().items()}, path)
    tower = TappedTower(config, SIZE, str(path))
    assert same(tower.tower, clip.visual.state_dict())
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        _, deep = tower.eval()(images)
        expected = clip.visual.eval().forward_intermediates(
            images, indices=[config.taps[1]], intermediates_only=True
        )
    assert torch.equal(deep, expected["image_intermediates"][0])


def test_positions_are_resized_to_another_image(tmp_path):
    clip = clip_of(VIT, size=96)
    path = tmp_path / "clip.safetensors"
    save_file(clip.state_dict(), path)
    found = TappedTower(VIT, SIZE, str(path))
    tower = found.tower
    positions, original = tower.positional_embedding, clip.visual.positional_embedding
    assert positions.shape == (1 + 4 * 4, 32)
    assert torch.equal(positions[0], original[0])
    assert torch.allclose(positions[1:].mean(0), original[1:].mean(0), atol=0.02)
    assert found.missing == ()


def test_what_a_file_lacks_is_told_where_it_matters(tmp_path, trained):
    path = tmp_path / "lacking.pth"
    weights = trained.state_dict()
    torch.save({k: v for k, v in weights.items() if not k.startswith("layer2.0.bn1")}, path)
    tower = TappedTower(TIMM, SIZE, str(path))
    assert torch.equal(tower.tower.trunk.layer1[0].conv1.weight, weights["layer1.0.conv1.weight"])
    of_norm = ("weight", "bias", "running_mean", "running_var")
    assert tower.missing == tuple(f"layer2.0.bn1.{name}" for name in of_norm)
    assert {value.grad for value in tower.parameters()} == {None}


def test_counters_and_a_head_that_no_map_needs_are_not_missed(tmp_path):
    path = tmp_path / "lacking.safetensors"
    made = timm.create_model("test_efficientnet").state_dict()
    unneeded = ("conv_head", "bn2", "classifier")
    save_file(
        {
            name: value
            for name, value in made.items()
            if not name.startswith(unneeded) and not name.endswith("num_batches_tracked")
        },
        path,
    )
    assert TappedTower(TowerConfig("timm:test_efficientnet"), SIZE, str(path)).missing == ()


class _Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("text.pth", b"no weights at all", "cannot be read"),
        ("empty.pth", b"", "cannot be read"),
        ("text.safetensors", b"no weights at all", "cannot be read"),
        ("empty.safetensors", b"", "cannot be read"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ModelError, match=says) as refused:
        TappedTower(TIMM, SIZE, str(path))
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [[1, 2], 3, {"epoch": 3}, torch.zeros(3)])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=r"other\.pth"):
        TappedTower(TIMM, SIZE, str(tmp_path / "other.pth"))


def test_a_file_that_would_run_code_is_refused_without_running_it(tmp_path):
    path, trap = tmp_path / "trap.pth", tmp_path / "sprung"
    torch.save({"conv1.weight": _Trap(trap)}, path)
    with pytest.raises(ModelError, match="cannot be read"):
        TappedTower(TIMM, SIZE, str(path))
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(_Trap(trap)))
    with pytest.raises(ModelError, match="cannot be read"):
        TappedTower(TIMM, SIZE, str(tmp_path / "raw.pth"))
    assert not trap.exists()


def test_weights_of_another_tower_are_refused(tmp_path, trained):
    path = tmp_path / "resnet.pth"
    torch.save(trained.state_dict(), path)
    for config in (VIT, TowerConfig("timm:test_vit", taps=(1, 3)), TowerConfig("timm:resnet18")):
        with pytest.raises(ModelError, match=r"not of tower.*% of the values"):
            TappedTower(config, SIZE, str(path))


def test_most_of_a_tower_at_other_shapes_is_another_tower(tmp_path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "18.pth")
    with pytest.raises(ModelError, match="not of tower"):
        TappedTower(TowerConfig("timm:resnet34"), SIZE, str(tmp_path / "18.pth"))


@pytest.mark.parametrize(
    ("config", "pretrained", "says"),
    [
        (TIMM, "no/such/file.pth", r"'no/such/file\.pth'.*hub"),
        (TIMM, "openai", "'openai'.*hub"),
        (VIT, "hub", "'hub', which is no file"),
        (RESNET, "opanai", "'opanai'.*openai.*yfcc15m"),
        (TowerConfig("ViT-B-32", VIT.vision, (0, 2)), "openai", "ViT-B-32-quickgelu"),
        (
            TowerConfig("ViT-B-32-quickgelu", VIT.vision, (0, 2)),
            "laion2b_e16",
            "ViT-B-32-quickgelu",
        ),
    ],
)
def test_a_name_that_stands_for_nothing_is_refused(config, pretrained, says):
    with pytest.raises(ModelError, match=says):
        TappedTower(config, SIZE, pretrained)


@pytest.mark.parametrize(
    ("config", "pretrained"),
    [
        (TIMM, "hub"),
        (TIMM, "hf-hub:somebody/tower"),
        (RESNET, "openai"),
        (RESNET, "hf-hub:somebody/tower"),
    ],
)
def test_without_network_the_way_out_is_named(config, pretrained, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"cannot be fetched.*give its path") as refused:
        TappedTower(config, SIZE, pretrained)
    assert "\n" not in str(refused.value)


def test_a_quick_gelu_tower_has_that_activation_however_it_starts():
    """A checkpoint is loaded into a tower that is built without pretrained weights."""
    plain = TowerConfig("ViT-B-32", VIT.vision, (0, 2))
    kinds = [
        {type(module).__name__ for module in TappedTower(config, SIZE).modules()}
        for config in (plain, replace(plain, name="ViT-B-32-quickgelu"))
    ]
    assert ["QuickGELU" in kind for kind in kinds] == [False, True]


@pytest.mark.parametrize(
    ("name", "pretrained", "mean"),
    [
        ("timm:resnet50", "hub", 0.485),
        ("timm:vit_base_patch16_224", None, 0.5),
        ("convnext_base", "hub", 0.485),
        ("convnext_base", None, 0.48145466),
        ("RN50", "openai", 0.48145466),
        ("ViT-B-16-SigLIP", "some/file.safetensors", 0.5),
        ("ViT-S-16", None, 0.48145466),
    ],
)
def test_statistics_are_those_the_tower_learned_with(name, pretrained, mean):
    means, deviations = tower_statistics(TowerConfig(name), pretrained)
    assert means[0] == mean
    assert len(means) == len(deviations) == 3
    assert all(deviation > 0.1 for deviation in deviations)


def test_statistics_of_no_tower_are_refused():
    for name in ("timm:nothing", "nothing", "hf-hub:somebody/tower", "local-dir:."):
        with pytest.raises(ModelError, match="has no model"):
            tower_statistics(TowerConfig(name))
