"""Local linearity: how far the loss around an image is from a plane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.attacks.base import Loss, Tensor
from windtunnel.attacks.geometry import per_row, random_start
from windtunnel.attacks.losses import loss_named
from windtunnel.backend import torch
from windtunnel.diagnostics._probe import Batch, ball, batches, columns, direction
from windtunnel.diagnostics.base import Diagnostic, Inputs
from windtunnel.engine import Pipeline


@dataclass(frozen=True, kw_only=True)
class LocalLinearity(Diagnostic):
    """Three numbers per sample, of the loss l in the ball of radius eps around x (and in the box).

    ``e_lin``: mean over ``draws`` of ``(l(x_c) - (1 - a) l(x_a) - a l(x_b))^2`` with x_a, x_b independent and uniform
    in the ball (l2: uniform direction, length uniform in [0, eps)), a uniform in [0, 1], ``x_c = (1 - a) x_a + a x_b``
    (Abad Rocamora et al., Efficient Local Linearity Regularization to Overcome Catastrophic Overfitting, ICLR 2024,
    https://arxiv.org/abs/2401.11618; there the mean is over a batch).
    ``linearisation_error``: ``|l(x + d) - l(x) - <d, grad l(x)>|`` for d the step of one-step attacks, eps sign(grad
    l(x)) drawn back into the box (l2: eps times the unit gradient).
    ``gamma``: the largest such error found in the ball (Qin et al., Adversarial Robustness through Local
    Linearization, 2019, https://arxiv.org/abs/1907.02610): sign ascent on the error from a random start, ``steps``
    steps of ``step_size`` eps, all points and the one-step point included; a lower bound of the true maximum.

    0 = exactly linear. All samples are measured, wrong ones too: a loss has a shape everywhere. ``loss`` = ce as in
    both papers, so numbers of models with other logit scales are not comparable; ``margin`` and ``dlr`` are offered.
    Losses are those of the real pipeline and gradients those of the backward rule: through a rule that does not know
    its defense the last two also contain the rule's error. A rise of ``e_lin`` beside a good one-step robust accuracy
    is the sign of catastrophic overfitting. ``draws`` and ``steps`` are this library's choice.
    """

    algorithm_version: ClassVar[int] = 1
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    quantities: ClassVar[tuple[str, ...]] = ("e_lin", "linearisation_error", "gamma")
    bill: ClassVar[tuple[str, ...]] = ("steps",)

    draws: int = 8
    steps: int = 5
    step_size: float = 0.5
    loss: str = "ce"

    def __post_init__(self) -> None:
        loss_named(self.loss)
        if self.draws < 1 or self.steps < 1 or self.step_size <= 0:
            raise ValueError(f"draws and steps must be at least 1, step_size above 0: {self}")

    def measure(self, pipeline: Pipeline, inputs: Inputs) -> Mapping[str, np.ndarray]:
        out = columns(self.quantities, inputs)
        loss = _in_double(loss_named(self.loss))
        for batch in batches(pipeline, inputs, self.norms):
            batch.write(out, "e_lin", self._e_lin(batch, loss, inputs.norm))
            one_step, gamma = self._linearisation(batch, loss, inputs.norm)
            batch.write(out, "linearisation_error", one_step)
            batch.write(out, "gamma", gamma)
        return out

    def _e_lin(self, batch: Batch, loss: Loss, norm: str) -> Tensor:
        total = torch.zeros_like(batch.eps)
        for _ in range(self.draws):
            one, two = (random_start(batch.x, batch.eps, norm, batch.random) for _ in range(2))
            share = batch.random.uniform()
            between = one + per_row(share, one) * (two - one)
            at_one, at_two, at_between = (loss(batch.logits(x), batch.y) for x in (one, two, between))
            total += (at_between - (1 - share.double()) * at_one - share.double() * at_two).square()
        return total / self.draws

    def _linearisation(self, batch: Batch, loss: Loss, norm: str) -> tuple[Tensor, Tensor]:
        x0, rows = batch.x, batch.rows
        project, length = ball(x0, batch.eps, norm), per_row(batch.eps, x0)
        _, base, slope = batch.gradient(x0, loss)

        def error(value: Tensor, x: Tensor) -> Tensor:
            plane = ((x - x0).double() * slope.double()).flatten(1).sum(1)
            return value - base - plane

        x = project(x0 + length * direction(slope, norm), rows)
        one_step = error(loss(batch.logits(x), batch.y), x).abs()
        gamma = one_step
        x = random_start(x0, batch.eps, norm, batch.random)
        for _ in range(self.steps):
            _, value, gradient = batch.gradient(x, loss)
            off = error(value, x)
            gamma = torch.maximum(gamma, off.abs())
            uphill = (gradient - slope) * per_row(off.sign(), x0)
            x = project(x + self.step_size * length * direction(uphill, norm), rows)
        return one_step, torch.maximum(gamma, error(loss(batch.logits(x), batch.y), x).abs())


def _in_double(loss: Loss) -> Loss:
    """The loss of logits in float64: differences of nearly equal losses would drown in float32."""
    return lambda logits, y: loss(logits.double(), y)
