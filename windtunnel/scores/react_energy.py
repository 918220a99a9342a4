"""ReAct + energy: features clipped from above, the head replayed, then the energy of the new logits.

Paper: ReAct: Out-of-distribution Detection With Rectified Activations (Sun et al., NeurIPS 2021),
https://arxiv.org/abs/2111.12797.

Formula: ``c`` = the ``percentile`` of all entries of the fitting features, ``h' = min(h, c)``, ``z' = head(h')``,
``S(x) = -T logsumexp(z' / T)``; higher = more out-of-distribution.
Defaults: ``percentile`` 90 (the paper's, and AbeT's code), ``temperature`` 1.
Deviations: none on linear heads. On a head with a learned temperature the paper says nothing; as in AbeT's code
(https://github.com/anonymousoodauthor/abet) T(x) is taken from the *unclipped* features and only the class head sees
the clipped ones, which makes this AbeT + ReAct there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import logsumexp

from windtunnel.scores.base import Head, Observations, Score, State, finite_rows


@dataclass(frozen=True, kw_only=True)
class ReactEnergy(Score):
    """Energy of the head replayed on features clipped at a ``percentile`` of the fitting features."""

    algorithm_version: ClassVar[int] = 1
    needs_features: ClassVar[bool] = True
    needs_fit: ClassVar[bool] = True

    percentile: float = 90.0
    temperature: float = 1.0

    def fit(self, train: Observations, head: Head) -> State:
        """``threshold`` []: the percentile over all entries, linear between order statistics."""
        h = finite_rows(train.features, "react_energy").astype(np.float64)
        return {"threshold": np.asarray(np.percentile(h, self.percentile))}

    def score(self, observations: Observations, state: State, head: Head) -> np.ndarray:
        """[N] float64; higher = more out-of-distribution."""
        h = observations.features.astype(np.float64)
        z = head.logits(np.minimum(h, float(state["threshold"])), temperature=head.temperature(h))
        return -self.temperature * logsumexp(z / self.temperature, axis=1)
