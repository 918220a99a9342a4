"""Balls and boxes, row by row: bounds, projections, random starts. Pure functions of tensors.

The l-infinity bounds are computed in float64 and rounded *inwards*, so that a float32 image inside them is inside the
ball exactly. The l2 projection aims at a radius smaller by one part in a million for the same reason.
"""

from __future__ import annotations

from windtunnel.attacks.base import RowGenerators, Tensor
from windtunnel.backend import torch

L2_SHRINK = 1.0 - 1e-6
TINY = 1e-30


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1] in the type of ``like``."""
    return values.to(like.dtype).view(-1, *([1] * (like.dim() - 1)))


def row_norm(x: Tensor) -> Tensor:
    """[B, 1, 1, 1] Euclidean norm of each row."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1).view(-1, *([1] * (x.dim() - 1)))


def unit(x: Tensor) -> Tensor:
    """Each row divided by its norm; a zero row stays zero."""
    return x / row_norm(x).clamp_min(TINY)


def linf_bounds(x0: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest allowed image (ball and box) of each row, exact in float64."""
    radius = eps.double().view(-1, *([1] * (x0.dim() - 1)))
    low64 = (x0.double() - radius).clamp_min(0.0)
    high64 = (x0.double() + radius).clamp_max(1.0)
    low, high = low64.to(x0.dtype), high64.to(x0.dtype)
    low = torch.where(low.double() < low64, torch.nextafter(low, torch.full_like(low, 2.0)), low)
    high = torch.where(high.double() > high64, torch.nextafter(high, torch.full_like(high, -1.0)), high)
    return low, high


def project_l2(x: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """The nearest image in the l2 ball, then the box; the box lies around ``x0``, so clipping only shortens."""
    delta = x - x0
    factor = (per_row(eps, x0) * L2_SHRINK / row_norm(delta).clamp_min(TINY)).clamp_max(1.0)
    return (x0 + delta * factor).clamp(0.0, 1.0)


def random_start(x0: Tensor, eps: Tensor, norm: str, generators: RowGenerators) -> Tensor:
    """linf: uniform in the cube (Madry et al. 2018). l2: a uniform direction, its length uniform in [0, eps).

    The length is not that of the uniform law on the ball, which in thousands of dimensions is always the surface; it is
    that of the usual implementations of PGD-l2.
    """
    shape = tuple(x0.shape[1:])
    if norm == "linf":
        low, high = linf_bounds(x0, eps)
        noise = 2.0 * generators.uniform(*shape) - 1.0
        return (x0 + per_row(eps, x0) * noise).clamp(low, high)
    direction = unit(generators.normal(*shape))
    length = per_row(eps, x0) * per_row(generators.uniform(), x0)
    return project_l2(x0 + length * direction, x0, eps)
