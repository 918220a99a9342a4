"""A defense of one's own with trained weights: it carries the network that its catalogue entry names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.defenses.base import LearnedDefense, Purified
from windtunnel.defenses.rules import repeated, with_generic
from windtunnel.networks.batches import in_fixed_batches


@dataclass(frozen=True, kw_only=True)
class Smoother(LearnedDefense):
    """The learned filter, cut to [0, 1]."""

    is_learned: ClassVar[bool] = True
    rules: ClassVar[tuple[str, ...]] = ("surrogate-n", "surrogate-1", "identity", "blur")

    def purify(self, images: np.ndarray) -> Purified:
        return Purified(in_fixed_batches(lambda x: self.module(x).clamp(0, 1), images))

    def backward_rules(self, rounds: int = 1):
        once = self.module
        return with_generic(self.rules, **{"surrogate-n": repeated(once, rounds), "surrogate-1": once})
