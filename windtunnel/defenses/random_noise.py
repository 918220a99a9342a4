"""Additive Gaussian noise: the input side of randomised smoothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.defenses._arrays import require_images
from windtunnel.defenses._codec import require_range
from windtunnel.defenses.base import BackwardRule, Draw, Images, Purified, RandomDefense


@dataclass(frozen=True, kw_only=True)
class RandomNoise(RandomDefense):
    """``clip(x + n)`` with n normal of standard deviation ``sigma`` / 255 in every pixel and channel, new at each call.

    Paper: Cohen, Rosenfeld, Kolter, Certified Adversarial Robustness via Randomized Smoothing, 2019,
    https://arxiv.org/abs/1902.02918, whose sigmas .12, .25, .5 and 1 are 31, 64, 128 and 255 here. This is only the
    noise in front of one model, a purifier; it certifies nothing, and the model need not have been trained with it.
    Output is float32 in [0, 1], not rounded to 8 bits. No file, hence no bits.

    Deviation: the sum is clipped to the box, which a defense must not leave; the paper does not clip.

    Rule ``exact``: the same with the same dice, through all rounds; its gradient is the identity's except in the
    pixels that were clipped, where it is zero.
    """

    algorithm_version: ClassVar[int] = 1
    is_random: ClassVar[bool] = True
    rules: ClassVar[tuple[str, ...]] = ("identity", "exact")
    generic_rules: ClassVar[tuple[str, ...]] = ("identity",)
    libraries: ClassVar[tuple[str, ...]] = ("numpy",)

    sigma: float

    def __post_init__(self) -> None:
        require_range("sigma", self.sigma, 0.01, 255)

    def draw(self, generators: Sequence[np.random.Generator], shape: tuple[int, ...]) -> Draw:
        noise = np.empty((len(generators), *shape), dtype=np.float32)
        for generator, row in zip(generators, noise, strict=True):
            generator.standard_normal(dtype=np.float32, out=row)
        noise *= np.float32(self.sigma / 255)
        return {"noise": noise}

    def purify_drawn(self, images: Images, draw: Draw) -> Purified:
        noisy = require_images(images) + draw["noise"]
        return Purified(np.clip(noisy, 0.0, 1.0, out=noisy))

    def backward_rules_drawn(self, draws: Sequence[Draw]) -> dict[str, BackwardRule]:
        from windtunnel.backend import torch
        from windtunnel.defenses.rules import with_generic

        def exact(x: torch.Tensor) -> torch.Tensor:
            for draw in draws:
                x = (x + torch.from_numpy(draw["noise"]).to(x)).clamp(0.0, 1.0)
            return x

        return with_generic(self.rules, exact=exact)
