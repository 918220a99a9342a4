"""A camera's pipeline: from the picture back to the sensor, and developed again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from windtunnel.backend import torch
from windtunnel.networks._bayer import Camera
from windtunnel.networks._training import HELD_OUT, answers, batches, descend, mean_psnr, require_positive
from windtunnel.networks.base import Network, TrainingData


@dataclass(frozen=True, kw_only=True)
class CameraNetwork(Network):
    """RGB to RAW (F), and RAW to RGB by a learned (G) and a conventional pipeline (S).

    Paper: Zhang, Dong, Heide, All You Need is RAW: Defending Against Adversarial Attacks with Camera Image Pipelines,
    2022, https://arxiv.org/abs/2112.09219. From the paper: the detour over Bayer RAW, the three operators, a learned
    G, training without adversarial pictures. How the paper joins the answers of G and S could not be verified; here
    the defense blends them (``defenses/camera_pipeline.py``).

    Ours, for want of RAW captures: F is a formula, not a network: inverse sRGB curve, division by the white balance
    (``red_gain``, ``blue_gain``; green 1), RGGB mosaic, and with ``raw_bits`` rounding to that many bits. S is the
    bilinear demosaic with the inverse steps, so that the gains cancel in it but for the rounding. G is S plus a
    correction by ``depth`` 3x3 convolutions, the inner ones skipped past, on the mosaic's 2x2 cells (four channels in,
    twelve out), trained to give clean pictures back: mean over pixels of ``|G(F(x)) - x|``. Only G is trained.
    """

    algorithm_version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()
    teachers: ClassVar[int] = 0

    red_gain: float = 2.0
    blue_gain: float = 1.6
    raw_bits: int | None = None
    depth: int = 5
    width: int = 48
    steps: int = 800
    batch: int = 16
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        require_positive(steps=self.steps, batch=self.batch, learning_rate=self.learning_rate, width=self.width)
        if self.red_gain < 1 or self.blue_gain < 1:
            raise ValueError("red_gain and blue_gain must be at least 1, or the sensor would be saturated")
        if self.raw_bits is not None and not 1 <= self.raw_bits <= 16:
            raise ValueError(f"raw_bits must be 1 to 16 or null, not {self.raw_bits}")
        if self.depth < 3:
            raise ValueError(f"depth must be at least 3, not {self.depth}")

    def build(self) -> torch.nn.Module:
        return Camera(
            red_gain=self.red_gain, blue_gain=self.blue_gain, raw_bits=self.raw_bits, depth=self.depth,
            width=self.width,
        )  # fmt: skip

    def train(self, module: torch.nn.Module, data: TrainingData, *, seed: int) -> None:
        def loss_of(clean: np.ndarray) -> torch.Tensor:
            x = torch.from_numpy(clean)
            return (module(x) - x).abs().mean()

        descend(module, batches(data, self.batch), loss_of, steps=self.steps, learning_rate=self.learning_rate)

    def measure(self, module: torch.nn.Module, data: TrainingData) -> dict[str, Any]:
        """Mean PSNR in dB of ``n`` held-out pictures after the learned and after the conventional pipeline."""
        clean = data.held_out[:HELD_OUT]
        conventional = answers(lambda x: module(x, blend=0.0), clean)
        return {
            "n": len(clean),
            "psnr_clean": mean_psnr(clean, answers(module, clean)),
            "psnr_clean_conventional": mean_psnr(clean, conventional),
        }
