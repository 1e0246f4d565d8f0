"""Depth-aware Representation Fusion (DaRF): two maps of a tower → the blended feature z.

Source: Nan et al., "Revisiting Medical Image Retrieval via Knowledge Consolidation",
Medical Image Analysis 2025, 103553, section 3.
"""

from dataclasses import replace
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.model.config import DarfConfig

__all__ = ["ConvMSA", "CrossAttentionFusion", "Darf", "PixelTransformer"]

MapShape = tuple[int, int, int]


class ConvMSA(nn.Module):
    """Windowed multi-head self-attention with a learned relative-position bias, residual.

    The map is split into windows of nearly equal size, at most ``window`` wide; where that
    does not come out even the map is padded, and padded cells are not attended to.

    Args:
        shape: (C, H, W) of the map.
        window: largest side of a window, in cells.
        heads, head_dim: of the attention.
    """

    bias_index: Tensor
    mask: Tensor

    def __init__(self, shape: MapShape, window: int, heads: int, head_dim: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.heads = heads
        self.rows, self.columns = ceil(height / window), ceil(width / window)
        self.window = (ceil(height / self.rows), ceil(width / self.columns))
        self.padding = (
            self.columns * self.window[1] - width,
            self.rows * self.window[0] - height,
        )
        self.to_qkv = nn.Conv2d(channels, 3 * heads * head_dim, 1, bias=False)
        self.to_out = nn.Conv2d(heads * head_dim, channels, 1)
        h, w = self.window
        self.bias = nn.Parameter(torch.zeros(heads, (2 * h - 1) * (2 * w - 1)))
        self.register_buffer("bias_index", _relative_index(h, w), persistent=False)
        real = F.pad(torch.ones(1, 1, height, width), (0, self.padding[0], 0, self.padding[1]))
        keys = self._split(real)[0, :, :, 0] > 0  # (windows, h·w)
        mask = torch.zeros_like(keys, dtype=torch.float32).masked_fill(~keys, float("-inf"))
        self.register_buffer("mask", mask[:, None, None, :], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x + attention(x), float (N, C, H, W) → the same shape."""
        n, _, height, width = x.shape
        padded = F.pad(x, (0, self.padding[0], 0, self.padding[1]))
        q, k, v = (self._split(part) for part in self.to_qkv(padded).chunk(3, dim=1))
        bias = self.bias[:, self.bias_index][None] + self.mask  # (windows, heads, hw, hw)
        bias = bias.to(q.dtype).flatten(0, 1)  # the same for every image
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        merged = self._merge(mixed, n)[:, :, :height, :width]
        out: Tensor = x + self.to_out(merged)
        return out

    def _split(self, x: Tensor) -> Tensor:
        """(N, heads·d, H, W) → (N, windows·heads, h·w, d); one head for a one-channel map."""
        n, channels = x.shape[:2]
        heads = min(self.heads, channels)
        h, w = self.window
        x = x.reshape(n, heads, channels // heads, self.rows, h, self.columns, w)
        x = x.permute(0, 3, 5, 1, 4, 6, 2)
        return x.reshape(n, self.rows * self.columns * heads, h * w, channels // heads)

    def _merge(self, x: Tensor, n: int) -> Tensor:
        h, w = self.window
        x = x.reshape(n, self.rows, self.columns, self.heads, h, w, -1)
        x = x.permute(0, 3, 6, 1, 4, 2, 5)
        return x.reshape(n, -1, self.rows * h, self.columns * w)


def _relative_index(h: int, w: int) -> Tensor:
    """int64 (h·w, h·w): which bias belongs to each pair of cells of a window."""
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    cells = torch.stack([rows.flatten(), columns.flatten()])
    offset = cells[:, :, None] - cells[:, None, :]
    return (offset[0] + h - 1) * (2 * w - 1) + offset[1] + w - 1


class CrossAttentionFusion(nn.Module):
    """Cross-attention with the query from the shallow map, key and value from the deep one."""

    def __init__(
        self, shallow_channels: int, deep_channels: int, heads: int, head_dim: int, out: int
    ) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Conv2d(shallow_channels, heads * head_dim, 1, bias=False)
        self.to_kv = nn.Conv2d(deep_channels, 2 * heads * head_dim, 1, bias=False)
        self.to_out = nn.Conv2d(heads * head_dim, out, 1)

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """u, float (N, out), of two maps (N, C_s, g, g) and (N, C_d, g, g)."""
        q = self._tokens(self.to_q(shallow))
        k, v = (self._tokens(part) for part in self.to_kv(deep).chunk(2, dim=1))
        mixed = F.scaled_dot_product_attention(q, k, v)  # (N, heads, g·g, d)
        grid = mixed.transpose(2, 3).reshape(len(q), -1, *shallow.shape[2:])
        u: Tensor = self.to_out(grid).mean(dim=(2, 3))
        return u

    def _tokens(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.heads, -1, x.shape[2] * x.shape[3]).transpose(2, 3)


class _Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(self.norm_1(x)).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.project(mixed.transpose(1, 2).reshape(n, tokens, width))
        return x + self.mlp(self.norm_2(x))  # type: ignore[no-any-return]


class PixelTransformer(nn.Module):
    """A transformer over the cells of the deep map: a global and a local vector."""

    def __init__(self, shape: MapShape, config: DarfConfig) -> None:
        super().__init__()
        channels, height, width = shape
        self.embed = nn.Linear(channels, config.width)
        self.cls = nn.Parameter(torch.empty(1, 1, config.width))
        self.position = nn.Parameter(torch.empty(1, 1 + height * width, config.width))
        nn.init.trunc_normal_(self.cls, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.ModuleList(_Block(config.width, config.heads) for _ in range(config.depth))
        self.last = config.last_blocks
        self.to_global = nn.Linear(config.last_blocks * config.width, config.global_dim)
        self.to_local = nn.Conv2d(config.last_blocks * config.width, config.local_dim, 1)

    def forward(self, deep: Tensor) -> tuple[Tensor, Tensor]:
        """Global (N, global_dim) and local (N, local_dim) vectors of (N, C_d, H_d, W_d)."""
        n, _, height, width = deep.shape
        x = self.embed(deep.flatten(2).transpose(1, 2))
        x = torch.cat([self.cls.expand(n, -1, -1), x], dim=1) + self.position
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        kept = torch.cat(outputs[-self.last :], dim=2)
        tokens = kept[:, 1:].transpose(1, 2).reshape(n, -1, height, width)
        return self.to_global(kept[:, 0]), self.to_local(tokens).mean(dim=(2, 3))


class _CrossBranch(nn.Module):
    """Both maps → u: windowed attention on each, a common grid, then cross-attention."""

    def __init__(
        self, query: MapShape, key: MapShape, config: DarfConfig, out: int, *, query_is_deep: bool
    ) -> None:
        super().__init__()
        attention = (config.window, config.attention_heads, config.attention_head_dim)
        self.query_is_deep = query_is_deep
        self.query = nn.Sequential(ConvMSA(query, *attention), _align(query, config.grid))
        self.key = nn.Sequential(ConvMSA(key, *attention), _align(key, config.grid))
        self.cross = CrossAttentionFusion(
            query[0], key[0], config.cross_heads, config.cross_head_dim, out
        )

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        query, key = (deep, shallow) if self.query_is_deep else (shallow, deep)
        u: Tensor = self.cross(self.query(query), self.key(key))
        return u


class _PixelBranch(nn.Module):
    """The deep map → [global ; local]."""

    def __init__(self, deep: MapShape, config: DarfConfig) -> None:
        super().__init__()
        self.pixels = PixelTransformer(deep, config)

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:  # noqa: ARG002
        return torch.cat(self.pixels(deep), dim=1)


class _PooledBranch(nn.Module):
    """Averages over the maps, projected."""

    def __init__(self, channels: int, out: int, *, with_shallow: bool) -> None:
        super().__init__()
        self.with_shallow = with_shallow
        self.project = nn.Linear(channels, out)

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        maps = (shallow, deep) if self.with_shallow else (deep,)
        pooled: Tensor = self.project(torch.cat([x.mean(dim=(2, 3)) for x in maps], dim=1))
        return pooled


class Darf(nn.Module):
    """Shallow and deep map → blended feature z, by default [global ; local ; u]."""

    def __init__(self, shallow: MapShape, deep: MapShape, config: DarfConfig) -> None:
        super().__init__()
        fusion, dim = config.fusion, config.dim
        branches: list[nn.Module] = []
        if fusion in ("darf", "swapped"):
            branches.append(_PixelBranch(deep, config))
        elif fusion == "pixels":
            branches.append(
                _PixelBranch(deep, replace(config, global_dim=dim - dim // 2, local_dim=dim // 2))
            )
        if fusion in ("darf", "cross"):
            u = config.cross_dim if fusion == "darf" else dim
            branches.append(_CrossBranch(shallow, deep, config, u, query_is_deep=False))
        elif fusion == "swapped":
            branches.append(
                _CrossBranch(deep, shallow, config, config.cross_dim, query_is_deep=True)
            )
        if fusion == "concat":
            branches.append(_PooledBranch(shallow[0] + deep[0], dim, with_shallow=True))
        elif fusion == "deep":
            branches.append(_PooledBranch(deep[0], dim, with_shallow=False))
        self.branches = nn.ModuleList(branches)

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """z, float (N, D)."""
        return torch.cat([branch(shallow, deep) for branch in self.branches], dim=1)


def _align(shape: MapShape, grid: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(shape[0]), nn.ReLU(), nn.AdaptiveAvgPool2d(grid))
