"""What makes training on processors faster changes no output and no gradient."""

import copy

import pytest
import torch
from torch import Tensor, nn

from engine.training.on_cpu import pad_before_depthwise


def gradients(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    images = images.clone().requires_grad_()
    output = network(images)
    output.square().sum().backward()
    found = {name: value.grad for name, value in network.named_parameters()}
    assert images.grad is not None
    return {"output": output.detach(), "images": images.grad, **found}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [1, 3, 4, 9])
def test_padding_before_gives_the_same(side: int, stride: int) -> None:
    torch.manual_seed(side)
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 5, stride, 2, groups=8), nn.Conv2d(8, 4, 3, 1, 1)
    )
    changed = copy.deepcopy(plain)
    pad_before_depthwise(changed)
    # It does something, to the depthwise one alone, and copies and stored weights still fit.
    assert [type(one) is nn.Conv2d for one in changed] == [True, False, True]
    changed = copy.deepcopy(changed)
    changed.load_state_dict(plain.state_dict())
    images = torch.randn(5, 3, side, side)
    expected, found = gradients(plain, images), gradients(changed, images)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_other_paddings_are_left_alone() -> None:
    kept = nn.Sequential(
        nn.Conv2d(8, 8, 5, groups=8),
        nn.Conv2d(8, 8, 5, padding="same", groups=8),
        nn.Conv2d(8, 8, 5, padding=2, groups=8, padding_mode="reflect"),
        nn.Conv2d(1, 1, 5, padding=2),
    )
    pad_before_depthwise(kept)
    assert all(type(one) is nn.Conv2d for one in kept)
