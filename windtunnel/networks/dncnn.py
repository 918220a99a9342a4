"""DnCNN: a denoiser that predicts the noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from windtunnel.backend import torch
from windtunnel.networks._dncnn import ResidualDenoiser
from windtunnel.networks._training import (
    HELD_OUT,
    answers,
    batches,
    descend,
    mean_psnr,
    require_positive,
    with_noise,
)
from windtunnel.networks.base import Network, TrainingData

CARD_SIGMAS_255 = (8, 15, 25, 50)
FLOOR = np.float32(5 / 255)
"""Noise below this hardly weighs more than this."""


@dataclass(frozen=True, kw_only=True)
class DnCNN(Network):
    """Blind Gaussian denoiser with residual learning.

    Paper: Zhang, Zuo, Chen, Meng, Zhang, Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image
    Denoising, 2017, https://arxiv.org/abs/1608.03981. The network r predicts the noise of ``y = x + sigma n``, in mean
    square: ``(r(y) - (y - x))^2 = (x - D(y))^2`` for ``D(y) = y - r(y)``. Blind: sigma is drawn for every picture,
    evenly from 0 to ``largest_sigma`` (55/255 in the paper's blind model; .25 serves denoised smoothing up to that).

    Deviations, for one CPU core and 32-pixel pictures: the body (``_dncnn.py``: ``depth`` 7 and ``width`` 48 where the
    paper's blind model has 20 and 64, skips in place of normalisation, pixels in tiles); a picture's error is weighed
    by ``1 / (sigma + 5/255)``, or the strongest noise would decide alone; whole pictures in place of patches; Adam with
    a half cosine (paper SGD); the noisy picture is clipped to [0, 1], since nothing else ever reaches a defense, and
    the noise to be predicted is then the clipped one.
    """

    algorithm_version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()
    teachers: ClassVar[int] = 0

    depth: int = 7
    width: int = 48
    tile: int = 2
    largest_sigma: float = 0.25
    steps: int = 1500
    batch: int = 16
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        require_positive(
            largest_sigma=self.largest_sigma, steps=self.steps, batch=self.batch, learning_rate=self.learning_rate
        )

    def build(self) -> torch.nn.Module:
        return ResidualDenoiser(self.depth, self.width, self.tile)

    def train(self, module: torch.nn.Module, data: TrainingData, *, seed: int) -> None:
        draws = np.random.default_rng([seed, 1])

        def loss_of(clean: np.ndarray) -> torch.Tensor:
            sigma = draws.uniform(0, self.largest_sigma, len(clean)).astype(np.float32)
            noisy = with_noise(clean, sigma, draws)
            error = (module(torch.from_numpy(noisy)) - torch.from_numpy(clean)).square().flatten(1).mean(1)
            return (error / torch.from_numpy(sigma + FLOOR)).mean()

        descend(module, batches(data, self.batch), loss_of, steps=self.steps, learning_rate=self.learning_rate)

    def measure(self, module: torch.nn.Module, data: TrainingData) -> dict[str, Any]:
        """Mean PSNR in dB of ``n`` held-out pictures: clean ones after denoising, and noisy ones (deviation in 1/255)
        before and after."""
        clean = data.held_out[:HELD_OUT]
        metrics: dict[str, Any] = {"n": len(clean), "psnr_clean": mean_psnr(clean, answers(module, clean))}
        for sigma_255 in CARD_SIGMAS_255:
            noisy = with_noise(clean, sigma_255 / 255, np.random.default_rng([0, sigma_255]))
            metrics[f"psnr_noisy_{sigma_255}"] = mean_psnr(clean, noisy)
            metrics[f"psnr_denoised_{sigma_255}"] = mean_psnr(clean, answers(module, noisy))
        return metrics
