"""The network's parts, each beside the slow obvious version of its formula."""

import json
from dataclasses import fields, replace
from math import ceil

import numpy as np
import pytest
import torch
from torch import nn

from engine.errors import ModelError
from engine.model.backbone import TappedTower
from engine.model.config import (
    FUSIONS,
    DarfConfig,
    HeadConfig,
    NetworkConfig,
    TowerConfig,
    from_dict,
    small_network,
    to_dict,
)
from engine.model.darf import ConvMSA, CrossAttentionFusion, Darf, PixelTransformer
from engine.model.hashing import HashHead, KanLinear
from engine.model.network import HashingNetwork, InputNormalisation
from engine.model.preprocess import Preprocess

TINY_VIT = {"layers": 3, "width": 32, "head_width": 16}
TINY_RESNET = {"layers": [1, 1, 1, 1], "width": 8}
SMALL_DARF = small_network(3).darf


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter drawn anew, so that none of them is where a mistake would not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return module.eval()


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Towers


@pytest.mark.parametrize(
    ("config", "size", "shapes"),
    [
        (TowerConfig("timm:test_resnet", taps=(2, 4)), 64, ((48, 8, 8), (96, 2, 2))),
        (TowerConfig("timm:test_resnet", taps=(-3, -1)), 48, ((48, 6, 6), (96, 2, 2))),
        (TowerConfig("timm:test_convnext", taps=(1, 3)), 64, ((32, 8, 8), (64, 2, 2))),
        (TowerConfig("timm:test_vit", taps=(1, 3)), 64, ((64, 4, 4), (64, 4, 4))),
        (TowerConfig("ViT-S-16", TINY_VIT, (0, 2)), 64, ((32, 4, 4), (32, 4, 4))),
        (
            TowerConfig("ViT-B-32", {**TINY_VIT, "patch_size": 8}, (1, -1)),
            48,
            ((32, 6, 6), (32, 6, 6)),
        ),
        (TowerConfig("RN50", TINY_RESNET, (2, 4)), 64, ((64, 8, 8), (256, 2, 2))),
        (TowerConfig("RN50", TINY_RESNET, (1, 3)), 96, ((32, 24, 24), (128, 6, 6))),
    ],
    ids=lambda value: f"{value.name}{value.taps}" if isinstance(value, TowerConfig) else None,
)
def test_towers_give_the_maps_they_declare(config, size, shapes):
    tower = TappedTower(config, size).eval()
    assert tower.shapes == shapes
    with torch.no_grad():
        shallow, deep = tower(torch.rand(2, 3, size, size))
    assert (shallow.shape, deep.shape) == ((2, *shapes[0]), (2, *shapes[1]))
    assert shallow.std() > 0
    assert deep.std() > 0


@pytest.mark.parametrize(
    ("config", "size", "named"),
    [
        (TowerConfig("timm:no_such_model"), 64, "no_such_model"),
        (TowerConfig("no-such-model"), 64, "no-such-model"),
        (TowerConfig("timm:test_vit", taps=(1, 9)), 64, r"\(1, 9\)"),
        (TowerConfig("timm:test_resnet", taps=(4, 4)), 64, r"\(4, 4\)"),
        (TowerConfig("timm:test_vit", taps=(1, 3)), 50, "50 pixels"),
        (TowerConfig("ViT-S-16", TINY_VIT, (0, 2)), 8, "8 pixels"),
    ],
)
def test_towers_that_cannot_be_are_refused_by_name(config, size, named):
    with pytest.raises(ModelError, match=named):
        TappedTower(config, size)


def test_an_unknown_vision_field_is_refused_by_name():
    with pytest.raises(ModelError, match="layerz"):
        TappedTower(TowerConfig("ViT-S-16", {"layerz": 3}, (0, 2)), 64)


def test_pretrained_weights_go_with_named_towers_only():
    with pytest.raises(ModelError, match="openai"):
        TappedTower(TowerConfig("timm:test_resnet"), 64, pretrained="openai")


def test_probing_leaves_the_batch_statistics_alone():
    tower = TappedTower(TowerConfig("timm:test_resnet"), 64)
    assert tower.training
    norms = [m for m in tower.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(norm.num_batches_tracked == 0 for norm in norms)


# Windowed attention


def naive_conv_msa(module: ConvMSA, x: torch.Tensor, window: int, heads: int) -> torch.Tensor:
    """Window by window, head by head, pair by pair, over the cells that exist; no padding."""
    n, _, height, width = x.shape
    h = ceil(height / ceil(height / window))
    w = ceil(width / ceil(width / window))
    qkv_weight = module.to_qkv.weight[:, :, 0, 0]
    inner = qkv_weight.shape[0] // 3
    d = inner // heads
    mixed = torch.zeros(n, inner, height, width)
    for image in range(n):
        for top in range(0, height, h):
            for left in range(0, width, w):
                cells = [
                    (i, j)
                    for i in range(top, min(top + h, height))
                    for j in range(left, min(left + w, width))
                ]
                values = torch.stack([x[image, :, i, j] for i, j in cells])
                q, k, v = (values @ qkv_weight.T).split(inner, dim=1)
                for head in range(heads):
                    part = slice(head * d, (head + 1) * d)
                    scores = torch.empty(len(cells), len(cells))
                    for a, (i, j) in enumerate(cells):
                        for b, (k_i, k_j) in enumerate(cells):
                            index = (i - k_i + h - 1) * (2 * w - 1) + (j - k_j + w - 1)
                            scores[a, b] = (
                                q[a, part] @ k[b, part] / d**0.5 + module.bias[head, index]
                            )
                    out = scores.softmax(dim=1) @ v[:, part]
                    for a, (i, j) in enumerate(cells):
                        mixed[image, part, i, j] = out[a]
    return x + module.to_out(mixed)


@pytest.mark.parametrize(
    ("height", "width", "window"),
    [(6, 6, 3), (5, 7, 3), (7, 7, 7), (3, 4, 7), (1, 5, 2), (8, 8, 7)],
)
@torch.no_grad()
def test_windowed_attention_is_the_naive_loop_over_real_cells(height, width, window):
    module = randomised(ConvMSA((4, height, width), window, heads=2, head_dim=3))
    x = noise(2, 4, height, width)
    expected = naive_conv_msa(module, x, window, heads=2)
    assert torch.allclose(module(x), expected, atol=1e-5)
    assert not torch.allclose(module(x), x, atol=0.1)


@torch.no_grad()
def test_windowed_attention_is_residual():
    module = randomised(ConvMSA((4, 5, 7), 3, heads=2, head_dim=3))
    nn.init.zeros_(module.to_out.weight)
    nn.init.zeros_(module.to_out.bias)
    x = noise(2, 4, 5, 7)
    assert torch.equal(module(x), x)


@torch.no_grad()
def test_a_cell_speaks_to_its_own_window_only():
    module = randomised(ConvMSA((4, 5, 7), 3, heads=2, head_dim=3))  # windows of 3 × 3
    x = noise(1, 4, 5, 7)
    changed = x.clone()
    changed[0, :, 4, 6] += 1
    moved = (module(changed) - module(x)).abs().amax(dim=(0, 1)) > 1e-6
    expected = torch.zeros(5, 7, dtype=torch.bool)
    expected[3:, 6:] = True
    assert torch.equal(moved, expected)


# Cross-attention


@torch.no_grad()
def test_cross_attention_is_the_naive_loop():
    heads, d, out = 2, 3, 5
    module = randomised(CrossAttentionFusion(4, 6, heads, d, out))
    shallow, deep = noise(2, 4, 3, 3), noise(2, 6, 3, 3, seed=2)
    expected = torch.zeros(2, out)
    for image in range(2):
        cells = [(i, j) for i in range(3) for j in range(3)]
        for i, j in cells:
            q = module.to_q.weight[:, :, 0, 0] @ shallow[image, :, i, j]
            joined = []
            for head in range(heads):
                part = slice(head * d, (head + 1) * d)
                scores, values = [], []
                for k_i, k_j in cells:
                    k, v = (module.to_kv.weight[:, :, 0, 0] @ deep[image, :, k_i, k_j]).chunk(2)
                    scores.append(q[part] @ k[part] / d**0.5)
                    values.append(v[part])
                joined.append(torch.stack(scores).softmax(0) @ torch.stack(values))
            u = module.to_out.weight[:, :, 0, 0] @ torch.cat(joined) + module.to_out.bias
            expected[image] += u / len(cells)
    assert torch.allclose(module(shallow, deep), expected, atol=1e-5)


@torch.no_grad()
def test_the_query_comes_from_the_shallow_map():
    module = randomised(CrossAttentionFusion(4, 6, heads=2, head_dim=3, out=5))
    flat = noise(1, 6, 1, 1).expand(1, 6, 3, 3)
    one, other = noise(1, 4, 3, 3), noise(1, 4, 3, 3, seed=2)
    # Where all values are the same, it does not matter which of them the query attends to.
    assert torch.allclose(module(one, flat), module(other, flat), atol=1e-6)
    varied = noise(1, 6, 3, 3, seed=3)
    assert not torch.allclose(module(one, varied), module(other, varied), atol=1e-3)


# Pixel transformer and the blended feature


@torch.no_grad()
def test_the_pixel_transformer_gives_a_global_and_a_local_vector():
    config = replace(SMALL_DARF, global_dim=7, local_dim=9)
    module = randomised(PixelTransformer((6, 3, 2), config))
    x = noise(4, 6, 3, 2)
    whole, local = module(x)
    assert (whole.shape, local.shape) == ((4, 7), (4, 9))
    alone, _ = module(x[2:3])
    assert torch.allclose(alone[0], whole[2], atol=1e-4, rtol=1e-3)
    turned, _ = module(x.flip(2))
    assert not torch.allclose(turned, whole, atol=1e-2)  # it knows where a cell lies


@pytest.mark.parametrize("shallow", [(8, 8, 8), (8, 5, 6)])
@torch.no_grad()
def test_the_blended_feature_is_global_local_u(shallow):
    config = replace(SMALL_DARF, global_dim=7, local_dim=9, cross_dim=11, window=3)
    module = randomised(Darf(shallow, (6, 2, 3), config))
    maps = noise(2, *shallow), noise(2, 6, 2, 3)
    z = module(*maps)
    assert z.shape == (2, config.dim) == (2, 27)
    pixels, cross = module.branches
    whole, local = pixels.pixels(maps[1])
    u = cross.cross(cross.query(maps[0]), cross.key(maps[1]))
    assert torch.allclose(z, torch.cat([whole, local, u], dim=1), atol=1e-5)
    other_shallow = module(noise(2, *shallow, seed=5), maps[1])
    assert torch.allclose(other_shallow[:, :16], z[:, :16], atol=1e-5)
    assert not torch.allclose(other_shallow[:, 16:], z[:, 16:], atol=1e-3)


@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_every_fusion_gives_a_z_of_the_same_length_from_the_maps_it_names(fusion):
    config = replace(SMALL_DARF, fusion=fusion, global_dim=7, local_dim=9, cross_dim=11, window=3)
    module = randomised(Darf((4, 6, 6), (6, 2, 3), config))
    shallow, deep = noise(2, 4, 6, 6), noise(2, 6, 2, 3)
    z = module(shallow, deep)
    assert z.shape == (2, 27)
    uses_shallow = not torch.allclose(module(noise(2, 4, 6, 6, seed=5), deep), z, atol=1e-4)
    assert uses_shallow == (fusion not in ("pixels", "deep"))
    assert not torch.allclose(module(shallow, noise(2, 6, 2, 3, seed=5)), z, atol=1e-4)


def test_swapped_roles_are_not_the_paper_s():
    config = replace(SMALL_DARF, window=3)
    maps = (4, 6, 6), (6, 2, 3)
    sizes = {
        fusion: {
            name: parameter.shape
            for name, parameter in Darf(*maps, replace(config, fusion=fusion)).named_parameters()
            if name.endswith("cross.to_q.weight")
        }.popitem()[1][1]
        for fusion in ("darf", "swapped")
    }
    assert sizes == {"darf": 4, "swapped": 6}  # channels that the query is made of


def test_an_unknown_fusion_is_refused():
    with pytest.raises(ModelError, match="'sum'"):
        NetworkConfig(darf=replace(SMALL_DARF, fusion="sum"))


# Hash head


def cox_de_boor(knots: list[float], i: int, p: int, x: float) -> float:
    """The textbook recursion for one basis at one place."""
    if p == 0:
        return float(knots[i] <= x < knots[i + 1])
    left = (x - knots[i]) / (knots[i + p] - knots[i])
    right = (knots[i + p + 1] - x) / (knots[i + p + 1] - knots[i + 1])
    return left * cox_de_boor(knots, i, p - 1, x) + right * cox_de_boor(knots, i + 1, p - 1, x)


@pytest.mark.parametrize(("grid", "order"), [(5, 3), (4, 2), (3, 1)])
def test_spline_bases_are_the_textbook_recursion(grid, order):
    span = 2.0
    layer = KanLinear(1, 1, grid, order, span)
    step = 2 * span / grid
    knots = [-span + step * i for i in range(-order, grid + order + 1)]
    # Off the knots, where a rounding error would change sides.
    places = np.random.default_rng(0).uniform(-5, 5, 200)
    expected = [[cox_de_boor(knots, i, order, x) for i in range(grid + order)] for x in places]
    found = layer.bases(torch.tensor(places, dtype=torch.float32)[:, None])[:, 0]
    assert np.allclose(found, expected, atol=1e-5)


def test_spline_bases_are_a_partition_of_unity_and_end():
    layer = KanLinear(1, 1, grid=5, order=3, span=2.0)
    inside = torch.linspace(-2, 1.999, 500)[:, None]
    assert torch.allclose(layer.bases(inside).sum(dim=2), torch.ones(500, 1), atol=1e-5)
    assert layer.bases(inside).min() >= -1e-6
    far = torch.tensor([[-4.5], [4.5], [-1e6], [1e6]])  # three intervals of 0.8 beyond 2
    assert torch.equal(layer.bases(far), torch.zeros(4, 1, 8))


@torch.no_grad()
def test_a_kan_layer_sums_one_curve_for_each_edge():
    layer = randomised(KanLinear(3, 2, grid=4, order=2))
    x = noise(5, 3)
    bases = layer.bases(x)
    expected = torch.zeros(5, 2)
    for out in range(2):
        for source in range(3):
            weights = layer.spline.weight[out, source * 6 : (source + 1) * 6]
            expected[:, out] += bases[:, source] @ weights
            expected[:, out] += layer.base.weight[out, source] * nn.functional.silu(x[:, source])
        expected[:, out] += layer.base.bias[out]
    assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["kan", "mlp"])
@torch.no_grad()
def test_heads_give_hidden_values_and_unbounded_logits(kind):
    head = HashHead(10, HeadConfig(bits=24, kind=kind, hidden=12)).eval()
    hidden, h = head(noise(4, 10) * 3)
    assert (hidden.shape, h.shape) == ((4, 12), (4, 24))
    last = head.second.base if kind == "kan" else head.second
    last.weight.mul_(50)
    assert head(noise(4, 10))[1].abs().max() > 1  # no tanh at the output


# The whole network


def test_the_defaults_are_the_paper_s():
    config = NetworkConfig()
    assert (config.darf.global_dim, config.darf.local_dim, config.darf.cross_dim) == (
        1536,
        1536,
        512,
    )
    assert config.darf.dim == 3584
    assert (config.head.kind, config.head.hidden, config.head.grid, config.head.order) == (
        "kan",
        512,
        5,
        3,
    )
    with torch.device("meta"):  # shapes only: no memory, no time
        network = HashingNetwork(replace(config, classes=10), Preprocess(size=224)).eval()
        output = network(torch.zeros(2, 1, 224, 224))
    assert network.tower.shapes == ((512, 28, 28), (2048, 7, 7))
    assert output.z.shape == (2, 3584)
    assert output.h.shape == (2, 64)
    assert output.logits.shape == (2, 10)


@torch.no_grad()
def test_the_small_network_has_the_declared_shapes():
    config = small_network(classes=5, bits=32, tower="timm:test_resnet")
    assert small_network(5).tower.name == "timm:regnetx_004"
    network = HashingNetwork(config, Preprocess(size=64)).eval()
    output = network(torch.rand(2, 1, 64, 64))
    assert output.z.shape == (2, 256)
    assert output.h.shape == (2, 32)
    assert output.logits.shape == (2, 5)
    assert torch.isfinite(output.z).all()


def test_without_classes_there_is_no_classifier(build):
    assert build(classes=0)(torch.rand(1, 1, 48, 48)).logits is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"head": HeadConfig(bits=12)}, "12"),
        ({"head": HeadConfig(bits=0)}, "0"),
        ({"head": HeadConfig(kind="cnn")}, "cnn"),
        ({"darf": DarfConfig(last_blocks=13)}, "13"),
        ({"darf": DarfConfig(last_blocks=0)}, "0"),
        ({"darf": DarfConfig(width=100)}, "100"),
    ],
)
def test_sizes_that_cannot_be_are_refused_by_value(change, named):
    with pytest.raises(ModelError, match=named):
        NetworkConfig(**change)


@pytest.mark.parametrize(
    "config",
    [
        NetworkConfig(),
        small_network(3, bits=128),
        NetworkConfig(TowerConfig("RN50", TINY_RESNET, (1, -1)), classes=2),
    ],
)
def test_a_config_survives_json(config):
    text = json.dumps(to_dict(config))
    assert from_dict(NetworkConfig, json.loads(text)) == config


def test_a_config_with_an_unknown_or_missing_field_is_refused():
    values = to_dict(NetworkConfig())
    values["darf"]["gridd"] = 7
    with pytest.raises(ModelError, match="gridd"):
        from_dict(NetworkConfig, values)
    # A field with a default may be missing: it was added later.
    kept = {f.name: f.default for f in fields(HeadConfig)}
    assert from_dict(HeadConfig, {}) == HeadConfig(**kept)


# Grey values


@torch.no_grad()
def test_standardised_images_do_not_depend_on_the_grey_window():
    module = InputNormalisation(Preprocess(normalise="standardise"))
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    seen = module(images)
    assert seen.shape == (3, 3, 16, 16)
    for factor, offset in [(0.5, 0.0), (0.3, 0.6), (1.0, -0.2)]:
        assert torch.allclose(module(images * factor + offset), seen, atol=1e-3)
    assert torch.allclose(seen.mean(dim=(1, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(seen.std(dim=(1, 2, 3), correction=0), torch.ones(3), atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.37, 1.0])
@torch.no_grad()
def test_a_constant_image_stays_finite(value, build):
    images = torch.full((1, 1, 48, 48), value)
    seen = InputNormalisation(Preprocess(normalise="standardise"))(images)
    assert torch.allclose(seen, torch.zeros(1, 3, 48, 48), atol=1e-3)
    output = build()(images)
    assert torch.isfinite(output.z).all()
    assert torch.isfinite(output.h).all()


@torch.no_grad()
def test_fixed_normalisation_is_per_channel():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    module = InputNormalisation(Preprocess(normalise="fixed", colour=True, mean=mean, std=std))
    images = torch.rand(2, 3, 8, 8)
    for channel in range(3):
        expected = (images[:, channel] - mean[channel]) / std[channel]
        assert torch.allclose(module(images)[:, channel], expected)
    grey = module(images[:, :1])
    assert torch.allclose(grey[:, 2], (images[:, 0] - 0.3) / 2.0)
