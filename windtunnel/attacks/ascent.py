"""What the transfer attacks share: the start, a per-row L1 normalisation, the momentum, the step, and questions outside
the ball.

Pure functions of tensors, row by row.
"""

from __future__ import annotations

from windtunnel.attacks.base import Loss, Query, RowGenerators, Rows, Tensor
from windtunnel.attacks.geometry import linf_bounds, project_l2, random_start, unit
from windtunnel.backend import torch


def levelled(gradient: Tensor) -> Tensor:
    """Each row divided by the mean of its absolute values (its L1 norm over its size); a zero row stays zero.

    The papers divide by the L1 norm, their released codes by the mean: the same direction, but only with the mean is a
    look ahead along the momentum (NI) of the size of a step. Public code divides 0 by 0 where the gradient vanishes:
    NaN momentum, and an image that never moves again.
    """
    size = gradient.abs().flatten(1).mean(1).view(-1, *([1] * (gradient.dim() - 1)))
    return gradient / torch.where(size > 0, size, torch.ones_like(size))


def accumulated(momentum: Tensor, gradient: Tensor, decay: float) -> Tensor:
    """``decay m + g / mean|g|``; without decay the gradient itself, so that a plain ascent rounds as PGD does."""
    return gradient if decay == 0 else decay * momentum + levelled(gradient)


def started(x0: Tensor, eps: Tensor, norm: str, generators: RowGenerators, *, random: bool) -> Rows:
    """The first rows of an ascent with momentum: a random start or the clean image, no momentum yet, the bounds."""
    x = random_start(x0, eps, norm, generators) if random else x0
    return with_bounds({"x": x, "momentum": torch.zeros_like(x0)}, x0, eps, norm)


def with_bounds(rows: Rows, x0: Tensor, eps: Tensor, norm: str) -> Rows:
    """The rows and, under linf, the lowest and highest image allowed: made once, used in every ``climbed``."""
    if norm == "linf":
        rows["low"], rows["high"] = linf_bounds(x0, eps)
    return rows


def climbed(x: Tensor, direction: Tensor, length: Tensor, rows: Rows, norm: str) -> Tensor:
    """One step of ``length`` ([B, 1, 1, 1]) back into ball and box: along the sign (linf), the unit vector (l2)."""
    if norm == "linf":
        return torch.addcmul(x, direction.sign(), length).clamp(rows["low"], rows["high"])
    return project_l2(x + length * unit(direction), rows["x0"], rows["eps"])


def unjudged_gradient(query: Query, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """[B, C, H, W]: the gradient of the loss of the whole pipeline at a point that is no candidate (scaled, padded,
    outside the ball; in the box). The engine judges whatever the whole pipeline is asked, but no member's answer.

    An ensemble's gradient is that of the mean of the logits by the chain rule: one forward through every member tells
    how the loss depends on each logit, one forward and backward carries this to the image.
    """
    if query.n_members == 1:
        return query.gradient(x, loss, member=0)[2]
    members = range(query.n_members)
    logits = torch.stack([query.logits(x, member=k) for k in members]).mean(0).requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(loss(logits, y).sum(), logits)
    slope = slope / query.n_members
    return pulled_back(query, x, [slope] * query.n_members)


def pulled_back(query: Query, x: Tensor, slopes: list[Tensor]) -> Tensor:
    """[B, C, H, W]: ``sum_k J_k(x)^T slope_k``, J_k the Jacobian of member k's logits; nothing is judged."""
    total = torch.zeros_like(x)
    for k, slope in enumerate(slopes):
        total = total + query.gradient(x, lambda z, _, slope=slope: (z * slope).sum(1), member=k)[2]
    return total
