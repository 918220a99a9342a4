"""MSP: one minus the largest softmax probability.

Paper: A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks (Hendrycks, Gimpel,
ICLR 2017), https://arxiv.org/abs/1610.02136.

Formula: ``S(x) = 1 - max_k softmax(z / T)_k``, in [0, 1 - 1/K]; higher = more out-of-distribution.
Defaults: ``temperature`` 1, as in the paper.
Deviation: none in value. It is computed as ``s / (1 + s)`` with ``s`` the sum of ``exp((z_k - z_max) / T)`` over all
classes but the first largest one: ``1 - p`` rounds to 0 from a logit gap of about 37 on and ties thousands of
confident images, which moves FPR at 95 %; this form keeps them apart down to the smallest float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.scores.base import Head, Observations, Score, State


@dataclass(frozen=True, kw_only=True)
class Msp(Score):
    """One minus the largest softmax probability, exact for saturated logits. ``temperature`` divides the logits."""

    algorithm_version: ClassVar[int] = 1

    temperature: float = 1.0

    def score(self, observations: Observations, state: State, head: Head) -> np.ndarray:
        """[N] float64 in [0, 1 - 1/K]; higher = more out-of-distribution."""
        z = observations.logits.astype(np.float64) / self.temperature
        rest = np.exp(z - z.max(axis=1, keepdims=True))
        # the largest leaves the sum; in a row with a NaN that place must stay NaN, or a single class would hide it
        rest[np.arange(len(z)), np.argmax(z, axis=1)] = np.where(np.isnan(z).any(axis=1), np.nan, 0.0)
        total = rest.sum(axis=1)
        return total / (1.0 + total)
