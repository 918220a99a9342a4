"""CW: the smallest distance and the wrong answer, weighed in one objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from windtunnel.attacks.base import Attack, Query, RowGenerators, Rows, Tensor
from windtunnel.attacks.boundary import into_ball, keep_nearest, nothing_found, restart_point
from windtunnel.attacks.geometry import per_row
from windtunnel.attacks.losses import margin
from windtunnel.backend import torch

BETA1, BETA2, TINY = 0.9, 0.999, 1e-8  # Adam's own (Kingma & Ba 2015, https://arxiv.org/abs/1412.6980)


@dataclass(frozen=True, kw_only=True)
class CW(Attack):
    """Carlini & Wagner's l2 attack (Towards Evaluating the Robustness of Neural Networks, 2017,
    https://arxiv.org/abs/1608.04644, section VI.A): Adam on ``|x - x0|_2^2 + c max(confidence - m(x), 0)`` with the
    margin ``m = max_{j != y} z_j - z_y``, and a binary search over c for each row.

    ``searches`` = 9, ``initial_c`` = .001, ``learning_rate`` = .01 and ``confidence`` = 0 are those of the authors'
    code, which runs up to 10,000 steps in each search (it may stop earlier); ``steps`` = 100 here. c is multiplied by
    ten until a search finds something, then halved between the bounds. Each search starts at the clean image; every
    further run of ``restarts`` starts its searches at random images at half the distance found so far, at most eps / 2.

    Deviations. The box: the paper's first way (section V.B, projected gradient descent: every iterate is clipped) in
    place of x = (tanh(w) + 1) / 2, under which a pixel at 0 or 1 lies at infinity and cannot move; clipped, it moves
    inwards as freely as any other. The learning rate falls linearly to 0 within each search: with a constant one an
    iterate jumps over the boundary until the end; so no pixel goes farther than about ``learning_rate * steps / 2``,
    .5 by default. No early abort. Not targeted, as the other attacks here: it ends at the boundary of the class that
    leads near the image, where the paper takes the nearest of its targets.

    The margin is taken by replacing the label's logit by minus infinity, so a shift of the logits changes nothing; a
    scale is absorbed by c. It looks for the nearest adversarial image whatever eps is (``minimal_norm``). l2 only: the
    paper's l-infinity form is a sequence of many such problems with a shrinking threshold; under linf take FAB.
    """

    norms: ClassVar[tuple[str, ...]] = ("l2",)
    bill: ClassVar[tuple[str, ...]] = ("steps", "searches", "restarts")
    minimal_norm: ClassVar[bool] = True

    steps: int = 100
    searches: int = 9
    initial_c: float = 1e-3
    learning_rate: float = 0.01
    confidence: float = 0.0
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.searches < 1 or self.restarts < 1:
            raise ValueError(f"steps, searches and restarts must be at least 1: {self}")
        if self.initial_c <= 0 or self.learning_rate <= 0 or self.confidence < 0:
            raise ValueError(f"initial_c and learning_rate must be above 0, confidence at least 0: {self}")

    @property
    def max_steps(self) -> int:
        return self.restarts * self.searches * self.steps

    def init(self, x0: Tensor, y: Tensor, eps: Tensor, norm: str, generators: RowGenerators, query: Query) -> Rows:
        zeros = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
        rows = {"x": x0, "point": x0, "mean": torch.zeros_like(x0), "square": torch.zeros_like(x0)}
        rows |= {"c": zeros + self.initial_c, "low": zeros, "high": zeros + torch.inf}
        return rows | {"solved": torch.zeros_like(y, dtype=torch.bool), **nothing_found(x0)}

    def step(self, rows: Rows, norm: str, generators: RowGenerators, query: Query) -> Rows:
        x0, point, c = rows["x0"], rows["point"], rows["c"]
        wide = (-1, *([1] * (x0.dim() - 1)))
        phase = rows["t"] % self.steps
        logits, value, gradient = query.gradient(point, self._loss)
        # Fooled with the confidence asked for: nothing is left of the second term.
        fooled = (logits.argmax(1) != rows["y"]) & (value >= 0)
        found, _ = keep_nearest(rows, point, fooled, norm)
        solved = rows["solved"] | fooled

        slope = 2 * (point - x0) - per_row(c, x0) * gradient
        mean = BETA1 * rows["mean"] + (1 - BETA1) * slope
        square = BETA2 * rows["square"] + (1 - BETA2) * slope * slope
        age = (phase + 1).double()
        length = self.learning_rate * (1 - phase.double() / self.steps) / (1 - BETA1**age)
        root = (square / per_row(1 - BETA2**age, x0)).sqrt() + TINY
        point = (point - per_row(length, x0) * mean / root).clamp(0, 1)

        new = rows | found | {"point": point, "mean": mean, "square": square, "solved": solved}
        ended = phase == self.steps - 1
        if bool(ended.any()):
            new |= self._next_search(new, ended, norm, generators)
        best = torch.isfinite(new["distance"]).view(wide)
        return new | {"x": into_ball(torch.where(best, new["nearest"], point), x0, rows["eps"], norm)}

    def _loss(self, logits: Tensor, y: Tensor) -> Tensor:
        return (margin(logits, y) - self.confidence).clamp_max(0)

    def _next_search(self, rows: Rows, ended: Tensor, norm: str, generators: RowGenerators) -> Rows:
        """The rows whose search has ended: a new c, moments at zero, and the start."""
        wide = (-1, *([1] * (rows["x0"].dim() - 1)))
        solved, c = rows["solved"], rows["c"]
        high = torch.where(ended & solved, torch.minimum(rows["high"], c), rows["high"])
        low = torch.where(ended & ~solved, torch.maximum(rows["low"], c), rows["low"])
        chosen = torch.where(torch.isfinite(high), (low + high) / 2, c * 10)
        run_ended = rows["t"] % (self.searches * self.steps) == self.searches * self.steps - 1
        new = {
            "c": torch.where(run_ended, self.initial_c, torch.where(ended, chosen, c)),
            "low": torch.where(run_ended, 0.0, low),
            "high": torch.where(run_ended, torch.inf, high),
            "solved": solved & ~ended,
            "mean": torch.where(ended.view(wide), 0.0, rows["mean"]),
            "square": torch.where(ended.view(wide), 0.0, rows["square"]),
            "point": torch.where(ended.view(wide), rows["x0"], rows["point"]),
        }
        again = ended & ((rows["t"] + 1) >= self.searches * self.steps)
        if self.restarts > 1 and bool(again.any()):
            kept = {name: rows[name][again] for name in ("x0", "eps", "distance")}
            new["point"][again] = restart_point(kept, norm, generators.select(again))
        return new
