"""An attack of one's own: add a share of the budget to every pixel, in one step that asks for nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from windtunnel.attacks.base import Attack
from windtunnel.attacks.geometry import per_row


@dataclass(frozen=True, kw_only=True)
class Upward(Attack):
    """Brighter by a share of the budget."""

    norms: ClassVar[tuple[str, ...]] = ("linf",)
    uses_gradient: ClassVar[bool] = False
    share: float = 1.0

    @property
    def max_steps(self) -> int:
        return 1

    def init(self, x0, y, eps, norm, generators, query):
        return {"x": x0}

    def step(self, rows, norm, generators, query):
        moved = rows["x0"] + self.share * per_row(rows["eps"], rows["x0"])
        return {**rows, "x": moved.clamp(0, 1)}
