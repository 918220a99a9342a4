"""Smooth Grad-CAM++: Grad-CAM++ with derivatives averaged over noisy copies of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.attacks.base import RowGenerators, Tensor
from windtunnel.backend import torch
from windtunnel.explain.base import Explainer, feature_maps, slopes, weighted


@dataclass(frozen=True, kw_only=True)
class SmoothGradCamPp(Explainer):
    """Smooth Grad-CAM++ (Omeiza et al., Smooth Grad-CAM++: An Enhanced Inference Level Visualization Technique for Deep
    Convolutional Neural Network Models, 2019, https://arxiv.org/abs/1908.01224), on Grad-CAM++ (Chattopadhay et al.
    2018, https://arxiv.org/abs/1710.11063).

    With g_s = dz_c / dA on copy s of ``samples`` noisy copies of the image, and D1, D2, D3 the means over s of g_s,
    g_s^2, g_s^3 (place by place):

        alpha_k = D2_k / (2 D2_k + D3_k sum_ab A_k,ab)      w_k = sum_ij alpha_k ReLU(D1_k)

    and ``map = ReLU(sum_k w_k A_k)`` divided by its maximum, with A the maps of the image *without* noise, both here
    and in alpha. alpha is 0 where its denominator is 0 (in size below 1e-12 of its two terms).

    The powers of g are the derivatives of exp(z_c) up to the factor exp(z_c), for a z that is piecewise linear in the
    maps; that factor is left out, as in the released code. ``noise`` is the standard deviation of the Gaussian noise
    in units of the *pixel range* (images in [0, 1], before the model normalises), the same in every channel; noisy
    copies are not clipped. Defaults: 4 copies, as torch-cam takes; its 0.3 is in normalised units, that is about 0.075
    of the pixel range for the usual deviation of 0.25. One sample without noise is Grad-CAM++.

    Deviations. From the paper: the numerator of alpha is D2, not D1, for only then is Grad-CAM++ the case of one copy
    (torch-cam takes D2 too). From torch-cam: the ReLU is on the mean slope D1, as in the paper, not on that of the last
    noisy copy. (Its Grad-CAM++ drops the division: a masked copy is divided in place. Hence the test with alphas by
    hand.)
    """

    needs_noise: ClassVar[bool] = True

    samples: int = 4
    noise: float = 0.075

    def __post_init__(self) -> None:
        if self.samples < 1 or self.noise < 0:
            raise ValueError(f"samples must be at least 1, noise at least 0: {self}")

    def explain(
        self, model: torch.nn.Module, images: Tensor, classes: Tensor, random: RowGenerators | None = None
    ) -> np.ndarray:
        if self.noise > 0 and random is None:
            raise TypeError("Smooth Grad-CAM++ draws noise: give it a stream per image (engine.RowRandom.keyed)")
        maps = feature_maps(model, images)
        found = []
        for _ in range(self.samples):
            noisy = images
            if self.noise > 0 and random is not None:
                noisy = images + self.noise * random.normal(*images.shape[1:]).to(images.dtype)
            found.append(slopes(model, feature_maps(model, noisy) if self.noise > 0 else maps, classes))
        g = torch.stack(found)
        return weighted(maps, channel_weights(maps, g.mean(0), g.square().mean(0), (g * g * g).mean(0)))


def channel_weights(maps: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """[N, C] float64 ``w_k = sum_ij alpha_k ReLU(D1_k)`` from the maps and the three means [N, C, h, w]."""
    curved = third.double() * maps.double().sum((2, 3), keepdim=True)
    below = 2 * second.double() + curved
    empty = below.abs() <= 1e-12 * (2 * second.double() + curved.abs())
    alpha = torch.where(empty, 0.0, second.double() / torch.where(empty, 1.0, below))
    return (alpha * first.double().clamp_min(0.0)).sum((2, 3))
