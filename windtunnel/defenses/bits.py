"""Bit depth: every value to the nearest of 2^depth levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from windtunnel.defenses._arrays import require_images
from windtunnel.defenses._codec import require_range
from windtunnel.defenses.base import BackwardRule, Defense, Images, Purified

if TYPE_CHECKING:
    import torch

SHARPNESS = 4.0


@dataclass(frozen=True, kw_only=True)
class Bits(Defense):
    """Bit-depth reduction: ``rint(x * L) / L`` with ``L = 2^depth - 1``, half to even.

    Paper: Xu, Evans, Qi, Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks,
    https://arxiv.org/abs/1704.01155. ``depth`` 1 to 8. The result is float32 on the grid of L + 1 levels (at depth 8
    the 8-bit grid itself). No file, hence no bits.

    Rule ``own``: soft rounding ``m + tanh(a (u - m)) / (2 tanh(a / 2))`` with ``u = x L``, ``m = floor(u) + 1/2``,
    ``a = 4`` (Agustsson, Theis, Universally Quantized Neural Networks, https://arxiv.org/abs/2006.09952), whose slope
    is largest (2.07) where a value is about to change its level and never below 0.14. The defense is idempotent, so
    ``own`` goes through one round whatever ``rounds`` is: more would multiply small slopes and mask the gradient. A
    straight-through estimator would be the rule ``identity``.
    """

    algorithm_version: ClassVar[int] = 1
    is_random: ClassVar[bool] = False
    rules: ClassVar[tuple[str, ...]] = ("own", "identity", "blur")
    generic_rules: ClassVar[tuple[str, ...]] = ("identity", "blur")
    libraries: ClassVar[tuple[str, ...]] = ("numpy",)

    depth: int

    def __post_init__(self) -> None:
        require_range("depth", self.depth, 1, 8)

    @property
    def steps(self) -> int:
        return 2**self.depth - 1

    def purify(self, images: Images) -> Purified:
        images = require_images(images)
        steps = np.float32(self.steps)
        return Purified(np.rint(images * steps) / steps)

    def backward_rules(self, rounds: int = 1) -> dict[str, BackwardRule]:
        from windtunnel.defenses.rules import with_generic

        return with_generic(self.rules, own=lambda x: soft_levels(x, self.steps))


def soft_levels(x: torch.Tensor, steps: int) -> torch.Tensor:
    """Soft rounding of [0, 1] to ``steps`` + 1 levels."""
    from windtunnel.backend import torch

    u = x * steps
    middle = torch.floor(u).detach() + 0.5
    return (middle + torch.tanh(SHARPNESS * (u - middle)) / (2.0 * np.tanh(SHARPNESS / 2.0))) / steps
