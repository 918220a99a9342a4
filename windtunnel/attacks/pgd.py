"""PGD: projected gradient ascent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from windtunnel.attacks.base import Attack, Query, RowGenerators, Rows, Tensor
from windtunnel.attacks.geometry import linf_bounds, per_row, project_l2, random_start, unit
from windtunnel.attacks.losses import loss_named
from windtunnel.backend import torch


@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Projected gradient descent (Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018,
    https://arxiv.org/abs/1706.06083): ``x <- P(x + step eps sign(grad L(x, y)))``, P onto the ball, then the box.

    Under l2 the sign is replaced by ``g / |g|_2``. ``step_size`` is a fraction of eps, so that one setting serves every
    budget: 0.25 is the 2/255 at 8/255 of the paper. ``restarts`` runs follow each other, each from a new random
    start. ``loss``: ce (the paper's), margin or dlr. On saturated logits (scaled by 1000) the gradient of ce is
    exactly zero and the image stays at its start: the row carries ``zero_gradient``; margin and dlr do not have the
    problem.

    Deviation from the paper: the engine keeps every iterate as a candidate, so that robust accuracy cannot rise with
    the number of steps; the last iterate is kept beside it.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    bill: ClassVar[tuple[str, ...]] = ("steps", "restarts")

    steps: int = 20
    step_size: float = 0.25
    random_start: bool = True
    restarts: int = 1
    loss: str = "ce"

    def __post_init__(self) -> None:
        loss_named(self.loss)
        if self.steps < 1 or self.restarts < 1 or self.step_size <= 0:
            raise ValueError(f"steps and restarts must be at least 1 and step_size above 0: {self}")
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts without random_start repeat the same run")

    @property
    def max_steps(self) -> int:
        # The first query of the next run judges the end of the one before; the engine judges the last end.
        return self.restarts * (self.steps + 1) - 1

    def init(self, x0: Tensor, y: Tensor, eps: Tensor, norm: str, generators: RowGenerators, query: Query) -> Rows:
        rows = {"x": random_start(x0, eps, norm, generators) if self.random_start else x0}
        if norm == "linf":
            rows["low"], rows["high"] = linf_bounds(x0, eps)
        return rows

    def step(self, rows: Rows, norm: str, generators: RowGenerators, query: Query) -> Rows:
        x, x0, eps = rows["x"], rows["x0"], rows["eps"]
        _, _, gradient = query.gradient(x, loss_named(self.loss))
        length = per_row(eps * self.step_size, x)
        if norm == "linf":
            x = torch.addcmul(x, gradient.sign_(), length)
            x = torch.minimum(torch.maximum(x, rows["low"], out=x), rows["high"], out=x)
        else:
            x = project_l2(x + length * unit(gradient), x0, eps)
        if self.restarts > 1:
            ended = rows["t"] % (self.steps + 1) == self.steps
            if bool(ended.any()):
                x[ended] = random_start(x0[ended], eps[ended], norm, generators.select(ended))
        return {"x": x}
