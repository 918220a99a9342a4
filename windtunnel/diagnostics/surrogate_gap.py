"""Surrogate gap: does what fools the differentiable stand-in fool the real defense?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.attacks.base import Tensor
from windtunnel.attacks.geometry import random_start
from windtunnel.diagnostics._probe import Batch, ascend, ball, batches, columns
from windtunnel.diagnostics.base import Diagnostic, Inputs
from windtunnel.engine import Pipeline, judged


class _StandIn(Batch):
    """The same samples asked of the stand-in: the backward rule as the *forward*, then the model."""

    def answer(self, x: Tensor, rows: Tensor) -> Tensor:
        return self.pipeline.model(self.pipeline.stand_in(x, self.draws_of(rows)))


@dataclass(frozen=True, kw_only=True)
class SurrogateGap(Diagnostic):
    """A short PGD on the stand-in (the cell's backward rule used as the forward), its images judged on the stand-in
    and on the real defense.

    ``steps`` steps of ``step_size`` eps on the margin loss from a random start; every sample takes all of them and the
    image with the largest margin on the stand-in is kept (the one that first fooled it would hardly fool anything
    else). Quantities, 1 wrong and 0 right on that image: ``fooled_stand_in``, ``fooled_real``. The difference of their
    means is the gap; above 5 percentage points the stand-in does not stand for the defense, and a number from an attack
    that trusts its *values* (this library's attacks use only its gradient) would be worth nothing. The rule
    ``identity`` stands for the undefended model: its gap tells how far transfer from that goes.

    NaN for samples that the real pipeline gets wrong on the clean image, and for a pipeline without a defense.
    The stand-in of Athalye, Carlini, Wagner 2018, https://arxiv.org/abs/1802.00420 (BPDA). Defaults are this
    library's.
    """

    algorithm_version: ClassVar[int] = 1
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    quantities: ClassVar[tuple[str, ...]] = ("fooled_stand_in", "fooled_real")
    bill: ClassVar[tuple[str, ...]] = ("steps",)

    steps: int = 10
    step_size: float = 0.25

    def __post_init__(self) -> None:
        if self.steps < 1 or self.step_size <= 0:
            raise ValueError(f"steps must be at least 1 and step_size above 0: {self}")

    def measure(self, pipeline: Pipeline, inputs: Inputs) -> Mapping[str, np.ndarray]:
        out = columns(self.quantities, inputs)
        if pipeline.defense is None:
            return out
        for batch in batches(pipeline, inputs, self.norms):
            right = batch.rows[batch.correct()]
            if not len(right):
                continue
            x0, eps = batch.x[right], batch.eps[right]
            start = random_start(x0, eps, inputs.norm, batch.random.select(right))
            images, fooled = ascend(
                _StandIn(pipeline, inputs, batch.place),
                start,
                right,
                ball(x0, eps, inputs.norm),
                length=eps * self.step_size,
                steps=self.steps,
                norm=inputs.norm,
                leave=False,
            )
            batch.write(out, "fooled_stand_in", fooled, right)
            batch.write(out, "fooled_real", judged(batch.logits(images, right), batch.y[right])[1], right)
        return out
