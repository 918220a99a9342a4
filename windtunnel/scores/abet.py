"""AbeT: energy with a learned temperature whose forefront factor is dropped.

Paper: AbeT, out-of-distribution detection with a learned temperature (LeVine et al.),
https://arxiv.org/abs/2401.12129; the authors' code, https://github.com/anonymousoodauthor/abet, calls it
``ablated_energy`` (with the opposite sign).

Formula: with the cosine logits ``g`` and the learned temperature ``T(x)`` in (0, 1), ``z = g / T(x)`` are the model's
logits and ``S(x) = -logsumexp(z)``; higher = more out-of-distribution. It exists only on a head with a temperature
learned per sample: null elsewhere, also on the control with one global learned temperature.
Defaults: no setting.
Deviations: the authors' code takes ``log(sum(exp(z)))``, which overflows for z > 88 in float32; here the stable form.
The models give ``z`` already divided, so nothing is divided again here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import logsumexp

from windtunnel.scores.base import Head, Observations, Score, State


@dataclass(frozen=True, kw_only=True)
class Abet(Score):
    """``-logsumexp(z)`` on a head with a learned temperature per sample."""

    algorithm_version: ClassVar[int] = 1
    needs_temperature: ClassVar[bool] = True

    def score(self, observations: Observations, state: State, head: Head) -> np.ndarray:
        """[N] float64; higher = more out-of-distribution. ValueError on a head to which it does not apply."""
        if not self.applies_to(head):
            raise ValueError("abet exists only on a head with a temperature learned per sample")
        return -logsumexp(observations.logits.astype(np.float64), axis=1)
