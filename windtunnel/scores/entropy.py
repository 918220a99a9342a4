"""Entropy of the softmax distribution.

Paper: used as an out-of-distribution score at least since Likelihood Ratios for Out-of-Distribution Detection (Ren et
al., NeurIPS 2019), https://arxiv.org/abs/1906.02845, baseline "entropy of p(y|x)".

Formula: ``S(x) = -sum_k p_k log p_k`` in nats, ``p = softmax(z / T)``, in [0, log K]; higher = more
out-of-distribution.
Defaults: ``temperature`` 1.
Deviation: none in value. With ``r_k = z_k - z_max`` and ``s`` the sum of ``exp(r_k)`` over all classes but the first
largest one it is computed as ``log1p(s) - sum_k exp(r_k) r_k / (1 + s)``: no probability is clipped, and saturated
images keep their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.scores.base import Head, Observations, Score, State


@dataclass(frozen=True, kw_only=True)
class Entropy(Score):
    """Shannon entropy (nats) of the softmax, exact for saturated logits. ``temperature`` divides the logits."""

    algorithm_version: ClassVar[int] = 1

    temperature: float = 1.0

    def score(self, observations: Observations, state: State, head: Head) -> np.ndarray:
        """[N] float64 in [0, log K]; higher = more out-of-distribution."""
        z = observations.logits.astype(np.float64) / self.temperature
        # a class masked with -inf has p log p = 0, not 0 times -inf
        relative = np.maximum(z - z.max(axis=1, keepdims=True), -1e4)
        rest = np.exp(relative)
        # the largest leaves the sum; in a row with a NaN that place must stay NaN, or a single class would hide it
        rest[np.arange(len(z)), np.argmax(z, axis=1)] = np.where(np.isnan(z).any(axis=1), np.nan, 0.0)
        total = rest.sum(axis=1)
        return np.log1p(total) - (rest * relative).sum(axis=1) / (1.0 + total)
