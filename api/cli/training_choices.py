"""What options of ``precedent train`` stand for: network, start, preprocessing, loss, device."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast, get_args

from engine.errors import QueryError

if TYPE_CHECKING:
    from engine.model.config import NetworkConfig, TowerConfig
    from engine.model.encoder import Precision
    from engine.model.preprocess import Preprocess
    from engine.training.peers import PeerConfig
    from engine.training.sch import SchConfig

__all__ = [
    "SCH_LOSS",
    "device_named",
    "loss_named",
    "network_named",
    "precision_named",
    "preprocess_for",
    "quoted",
    "side_of",
    "start_of",
]

SCH_LOSS = "sch"
_NETWORKS = ("small", "paper")
_PAPER_SIZE = 224
_SHIPPED_START = "shipped"
_NO_START = "none"


def quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def network_named(
    name: str, tower: str | None, taps: tuple[int, int] | None, fusion: str, head: str, bits: int
) -> "NetworkConfig":
    """The configuration of the network; the number of classes is set later."""
    from engine.model.config import NetworkConfig, TowerConfig, small_network
    from engine.model.manifest import SHIPPED, read_manifest

    if name not in _NETWORKS:
        raise QueryError(f"--network is {name!r}; use one of {quoted(_NETWORKS)}")
    base = NetworkConfig()
    if name == "small":
        base = replace(small_network(0), tower=read_manifest(SHIPPED).network.tower)
    chosen = base.tower if tower in (None, base.tower.name) else TowerConfig(tower or "")
    return replace(
        base,
        tower=replace(chosen, taps=taps or chosen.taps),
        darf=replace(base.darf, fusion=fusion),
        head=replace(base.head, kind=head, bits=bits),
    )


def side_of(network: str, size: int | None) -> int:
    from engine.model.manifest import SHIPPED, read_manifest

    if size is not None:
        return size
    return read_manifest(SHIPPED).preprocess.size if network == "small" else _PAPER_SIZE


def start_of(pretrained: str | None, tower: "TowerConfig", normalise: str) -> str | None:
    """What the tower starts from, as :class:`TappedTower` takes it."""
    from engine.model.manifest import SHIPPED, WEIGHTS, read_manifest

    if pretrained == _NO_START:
        return None
    if pretrained is None:
        shipped = read_manifest(SHIPPED)
        known = shipped.network.tower
        alike = (tower.name, tower.vision) == (known.name, known.vision)
        if not alike or normalise != shipped.preprocess.normalise:
            return None
    return str(SHIPPED / WEIGHTS) if pretrained in (None, _SHIPPED_START) else pretrained


def preprocess_for(
    size: int, colour: bool, normalise: str, tower: "TowerConfig", pretrained: str | None
) -> "Preprocess":
    from engine.model.backbone import tower_statistics
    from engine.model.preprocess import Preprocess

    preprocess = Preprocess(size=size, colour=colour, normalise=normalise)
    if normalise != "fixed":
        return preprocess
    mean, std = tower_statistics(tower, pretrained)
    return replace(preprocess, mean=mean, std=std)


def precision_named(name: str) -> "Precision":
    from engine.model.encoder import Precision

    if name not in get_args(Precision):
        raise QueryError(f"--precision is {name!r}; use one of {quoted(get_args(Precision))}")
    return cast(Precision, name)


def loss_named(
    name: str, fingerprint: str | None, spread: float | None, labels: str
) -> "SchConfig | PeerConfig":
    from engine.training.peers import PEERS, PeerConfig
    from engine.training.sch import SchConfig

    if name == SCH_LOSS:
        plain = SchConfig() if fingerprint is None else SchConfig(fingerprint=fingerprint)
        return replace(plain, spread=spread, separate_means=True) if spread else plain
    if name not in PEERS:
        raise QueryError(f"--loss is {name!r}; use one of {quoted([SCH_LOSS, *PEERS])}")
    for option, given in (("--fingerprint", fingerprint), ("--spread", spread)):
        if given is not None:
            raise QueryError(f"{option} is of the loss {SCH_LOSS!r}, not of {name!r}; leave it out")
    if labels == "none":
        raise QueryError(f"--loss {name} needs labels; use {SCH_LOSS!r}, or other --labels")
    return PeerConfig(name)


def device_named(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise QueryError(
            f"--device is {name!r}, which cannot be used ({reason}); use 'cpu', or 'auto' for a "
            "GPU where there is one"
        ) from None
    return name
