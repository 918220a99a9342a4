"""Reconstruction through a bottleneck."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from windtunnel.backend import torch
from windtunnel.networks._bottleneck import Bottleneck
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

CARD_SIGMA_255 = 15


@dataclass(frozen=True, kw_only=True)
class Autoencoder(Network):
    """A convolutional autoencoder trained on clean pictures.

    Paper: Meng, Chen, MagNet: a Two-Pronged Defense against Adversarial Examples, 2017,
    https://arxiv.org/abs/1705.09064: the *reformer*, a picture replaced by its reconstruction; the paper's detectors
    are not part of it. Loss: mean over pixels of ``(A(x + noise n) - x)^2``.

    Every 4x4 tile of pixels (48 numbers) passes through ``bottleneck`` numbers, so 16 keep a third. ``noise`` is the
    deviation of the Gaussian noise on training input, as a fraction of the pixel range (a regulariser in the paper).

    Deviations: the paper's networks for colour pictures have no bottleneck and sigmoids throughout; here ReLU, a linear
    output that the defense clips, and a real bottleneck, because without one the identity is the best reconstruction.
    """

    algorithm_version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()
    teachers: ClassVar[int] = 0

    bottleneck: int = 16
    width: int = 32
    noise: float = 0.025
    steps: int = 1500
    batch: int = 16
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        require_positive(
            bottleneck=self.bottleneck, width=self.width, steps=self.steps, batch=self.batch,
            learning_rate=self.learning_rate,
        )  # fmt: skip
        if self.noise < 0:
            raise ValueError(f"noise must be at least 0, not {self.noise}")

    def build(self) -> torch.nn.Module:
        return Bottleneck(self.bottleneck, self.width)

    def train(self, module: torch.nn.Module, data: TrainingData, *, seed: int) -> None:
        draws = np.random.default_rng([seed, 2])

        def loss_of(clean: np.ndarray) -> torch.Tensor:
            noisy = with_noise(clean, self.noise, draws)
            return (module(torch.from_numpy(noisy)) - torch.from_numpy(clean)).square().mean()

        descend(module, batches(data, self.batch), loss_of, steps=self.steps, learning_rate=self.learning_rate)

    def measure(self, module: torch.nn.Module, data: TrainingData) -> dict[str, Any]:
        """Mean PSNR in dB of ``n`` held-out pictures, reconstructed from themselves and from a noisy version."""
        clean = data.held_out[:HELD_OUT]
        noisy = with_noise(clean, CARD_SIGMA_255 / 255, np.random.default_rng([0, CARD_SIGMA_255]))
        return {
            "n": len(clean),
            "psnr_clean": mean_psnr(clean, answers(module, clean)),
            f"psnr_noisy_{CARD_SIGMA_255}": mean_psnr(clean, noisy),
            f"psnr_denoised_{CARD_SIGMA_255}": mean_psnr(clean, answers(module, noisy)),
        }
