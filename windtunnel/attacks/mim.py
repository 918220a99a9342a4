"""MIM: gradient steps with momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from windtunnel.attacks.base import Attack, Query, RowGenerators, Rows, Tensor
from windtunnel.attacks.geometry import linf_bounds, per_row, project_l2, random_start, unit
from windtunnel.attacks.losses import loss_named
from windtunnel.backend import torch


@dataclass(frozen=True, kw_only=True)
class MIM(Attack):
    """MI-FGSM (Dong et al., Boosting Adversarial Attacks with Momentum, 2018, https://arxiv.org/abs/1710.06081,
    algorithm 1): ``m <- decay m + g / |g|_1``, ``x <- P(x + step eps sign(m))``; under l2 ``m / |m|_2`` in place of
    the sign.

    Defaults are the paper's: 10 steps of eps / 10, decay 1, from the clean image. ``random_start`` is ours (False), and
    every run after the first of ``restarts`` starts at random. ``loss``: ce (the paper's) or any name in
    ``windtunnel.attacks.losses``.

    The L1 norm is the row's own, of a gradient first divided by its largest entry, so that it neither underflows nor
    overflows; a zero gradient adds nothing to the momentum (0/0 is NaN in public code, and its images then stay where
    they are for good). On saturated logits the gradient of ce itself is zero: rows carry ``zero_gradient``; margin and
    dlr do not have the problem.

    Deviation from the paper: the engine keeps every iterate as a candidate.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    bill: ClassVar[tuple[str, ...]] = ("steps", "restarts")

    steps: int = 10
    step_size: float = 0.1
    decay: float = 1.0
    random_start: bool = False
    restarts: int = 1
    loss: str = "ce"

    def __post_init__(self) -> None:
        loss_named(self.loss)
        if self.steps < 1 or self.restarts < 1 or self.step_size <= 0 or self.decay < 0:
            raise ValueError(f"steps and restarts at least 1, step_size above 0, decay at least 0: {self}")

    @property
    def max_steps(self) -> int:
        # The first query of the next run judges the end of the one before; the engine judges the last end.
        return self.restarts * (self.steps + 1) - 1

    def init(self, x0: Tensor, y: Tensor, eps: Tensor, norm: str, generators: RowGenerators, query: Query) -> Rows:
        x = random_start(x0, eps, norm, generators) if self.random_start else x0
        return {"x": x, "momentum": torch.zeros_like(x0)}

    def step(self, rows: Rows, norm: str, generators: RowGenerators, query: Query) -> Rows:
        x, x0, eps = rows["x"], rows["x0"], rows["eps"]
        _, _, gradient = query.gradient(x, loss_named(self.loss))
        momentum = self.decay * rows["momentum"] + unit_l1(gradient)
        length = per_row(eps * self.step_size, x)
        if norm == "linf":
            x = (x + length * momentum.sign()).clamp(*linf_bounds(x0, eps))
        else:
            x = project_l2(x + length * unit(momentum), x0, eps)
        ended = rows["t"] % (self.steps + 1) == self.steps
        if bool(ended.any()):
            momentum[ended] = 0
            x[ended] = random_start(x0[ended], eps[ended], norm, generators.select(ended))
        return {"x": x, "momentum": momentum}


def unit_l1(gradient: Tensor) -> Tensor:
    """Each row divided by its L1 norm; a zero row stays zero, a tiny one does not underflow."""
    wide = (-1, *([1] * (gradient.dim() - 1)))
    largest = gradient.flatten(1).abs().amax(1).view(wide)
    scaled = gradient / torch.where(largest > 0, largest, 1.0)
    return scaled / scaled.flatten(1).abs().sum(1).clamp_min(1.0).view(wide)
