"""SPSA: gradient ascent on finite differences in random directions, no gradient asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from windtunnel.attacks.base import Attack, Query, RowGenerators, Rows, Tensor
from windtunnel.attacks.geometry import TINY, linf_bounds, per_row, project_l2
from windtunnel.attacks.losses import loss_named
from windtunnel.backend import torch

ADAM_FIRST, ADAM_SECOND, ADAM_FLOOR = 0.9, 0.999, 1e-8  # Adam's own defaults


@dataclass(frozen=True, kw_only=True)
class SPSA(Attack):
    """Simultaneous perturbation stochastic approximation (Uesato et al., Adversarial Risk and the Dangers of Evaluating
    Against Weak Attacks, 2018, https://arxiv.org/abs/1802.05666, algorithm 1), with Adam as the paper advises.

    A step draws ``samples / 2`` directions v, uniform in {-1, +1}^d, asks about both sides and averages
    ``(L(x + delta v) - L(x - delta v)) / (2 delta v)``; Adam moves x along it; the result is projected onto the ball
    and the box. L is the margin ``max_{j != y} z_j - z_y`` (the paper's; ``loss`` may also be ce or dlr), so the
    attack survives pipelines whose gradient is zero, broken or noise.

    ``step_size`` is Adam's rate as a fraction of eps: in every pixel under linf, divided by sqrt(d) under l2, where it
    is about the length of a step. ``delta`` is in pixel values. Defaults: ``delta`` .01, 100 steps and 128 samples are
    those of the CleverHans implementation, whose rate of .01 is about .32 eps at 8/255; the paper's largest runs take
    thousands of samples per step. A step asks once more, about x itself: ``samples + 1`` queries.

    Deviations: probes are clipped to the box, since a defense takes images only, and the difference is divided by
    each pixel's own distance between them; as in the paper they may leave the ball, so they are asked of the members
    of the pipeline without being judged, and only the iterates are candidates.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    uses_gradient: ClassVar[bool] = False
    bill: ClassVar[tuple[str, ...]] = ("steps", "samples")

    steps: int = 100
    samples: int = 128
    step_size: float = 0.32
    delta: float = 0.01
    loss: str = "margin"

    def __post_init__(self) -> None:
        loss_named(self.loss)
        if self.steps < 1 or self.samples < 2 or self.samples % 2:
            raise ValueError(f"steps must be at least 1 and samples an even number, at least 2: {self}")
        if self.step_size <= 0 or not 0 < self.delta <= 1:
            raise ValueError(f"step_size must be above 0 and delta in (0, 1]: {self}")

    @property
    def max_steps(self) -> int:
        return self.steps

    def init(self, x0: Tensor, y: Tensor, eps: Tensor, norm: str, generators: RowGenerators, query: Query) -> Rows:
        rows = {"x": x0, "mean": torch.zeros_like(x0), "square": torch.zeros_like(x0)}
        if norm == "linf":
            rows["low"], rows["high"] = linf_bounds(x0, eps)
        return rows

    def step(self, rows: Rows, norm: str, generators: RowGenerators, query: Query) -> Rows:
        x, age = rows["x"], rows["t"] + 1
        query.logits(x)  # a candidate; the engine lets a fooled row leave
        estimate = self.estimate(x, rows["y"], generators, query)
        mean = ADAM_FIRST * rows["mean"] + (1 - ADAM_FIRST) * estimate
        square = ADAM_SECOND * rows["square"] + (1 - ADAM_SECOND) * estimate.square()
        rate = rows["eps"] * self.step_size
        if norm == "l2":
            rate = rate / x[0].numel() ** 0.5
        corrected = mean / per_row(1 - ADAM_FIRST**age, x)
        spread = (square / per_row(1 - ADAM_SECOND**age, x)).sqrt()
        moved = x + per_row(rate, x) * corrected / (spread + ADAM_FLOOR)
        x = moved.clamp(rows["low"], rows["high"]) if norm == "linf" else project_l2(moved, rows["x0"], rows["eps"])
        return {"x": x, "mean": mean, "square": square}

    def estimate(self, x: Tensor, y: Tensor, generators: RowGenerators, query: Query) -> Tensor:
        """[B, C, H, W]: the estimated gradient of each row's own loss; ``samples`` queries."""
        loss, shape = loss_named(self.loss), tuple(x.shape[1:])
        width = (x + self.delta).clamp_max(1.0) - (x - self.delta).clamp_min(0.0)
        total = torch.zeros_like(x)
        for _ in range(self.samples // 2):
            direction = torch.where(generators.uniform(*shape) < 0.5, -1.0, 1.0).to(x)
            above, below = ((x + side * self.delta * direction).clamp(0.0, 1.0) for side in (1, -1))
            rise = loss(_unjudged(query, above), y) - loss(_unjudged(query, below), y)
            total = total + per_row(rise, x) * direction
        return total / (width.clamp_min(TINY) * (self.samples // 2))


def _unjudged(query: Query, x: Tensor) -> Tensor:
    """[B, K]: the pipeline's own answer (the mean over its members), counted but no candidate."""
    answers = [query.logits(x, member=member) for member in range(query.n_members)]
    return torch.stack(answers).mean(0)
