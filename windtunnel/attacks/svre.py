"""SVRE: an ensemble attack whose inner steps follow one member at a time, corrected by what all say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from windtunnel.attacks.ascent import accumulated, climbed, started
from windtunnel.attacks.base import Attack, Query, RowGenerators, Rows, Tensor
from windtunnel.attacks.geometry import per_row
from windtunnel.attacks.losses import loss_named
from windtunnel.backend import torch


@dataclass(frozen=True, kw_only=True)
class SVRE(Attack):
    """Stochastic variance reduced ensemble attack (Xiong et al., Stochastic Variance Reduced Ensemble Adversarial
    Attack for Boosting the Adversarial Transferability, 2022, https://arxiv.org/abs/2111.10752, algorithm 1).

    Per step, with g the gradient of the loss of the ensemble's mean logits at x, g_k that of member k, u = x, m = 0:
    ``inner_steps`` times, k drawn uniformly: ``h = g_k(u) - (g_k(x) - g)``, ``m <- inner_momentum m + h / mean|h|``,
    ``u <- P(u + inner_step_size eps sign(m))``. Then ``M <- momentum M + m / mean|m|`` with the last m, and
    ``x <- P(x + step_size eps sign(M))``. Defaults: the paper's 10 steps of eps/10, both decays 1, 16 inner steps
    (four times its four models) of eps/10. linf only, as in the paper.

    Cost per step: ``inner_steps + 1`` gradient evaluations through every member: g; all g_k(x) once (the released
    code asks them again in every inner step); no question in the first inner step, where u = x and h = g; then one
    per inner step and member. Each row draws its own members, so a batch as a whole asks all of them, and rows take
    what they drew; on a batch of one row the released code would be cheaper from three members on.
    With one member h is its gradient at u, a look-ahead of ``inner_steps`` sign steps, and costs ``inner_steps``.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf",)
    bill: ClassVar[tuple[str, ...]] = ("steps", "inner_steps")
    per_member: ClassVar[bool] = True

    steps: int = 10
    step_size: float = 0.1
    momentum: float = 1.0
    inner_steps: int = 16
    inner_step_size: float = 0.1
    inner_momentum: float = 1.0
    random_start: bool = False
    loss: str = "ce"

    def __post_init__(self) -> None:
        loss_named(self.loss)
        if min(self.steps, self.inner_steps) < 1 or min(self.step_size, self.inner_step_size) <= 0:
            raise ValueError(f"steps must be at least 1 and their sizes above 0: {self}")
        if min(self.momentum, self.inner_momentum) < 0:
            raise ValueError(f"a momentum cannot be negative: {self}")

    @property
    def max_steps(self) -> int:
        return self.steps

    def init(self, x0: Tensor, y: Tensor, eps: Tensor, norm: str, generators: RowGenerators, query: Query) -> Rows:
        return started(x0, eps, norm, generators, random=self.random_start)

    def step(self, rows: Rows, norm: str, generators: RowGenerators, query: Query) -> Rows:
        x, loss = rows["x"], loss_named(self.loss)
        whole = query.gradient(x, loss)[2]
        members = generators.integers(query.n_members, self.inner_steps)
        corrections = self._of_members(x, query) - whole if query.n_members > 1 else None

        inner, momentum = x, torch.zeros_like(x)
        inner_length = per_row(rows["eps"] * self.inner_step_size, x)
        for i in range(self.inner_steps):
            reduced = whole
            if i > 0:
                drawn = members[:, i].view(1, -1, 1, 1, 1)
                reduced = _chosen(self._of_members(inner, query), drawn)
                if corrections is not None:
                    reduced = reduced - _chosen(corrections, drawn)
            momentum = accumulated(momentum, reduced, self.inner_momentum)
            inner = climbed(inner, momentum, inner_length, rows, norm)

        outer = accumulated(rows["momentum"], momentum, self.momentum)
        return {"x": climbed(x, outer, per_row(rows["eps"] * self.step_size, x), rows, norm), "momentum": outer}

    def _of_members(self, x: Tensor, query: Query) -> Tensor:
        """[K, B, C, H, W]: the gradient of every member's own loss."""
        loss = loss_named(self.loss)
        return torch.stack([query.gradient(x, loss, member=k)[2] for k in range(query.n_members)])


def _chosen(per_member: Tensor, drawn: Tensor) -> Tensor:
    """[B, C, H, W]: of [K, B, C, H, W] each row's drawn member ([1, B, 1, 1, 1])."""
    return per_member.gather(0, drawn.expand(1, *per_member.shape[1:]))[0]
