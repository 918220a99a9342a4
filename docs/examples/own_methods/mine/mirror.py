"""A defense of one's own: the mirrored image, with its exact backward rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.defenses.base import Defense, Purified
from windtunnel.defenses.rules import with_generic


@dataclass(frozen=True, kw_only=True)
class Mirror(Defense):
    """Swap left and right."""

    rules: ClassVar[tuple[str, ...]] = ("own", "identity", "blur")

    def purify(self, images: np.ndarray) -> Purified:
        return Purified(images[..., ::-1].copy())

    def backward_rules(self, rounds: int = 1):
        return with_generic(self.rules, own=lambda x: x.flip(-1) if rounds % 2 else x)
