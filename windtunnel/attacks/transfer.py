"""Transfer: momentum, look-ahead, input diversity, smoothing, scaling and variance tuning, in any combination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from windtunnel.attacks.ascent import accumulated, climbed, started, unjudged_gradient
from windtunnel.attacks.base import Attack, Query, RowGenerators, Rows, Tensor
from windtunnel.attacks.geometry import per_row, unit
from windtunnel.attacks.input_transforms import Resize, smoothed
from windtunnel.attacks.losses import loss_named
from windtunnel.backend import torch


@dataclass(frozen=True, kw_only=True)
class Transfer(Attack):
    """The input-space family of transfer attacks: ``m <- momentum m + G / mean|G|``, ``x <- P(x + step eps sign(m))``.

    The defaults are MI-FGSM; each further setting adds one idea to the gradient G, and all combine:

    - ``momentum`` (MI; Dong et al., Boosting Adversarial Attacks with Momentum, 2018, https://arxiv.org/abs/1710.06081,
      algorithm 1): mu = 1, 10 steps of eps/10.
    - ``nesterov`` (NI; Lin et al., Nesterov Accelerated Gradient and Scale Invariance, 2020,
      https://arxiv.org/abs/1908.06281, eq. 6-8): G is taken at ``x + step eps momentum m``.
    - ``scales`` = m > 1 (SI; same paper, eq. 9): G is the mean over ``i < m`` of the gradient of ``L(x / 2^i)`` with
      respect to x (the released code; it keeps the factor 2^-i). Paper: m = 5.
    - ``diversity`` > 0 (DI; Xie et al., Improving Transferability of Adversarial Examples with Input Diversity, 2019,
      https://arxiv.org/abs/1803.06978): with this probability (paper: .5) the model sees the image resized and padded
      with black at random. ``smallest`` = .9 of the side is the least size (299 of 330 in the paper).
    - ``kernel`` = odd size > 1 (TI; Dong et al., Evading Defenses to Transferable Adversarial Examples by
      Translation-Invariant Attacks, 2019, https://arxiv.org/abs/1904.02884): G is convolved with a Gaussian over three
      standard deviations to either side. Paper: 15 for 299 pixels; about 3 or 5 for 32.
    - ``points`` > 1 (VMI; Wang & He, Enhancing the Transferability through Variance Tuning, 2021,
      https://arxiv.org/abs/2103.15571, algorithm 1): G + v, v the mean gradient at ``points - 1`` random neighbours
      of the last iterate minus its G; neighbours are uniform in the cube of ``reach`` eps around the iterate (also
      with ``nesterov``, whose G is taken elsewhere). Paper: 20 neighbours (``points`` 21), ``reach`` 1.5.

    Cost per step and model of the attacked ensemble: ``scales x points`` gradient evaluations. With ``nesterov`` or
    ``diversity`` one forward more, because the engine shall judge every iterate and these ask elsewhere. Points
    outside the ball (all but the iterate) are asked without being judged; in an ensemble (whose logits are averaged)
    each of them costs one forward more per model.

    Deviations. Dice are each row's own, drawn anew for every question, where public code throws one per batch. All
    places of the padded image are equally likely (public code never reaches the last); the result is as large as the
    input, since most models take one size only. Every point asked about is clipped to the box, since a defense takes
    images. Zero gradients leave the momentum as it is. Under l2 (only MI defines it, section 3.3 there) the step
    follows ``m / |m|_2``, so does the look-ahead, and a neighbour has a uniform direction and a length uniform in
    [0, reach eps). ``momentum`` 0 is the plain iterative attack, bit for bit that of ``pgd``.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    bill: ClassVar[tuple[str, ...]] = ("steps", "scales", "points")
    per_member: ClassVar[bool] = True

    steps: int = 10
    step_size: float = 0.1
    momentum: float = 1.0
    nesterov: bool = False
    scales: int = 1
    diversity: float = 0.0
    smallest: float = 0.9
    kernel: int = 1
    points: int = 1
    reach: float = 1.5
    random_start: bool = False
    loss: str = "ce"

    def __post_init__(self) -> None:
        loss_named(self.loss)
        if min(self.steps, self.scales, self.points) < 1 or self.step_size <= 0 or self.momentum < 0:
            raise ValueError(
                f"steps, scales and points must be at least 1, step_size above 0, momentum not below: {self}"
            )
        if not 0 <= self.diversity <= 1 or not 0 < self.smallest < 1 or self.reach <= 0:
            raise ValueError(f"diversity must be in [0, 1], smallest in (0, 1), reach above 0: {self}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"the kernel must be odd, so that it has a middle, not {self.kernel}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov looks ahead along the momentum: without momentum it does nothing")

    @property
    def max_steps(self) -> int:
        return self.steps

    def init(self, x0: Tensor, y: Tensor, eps: Tensor, norm: str, generators: RowGenerators, query: Query) -> Rows:
        rows = started(x0, eps, norm, generators, random=self.random_start)
        if self.points > 1:
            rows["variance"] = torch.zeros_like(x0)
        return rows

    def step(self, rows: Rows, norm: str, generators: RowGenerators, query: Query) -> Rows:
        x, momentum = rows["x"], rows["momentum"]
        length = per_row(rows["eps"] * self.step_size, x)
        at = x
        if self.nesterov:
            ahead = momentum if norm == "linf" else unit(momentum)
            at = (x + length * self.momentum * ahead).clamp(0.0, 1.0)
        judged = not self.nesterov and self.diversity == 0
        if not judged:
            query.logits(x)
        here = self._gradient(at, rows["y"], generators, query, judged=judged)
        wanted = here + rows["variance"] if self.points > 1 else here
        new = {"momentum": accumulated(momentum, smoothed(wanted, self.kernel), self.momentum)}
        if self.points > 1:
            around = torch.zeros_like(x)
            for _ in range(self.points - 1):
                neighbour = (x + self._offset(rows, norm, generators)).clamp(0.0, 1.0)
                around = around + self._gradient(neighbour, rows["y"], generators, query, judged=False)
            new["variance"] = around / (self.points - 1) - here
        return new | {"x": climbed(x, new["momentum"], length, rows, norm)}

    def _gradient(self, x: Tensor, y: Tensor, generators: RowGenerators, query: Query, *, judged: bool) -> Tensor:
        """The gradient at x, as a mean over the scaled and diversified copies; only x itself may be judged."""
        loss, total = loss_named(self.loss), None
        for i in range(self.scales):
            share = 0.5**i
            copy = x * share if i else x
            if judged and i == 0:
                gradient = query.gradient(copy, loss)[2]
            elif self.diversity > 0:
                resize = Resize.drawn(copy, self.diversity, self.smallest, generators)
                gradient = resize.transposed(unjudged_gradient(query, resize(copy), y, loss))
            else:
                gradient = unjudged_gradient(query, copy, y, loss)
            total = gradient if total is None else total + gradient * share
        return total if self.scales == 1 else total / self.scales

    def _offset(self, rows: Rows, norm: str, generators: RowGenerators) -> Tensor:
        """[B, C, H, W]: where a neighbour lies, seen from the iterate."""
        x = rows["x"]
        reach = per_row(rows["eps"] * self.reach, x)
        if norm == "linf":
            return reach * (2.0 * generators.uniform(*x.shape[1:]) - 1.0)
        direction = unit(generators.normal(*x.shape[1:]))
        return reach * per_row(generators.uniform(), x) * direction
