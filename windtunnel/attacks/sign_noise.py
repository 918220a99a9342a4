"""Sign noise: the baseline that every attack must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from windtunnel.attacks.base import Attack, Query, RowGenerators, Rows, Tensor
from windtunnel.attacks.geometry import linf_bounds, per_row, project_l2, unit
from windtunnel.backend import torch


@dataclass(frozen=True, kw_only=True)
class SignNoise(Attack):
    """Random corners of the ball: ``x = clip(x0 + eps s)``, s uniform in {-1, +1}^d; under l2 a Gaussian direction of
    length eps. The best of ``draws`` (largest margin) is kept.

    No paper: it is the floor. A model that falls to it was not attacked, it was shaken; a gradient attack that does not
    beat it has no gradient.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    uses_gradient: ClassVar[bool] = False
    bill: ClassVar[tuple[str, ...]] = ("draws",)

    draws: int = 10

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"draws must be at least 1, not {self.draws}")

    @property
    def max_steps(self) -> int:
        return self.draws - 1

    def init(self, x0: Tensor, y: Tensor, eps: Tensor, norm: str, generators: RowGenerators, query: Query) -> Rows:
        return {"x": _draw(x0, eps, norm, generators)}

    def step(self, rows: Rows, norm: str, generators: RowGenerators, query: Query) -> Rows:
        query.logits(rows["x"])
        return {"x": _draw(rows["x0"], rows["eps"], norm, generators)}


def _draw(x0: Tensor, eps: Tensor, norm: str, generators: RowGenerators) -> Tensor:
    shape = tuple(x0.shape[1:])
    if norm == "linf":
        low, high = linf_bounds(x0, eps)
        return torch.where(generators.uniform(*shape) < 0.5, low, high)
    return project_l2(x0 + per_row(eps, x0) * unit(generators.normal(*shape)), x0, eps)
