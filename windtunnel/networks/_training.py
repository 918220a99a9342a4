"""What the training of small image-to-image networks has in common: batches, one descent, held-out quality."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from windtunnel.backend import torch
from windtunnel.metrics.quality import psnr
from windtunnel.networks.base import TrainingData
from windtunnel.networks.batches import in_fixed_batches

Batch = TypeVar("Batch")
HELD_OUT = 200
"""Images of the held-out split on which a card's metrics are measured."""
LARGEST_GRADIENT = 1.0
REPORT_EVERY = 200
logger = logging.getLogger(__name__)


def batches(data: TrainingData, size: int) -> Iterator[np.ndarray]:
    """[size, 3, H, W] float32 in [0, 1], without end: the images of epoch 0 in their order, then those of epoch 1, ...

    A function of the data alone; an epoch's rest is joined with the next one's beginning.
    """
    number, left = 0, None
    while True:
        images = _floats(data.epoch(number)[0])
        left = images if left is None else np.concatenate([left, images])
        number += 1
        while len(left) >= size:
            yield left[:size]
            left = left[size:]


def descend(
    module: torch.nn.Module,
    supply: Iterable[Batch],
    loss_of: Callable[[Batch], torch.Tensor],
    *,
    steps: int,
    learning_rate: float,
) -> list[float]:
    """Adam on ``loss_of`` of ``steps`` batches, a half cosine down to 0, gradient norm cut at 1; every step's loss."""
    optimiser = torch.optim.Adam(module.parameters(), lr=learning_rate)
    losses: list[float] = []
    for step, batch in zip(range(steps), supply, strict=False):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = loss_of(batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), LARGEST_GRADIENT)
        optimiser.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss of step {step + 1} is {losses[-1]}; lower the learning rate")
        if (step + 1) % REPORT_EVERY == 0:
            logger.info("step %d of %d, loss %.5f", step + 1, steps, float(np.mean(losses[-REPORT_EVERY:])))
    return losses


def with_noise(images: np.ndarray, sigma: np.ndarray | float, draws: np.random.Generator) -> np.ndarray:
    """[N, ...] float32 images with Gaussian noise of deviation ``sigma`` (a number, or one per image), clipped to
    [0, 1]: a defense never sees anything outside."""
    width = np.broadcast_to(np.asarray(sigma, dtype=np.float32), (len(images),)).reshape(-1, 1, 1, 1)
    return np.clip(images + width * draws.standard_normal(images.shape, dtype=np.float32), 0, 1)


def answers(module: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """The module's pictures, clipped to [0, 1], in batches of the one fixed size."""
    return in_fixed_batches(lambda x: module(x).clamp(0, 1), images)


def mean_psnr(reference: np.ndarray, images: np.ndarray) -> float | None:
    """Mean PSNR in dB over pictures; None where some are identical, whose PSNR is infinite."""
    found = float(psnr(reference, images).mean())
    return round(found, 4) if math.isfinite(found) else None


def require_positive(**settings: float) -> None:
    """Refuse settings that are not above 0, by name."""
    if wrong := {name: value for name, value in settings.items() if not value > 0}:
        raise ValueError(f"must be above 0: {wrong}")


def _floats(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
