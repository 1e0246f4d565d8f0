"""An image's bits are its own: whatever the batch, its size, the order and the threads.

Each test runs on this processor; ``test_processors`` runs them again as on others.
"""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from engine import reproducibility
from engine.model.checkpoint import save_checkpoint
from engine.model.config import TowerConfig
from engine.model.encoder import Encoder
from engine.model.invariance import BatchInvariant, attended, conv2d, image_mean, linear
from engine.model.manifest import SHIPPED
from engine.model.preprocess import Preprocess

IMAGES = 5
TOWERS = {
    "resnet": TowerConfig("timm:test_resnet", taps=(2, 4)),
    "convnext": TowerConfig("timm:test_convnext", taps=(1, 3)),
    "efficientnet": TowerConfig("timm:test_efficientnet", taps=(1, 3)),
    "vit": TowerConfig("timm:test_vit", taps=(1, 3)),
    "open_clip ResNet": TowerConfig("RN50", {"layers": [1, 1, 1, 1], "width": 8}, (2, 4)),
    "open_clip ViT": TowerConfig("ViT-S-16", {"layers": 3, "width": 32, "head_width": 8}, (0, 2)),
}


@pytest.fixture
def threads():
    """Sets the number of threads, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def canvases(size: int, count: int = IMAGES) -> list[np.ndarray]:
    """Smooth random pictures: noise would leave most features at zero."""
    coarse = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    smooth = functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return list((smooth[:, 0] * 255).byte().numpy())


def bits_of(encoder: Encoder, images: list[np.ndarray]) -> list[bytes]:
    seen = encoder.observe(images)
    parts = (seen.z, seen.codes, seen.logits, seen.reconstruction, seen.appearance, seen.maps)
    return [
        b"".join(part[i].tobytes() for part in parts if part is not None)
        for i in range(len(images))
    ]


def assert_invariant(made, images, threads) -> None:
    """``made(batch_size)`` gives an encoder; every way to ask it gives each image its bits."""
    threads(1)
    expected = bits_of(made(IMAGES), images)
    assert len(set(expected)) == len(images)
    order = np.random.default_rng(1).permutation(len(images))
    for count in (1, 2, 3):
        threads(count)
        for size in (1, 2, IMAGES):
            assert bits_of(made(size), images) == expected, (count, size)
        shuffled = bits_of(made(3), [images[i] for i in order])
        assert [shuffled[i] for i in np.argsort(order)] == expected, count
        assert bits_of(made(32), [np.zeros_like(images[0]), images[2]])[1] == expected[2]


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_the_shipped_model_gives_an_image_its_bits_in_every_batch(precision, threads):
    loaded = Encoder.load(SHIPPED, precision=precision)

    def made(batch_size):
        return Encoder(
            loaded._network,
            loaded.manifest,
            decoder=loaded._decoder,
            precision=precision,
            batch_size=batch_size,
        )

    assert_invariant(made, canvases(loaded.manifest.preprocess.size), threads)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", TOWERS)
def test_every_kind_of_tower_gives_an_image_its_bits_in_every_batch(
    name, precision, build, tiny_config, threads, tmp_path
):
    preprocess = Preprocess(size=224)  # large enough that one image is worth two threads
    network = build(preprocess=preprocess, tower=TOWERS[name])
    config = replace(tiny_config, tower=TOWERS[name])
    manifest = save_checkpoint(tmp_path, network, config, preprocess, ("a", "b", "c"), {})

    def made(batch_size):
        return Encoder(network, manifest, precision=precision, batch_size=batch_size)

    assert_invariant(made, canvases(preprocess.size), threads)


# The pieces, beside PyTorch's own


@pytest.mark.parametrize("padding", [0, 1, (2, 0), "same", "valid"])
@pytest.mark.parametrize(
    ("kernel", "groups", "dilation"), [(1, 1, 1), (3, 1, 1), (3, 4, 2), ((2, 5), 2, 1), (4, 8, 1)]
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_a_convolution_is_pytorch_s(kernel, groups, dilation, padding):
    layer = torch.nn.Conv2d(8, 16, kernel, padding=padding, groups=groups, dilation=dilation)
    x = torch.randn(3, 8, 20, 21, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = layer(x)
        with BatchInvariant():
            found = layer(x)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_stride_is_pytorch_s():
    x, weight = torch.randn(2, 3, 17, 17), torch.randn(5, 3, 3, 3)
    for stride in (2, (3, 1)):
        assert torch.allclose(
            conv2d(x, weight, stride=stride), functional.conv2d(x, weight, stride=stride), atol=1e-5
        )


@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 7), (2, 3, 7), (2, 3, 4, 7), (0, 7)])
def test_a_product_with_weights_is_pytorch_s(shape):
    x, weight, bias = torch.randn(*shape), torch.randn(4, 7), torch.randn(4)
    expected = functional.linear(x, weight, bias)
    assert linear(x, weight, bias).shape == expected.shape
    assert torch.allclose(linear(x, weight, bias), expected, atol=1e-5)
    with BatchInvariant():
        assert torch.allclose(x @ weight.t(), functional.linear(x, weight), atol=1e-5)
        assert torch.allclose(torch.matmul(x, weight.t()), functional.linear(x, weight), atol=1e-5)


def test_what_is_no_product_with_weights_is_left_alone():
    single, batched = torch.randn(3, 4, 5), torch.randn(3, 5, 6)
    doubles = torch.randn(2, 3, dtype=torch.float64)
    with BatchInvariant():
        assert torch.equal(single @ batched, torch.bmm(single, batched))
        assert functional.linear(doubles, doubles).dtype == torch.float64
        assert torch.equal(torch.arange(3) @ torch.arange(3), torch.tensor(5))


FUNCTIONS = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.Tensor.tanh,
    "exp": torch.exp,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_activation_is_pytorch_s_and_knows_no_neighbours(name, threads):
    function = FUNCTIONS[name]
    x = torch.randn(7, 5, 97, 31, generator=torch.Generator().manual_seed(0))
    with BatchInvariant():
        for laid_out in (x, x.contiguous(memory_format=torch.channels_last), x[:, :, ::2]):
            threads(1)
            expected = function(laid_out)
            assert torch.allclose(expected, function(laid_out.double()).float(), atol=1e-6)
            threads(3)
            assert torch.equal(function(laid_out), expected)
            for i in range(len(x)):
                assert torch.equal(function(laid_out[i : i + 1]), expected[i : i + 1])
        assert function(x[:0]).shape == x[:0].shape


def test_an_activation_in_place_is_in_place():
    x = torch.randn(3, 5)
    expected, kept = torch.sigmoid(x), x
    with BatchInvariant():
        assert x.sigmoid_() is kept
    assert torch.allclose(x, expected, atol=1e-6)
    for layer in (torch.nn.SiLU(inplace=True), torch.nn.ReLU(inplace=True)):
        y = torch.randn(2, 3, 4, 4)
        expected = layer(y.clone())
        with BatchInvariant():
            found = layer(y)
        assert found.data_ptr() == y.data_ptr()
        assert torch.allclose(y, expected, atol=1e-6)


def test_attention_is_pytorch_s():
    attention = torch.nn.MultiheadAttention(32, 4).eval()
    x = torch.randn(6, 3, 32)
    mask = torch.triu(torch.ones(6, 6, dtype=torch.bool), 1)
    with torch.inference_mode():
        for asked in (
            {"need_weights": False},
            {"need_weights": True},
            {"need_weights": False, "attn_mask": mask},
        ):
            expected = attention(x, x, x, **asked)
            with BatchInvariant():
                found = attention(x, x, x, **asked)
            assert torch.allclose(found[0], expected[0], atol=1e-5)
            assert (found[1] is None) == (expected[1] is None)


def test_a_mean_is_that_of_the_whole_image(threads):
    threads(2)
    x = torch.rand(2, 3, 300, 300, generator=torch.Generator().manual_seed(0))
    means = image_mean(x)
    assert means.shape == (2, 1, 1, 1)
    assert torch.allclose(means, x.mean(dim=(1, 2, 3), keepdim=True), atol=1e-6)
    assert torch.equal(image_mean(x[:1]), means[:1])


def test_bfloat16_is_the_same_where_the_processor_lacks_it(monkeypatch):
    """Emulated, products are summed in float32 and rounded once, as the hardware does it."""
    x = torch.randn(2, 16, 9, 9, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(8, 16, 3, 3, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("engine.model.invariance._multiplies_bfloat16", lambda: False)
    with torch.autocast("cpu", torch.bfloat16):
        emulated = conv2d(x, weight)
    assert emulated.dtype == torch.bfloat16
    rounded = functional.conv2d(x.bfloat16().double(), weight.bfloat16().double())
    # bfloat16 has eight significant bits.
    assert torch.allclose(emulated.double(), rounded, rtol=2**-8, atol=2**-8)


# What has to be settled before PyTorch is loaded


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env={
            **{k: v for k, v in __import__("os").environ.items() if k != "MKL_CBWR"},
            **environment,
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout + done.stderr


LOAD = "from engine.model.encoder import Encoder; Encoder.load(__import__('pathlib').Path({!r}))"


@pytest.mark.slow
@pytest.mark.parametrize(
    "first", ["indexer.pipeline.indexing", "api.cli.main", "bench.runs", "indexer.jobs.dispatch"]
)
def test_whatever_is_imported_first_nothing_is_short(first):
    assert run(f"import {first}; " + LOAD.format(str(SHIPPED))) == ""


@pytest.mark.slow
def test_importing_the_engine_asks_for_strict_sums_and_warns_of_nothing():
    code = LOAD.format(str(SHIPPED)) + "; import os; print(os.environ['MKL_CBWR'])"
    assert run(code).strip() == "AUTO,STRICT"


@pytest.mark.slow
def test_where_torch_came_first_the_encoder_warns():
    said = run("import torch; " + LOAD.format(str(SHIPPED)))
    assert "NotReproducible" in said
    assert "import engine first" in said


@pytest.mark.slow
def test_where_the_environment_asks_for_less_the_encoder_warns():
    said = run(LOAD.format(str(SHIPPED)), MKL_CBWR="COMPATIBLE")
    assert "NotReproducible" in said
    assert "'COMPATIBLE'" in said
    assert "NotReproducible" not in run(LOAD.format(str(SHIPPED)), MKL_CBWR="AVX2,STRICT")


def test_nothing_is_short_here():
    assert reproducibility.shortfall() is None


def test_attention_does_not_depend_on_how_a_batch_of_one_lies_in_memory():
    """Heads of a map in the channels-last layout: alone, its axis of images has another stride."""
    maps = torch.randn(5, 3 * 3 * 3 * 2 * 32, generator=torch.Generator().manual_seed(0))

    def heads(count):
        rows = maps[:count].reshape(count, 9, 3, 2, 32)
        q, k, v = rows.permute(2, 0, 3, 1, 4)
        if count == 1:
            q, k, v = (x.as_strided(x.shape, (64, *x.stride()[1:])) for x in (q, k, v))
        return q, k, v

    with torch.inference_mode():
        several, alone = attended(*heads(5)), attended(*heads(1))
        ours = functional.scaled_dot_product_attention(*heads(5))
    assert torch.equal(several[:1], alone)
    assert torch.allclose(several, ours, atol=1e-6)
