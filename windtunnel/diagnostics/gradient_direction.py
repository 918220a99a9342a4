"""Gradient direction: is one step along the gradient better than the best of many random steps?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.attacks.geometry import per_row
from windtunnel.attacks.losses import margin
from windtunnel.backend import torch
from windtunnel.diagnostics._probe import ball, batches, columns, direction, random_direction
from windtunnel.diagnostics.base import Diagnostic, Inputs
from windtunnel.engine import Pipeline


@dataclass(frozen=True, kw_only=True)
class GradientDirection(Diagnostic):
    """One step of the whole budget along the gradient of the margin, against ``draws`` random steps of that length,
    all judged by the *real* pipeline.

    ``g = m(P(x + eps sign(grad m(x)))) - m(x)`` with the margin ``m = max_{j != y} z_j - z_y`` (l2: the unit gradient),
    P the projection on ball and box; the random steps replace the signs by random signs (l2: a uniform unit vector).
    Quantities: ``gain`` g; ``random_gain`` the best of the random steps; ``beats_all`` 1 where g is strictly above it
    and the gradient is not zero (standing still may well beat random noise, but is no direction), else 0. All are NaN
    for a sample that is wrong on the clean image. A useless gradient beats 19 random steps on 1 of 20 samples.

    The idea is that of the sanity checks of Athalye, Carlini, Wagner, Obfuscated Gradients Give a False Sense of
    Security, 2018, https://arxiv.org/abs/1802.00420. The single step of the whole budget is on purpose: in trials
    behind one JPEG round the identity rule won on all samples with 8/255, on 86 to 93 % with 2/255. ``draws`` = 19
    makes chance 5 %.
    """

    algorithm_version: ClassVar[int] = 1
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    quantities: ClassVar[tuple[str, ...]] = ("beats_all", "gain", "random_gain")
    bill: ClassVar[tuple[str, ...]] = ("draws",)

    draws: int = 19

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"draws must be at least 1, not {self.draws}")

    def measure(self, pipeline: Pipeline, inputs: Inputs) -> Mapping[str, np.ndarray]:
        out = columns(self.quantities, inputs)
        for batch in batches(pipeline, inputs, self.norms):
            x, rows = batch.x, batch.rows
            project, length = ball(x, batch.eps, inputs.norm), per_row(batch.eps, x)
            logits, before, gradient = batch.gradient(x, margin)
            stepped = project(x + length * direction(gradient, inputs.norm), rows)
            gain = margin(batch.logits(stepped), batch.y).double() - before.double()
            best = torch.full_like(gain, -torch.inf)
            for _ in range(self.draws):
                noise = random_direction(batch.random, tuple(x.shape[1:]), inputs.norm)
                reached = margin(batch.logits(project(x + length * noise, rows)), batch.y).double()
                best = torch.maximum(best, reached - before.double())
            moved = (gradient != 0).flatten(1).any(1)
            right = torch.nonzero(logits.argmax(1) == batch.y)[:, 0]
            batch.write(out, "beats_all", (moved & (gain > best))[right], right)
            batch.write(out, "gain", gain[right], right)
            batch.write(out, "random_gain", best[right], right)
        return out
