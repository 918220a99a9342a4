"""MaxLogit: the largest logit, negated.

Paper: Scaling Out-of-Distribution Detection for Real-World Settings (Hendrycks et al., ICML 2022),
https://arxiv.org/abs/1911.11132.

Formula: ``S(x) = -max_k z_k``; higher = more out-of-distribution. No setting, no deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.scores.base import Head, Observations, Score, State


@dataclass(frozen=True, kw_only=True)
class Maxlogit(Score):
    """The largest logit, negated."""

    algorithm_version: ClassVar[int] = 1

    def score(self, observations: Observations, state: State, head: Head) -> np.ndarray:
        """[N] float64; higher = more out-of-distribution."""
        return -observations.logits.astype(np.float64).max(axis=1)
