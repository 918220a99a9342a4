"""A learned codec of CompressAI as a purifier: encoded, rounded, decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from windtunnel.defenses._arrays import require_images
from windtunnel.defenses.base import BackwardRule, Images, LearnedDefense, Purified

if TYPE_CHECKING:
    import torch

MULTIPLE = 64
"""Pixels to a side's smallest unit: all strides of these models divide it (16 for latents, 64 with a hyperprior)."""
PROBE = 64
"""Pixels of the picture on which a rule has to show a gradient."""


class NoGradient(RuntimeError):
    """A backward rule whose input gradient is exactly zero: every attack through it would report clean accuracy."""


@dataclass(frozen=True, kw_only=True)
class CompressAIPurification(LearnedDefense):
    """``clip(decode(round(encode(x))))`` by the model of a network ``compressai_codec``; papers are named there.

    The codec as a purifier, and its attack: Raeber et al., Human Aligned Compression for Robust Models,
    https://arxiv.org/abs/2504.12255. Pictures are widened to multiples of 64 pixels by repeating the last row and
    column, and cut back. Output is float32, clipped to [0, 1], not rounded to 8 bits.

    ``payload_bits`` are *estimated*: ``-sum log2`` of the likelihoods that the entropy model gives the rounded
    latents (of the widened picture), to the nearest whole bit; what the coder would write is longer by a few bytes.
    ``file_bits`` is null, no file is written. (A bit stream of one machine may not decode on another; pictures do.)

    In eval mode CompressAI rounds hard (ELIC excepted), and the input gradient is exactly zero: an attack through it
    breaks nothing and a defense looks perfect. Rules, in which only the entropy models' ``quantize`` is exchanged, on
    this model and for this call: ``straight-through`` rounds forwards and is the identity backwards (as the paper
    does); ``dither`` adds uniform noise in [-1/2, 1/2) instead, as in training, the same for every picture and step so
    that rows do not depend on each other (ELIC models round straight-through by themselves, whatever ``quantize``
    does: both rules give one gradient there); ``identity``; ``blur``. A rule of the first two whose gradient is zero
    on a probe raises ``NoGradient`` when it is made.
    """

    algorithm_version: ClassVar[int] = 1
    is_learned: ClassVar[bool] = True
    rules: ClassVar[tuple[str, ...]] = ("straight-through", "dither", "identity", "blur")
    generic_rules: ClassVar[tuple[str, ...]] = ("identity", "blur")
    libraries: ClassVar[tuple[str, ...]] = ("compressai", "torch")

    def purify(self, images: Images) -> Purified:
        from windtunnel.backend import torch
        from windtunnel.networks.batches import in_fixed_batches

        images = require_images(images)
        if not len(images):
            return Purified(images.copy(), payload_bits=np.zeros(0, dtype=np.int64))

        def run(x: torch.Tensor) -> torch.Tensor:
            found = self._answer(x)
            bits = sum(-torch.log2(p.double()).flatten(1).sum(1) for p in found["likelihoods"].values())
            self_told = bits.round().view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
            return torch.cat([found["x_hat"].double(), self_told], dim=1)

        joined = in_fixed_batches(run, images)
        payload = np.rint(joined[:, 3, 0, 0]).astype(np.int64)
        return Purified(np.ascontiguousarray(joined[:, :3], dtype=np.float32), payload_bits=payload)

    def backward_rules(self, rounds: int = 1) -> dict[str, BackwardRule]:
        from windtunnel.defenses.rules import repeated, with_generic

        own = {
            "straight-through": self._rule(lambda rows: straight_through),
            "dither": self._rule(dithered_in_batches_of),
        }
        for name, rule in own.items():
            _require_gradient(name, rule)
        return with_generic(self.rules, **{name: repeated(rule, rounds) for name, rule in own.items()})

    def _rule(self, quantizer: Callable[[int], Callable[..., torch.Tensor]]) -> BackwardRule:
        def rule(x: torch.Tensor) -> torch.Tensor:
            with quantizing(self.module, quantizer(len(x))):
                return self._answer(x)["x_hat"]

        return rule

    def _answer(self, x: torch.Tensor) -> dict[str, Any]:
        from windtunnel.backend import torch

        height, width = x.shape[2:]
        wide = torch.nn.functional.pad(x, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="replicate")
        found = self.module(wide)
        return {**found, "x_hat": found["x_hat"][:, :, :height, :width].clamp(0.0, 1.0)}


@contextmanager
def quantizing(module: torch.nn.Module, quantize: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Inside, the entropy models of ``module`` quantise by ``quantize(inputs, mode, means)``; outside nothing has
    changed, nor ever for another model."""
    models = [part for part in module.modules() if callable(getattr(part, "quantize", None))]
    for model in models:
        model.__dict__["quantize"] = quantize
    try:
        yield
    finally:
        for model in models:
            model.__dict__.pop("quantize", None)


def straight_through(x: torch.Tensor, mode: str, means: torch.Tensor | None = None) -> torch.Tensor:
    """Rounded around the means; backwards the identity."""
    from windtunnel.backend import torch

    centred = x if means is None else x - means
    rounded = torch.round(centred) if means is None else torch.round(centred) + means
    return x + (rounded - x).detach()


def dithered(x: torch.Tensor, mode: str, means: torch.Tensor | None = None) -> torch.Tensor:
    """With the training's uniform noise in [-1/2, 1/2), of one seed and shared by all rows: [N, ...] latents."""
    from windtunnel.backend import torch

    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((1, *x.shape[1:]), generator=generator, dtype=torch.float32) - 0.5
    return x + noise.to(x)


def dithered_in_batches_of(rows: int) -> Callable[..., torch.Tensor]:
    """``dithered``, also where an entropy bottleneck hands over [C, 1, rows * places], rows outermost."""

    def quantize(x: torch.Tensor, mode: str, means: torch.Tensor | None = None) -> torch.Tensor:
        if x.dim() != 3 or x.shape[1] != 1:
            return dithered(x, mode, means)
        by_row = x.reshape(x.shape[0], rows, -1).transpose(0, 1)
        return dithered(by_row, mode).transpose(0, 1).reshape(x.shape)

    return quantize


def _require_gradient(name: str, rule: BackwardRule) -> None:
    from windtunnel.backend import torch

    pixels = np.random.default_rng(0).random((1, 3, PROBE, PROBE), dtype=np.float32)
    with torch.enable_grad():
        x = torch.from_numpy(pixels).requires_grad_()
        (gradient,) = torch.autograd.grad((rule(x) - 0.5).square().sum(), x, allow_unused=True)
    if gradient is None or not bool(torch.isfinite(gradient).all()) or not bool((gradient != 0).any()):
        raise NoGradient(f"the rule '{name}' gives no gradient through this codec; attacks through it mean nothing")
