"""Hash heads: blended feature z → hidden → hash logits h; the code is sign(h).

KAN: Liu et al., "KAN: Kolmogorov–Arnold Networks", 2024 (arXiv 2404.19756).
"""

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.model.config import HeadConfig

__all__ = ["HashHead", "KanLinear"]


class KanLinear(nn.Module):
    """A KAN layer: every edge carries a B-spline, beside a SiLU base branch.

    The splines have a uniform grid of ``grid`` intervals over [-span, span]. Beyond it, and
    ``order`` further intervals at either end, only the base branch contributes.

    Args:
        inputs, outputs: feature counts.
        grid: intervals of the grid. order: degree of the splines (3 = cubic).
    """

    knots: Tensor

    def __init__(
        self, inputs: int, outputs: int, grid: int = 5, order: int = 3, span: float = 2.0
    ) -> None:
        super().__init__()
        self.order = order
        step = 2 * span / grid
        knots = torch.arange(-order, grid + order + 1, dtype=torch.float32) * step - span
        self.register_buffer("knots", knots, persistent=False)
        self.base = nn.Linear(inputs, outputs)
        self.spline = nn.Linear(inputs * (grid + order), outputs, bias=False)
        # The base branch starts as a usual layer, the splines as a small perturbation of it.
        nn.init.normal_(self.spline.weight, std=0.1 / sqrt(inputs))

    def forward(self, x: Tensor) -> Tensor:
        """Float (N, inputs) → (N, outputs)."""
        out: Tensor = self.base(F.silu(x)) + self.spline(self.bases(x).flatten(1))
        return out

    def bases(self, x: Tensor) -> Tensor:
        """B-spline bases by the Cox–de Boor recursion, float32 (N, inputs, grid + order)."""
        t = self.knots
        x = x.float().unsqueeze(-1)
        b = ((x >= t[:-1]) & (x < t[1:])).float()
        for p in range(1, self.order + 1):
            left = (x - t[: -p - 1]) / (t[p:-1] - t[: -p - 1])
            right = (t[p + 1 :] - x) / (t[p + 1 :] - t[1:-p])
            b = left * b[..., :-1] + right * b[..., 1:]
        return b


class HashHead(nn.Module):
    """D → hidden → B, KAN or MLP, with no tanh at the output."""

    def __init__(self, inputs: int, config: HeadConfig) -> None:
        super().__init__()
        # The grid of the splines is fixed, so their inputs must have a known scale.
        self.norm = nn.LayerNorm(inputs, elementwise_affine=False)
        self.hidden_norm = nn.LayerNorm(config.hidden, elementwise_affine=False)
        if config.kind == "kan":
            self.first: nn.Module = KanLinear(inputs, config.hidden, config.grid, config.order)
            self.second: nn.Module = KanLinear(
                config.hidden, config.bits, config.grid, config.order
            )
        else:
            self.first = nn.Sequential(nn.Linear(inputs, config.hidden), nn.GELU())
            self.second = nn.Linear(config.hidden, config.bits)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden (N, hidden) and hash logits (N, B) of z (N, D)."""
        hidden = self.hidden_norm(self.first(self.norm(z)))
        return hidden, self.second(hidden)
