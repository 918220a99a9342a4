"""Ensemble PGD: ascent of the mean of the members' own losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from windtunnel.attacks.ascent import accumulated, climbed, started
from windtunnel.attacks.base import Attack, Query, RowGenerators, Rows, Tensor
from windtunnel.attacks.geometry import per_row
from windtunnel.attacks.losses import loss_named


@dataclass(frozen=True, kw_only=True)
class EnsemblePGD(Attack):
    """Ensemble in loss (Liu et al., Delving into Transferable Adversarial Examples and Black-box Attacks, 2017,
    https://arxiv.org/abs/1611.02770; named so by Dong et al. 2018, https://arxiv.org/abs/1710.06081, section 3.2):
    ``x <- P(x + step eps sign(sum_k grad L(f_k(x), y) / K))`` with the members f_k and equal weights.

    Any other attack run on an ensemble climbs the loss of the *mean logits*; here each member has its own loss, so
    that a member that is fooled already does not hide the others. ``momentum`` as in MI-FGSM (0 = none); under l2 the
    step follows the unit vector. ``loss``: ce, margin or dlr. Random start and eps/4 are those of ``pgd``; with
    momentum 1, step_size .1, steps 10 and no random start it is MI-FGSM on the ensemble's loss. On one model it is
    ``pgd`` (or ``transfer``) bit for bit.

    Cost per step: one gradient evaluation through every member and, with more than one, a forward through every
    member by which the engine judges the iterate (the members' own answers are not the ensemble's).
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    bill: ClassVar[tuple[str, ...]] = ("steps",)
    per_member: ClassVar[bool] = True

    steps: int = 20
    step_size: float = 0.25
    momentum: float = 0.0
    random_start: bool = True
    loss: str = "ce"

    def __post_init__(self) -> None:
        loss_named(self.loss)
        if self.steps < 1 or self.step_size <= 0 or self.momentum < 0:
            raise ValueError(f"steps must be at least 1, step_size above 0, momentum not below: {self}")

    @property
    def max_steps(self) -> int:
        return self.steps

    def init(self, x0: Tensor, y: Tensor, eps: Tensor, norm: str, generators: RowGenerators, query: Query) -> Rows:
        return started(x0, eps, norm, generators, random=self.random_start)

    def step(self, rows: Rows, norm: str, generators: RowGenerators, query: Query) -> Rows:
        x, loss = rows["x"], loss_named(self.loss)
        if query.n_members == 1:
            gradient = query.gradient(x, loss)[2]
        else:
            query.logits(x)
            gradient = query.gradient(x, loss, member=0)[2]
            for k in range(1, query.n_members):
                gradient = gradient + query.gradient(x, loss, member=k)[2]
            gradient = gradient / query.n_members
        momentum = accumulated(rows["momentum"], gradient, self.momentum)
        length = per_row(rows["eps"] * self.step_size, x)
        return {"x": climbed(x, momentum, length, rows, norm), "momentum": momentum}
