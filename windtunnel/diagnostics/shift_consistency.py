"""Shift consistency: does the pipeline say the same of an image moved by a pixel?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.backend import torch
from windtunnel.diagnostics._probe import batches, columns
from windtunnel.diagnostics.base import Diagnostic, Inputs
from windtunnel.engine import Pipeline, judged


@dataclass(frozen=True, kw_only=True)
class ShiftConsistency(Diagnostic):
    """The pipeline's answers to an image and to all its *cyclic* shifts by at most ``reach`` pixels along each axis
    (8 shifts for reach 1), put in front of the defense. No attack: eps and norm mean nothing here.

    Quantities: ``consistent`` in [0, 1], the share of shifts with the same class as the unshifted image;
    ``worst_case_correct`` 1 where the image and all its shifts are classified as labelled, else 0;
    ``clean_correct`` 1 or 0, the unshifted image; ``largest_change``, the largest absolute change of any logit under
    any shift (NaN if a logit is not finite; NaN logits agree with nothing and are wrong). Defined for all samples,
    also those that are wrong. A random defense keeps its dice over the shifts of a sample.

    Consistency and worst case as in Shifman & Weiss, Lost in Translation: Modern Neural Networks Still Struggle With
    Small Realistic Image Transformations, 2024, https://arxiv.org/abs/2404.07153, whose crop selection promises 1 for
    integer cyclic shifts. Deviation: all shifts of the reach, not random draws of them. A cyclic shift wraps pixels
    around the edge; a camera brings new ones in, which is the harder test (image sets with realistic shifts).
    """

    algorithm_version: ClassVar[int] = 1
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    quantities: ClassVar[tuple[str, ...]] = ("consistent", "worst_case_correct", "clean_correct", "largest_change")
    bill: ClassVar[tuple[str, ...]] = ()

    reach: int = 1

    def __post_init__(self) -> None:
        if self.reach < 1:
            raise ValueError(f"reach must be at least 1, not {self.reach}")

    def measure(self, pipeline: Pipeline, inputs: Inputs) -> Mapping[str, np.ndarray]:
        out = columns(self.quantities, inputs)
        steps = range(-self.reach, self.reach + 1)
        shifts = [(down, right) for down in steps for right in steps if (down, right) != (0, 0)]
        for batch in batches(pipeline, inputs, self.norms):
            logits = batch.logits(batch.x)
            _, wrong, nan = judged(logits, batch.y)
            worst, same, change = ~wrong, torch.zeros(len(wrong), device=wrong.device).double(), []
            for shift in shifts:
                moved = batch.logits(torch.roll(batch.x, shift, dims=(2, 3)))
                _, moved_wrong, moved_nan = judged(moved, batch.y)
                worst = worst & ~moved_wrong
                same = same + ((moved.argmax(1) == logits.argmax(1)) & ~nan & ~moved_nan)
                change.append((moved.double() - logits.double()).abs().amax(1))
            largest = torch.stack(change).amax(0)  # amax hands NaN on
            batch.write(out, "consistent", same / len(shifts))
            batch.write(out, "worst_case_correct", worst)
            batch.write(out, "clean_correct", ~wrong)
            batch.write(out, "largest_change", torch.where(torch.isfinite(largest), largest, torch.nan))
        return out
