"""Energy: the free energy of the logits.

Paper: Energy-based Out-of-distribution Detection (Liu et al., NeurIPS 2020), https://arxiv.org/abs/2010.03759.

Formula: ``S(x) = E(x; T) = -T logsumexp(z / T)``; higher = more out-of-distribution; zero logits give ``-T log K``.
Defaults: ``temperature`` 1, the paper's choice for scoring a trained network.
Deviation: none. The logits are those the model says, so on a head with a learned temperature (z = g / T(x)) this
score with temperature 1 is the same number as ``abet``: on such a model, compare ``abet`` with ``abet_unablated``,
``msp`` or ``maxlogit``, or with ``energy`` of the plain network or of the cosine control.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import logsumexp

from windtunnel.scores.base import Head, Observations, Score, State


@dataclass(frozen=True, kw_only=True)
class Energy(Score):
    """Free energy ``-T logsumexp(z / T)`` with one fixed ``temperature`` T."""

    algorithm_version: ClassVar[int] = 1

    temperature: float = 1.0

    def score(self, observations: Observations, state: State, head: Head) -> np.ndarray:
        """[N] float64; higher = more out-of-distribution."""
        z = observations.logits.astype(np.float64)
        return -self.temperature * logsumexp(z / self.temperature, axis=1)
