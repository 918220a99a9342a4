"""Backward rules that know nothing of the defense they stand for, and the parts of which others are made.

An attack uses the real defense for every forward value and a rule for the gradient only: backward pass differentiable
approximation (BPDA) of Athalye, Carlini, Wagner, Obfuscated Gradients Give a False Sense of Security,
https://arxiv.org/abs/1802.00420. All rules map [N, 3, H, W] in [0, 1] to the same shape, row by row.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from windtunnel.backend import torch
from windtunnel.defenses._arrays import smoothing_matrix
from windtunnel.defenses._soft_jpeg import soft_jpeg
from windtunnel.defenses.base import BackwardRule

BLUR_RADIUS, BLUR_SIGMA = 2, 1.0
GENERIC_JPEG_QUALITY = 50


def identity(x: torch.Tensor) -> torch.Tensor:
    """The straight-through rule: the defense is treated as if it did nothing."""
    return x.view_as(x)


def blur(x: torch.Tensor) -> torch.Tensor:
    """Gaussian 5x5 of sigma 1, each channel alone, mirrored border: most purifiers are low-passes.

    In trials it broke more samples than ``identity`` behind WebP, AVIF and total variation.
    """
    rows, columns = (
        torch.tensor(smoothing_matrix(BLUR_SIGMA, size, BLUR_RADIUS / BLUR_SIGMA)).to(x) for size in x.shape[2:]
    )
    return rows @ x @ columns.T


def kornia_jpeg(quality: float) -> BackwardRule:
    """kornia's differentiable JPEG round at one quality: [N, 3, H, W] in [0, 1], any size (edges repeated to
    multiples of 16).

    Paper: Reich et al., Differentiable JPEG: The Devil is in the Details, https://arxiv.org/abs/2309.06978. Always
    4:2:0; rounding ``round(c) + (c - round(c))^3``, table steps not quite integer, colourless chroma at 127.5 of 255,
    soft clipping. Measured on 200 natural 32x32 crops at quality 25 / 50 / 75: mean |difference| to Pillow's 4:2:0 is
    1.5 / 1.4 / 1.3 of 255, to Pillow's 4:4:4 it is 3.4 / 2.9 / 2.6. So it stands for the 4:2:0 codec; for 4:4:4 there
    is ``soft_jpeg``.
    """

    def rule(x: torch.Tensor) -> torch.Tensor:
        from kornia.enhance.jpeg import jpeg_codec_differentiable

        return jpeg_codec_differentiable(x, torch.tensor([float(quality)], dtype=x.dtype, device=x.device))

    return rule


def generic_rules() -> dict[str, BackwardRule]:
    """The rules that any defense may use; a number found with these only carries the dagger 'upper bound'.

    ``jpeg`` is one soft JPEG round of quality 50 with full chroma: behind WebP, AVIF and total variation it broke as
    many samples as kornia's (within 3 of 100 in a trial) for a sixth of the time.
    """
    return {"identity": identity, "blur": blur, "jpeg": soft_jpeg(GENERIC_JPEG_QUALITY)}


def with_generic(names: tuple[str, ...], **own: BackwardRule) -> dict[str, BackwardRule]:
    """The named rules in their order, a defense's own ones before the generic ones of the same name."""
    known = generic_rules() | own
    return {name: known[name] for name in names}


def repeated(rule: BackwardRule, rounds: int) -> BackwardRule:
    """A rule applied ``rounds`` times in a row (0 times is the identity)."""

    def through_all(x: torch.Tensor) -> torch.Tensor:
        y = identity(x)
        for _ in range(rounds):
            y = rule(y)
        return y

    return through_all


def shifts(x: torch.Tensor, radius: int) -> list[torch.Tensor]:
    """The (2 radius + 1)^2 neighbours of every pixel, row by row, each [N, C, H, W]; mirrored border (edge not
    repeated).

    A list of slices: gradients of slices are several times cheaper than those of one unfolded tensor.
    """
    h, w = x.shape[2:]
    rows, columns = (torch.tensor(mirror(size, radius), device=x.device) for size in (h, w))
    padded = x[:, :, rows][:, :, :, columns]
    reach = range(2 * radius + 1)
    return [padded[:, :, down : down + h, right : right + w] for down in reach for right in reach]


@lru_cache(maxsize=64)
def mirror(size: int, radius: int) -> np.ndarray:
    """Indices of ``size`` pixels with ``radius`` mirrored ones at each end; any radius, unlike torch's padding."""
    return np.pad(np.arange(size), radius, mode="reflect")
