"""Square: random search with squares, no gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from windtunnel.attacks.base import Attack, Query, RowGenerators, Rows, Tensor
from windtunnel.attacks.geometry import linf_bounds, per_row
from windtunnel.attacks.losses import margin
from windtunnel.backend import torch

# (queries at a budget of 10,000, by how much the initial share of changed pixels is divided): the paper, section 5.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Square Attack (Andriushchenko et al., Square Attack: a Query-efficient Black-box Adversarial Attack via Random
    Search, 2020, https://arxiv.org/abs/1912.00049, algorithms 1 and 2), linf.

    It starts with vertical stripes of +-eps; each further query adds +-2 eps per channel inside a random square,
    clipped to the ball, and is kept if the margin ``max_{j != y} z_j - z_y`` grows. The square covers the share p of
    the pixels: p starts at ``p_init`` = .8 and is halved at the queries 10, 50, 200, 500, 1000, 2000, 4000, 6000,
    8000 of 10,000, stretched to the budget where ``rescale`` (the paper's; AutoAttack does not stretch). ``queries``
    counts the first stripes too.

    Deviations: squares may touch the last row and column, as in the paper's text, which the public code never does; the
    square is the sample's own, where the public code uses one for the whole batch.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf",)
    uses_gradient: ClassVar[bool] = False
    bill: ClassVar[tuple[str, ...]] = ("queries",)

    queries: int = 1000
    p_init: float = 0.8
    rescale: bool = True

    def __post_init__(self) -> None:
        if self.queries < 1 or not 0 < self.p_init <= 1:
            raise ValueError(f"queries must be at least 1 and p_init in (0, 1]: {self}")

    @property
    def max_steps(self) -> int:
        return self.queries

    def share(self, age: Tensor) -> Tensor:
        """[B] float64: the share p of pixels that a row changes at its ``age``-th query after the stripes."""
        if self.rescale:
            age = age * 10_000 // self.queries
        edges = torch.tensor(HALVINGS, device=age.device)
        return self.p_init / 2.0 ** (age[:, None] > edges).sum(1).double()

    def init(self, x0: Tensor, y: Tensor, eps: Tensor, norm: str, generators: RowGenerators, query: Query) -> Rows:
        low, high = linf_bounds(x0, eps)
        stripes = generators.uniform(x0.shape[1], 1, x0.shape[3]) < 0.5
        worst = torch.full((len(x0),), float("-inf"), dtype=x0.dtype, device=x0.device)
        return {"x": torch.where(stripes, low, high), "margin": worst, "low": low, "high": high}

    def step(self, rows: Rows, norm: str, generators: RowGenerators, query: Query) -> Rows:
        x, first = rows["x"], rows["t"] == 0
        _, channels, height, width = x.shape
        draw = generators.uniform(2 + channels)
        side = (self.share(rows["t"] - 1) * height * width).sqrt().round().long().clamp(1, min(height, width))
        top = (draw[:, 0] * (height - side + 1)).long().minimum(height - side)
        left = (draw[:, 1] * (width - side + 1)).long().minimum(width - side)
        inside = _between(top, side, height)[:, None, :, None] & _between(left, side, width)[:, None, None, :]
        sign = torch.where(draw[:, 2:] < 0.5, -1.0, 1.0)[:, :, None, None]
        moved = x + inside * sign * (2.0 * per_row(rows["eps"], x))
        candidate = torch.where(first.view(-1, 1, 1, 1), x, moved.clamp(rows["low"], rows["high"]))

        gain = margin(query.logits(candidate), rows["y"]).to(x.dtype)
        accept = gain > rows["margin"]
        return rows | {
            "x": torch.where(accept.view(-1, 1, 1, 1), candidate, x),
            "margin": torch.where(accept, gain, rows["margin"]),
        }


def _between(start: Tensor, length: Tensor, size: int) -> Tensor:
    """[B, size] bool: the positions start .. start + length - 1 of each row."""
    position = torch.arange(size, device=start.device)
    return (position >= start[:, None]) & (position < (start + length)[:, None])
