"""A small denoising diffusion model of the data set: the trained part of diffusion purification."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from windtunnel.backend import torch
from windtunnel.metrics.quality import psnr
from windtunnel.networks._extras import require
from windtunnel.networks.base import Network, TrainingData
from windtunnel.networks.batches import in_fixed_batches

MEASURED = 64
"""Held-out images on which the card's numbers stand."""


class Denoiser(torch.nn.Module):
    """Noise in a noisy picture, predicted by diffusers' ``UNet2DModel`` on patches of ``patch`` x ``patch`` pixels.

    ``forward(x, t)``: [N, 3, H, W] in the scale of the diffusion ([-1, 1] plus noise) and one integer timestep, to
    [N, 3, H, W]. Any size: edges are repeated to whole cells. ``scheduler`` is diffusers' ``DDIMScheduler`` with
    ``num_train_timesteps`` steps of the linear schedule; ``trained_up_to`` the number of timesteps the weights know.
    """

    def __init__(self, *, patch: int, channels: tuple[int, ...], timesteps: int, trained_up_to: int) -> None:
        super().__init__()
        diffusers = require("diffusers", Diffusion.install)
        self.patch, self.cell, self.trained_up_to = patch, patch * 2 ** (len(channels) - 1), trained_up_to
        wide = 3 * patch**2
        self.unet = diffusers.UNet2DModel(
            in_channels=wide,
            out_channels=wide,
            block_out_channels=channels,
            down_block_types=("DownBlock2D",) * len(channels),
            up_block_types=("UpBlock2D",) * len(channels),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=16,
        )
        # x_0 is not clipped between the steps: a clipped value has no gradient, and the paper's SDE clips nothing
        self.scheduler = diffusers.DDIMScheduler(num_train_timesteps=timesteps, clip_sample=False)

    def forward(self, x: torch.Tensor, t: torch.Tensor | int) -> torch.Tensor:
        height, width = x.shape[2:]
        down, right = -height % self.cell, -width % self.cell
        if down or right:
            x = torch.nn.functional.pad(x, (0, right, 0, down), mode="replicate")
        cells = torch.nn.functional.pixel_unshuffle(x, self.patch)
        noise = torch.nn.functional.pixel_shuffle(self.unet(cells, t, return_dict=False)[0], self.patch)
        return noise[:, :, :height, :width]


@dataclass(frozen=True, kw_only=True)
class Diffusion(Network):
    """``E |n - net(sqrt(a_t) x + sqrt(1 - a_t) n, t)|^2`` made small, x in [-1, 1], n standard normal.

    Paper: Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020, https://arxiv.org/abs/2006.11239 (the
    "simple" loss, linear betas from 1e-4 to .02 over 1,000 timesteps, ``a_t`` their cumulative product); network and
    schedule are those of the library diffusers.

    Deviations, all for a training of minutes on one core: the network sees 2x2 pixels at once (Luhman, Luhman,
    Improving Diffusion Model Efficiency Through Patching, https://arxiv.org/abs/2207.04316), which costs a quarter;
    timesteps are drawn from the first ``trained_up_to`` (a fraction of the schedule) alone, because purification never
    starts later, so the model cannot draw pictures from nothing; no moving average of weights, the learning rate
    (Adam) falls to zero along a cosine instead.

    The card's metrics, on the first held-out images with noise of a fixed seed: ``noise_error`` the loss above at a
    tenth of the schedule (1 = knows nothing), ``psnr_denoised`` of the one-step estimate of x there, ``psnr_noisy`` of
    the noisy picture itself.
    """

    algorithm_version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("diffusers",)
    install: ClassVar[str] = "pip install 'windtunnel[diffusion]'"

    channels: tuple[int, ...] = (32, 48)
    patch: int = 2
    timesteps: int = 1000
    trained_up_to: float = 0.3
    epochs: int = 4
    batch_size: int = 32
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if not self.channels or any(width < 16 or width % 16 for width in self.channels):
            raise ValueError(f"channels must be multiples of 16, not {list(self.channels)}")
        if not 0 < self.trained_up_to <= 1 or min(self.patch, self.timesteps, self.epochs, self.batch_size) < 1:
            raise ValueError("trained_up_to is a fraction in (0, 1]; patch, timesteps, epochs, batch_size at least 1")

    def build(self) -> torch.nn.Module:
        known = max(1, round(self.trained_up_to * self.timesteps))
        return Denoiser(patch=self.patch, channels=self.channels, timesteps=self.timesteps, trained_up_to=known)

    def train(self, module: torch.nn.Module, data: TrainingData, *, seed: int) -> None:
        optimizer = torch.optim.Adam(module.parameters(), lr=self.learning_rate)
        for epoch in range(self.epochs):
            images, _ = data.epoch(epoch)
            batches = [range(i, min(i + self.batch_size, len(images))) for i in range(0, len(images), self.batch_size)]
            for number, batch in enumerate(batches):
                progress = (epoch + number / len(batches)) / self.epochs
                for group in optimizer.param_groups:
                    group["lr"] = self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
                pixels = torch.from_numpy(np.ascontiguousarray(images[batch.start : batch.stop].transpose(0, 3, 1, 2)))
                x = pixels.float() / 127.5 - 1
                noise = torch.randn_like(x)
                t = torch.randint(module.trained_up_to, (len(x),))
                error = (module(module.scheduler.add_noise(x, noise, t), t) - noise).square().mean()
                optimizer.zero_grad()
                error.backward()
                torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                optimizer.step()

    def measure(self, module: torch.nn.Module, data: TrainingData) -> dict[str, Any]:
        clean = data.held_out[:MEASURED]
        t = max(0, round(0.1 * self.timesteps) - 1)
        signal = float(module.scheduler.alphas_cumprod[t])
        noise = np.random.default_rng([0, t]).standard_normal(clean.shape, dtype=np.float32)
        noisy = np.float32(math.sqrt(signal)) * (2 * clean - 1) + np.float32(math.sqrt(1 - signal)) * noise
        found = in_fixed_batches(lambda x: module(x, t), noisy)
        estimate = (noisy - math.sqrt(1 - signal) * found) / math.sqrt(signal)
        seen = [np.clip((x + 1) / 2, 0, 1).astype(np.float32) for x in (estimate, noisy / math.sqrt(signal))]
        return {
            "noise_error": round(float(np.square(found.astype(np.float64) - noise).mean()), 6),
            "psnr_denoised": round(float(psnr(clean, seen[0]).mean()), 3),
            "psnr_noisy": round(float(psnr(clean, seen[1]).mean()), 3),
        }
