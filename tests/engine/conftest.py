"""A network small enough to build and train within a test."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from engine.model.checkpoint import save_checkpoint
from engine.model.config import DarfConfig, HeadConfig, NetworkConfig, TowerConfig
from engine.model.encoder import Encoder
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess

_DARF = DarfConfig(
    window=3,
    attention_heads=2,
    attention_head_dim=8,
    grid=2,
    cross_heads=2,
    cross_head_dim=8,
    cross_dim=5,
    width=16,
    depth=2,
    heads=2,
    last_blocks=2,
    global_dim=6,
    local_dim=5,
)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Networks this small lose more to threads that wait for each other than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def preprocess() -> Preprocess:
    return Preprocess(size=48)


@pytest.fixture(scope="session")
def tiny_config() -> NetworkConfig:
    """z has 16 values, a code 64 bits."""
    return NetworkConfig(
        tower=TowerConfig("timm:test_resnet", taps=(2, 4)),
        darf=_DARF,
        head=HeadConfig(bits=64, hidden=16),
        classes=3,
    )


@pytest.fixture(scope="session")
def build(tiny_config, preprocess) -> Callable[..., HashingNetwork]:
    """A network in evaluation mode with random weights, BatchNorm statistics included."""

    def built(seed: int = 0, preprocess: Preprocess = preprocess, **changes) -> HashingNetwork:
        torch.manual_seed(seed)
        network = HashingNetwork(replace(tiny_config, **changes), preprocess)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        return network.eval()

    return built


@pytest.fixture(scope="session")
def encoder(build, tiny_config, preprocess, tmp_path_factory) -> Encoder:
    """Of such a network, with a fingerprint."""
    folder = tmp_path_factory.mktemp("model")
    manifest = save_checkpoint(folder, build(), tiny_config, preprocess, ("a", "b", "c"), {})
    return Encoder(build(), manifest, precision="fp32", batch_size=4)
