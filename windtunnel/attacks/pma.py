"""PMA: the margin between probabilities, taken apart and put together again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from windtunnel.attacks.base import Attack, Loss, Query, RowGenerators, Rows, Tensor
from windtunnel.attacks.geometry import linf_bounds, per_row, random_start
from windtunnel.backend import torch


@dataclass(frozen=True, kw_only=True)
class PMA(Attack):
    """Probability Margin Attack (Xie et al., Towards Million-Scale Adversarial Robustness Evaluation With Stronger
    Individual Attacks, 2024, https://arxiv.org/abs/2411.15210), as its authors released it: the schedule of the Margin
    Decomposition attack (Ma et al. 2020, https://arxiv.org/abs/2006.13726) on softmax probabilities p.

    K = ``steps`` (100, as released), K' = K / 2. Each of ``restarts`` (1) is a run for every branch r = 0, 1, from a
    start uniform in the cube. Step i = 0 .. K - 1 increases

    - ``p_y`` if i = 0: away from the boundary first, for a better start;
    - ``-p_y`` (r = 0) or ``max_{j != y} p_j`` (r = 1) if 0 < i < K': one term of the margin alone;
    - ``max_{j != y} p_j - p_y`` afterwards,

    by ``x <- P(x + a_i sign(g))`` with ``a_i = eps (1 + cos(pi (i - 1) / (K - K')))`` for i <= K', and the same cosine
    again from i - K' - 1. The cost is 2 K gradients per restart. ``branches`` 1 runs r = 0 alone.

    ``terms``: "probability" (PMA), or "logit", which puts z in the place of p and is the Margin Decomposition attack.
    Probabilities saturate: at logits scaled by 1000 their gradients are exactly zero and rows carry
    ``zero_gradient``. With "logit" neither scale nor shift of the logits matters.

    Deviations from the released code: the start is clipped to the box (only images are asked about); every loss is the
    row's own (a mean over the batch there: the signs are the same); the last surviving sample of a batch is attacked
    to its end, which the released code gives up on. l-infinity only, as in the paper.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf",)
    bill: ClassVar[tuple[str, ...]] = ("steps", "branches", "restarts")

    steps: int = 100
    branches: int = 2
    restarts: int = 1
    terms: Literal["probability", "logit"] = "probability"

    def __post_init__(self) -> None:
        if self.steps < 2 or self.restarts < 1 or self.branches not in (1, 2):
            raise ValueError(f"steps at least 2, restarts at least 1, branches 1 or 2: {self}")
        if self.terms not in ("probability", "logit"):
            raise ValueError(f"terms are 'probability' or 'logit', not '{self.terms}'")

    @property
    def max_steps(self) -> int:
        # The first query of the next run judges the end of the one before; the engine judges the last end.
        return self.branches * self.restarts * (self.steps + 1) - 1

    def step_sizes(self) -> list[float]:
        """a_i / eps for i = 0 .. K - 1."""
        half = self.steps / 2
        ages = [i - 1 if i <= half else i - half - 1 for i in range(self.steps)]
        return [1 + math.cos(math.pi * age / (self.steps - half)) for age in ages]

    def init(self, x0: Tensor, y: Tensor, eps: Tensor, norm: str, generators: RowGenerators, query: Query) -> Rows:
        return {"x": random_start(x0, eps, norm, generators)}

    def step(self, rows: Rows, norm: str, generators: RowGenerators, query: Query) -> Rows:
        x, x0, eps = rows["x"], rows["x0"], rows["eps"]
        phase = rows["t"] % (self.steps + 1)
        branch = rows["t"] // (self.steps + 1) % self.branches
        _, _, gradient = query.gradient(x, self._loss(phase, branch))
        shares = torch.tensor([*self.step_sizes(), 0.0], dtype=torch.float64, device=x.device)[phase]
        x = (x + per_row(eps * shares, x) * gradient.sign()).clamp(*linf_bounds(x0, eps))
        ended = phase == self.steps
        if bool(ended.any()):
            x[ended] = random_start(x0[ended], eps[ended], norm, generators.select(ended))
        return {"x": x}

    def _loss(self, phase: Tensor, branch: Tensor) -> Loss:
        first, joint = phase == 0, 2 * phase >= self.steps
        own = torch.where(first, 1.0, torch.where(joint | (branch == 0), -1.0, 0.0))
        other = torch.where(~first & (joint | (branch == 1)), 1.0, 0.0)

        def loss(logits: Tensor, y: Tensor) -> Tensor:
            values = logits.softmax(1) if self.terms == "probability" else logits
            label = y[:, None]
            return own * values.gather(1, label)[:, 0] + other * values.scatter(1, label, float("-inf")).amax(1)

        return loss
