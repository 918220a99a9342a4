"""Grad-CAM: feature maps weighted by the mean slope of the class's logit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from windtunnel.attacks.base import RowGenerators, Tensor
from windtunnel.backend import torch
from windtunnel.explain.base import Explainer, feature_maps, slopes, weighted


@dataclass(frozen=True, kw_only=True)
class GradCam(Explainer):
    """Grad-CAM (Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization,
    2017, https://arxiv.org/abs/1610.02391).

    ``w_k = mean_ij dz_c / dA_k,ij`` and ``map = ReLU(sum_k w_k A_k)``, A the last feature maps and z_c the logit of the
    class *before* softmax, as in the paper; then divided by its maximum. For a linear head on pooled maps this is the
    class activation map of that class's weights (Zhou et al. 2016, https://arxiv.org/abs/1512.04150), exactly.
    Not enlarged: the map has the places of the feature maps (``explain.base.enlarged`` for pictures). No settings.
    """

    def explain(
        self, model: torch.nn.Module, images: Tensor, classes: Tensor, random: RowGenerators | None = None
    ) -> np.ndarray:
        maps = feature_maps(model, images)
        return weighted(maps, slopes(model, maps, classes).mean((2, 3)))
