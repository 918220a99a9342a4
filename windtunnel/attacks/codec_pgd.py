"""PGD against the codec: the image that the defense spoils most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from windtunnel.attacks.base import Attack, Query, RowGenerators, Rows, Tensor
from windtunnel.attacks.geometry import linf_bounds, per_row, project_l2, random_start, unit
from windtunnel.backend import torch


@dataclass(frozen=True, kw_only=True)
class CodecPGD(Attack):
    """Projected gradient ascent on the defense's own error ``e(x) = mean (g(x) - x)^2``, g the real defense (all its
    rounds): ``x <- P(x + step eps sign(grad e))``, under l2 ``grad e / |grad e|_2`` in place of the sign.

    Paper: Raeber et al., Keep It Real: Challenges in Attacking Compression-Based Adversarial Purification,
    https://arxiv.org/abs/2508.05489 (attack on the codec: maximise the error of its reconstruction). The model is not
    asked: this attack is untargeted, knows neither labels nor weights, and says how far a purifier can be driven from
    its input, and whether that alone costs accuracy. ``rows["x"]`` is the image with the largest error on the real
    defense so far, so that ``last`` is the worst for the codec; it alone is judged by the model.

    The value is the real error, the gradient ``2/d (J_rule - 1)^T (g(x) - x)`` goes through the backward rule: under
    the rule ``identity`` J is 1 and the gradient exactly zero everywhere (rows carry ``zero_gradient``, and the
    attack is the best of its random starts). Use a rule that knows the defense. Without a defense there is no error:
    the engine refuses.

    ``steps``, ``step_size`` (a fraction of eps) and ``random_start`` are as in ``pgd``; ``restarts`` runs follow each
    other, each from a new random start. The paper states no settings that carry over to 32 pixels.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    bill: ClassVar[tuple[str, ...]] = ("steps", "restarts")
    needs_defense: ClassVar[bool] = True

    steps: int = 20
    step_size: float = 0.25
    random_start: bool = True
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or self.step_size <= 0:
            raise ValueError(f"steps and restarts must be at least 1 and step_size above 0: {self}")
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts without random_start repeat the same run")

    @property
    def max_steps(self) -> int:
        return self.restarts * (self.steps + 1)  # every run's start and end are asked about

    def init(self, x0: Tensor, y: Tensor, eps: Tensor, norm: str, generators: RowGenerators, query: Query) -> Rows:
        start = random_start(x0, eps, norm, generators) if self.random_start else x0
        error = torch.full((len(x0),), -torch.inf, dtype=x0.dtype, device=x0.device)
        rows = {"x": start, "iterate": start, "error": error}
        if norm == "linf":
            rows["low"], rows["high"] = linf_bounds(x0, eps)
        return rows

    def step(self, rows: Rows, norm: str, generators: RowGenerators, query: Query) -> Rows:
        x, x0, eps = rows["iterate"], rows["x0"], rows["eps"]
        error, gradient = query.defense_error(x)
        better = error > rows["error"]
        worst = torch.where(better.view(-1, 1, 1, 1), x, rows["x"])
        length = per_row(eps * self.step_size, x)
        if norm == "linf":
            moved = torch.addcmul(x, gradient.sign(), length).clamp(rows["low"], rows["high"])
        else:
            moved = project_l2(x + length * unit(gradient), x0, eps)
        ended = rows["t"] % (self.steps + 1) == self.steps
        if self.restarts > 1 and bool(ended.any()):
            moved[ended] = random_start(x0[ended], eps[ended], norm, generators.select(ended))
        return {"x": worst, "iterate": moved, "error": torch.where(better, error, rows["error"])}
