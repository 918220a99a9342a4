"""Models whose answers are known, for the tests of the engine and of the attacks."""

from __future__ import annotations

from functools import cache

import numpy as np

from windtunnel.backend import torch
from windtunnel.engine import predict


class Linear64(torch.nn.Module):
    """A linear model in float64 whose rows cannot influence each other's rounding (no matrix product).

    Class 0 has the weights +w/2, class 1 has -w/2, two more are constant and far below: the distance to the boundary is
    |w.x + b| / |w|_1 in linf and / |w|_2 in l2.
    """

    def __init__(self, shape: tuple[int, int, int] = (3, 8, 8), seed: int = 0) -> None:
        super().__init__()
        w = torch.from_numpy(np.random.default_rng(seed).normal(size=int(np.prod(shape))))
        self.register_buffer("w", w)
        self.bias = float(-w.sum() / 2)
        self.eval()

    def score(self, x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1).double() * self.w).sum(1) + self.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.score(x)
        far = torch.full_like(z, -50.0)
        return torch.stack([z / 2, -z / 2, far, far - 1], dim=1)


class Curved64(Linear64):
    """The same without straight lines (and without a matrix product): gradients differ from place to place."""

    def score(self, x: torch.Tensor) -> torch.Tensor:
        u = x.flatten(1).double() - 0.5
        return ((u - 20 * u * u + 90 * u * u * u) * self.w).sum(1)


def linear_samples(n: int, margin: float = 4.0, seed: int = 1) -> tuple[Linear64, np.ndarray, np.ndarray]:
    """n images far from the box, each with |w.x + b| = margin, and the labels that the model gives them."""
    model = Linear64()
    w = model.w.numpy()
    x = np.random.default_rng(seed).uniform(0.4, 0.6, size=(n, w.size))
    wanted = np.where(np.arange(n) % 2 == 0, margin, -margin)
    x += ((wanted - (x @ w + model.bias)) / (w @ w))[:, None] * w
    images = x.reshape(n, 3, 8, 8).astype(np.float32)
    assert images.min() > 0.2 and images.max() < 0.8
    return model, images, (wanted < 0).astype(np.int64)


@cache
def digits_net() -> tuple[torch.nn.Module, np.ndarray, np.ndarray]:
    """A small CNN trained on 16x16 RGB digits, frozen, and 100 test images on the 8-bit grid with their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.repeat(np.repeat(data.images, 2, axis=1), 2, axis=2)[:, None].repeat(3, axis=1)
    x = (np.rint(images * (255 / 16)) / 255).astype(np.float32)
    y = data.target.astype(np.int64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 12, 3, 2, 1),
            torch.nn.BatchNorm2d(12),
            torch.nn.ReLU(),
            torch.nn.Conv2d(12, 24, 3, 2, 1),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(24 * 16, 10),
        )
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        order = np.random.default_rng(0)
        for _ in range(8):
            for part in np.array_split(order.permutation(1400), 22):
                inputs, targets = torch.from_numpy(x[part]), torch.from_numpy(y[part])
                inputs = (inputs + 0.2 * torch.randn_like(inputs)).clamp(0, 1)
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(model(inputs), targets).backward()
                optimiser.step()
    model.eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = None
    test_x, test_y = x[1500:1600].copy(), y[1500:1600].copy()
    assert (predict(model, test_x)[0].argmax(1) == test_y).mean() > 0.85
    return model, test_x, test_y


class Scaled(torch.nn.Module):
    """The same classifier with its logits times ``factor`` plus ``shift``."""

    def __init__(self, model: torch.nn.Module, factor: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.model, self.factor, self.shift = model, factor, shift
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x) * self.factor + self.shift
