"""How likely a latent is: the two entropy models of learned codecs, in torch for training, as integers for coding."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import expit

from windtunnel.backend import torch
from windtunnel.networks._codec_rans import starts_of

Tensor = torch.Tensor
REACH = 63
"""Symbols from -63 to 63 have a place in a table; others are escaped."""
LN2 = float(np.log(2.0))
COMPONENTS = 3
SMALLEST_SCALE, LARGEST_SCALE, LEVELS = 0.06, 8.0, 64
LOG_STEP = float(np.log(LARGEST_SCALE / SMALLEST_SCALE) / (LEVELS - 1))


def round_through(x: Tensor) -> Tensor:
    """The nearest integer, exactly; its gradient is 1 (straight-through)."""
    return x.round().detach() + (x - x.detach())


def noisy(x: Tensor) -> Tensor:
    """Uniform noise in [-.5, .5) instead of rounding, from torch's random state: what training sees."""
    return x + torch.rand_like(x) - 0.5


class Prior(torch.nn.Module):
    """The factorised prior: a density per channel, the same at every place.

    Balle et al., Variational image compression with a scale hyperprior, https://arxiv.org/abs/1802.01436, appendix
    6.1. Deviation: a mixture of three logistic densities per channel instead of their small monotone network; it is
    cheap and its distribution function has a closed form.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        spread = torch.linspace(-1.0, 1.0, COMPONENTS).expand(channels, COMPONENTS)
        self.weight = torch.nn.Parameter(torch.zeros(channels, COMPONENTS))
        self.mean = torch.nn.Parameter(spread.clone())
        self.log_scale = torch.nn.Parameter(spread.clone())

    def bits(self, y: Tensor) -> Tensor:
        """[N] bits of latents [N, C, h, w]: ``-log2`` of the mass in [y - .5, y + .5]."""
        logs = log_mass(y.unsqueeze(-1) - self.mean[:, None, None], self.log_scale[:, None, None])
        logs = torch.logsumexp(logs + torch.log_softmax(self.weight, 1)[:, None, None], dim=-1)
        return logs.flatten(1).sum(1) / -LN2

    def starts(self) -> np.ndarray:
        """[C, 2 REACH + 3] integer tables, one per channel; the escape has what lies beyond the reach."""
        weight, mean, log_scale = (
            p.detach().cpu().double().numpy()[:, None] for p in (self.weight, self.mean, self.log_scale)
        )
        weight = np.exp(weight - weight.max(-1, keepdims=True))
        edges = np.arange(-REACH - 0.5, REACH + 1)[None, :, None]
        below = (weight * expit((edges - mean) / np.exp(log_scale))).sum(-1) / weight.sum(-1)
        return starts_of(_with_escape(np.diff(below, axis=1)))


def log_mass(v: Tensor, log_scale: Tensor) -> Tensor:
    """Natural logarithm of the mass that a centred logistic law has in [v - .5, v + .5].

    ``sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a))``, so that nothing is ever the logarithm of a
    difference: far out the value is right and the gradient alive, where a difference of normal distribution functions
    is 0 in float32 and an outlier's scale would never learn.
    """
    inverse = torch.exp(-log_scale)
    above, below = (v + 0.5) * inverse, (v - 0.5) * inverse
    logsigmoid = torch.nn.functional.logsigmoid
    return logsigmoid(above) + logsigmoid(-below) + torch.log(-torch.expm1(-inverse))


def centred_bits(v: Tensor, log_scale: Tensor) -> Tensor:
    """[N] bits of centred latents [N, C, h, w] under logistic laws of these scales."""
    return log_mass(v, log_scale).flatten(1).sum(1) / -LN2


class _Bounded(torch.autograd.Function):
    """Forward: clamp. Backward: what would lead further out is dropped, what leads back inside passes.

    Without the first a scale that wants to be below the bound runs away (to a logarithm of -4700 in a trial) and cannot
    come back when its latent begins to speak; without the second it stays where it left.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        low, high = ctx.bounds
        out = ((x < low) & (gradient > 0)) | ((x > high) & (gradient < 0))
        return gradient.masked_fill(out, 0.0), None, None


def bounded(log_scale: Tensor) -> Tensor:
    """The logarithm of a scale inside the range of the tables."""
    return _Bounded.apply(log_scale, float(np.log(SMALLEST_SCALE)), float(np.log(LARGEST_SCALE)))


def level_of(log_scale: Tensor) -> Tensor:
    """The table of a scale: the nearest of LEVELS scales, equally far apart in their logarithms."""
    return ((log_scale - float(np.log(SMALLEST_SCALE))) / LOG_STEP).round().clamp(0, LEVELS - 1)


def centred_starts() -> np.ndarray:
    """[LEVELS, 2 REACH + 3] integer tables of centred logistic laws."""
    scales = SMALLEST_SCALE * np.exp(LOG_STEP * np.arange(LEVELS))
    edges = np.arange(-REACH - 0.5, REACH + 1)[None]
    return starts_of(_with_escape(np.diff(expit(edges / scales[:, None]), axis=1)))


def _with_escape(masses: np.ndarray) -> np.ndarray:
    return np.concatenate([masses, np.maximum(1.0 - masses.sum(1, keepdims=True), 0.0)], axis=1)
