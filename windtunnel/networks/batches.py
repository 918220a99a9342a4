"""Answers of a module that do not depend on who shares the batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from windtunnel.backend import torch

SIZE = 16
"""Images at once. A convolution may round differently in another batch shape, and a codec's rounding would turn a last
bit into a visible difference: so the shape is always the same, the last batch filled up with zeros."""


def in_fixed_batches(function: Callable[[torch.Tensor], torch.Tensor], images: np.ndarray) -> np.ndarray:
    """``function`` on [N, ...] float32 images, ``SIZE`` at a time, without a graph; the results joined, float32."""
    found = []
    with torch.no_grad():
        for start in range(0, len(images), SIZE):
            part = np.ascontiguousarray(images[start : start + SIZE], dtype=np.float32)
            full = np.zeros((SIZE, *part.shape[1:]), dtype=np.float32)
            full[: len(part)] = part
            found.append(function(torch.from_numpy(full))[: len(part)].numpy())
    return np.concatenate(found) if found else np.asarray(images, dtype=np.float32)
