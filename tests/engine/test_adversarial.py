"""Attacks flip codes within their bound, and leave the network as they found it."""

import numpy as np
import pytest
import torch

from engine.errors import ModelError
from engine.model.encoder import canvas_tensor
from engine.ood.adversarial import as_canvases, fgsm, pgd

EPS = 4 / 255
STRONG = 32 / 255  # networks that were never trained hardly listen to less
ATTACKS = {
    "fgsm": lambda network, images, eps=EPS: fgsm(network, images, eps),
    "pgd": lambda network, images, eps=EPS: pgd(network, images, eps, steps=5),
}


@pytest.fixture(params=ATTACKS)
def attack(request):
    return ATTACKS[request.param]


@pytest.fixture
def images() -> torch.Tensor:
    """Smooth patterns that reach black and white."""
    coarse = torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.3
    enlarged = torch.nn.functional.interpolate(coarse, size=(48, 48), mode="bilinear")
    return (enlarged.clamp(0, 1) * 255).round() / 255


@torch.no_grad()
def flipped(network, images, changed) -> float:
    """Share of bits that differ."""
    return ((network(images).h >= 0) != (network(changed).h >= 0)).float().mean().item()


def test_no_pixel_changes_more_than_allowed_or_leaves_the_grey_range(build, images, attack):
    changed = attack(build(), images)
    assert changed.shape == images.shape
    assert changed.dtype == torch.float32
    assert not changed.requires_grad
    assert 0 < (changed - images).abs().max() <= EPS + 1e-6
    assert changed.min() >= 0
    assert changed.max() <= 1


def test_attacks_flip_more_bits_than_noise_of_the_same_strength(build, images, attack):
    network = build()
    drawn = torch.rand(images.shape, generator=torch.Generator().manual_seed(1))
    noise = (images + STRONG * torch.where(drawn < 0.5, -1, 1)).clamp(0, 1)
    by_noise = flipped(network, images, noise)
    assert flipped(network, images, attack(network, images, STRONG)) > 1.3 * by_noise > 0


def test_many_steps_flip_more_bits_than_one(build, images):
    network = build()
    one = flipped(network, images, fgsm(network, images, STRONG))
    many = flipped(network, images, pgd(network, images, STRONG, steps=10))
    assert many > 1.5 * one


def test_in_a_larger_ball_logits_are_driven_further_from_the_code(build, images):
    network = build()
    with torch.no_grad():
        code = torch.where(network(images).h >= 0, 1.0, -1.0)
        changed = [network(pgd(network, images, k / 255)).h for k in (1, 8, 32)]
        likeness = [torch.cosine_similarity(h, code).mean().item() for h in changed]
    assert likeness[0] > likeness[1] > likeness[2]


def test_the_network_is_left_as_it_was_found(build, images, attack):
    network = build().train()
    network.tower.eval()  # as where only a part is trained
    network.head.requires_grad_(False)
    network.darf.requires_grad_(True)
    some = next(network.darf.parameters())
    some.grad = torch.ones_like(some)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    wanted = [parameter.requires_grad for parameter in network.parameters()]
    attack(network, images)
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == wanted
    assert torch.equal(some.grad, torch.ones_like(some))
    assert sum(parameter.grad is not None for parameter in network.parameters()) == 1
    for name, value in network.state_dict().items():
        assert torch.equal(value, weights[name])


def test_the_network_is_left_as_it_was_found_when_the_attack_fails(build, attack):
    network = build().train()
    with pytest.raises(RuntimeError):
        attack(network, torch.rand(2, 5, 48, 48))
    assert all(module.training for module in network.modules())


def test_attacks_can_be_repeated_and_a_seed_decides_the_start(build, images, attack):
    network = build()
    assert torch.equal(attack(network, images), attack(network, images))
    one, other = (pgd(network, images, EPS, steps=1, seed=seed) for seed in (0, 1))
    assert not torch.equal(one, other)


def test_the_surroundings_of_the_call_do_not_change_the_attack(build, images, attack):
    network = build()
    plain = attack(network, images)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attack(network, images.clone()), plain)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda n, x: fgsm(n, x, 0), "eps.*0"),
        (lambda n, x: pgd(n, x, -0.1), "eps.*-0.1"),
        (lambda n, x: pgd(n, x, EPS, steps=0), "steps.*0"),
        (lambda n, x: pgd(n, x, EPS, step_size=0.0), "step_size.*0.0"),
    ],
)
def test_attacks_without_strength_are_refused(build, images, call, named):
    with pytest.raises(ModelError, match=named):
        call(build(), images)


@pytest.mark.parametrize("channels", [1, 3])
def test_adversarial_images_become_canvases_within_the_same_bound(channels):
    rng = np.random.default_rng(0)
    shape = (3, 48, 48, 3) if channels == 3 else (3, 48, 48)
    canvases = rng.integers(0, 256, shape, dtype=np.uint8)
    images = canvas_tensor(canvases)
    assert np.array_equal(as_canvases(images), canvases)
    sign = torch.where(torch.rand(images.shape) < 0.5, -1, 1)
    changed = as_canvases((images + EPS * sign).clamp(0, 1))
    assert np.abs(changed.astype(int) - canvases.astype(int)).max() == 4
