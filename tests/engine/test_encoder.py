"""An image's embedding and code are its own, whoever stands beside it in the batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.codes import pack_signs
from engine.errors import ModelError
from engine.model.checkpoint import save_checkpoint
from engine.model.decoder import Decoder, DecoderSize, reconstruction_scores, save_decoder
from engine.model.encoder import Encoder, canvas_tensor, centre_and_normalise, has_bfloat16
from engine.model.preprocess import Preprocess


@pytest.fixture(scope="module")
def manifest(build, tiny_config, preprocess, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return save_checkpoint(folder, build(), tiny_config, preprocess, ("a", "b", "c"), {})


@pytest.fixture
def encoder(build, manifest):
    def made(precision="fp32", batch_size=8):
        return Encoder(build(), manifest, precision=precision, batch_size=batch_size)

    return made


def canvases(count: int, *, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, (count, 48, 48), dtype=np.uint8))


def test_embeddings_are_centred_and_of_unit_length(encoder):
    found = encoder().encode(canvases(11))
    assert len(found) == 11
    assert (found.z.shape, found.z.dtype) == ((11, 16), np.float32)
    assert (found.codes.shape, found.codes.dtype) == ((11, 8), np.uint8)
    assert np.allclose(found.z.mean(axis=1), 0, atol=1e-6)
    assert np.allclose(np.linalg.norm(found.z, axis=1), 1, atol=1e-6)


@torch.no_grad()
def test_encoding_is_the_network_s_answer(encoder, build):
    images = canvases(5)
    found = encoder().encode(images)
    output = build()(canvas_tensor(np.stack(images)))
    expected = np.array([pack_signs(row) for row in output.h.numpy()])
    assert np.array_equal(found.codes, expected)
    naive = np.corrcoef(output.z.numpy())
    assert np.allclose(found.z @ found.z.T, naive, atol=1e-5)


def test_a_logit_of_zero_is_a_one(build, manifest):
    network = build()
    with torch.no_grad():
        for parameter in network.head.second.parameters():
            parameter.zero_()
    found = Encoder(network, manifest, batch_size=2).encode(canvases(3))
    assert (found.codes == 255).all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_neighbours_and_position_do_not_change_a_bit(encoder, precision, threads):
    torch.set_num_threads(threads)
    try:
        made = encoder(precision, batch_size=8)
        image, *others = canvases(20)
        alone = made.encode([image])
        for before in (1, 3, 7, 8, 12):
            among = made.encode([*others[:before], image, *others[before:]])
            assert among.z[before].tobytes() == alone.z[0].tobytes()
            assert among.codes[before].tobytes() == alone.codes[0].tobytes()
        beside_black = made.encode([np.zeros_like(image), image])
        assert beside_black.z[1].tobytes() == alone.z[0].tobytes()
        again = made.encode([image])
        assert again.z.tobytes() == alone.z.tobytes()
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("has_it", [False, True])
def test_on_a_cpu_the_default_is_what_every_processor_agrees_on(
    build, manifest, monkeypatch, has_it
):
    has = dict.fromkeys(("avx512_bf16", "amx_bf16", "bf16"), has_it)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: has)
    assert Encoder(build(), manifest).precision == "fp32"
    assert has_bfloat16("cpu") is has_it


def test_half_the_digits_say_nearly_the_same(encoder):
    images = canvases(6)
    full, half = (encoder(precision).encode(images) for precision in ("fp32", "bf16"))
    assert (full.z * half.z).sum(axis=1).min() > 0.98
    assert not np.array_equal(full.z, half.z)


def test_no_images_give_no_rows(encoder):
    found = encoder().encode([])
    assert len(found) == 0
    assert (found.z.shape, found.codes.shape) == ((0, 16), (0, 8))


@pytest.mark.parametrize("shape", [(47, 48), (64, 64), (48, 48, 3), (1, 48, 48)])
def test_a_canvas_of_another_shape_is_refused(encoder, shape):
    wrong = np.zeros(shape, dtype=np.uint8)
    with pytest.raises(ModelError, match=r"\(48, 48\)"):
        encoder().encode([*canvases(1), wrong])


def test_a_colour_model_wants_colour(build, tiny_config, tmp_path):
    pre = Preprocess(size=48, colour=True)
    network = build(preprocess=pre)
    manifest = save_checkpoint(tmp_path, network, tiny_config, pre, ("a", "b", "c"), {})
    encoder = Encoder.load(tmp_path, batch_size=4)
    assert encoder.manifest == manifest
    red = np.zeros((48, 48, 3), dtype=np.uint8)
    red[10:30, 10:20, 0] = 255
    green = red[:, :, [1, 0, 2]]
    found = encoder.encode([red, green])
    assert not np.allclose(found.z[0], found.z[1], atol=1e-3)
    with pytest.raises(ModelError, match=r"\(48, 48, 3\)"):
        encoder.encode(canvases(1))


def test_canvases_become_channels_first_in_the_unit_range():
    grey = np.arange(4, dtype=np.uint8).reshape(1, 2, 2) * 85
    assert torch.equal(canvas_tensor(grey)[0, 0], torch.tensor([[0, 1 / 3], [2 / 3, 1]]))
    colour = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    assert torch.equal(canvas_tensor(colour)[1, 2], torch.tensor(colour[1, :, :, 2]) / 255)


def test_a_vector_without_any_variation_stays_finite():
    z = np.array([[3, 3, 3], [1, 2, 3]], dtype=np.float32)
    unit = centre_and_normalise(z)
    assert unit[0].tolist() == [0, 0, 0]
    assert np.allclose(unit[1], np.array([-1, 0, 1]) / np.sqrt(2))


# Observations


@pytest.fixture
def decoder():
    torch.manual_seed(5)

    def made(network):
        return Decoder(network.tower.shapes[1], DecoderSize(bottleneck=4, width=8)).eval()

    return made


@pytest.fixture
def observer(build, manifest, decoder):
    def made(precision="fp32", batch_size=8):
        network = build()
        return Encoder(
            network,
            manifest,
            decoder=decoder(network),
            precision=precision,
            batch_size=batch_size,
        )

    return made


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_observing_gives_the_features_and_codes_of_encoding_to_the_bit(
    observer, encoder, precision
):
    images = canvases(11)
    encoded = encoder(precision).encode(images)
    for observed in (encoder(precision).observe(images), observer(precision).observe(images)):
        assert observed.z.tobytes() == encoded.z.tobytes()
        assert observed.codes.tobytes() == encoded.codes.tobytes()


@torch.no_grad()
def test_observations_are_the_network_s_and_the_decoder_s_answers(observer, build):
    images, made = canvases(5), observer()
    seen = made.observe(images)
    network, batch = build(), canvas_tensor(np.stack(images))
    assert np.allclose(seen.logits, network(batch).logits.numpy(), atol=1e-5)
    rebuilt = made._decoder(network.maps(batch)[1])
    expected = reconstruction_scores(batch, rebuilt).relative.numpy()
    assert np.allclose(seen.reconstruction, expected, atol=1e-5)
    assert (seen.reconstruction.shape, seen.reconstruction.dtype) == ((5,), np.float32)


def test_what_a_model_does_not_have_is_not_observed(build, tiny_config, preprocess, tmp_path):
    network = build(classes=0)
    manifest = save_checkpoint(
        tmp_path, network, replace(tiny_config, classes=0), preprocess, (), {}
    )
    seen = Encoder(network, manifest).observe(canvases(2))
    assert seen.logits is None
    assert seen.reconstruction is None
    assert len(seen) == 2


def test_no_images_give_no_observations(observer):
    seen = observer().observe([])
    assert (seen.z.shape, seen.codes.shape) == ((0, 16), (0, 8))
    assert (seen.logits.shape, seen.reconstruction.shape) == ((0, 3), (0,))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_neighbours_do_not_change_a_bit_of_what_is_observed(observer, precision):
    made = observer(precision)
    image, *others = canvases(12)
    alone = made.observe([image])
    for before in (1, 7, 8, 11):
        among = made.observe([*others[:before], image, *others[before:]])
        for name in ("z", "codes", "logits", "reconstruction"):
            assert getattr(among, name)[before].tobytes() == getattr(alone, name)[0].tobytes()


def test_a_model_is_loaded_with_its_decoder_and_keeps_it(
    build, tiny_config, preprocess, decoder, tmp_path
):
    network = build()
    manifest = save_checkpoint(tmp_path, network, tiny_config, preprocess, ("a", "b", "c"), {})
    without = Encoder.load(tmp_path)
    assert without.observe(canvases(1)).reconstruction is None
    assert without.decoder_fingerprint is None
    save_decoder(tmp_path, decoder(network), manifest.fingerprint, {})
    loaded = Encoder.load(tmp_path, batch_size=4)
    single = Encoder.load(tmp_path, batch_size=1)
    scores = [one.observe(canvases(3)).reconstruction for one in (loaded, single)]
    assert np.array_equal(*scores)
    assert loaded.decoder_fingerprint == single.decoder_fingerprint
    assert len(loaded.decoder_fingerprint) == 16
    save_decoder(tmp_path, decoder(network), "another", {})
    with pytest.raises(ModelError, match="delete the file"):
        Encoder.load(tmp_path)


def test_a_canvas_of_another_shape_is_not_observed(observer):
    with pytest.raises(ModelError, match=r"\(48, 48\)"):
        observer().observe([np.zeros((47, 48), dtype=np.uint8)])
