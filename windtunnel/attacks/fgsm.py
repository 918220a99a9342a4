"""FGSM: one step to the surface of the ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from windtunnel.attacks.base import Attack, Query, RowGenerators, Rows, Tensor
from windtunnel.attacks.geometry import linf_bounds, per_row, project_l2, unit
from windtunnel.attacks.losses import loss_named


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """Fast gradient sign method (Goodfellow, Shlens & Szegedy, Explaining and Harnessing Adversarial Examples, 2015,
    https://arxiv.org/abs/1412.6572, section 4): ``x = clip(x0 + eps sign(grad L(x0, y)))``.

    Under l2: ``x0 + eps g / |g|_2`` (the fast gradient method). ``loss``: ce (the paper's), margin or dlr; on saturated
    logits the gradient of ce is exactly zero, the image does not move and the row carries ``zero_gradient``.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    bill: ClassVar[tuple[str, ...]] = ()

    loss: str = "ce"

    def __post_init__(self) -> None:
        loss_named(self.loss)

    @property
    def max_steps(self) -> int:
        return 1

    def init(self, x0: Tensor, y: Tensor, eps: Tensor, norm: str, generators: RowGenerators, query: Query) -> Rows:
        return {"x": x0}

    def step(self, rows: Rows, norm: str, generators: RowGenerators, query: Query) -> Rows:
        x, x0, eps = rows["x"], rows["x0"], rows["eps"]
        _, _, gradient = query.gradient(x, loss_named(self.loss))
        if norm == "linf":
            low, high = linf_bounds(x0, eps)
            return {"x": (x0 + per_row(eps, x0) * gradient.sign()).clamp(low, high)}
        return {"x": project_l2(x0 + per_row(eps, x0) * unit(gradient), x0, eps)}
