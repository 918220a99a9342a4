"""The trained part of a defense of one's own: one filter, learned to take noise away."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from windtunnel.backend import torch
from windtunnel.networks.base import Network, TrainingData


@dataclass(frozen=True, kw_only=True)
class SmoothingFilterNetwork(Network):
    """A ``size`` x ``size`` filter per channel, trained on images with Gaussian noise of ``sigma``."""

    size: int = 5
    sigma: float = 0.1
    steps: int = 60

    def build(self) -> torch.nn.Module:
        return torch.nn.Conv2d(3, 3, self.size, padding=self.size // 2, groups=3)

    def train(self, module: torch.nn.Module, data: TrainingData, *, seed: int) -> None:
        images, _ = data.epoch(0)
        draws = np.random.default_rng([seed, 1])
        optimiser = torch.optim.Adam(module.parameters(), lr=0.02)
        for _ in range(self.steps):
            rows = draws.integers(0, len(images), 32)
            clean = torch.from_numpy(np.array(images[rows], dtype=np.float32)).permute(0, 3, 1, 2) / 255
            noise = torch.from_numpy(draws.standard_normal(clean.shape, dtype=np.float32))
            loss = (module(clean + self.sigma * noise) - clean).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    def measure(self, module: torch.nn.Module, data: TrainingData) -> dict[str, float]:
        clean = torch.from_numpy(data.held_out)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            error = (module(clean + self.sigma * noise) - clean).square().mean()
        return {"mse": float(error), "mse_of_noise": self.sigma**2}
