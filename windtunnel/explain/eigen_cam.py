"""Eigen-CAM: the first principal direction of the feature maps, without a class and without a gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from windtunnel.attacks.base import RowGenerators, Tensor
from windtunnel.backend import torch
from windtunnel.explain.base import Explainer, feature_maps, normalised

# Sums nearer to zero than this share of the largest projection are rounding, and have no sign to go by.
NO_SIGN = 1e-9


@dataclass(frozen=True, kw_only=True)
class EigenCam(Explainer):
    """Eigen-CAM (Muhammad & Yeasin, Eigen-CAM: Class Activation Map using Principal Components, 2020,
    https://arxiv.org/abs/2008.00299): ``map = A v_1`` with A [h w, C] the feature maps of one image as a matrix and v_1
    its first right singular vector. A is not centred, as in the paper (a public package centres it first).

    A singular vector has no sign, and libraries leave it to chance. Here: the projections sum to at least zero over the
    places; where that sum is zero, the projection that is largest in size is positive. Then ReLU and division by the
    maximum. Maps after a ReLU are not negative, so neither is the first singular vector: nothing is cut off there.

    The class is not asked for: what is shown is where the network is active, not why it answers as it does. Where the
    two largest singular values are equal, the direction is not defined. An image whose maps are not finite gives NaN.
    No settings.
    """

    def explain(
        self, model: torch.nn.Module, images: Tensor, classes: Tensor, random: RowGenerators | None = None
    ) -> np.ndarray:
        return principal(feature_maps(model, images).double().cpu().numpy())


def principal(maps: np.ndarray) -> np.ndarray:
    """[N, h, w] in [0, 1]: the map of each row of [N, C, h, w]."""
    n, channels, h, w = maps.shape
    out = np.full((n, h * w), np.nan)
    finite = np.isfinite(maps).all(axis=(1, 2, 3))
    left, values, _ = np.linalg.svd(maps[finite].reshape(-1, channels, h * w).swapaxes(1, 2), full_matrices=False)
    projected = left[:, :, 0] * values[:, :1]
    total, peak = projected.sum(1), np.take_along_axis(projected, np.abs(projected).argmax(1)[:, None], 1)[:, 0]
    deciding = np.where(np.abs(total) > NO_SIGN * np.abs(peak), total, peak)
    out[finite] = projected * np.where(deciding < 0, -1.0, 1.0)[:, None]
    return normalised(out.reshape(n, h, w))
