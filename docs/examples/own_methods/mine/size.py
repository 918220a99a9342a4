"""A score of one's own: short features look unfamiliar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.scores.base import Score


@dataclass(frozen=True, kw_only=True)
class Size(Score):
    """Minus the length of the features: higher is more out-of-distribution."""

    needs_features: ClassVar[bool] = True

    def score(self, observations, state, head):
        return -np.linalg.norm(observations.features.astype(np.float64), axis=1)
