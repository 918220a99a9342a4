"""AbeT un-ablated: energy with the learned temperature kept in front.

Paper: AbeT (LeVine et al.), https://arxiv.org/abs/2401.12129; the authors' code,
https://github.com/anonymousoodauthor/abet, calls it ``energy`` on a network with a learned temperature (with the
opposite sign). It is the twin that shows what dropping the factor does.

Formula: ``S(x) = -T(x) logsumexp(z)``, ``z = g / T(x)`` the model's logits, ``T(x) = sigmoid(BN(Linear(h))) +
1e-12``; higher = more out-of-distribution. Null on heads without a temperature learned per sample.
Defaults: no setting. Deviation: T(x) is replayed in float64 from the stored features and the exported head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import logsumexp

from windtunnel.scores.base import Head, Observations, Score, State


@dataclass(frozen=True, kw_only=True)
class AbetUnablated(Score):
    """``-T(x) logsumexp(z)`` on a head with a learned temperature per sample."""

    algorithm_version: ClassVar[int] = 1
    needs_features: ClassVar[bool] = True
    needs_temperature: ClassVar[bool] = True

    def score(self, observations: Observations, state: State, head: Head) -> np.ndarray:
        """[N] float64; higher = more out-of-distribution. ValueError on a head to which it does not apply."""
        if not self.applies_to(head):
            raise ValueError("abet_unablated exists only on a head with a temperature learned per sample")
        temperature = head.temperature(observations.features)
        return -temperature * logsumexp(observations.logits.astype(np.float64), axis=1)
