"""A differentiable JPEG round with full chroma: what kornia's is with halved chroma.

Pillow's JPEG is 4:4:4 here and kornia's is 4:2:0 and nothing else, so an attack through kornia's never sees fine
colour. This one has the same rounding, ``round(c) + (c - round(c))^3`` (Shin, Song, JPEG-resistant Adversarial
Images, 2017, https://machine-learning-and-security.github.io/papers/mlsec17_paper_54.pdf), libjpeg's integer tables
and the exact JFIF colour transform.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from windtunnel.backend import torch
from windtunnel.defenses.base import BackwardRule

BLOCK = 8
RED, BLUE = 0.299, 0.114  # ITU-R BT.601 weights, as in JFIF
LUMINANCE = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
CHROMINANCE = """17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99"""


@lru_cache(maxsize=128)
def tables(quality: int) -> np.ndarray:
    """[3, 64] quantiser steps of Y, Cb, Cr in row order: the tables of ITU-T T.81 annex K, scaled as libjpeg does."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    base = np.array([[int(step) for step in text.split()] for text in (LUMINANCE, CHROMINANCE, CHROMINANCE)])
    return np.clip((base * scale + 50) // 100, 1, 255)


@lru_cache(maxsize=1)
def cosines() -> np.ndarray:
    """[64, 64] orthonormal 8x8 DCT-II: coefficient by pixel, both in row order."""
    n = np.arange(BLOCK)
    line = np.cos((2 * n[None, :] + 1) * n[:, None] * np.pi / (2 * BLOCK)) * np.sqrt(2 / BLOCK)
    line[0] /= np.sqrt(2)
    return np.kron(line, line)


@lru_cache(maxsize=1)
def colours() -> np.ndarray:
    """[3, 3]: R, G, B to Y, Cb, Cr, without the offset of 128."""
    luma = np.array([RED, 1 - RED - BLUE, BLUE])
    blue = (np.array([0, 0, 1]) - luma) / (2 * (1 - BLUE))
    red = (np.array([1, 0, 0]) - luma) / (2 * (1 - RED))
    return np.stack([luma, blue, red])


def soft_jpeg(quality: int) -> BackwardRule:
    """One differentiable 4:4:4 JPEG round at one quality: [N, 3, H, W] in [0, 1], any size (edges repeated to whole
    blocks).

    Measured on 200 natural 32x32 crops: mean |difference| to Pillow's 4:4:4 at quality 25 / 50 / 75 is 1.1 / 1.0 /
    1.0 of 255, where kornia's round is 3.4 / 2.9 / 2.6 away, in a sixth of its time. It is also the stronger attack:
    PGD-20 through JPEG-50 on a small trial network left .66 / .35 / .00 of samples correct at 2 / 4 / 8 of 255,
    kornia's round .74 / .55 / .05 (n = 200 at 2, else 100).
    """

    def rule(x: torch.Tensor) -> torch.Tensor:
        n, _, height, width = x.shape
        down, right = -height % BLOCK, -width % BLOCK
        whole = torch.nn.functional.pad(x, (0, right, 0, down), mode="replicate") if down or right else x
        steps, transform, to_ycc, to_rgb = (
            torch.tensor(a, dtype=x.dtype, device=x.device)
            for a in (tables(quality)[:, None], cosines(), colours() * 255.0, np.linalg.inv(colours()) / 255.0)
        )
        level = torch.tensor([128.0, 0.0, 0.0], dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
        planes = torch.einsum("dc,nchw->ndhw", to_ycc, whole) - level
        grid = (n, 3, (height + down) // BLOCK, BLOCK, (width + right) // BLOCK, BLOCK)
        blocks = planes.reshape(grid).permute(0, 1, 2, 4, 3, 5).reshape(n, 3, -1, BLOCK**2)
        coefficients = (blocks @ transform.T) / steps
        nearest = coefficients.detach().round()
        blocks = ((nearest + (coefficients - nearest) ** 3) * steps) @ transform
        tiles = blocks.reshape(n, 3, grid[2], grid[4], BLOCK, BLOCK).permute(0, 1, 2, 4, 3, 5)
        decoded = torch.einsum("dc,nchw->ndhw", to_rgb, tiles.reshape(whole.shape) + level)
        return decoded[:, :, :height, :width].clamp(0.0, 1.0)

    return rule
