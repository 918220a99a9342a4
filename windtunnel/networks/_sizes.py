"""Pictures of any size for networks that halve it."""

from __future__ import annotations

from collections.abc import Callable

from windtunnel.backend import torch

Tensor = torch.Tensor


def at_multiple_of(factor: int, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """``function`` on [N, C, H, W] with its edges repeated below and to the right up to multiples of ``factor``, its
    answer cut to H and W again."""
    height, width = x.shape[2:]
    down, right = -height % factor, -width % factor
    whole = torch.nn.functional.pad(x, (0, right, 0, down), mode="replicate") if down or right else x
    return function(whole)[:, :, :height, :width]
