"""CWA: towards a point where all members are weak, flat and in agreement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from windtunnel.attacks.ascent import climbed, levelled, started
from windtunnel.attacks.base import Attack, Query, RowGenerators, Rows, Tensor
from windtunnel.attacks.geometry import per_row, unit
from windtunnel.attacks.losses import ce
from windtunnel.backend import torch

# The lengths that the released code fixes, pixels in [0, 1]: reverse step, step, and the l2 length of an inner step.
RELEASED = {"reverse": 16 / 255 / 15, "step": 16 / 255 / 5, "inner": 250.0}


@dataclass(frozen=True, kw_only=True)
class CWA(Attack):
    """MI-CWA, the common weakness attack (Chen et al., Rethinking Model Ensemble in Transfer-based Adversarial Attacks,
    2024, https://arxiv.org/abs/2303.09105), linf, cross-entropy. Per step, from x, with the members f_k:

    1. reverse (sharpness-aware): ``u = P(x - reverse_step eps sign(grad L(f(x), y)))``, f the mean of the logits;
    2. cosine similarity encourager, for k = 1 .. K in order: ``m <- momentum m + g / |g|_2`` with
       ``g = grad L(f_k(u), y)``, then ``u <- P(u + inner_step m)``; m lives on over the steps;
    3. ``M <- momentum M + (u - x) / |u - x|_1``, ``x <- P(x + step_size eps sign(M))``.

    Defaults: the released 10 steps at 16/255: step eps/5, reverse step eps/15, momentum 1. Its inner step is 250 in l2
    on 224-pixel images: 10.27 eps per pixel in the root mean square, and given here in that unit (``inner_step`` eps
    sqrt(d)), so that image size and budget may differ; most pixels of u end on the surface of the ball.

    Cost per step: two gradient evaluations through every member (mean of the logits, then one by one).

    Deviations from the released code, which ``as_released`` undoes. It divides ``u - x`` by the L1 norm of the *whole
    batch*: with ``as_released`` results depend on which images share a batch (and rows may not be refilled or
    resumed); here each row has its own. Its three lengths are fixed numbers for 16/255 and 224 pixels, whatever the
    budget. It takes the reverse gradient at the *sum* of the logits and does not clip u before the first member is
    asked (here: ball and box; as released: the box only, since a defense takes images). A vanishing gradient
    leaves m as it is, where the code divides 0 by 0. Independent replications find no gain over the plain mean of the
    logits on ImageNet models.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf",)
    bill: ClassVar[tuple[str, ...]] = ("steps",)
    per_member: ClassVar[bool] = True
    asks_per_step: ClassVar[int] = 2

    steps: int = 10
    step_size: float = 0.2
    reverse_step: float = 0.0667
    inner_step: float = 10.27
    momentum: float = 1.0
    random_start: bool = False
    as_released: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or min(self.step_size, self.inner_step) <= 0 or min(self.reverse_step, self.momentum) < 0:
            raise ValueError(f"steps must be at least 1, sizes above 0, reverse_step and momentum not below: {self}")

    @property
    def max_steps(self) -> int:
        return self.steps

    def init(self, x0: Tensor, y: Tensor, eps: Tensor, norm: str, generators: RowGenerators, query: Query) -> Rows:
        rows = started(x0, eps, norm, generators, random=self.random_start)
        return rows | {"inner_momentum": torch.zeros_like(x0)}

    def step(self, rows: Rows, norm: str, generators: RowGenerators, query: Query) -> Rows:
        x, low, high = rows["x"], rows["low"], rows["high"]
        reverse, length, inner = self._lengths(rows["eps"], x)
        factor = query.n_members if self.as_released else 1
        uphill = query.gradient(x, lambda z, y: ce(z * factor, y))[2]
        at = x - reverse * uphill.sign()
        at = at.clamp(0.0, 1.0) if self.as_released else at.clamp(low, high)

        momentum = rows["inner_momentum"]
        for k in range(query.n_members):
            momentum = self.momentum * momentum + unit(query.gradient(at, ce, member=k)[2])
            at = (at + inner * momentum).clamp(low, high)

        moved = at - x
        # of each row's own L1 norm only the ratio between steps matters, so the mean serves as well
        share = moved / moved.abs().sum().clamp_min(1e-30) if self.as_released else levelled(moved)
        outer = self.momentum * rows["momentum"] + share
        return {"x": climbed(x, outer, length, rows, norm), "momentum": outer, "inner_momentum": momentum}

    def _lengths(self, eps: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 1, 1, 1] each: the reverse step, the step, and the l2 length of an inner step."""
        if self.as_released:
            one = torch.ones_like(eps)
            shares = [one * RELEASED[name] for name in ("reverse", "step", "inner")]
        else:
            pixels = math.sqrt(x[0].numel())
            shares = [eps * self.reverse_step, eps * self.step_size, eps * self.inner_step * pixels]
        return tuple(per_row(share, x) for share in shares)  # type: ignore[return-value]
