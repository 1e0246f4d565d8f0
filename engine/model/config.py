"""Configuration of the network, for the sizes of the paper as well as for a small CPU model."""

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

from engine.errors import ModelError

__all__ = [
    "FUSIONS",
    "DarfConfig",
    "HeadConfig",
    "NetworkConfig",
    "TowerConfig",
    "WordsConfig",
    "from_dict",
    "small_network",
    "to_dict",
]

_T = TypeVar("_T")

FUSIONS = {
    "darf": "global and local vector of the pixel transformer, and u",
    "swapped": "the same, with the query of u from the deep map, key and value from the shallow",
    "cross": "u alone: no pixel transformer",
    "pixels": "the pixel transformer's vectors alone: no shallow map",
    "concat": "both maps pooled, side by side, projected",
    "deep": "the deep map pooled, projected: the bottleneck that hashing usually starts from",
}


@dataclass(frozen=True, slots=True)
class TowerConfig:
    """An image tower that open_clip can build.

    name: an open_clip model ("RN50", "ViT-B-32", …), "timm:" and a timm model, or "clip": what
        ``vision`` describes.
    vision: fields of open_clip's vision configuration to override.
    taps: indices of the shallow and the deep intermediate, as ``forward_intermediates``
        counts them; negative ones count from the end.
    """

    name: str = "timm:resnet50"
    vision: dict[str, Any] = field(default_factory=dict)
    taps: tuple[int, int] = (2, 4)


@dataclass(frozen=True, slots=True)
class DarfConfig:
    """Depth-aware Representation Fusion. The defaults are the paper's (z has 3584 values).

    fusion: what z consists of, see :data:`FUSIONS`. The length of z does not depend on it, so that
        fusions can be compared.
    window, attention_heads, attention_head_dim: of the windowed attention on each tap.
    grid: side of the map to which both taps are pooled before they are fused.
    cross_heads, cross_head_dim, cross_dim: of the cross-attention; u has cross_dim values.
    width, depth, heads: of the pixel transformer. last_blocks: the outputs of this many last blocks
        are projected to the global (global_dim) and the local (local_dim) vector.
    """

    fusion: str = "darf"
    window: int = 7
    attention_heads: int = 8
    attention_head_dim: int = 64
    grid: int = 7
    cross_heads: int = 12
    cross_head_dim: int = 128
    cross_dim: int = 512
    width: int = 768
    depth: int = 12
    heads: int = 12
    last_blocks: int = 6
    global_dim: int = 1536
    local_dim: int = 1536

    @property
    def dim(self) -> int:
        """Length of the blended feature z."""
        return self.global_dim + self.local_dim + self.cross_dim


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """The hash head z → h. kind: "kan" (B-spline layers) or "mlp"."""

    bits: int = 64
    kind: str = "kan"
    hidden: int = 512
    grid: int = 5
    order: int = 3


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The configuration of the whole network. classes = 0: no classifier."""

    tower: TowerConfig = field(default_factory=TowerConfig)
    darf: DarfConfig = field(default_factory=DarfConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    classes: int = 0

    def __post_init__(self) -> None:
        if self.head.bits < 8 or self.head.bits % 8:
            raise ModelError(
                f"bits is {self.head.bits}; codes are packed in bytes, so use a multiple of 8"
            )
        if self.head.kind not in ("kan", "mlp"):
            raise ModelError(f"head kind is {self.head.kind!r}; use 'kan' or 'mlp'")
        if self.darf.fusion not in FUSIONS:
            raise ModelError(f"fusion is {self.darf.fusion!r}; use one of {', '.join(FUSIONS)}")
        if not 1 <= self.darf.last_blocks <= self.darf.depth:
            raise ModelError(
                f"last_blocks is {self.darf.last_blocks}; "
                f"use 1 to depth, which is {self.darf.depth}"
            )
        if self.darf.width % self.darf.heads:
            raise ModelError(
                f"width {self.darf.width} cannot be split over {self.darf.heads} heads; "
                "choose a multiple"
            )


@dataclass(frozen=True, slots=True)
class WordsConfig:
    """What a model compares texts with (engine/model/words.py).

    dim: length E of its vectors. sha256: of its two files together, hex.
    """

    dim: int
    sha256: str


def small_network(classes: int, bits: int = 64, tower: str = "timm:regnetx_004") -> NetworkConfig:
    """The configuration of a network for CPUs, with a blended feature z of 256 values."""
    return NetworkConfig(
        tower=TowerConfig(tower),
        darf=DarfConfig(
            window=7,
            attention_heads=2,
            attention_head_dim=32,
            grid=4,
            cross_heads=4,
            cross_head_dim=32,
            cross_dim=64,
            width=192,
            depth=4,
            heads=4,
            last_blocks=2,
            global_dim=96,
            local_dim=96,
        ),
        head=HeadConfig(bits=bits, hidden=128),
        classes=classes,
    )


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain JSON types."""
    return asdict(config)


def from_dict(kind: type[_T], values: dict[str, Any]) -> _T:
    """The config dataclass, nested ones included, that :func:`to_dict` converted.

    Raises:
        ModelError: a name is unknown, or a value is not of the kind expected.
    """
    hints = get_type_hints(kind)
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - names)
    if unknown:
        raise ModelError(
            f"{kind.__name__} has no field {unknown[0]!r}; the checkpoint was written by "
            "another version of precedent: update, or train again"
        )
    built: dict[str, Any] = {}
    for name, value in values.items():
        hint = hints[name]
        if isinstance(value, dict):  # of "A | None" it is an A
            hint = next((one for one in get_args(hint) if is_dataclass(one)), hint)
        if is_dataclass(hint):
            value = from_dict(hint, value)  # type: ignore[arg-type]
        elif isinstance(value, list):
            value = tuple(value)
        built[name] = value
    try:
        return kind(**built)
    except TypeError as error:
        raise ModelError(f"{kind.__name__}: {error}") from None
