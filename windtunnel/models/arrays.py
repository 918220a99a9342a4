"""A saved head as arrays: read and folded with numpy alone, so that scores never import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from windtunnel.scores.base import Head


def head_keys(description: Mapping[str, Any]) -> list[str]:
    """The names of the saved tensors that a head description refers to."""
    temperature = description.get("temperature") or {}
    names = [description["weight"], description.get("bias"), *temperature.values()]
    return [name for name in names if isinstance(name, str)]


def fold(description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Head:
    """The ``Head`` of a description and the saved tensors it names (float16 or float32; weights come back as float32).

    The batch norm of a learned temperature is folded into the affine map before it, in float64:
    ``(w h + b - m) g / s + c = (w g / s) h + ((b - m) g / s + c)`` with ``s = sqrt(variance + epsilon)``.
    """
    bias = description.get("bias")
    temperature = description.get("temperature") or {}
    temperature_weight: np.ndarray | None = None
    temperature_bias: float | None = None
    if temperature:
        offset = np.asarray(arrays[temperature["bias"]], dtype=np.float64).reshape(-1)[0]
        if "weight" in temperature:
            slope = np.asarray(arrays[temperature["weight"]], dtype=np.float64).reshape(-1)
            mean, variance, gain, shift = (
                np.asarray(arrays[temperature[key]], dtype=np.float64).reshape(-1)[0]
                for key in ("norm_mean", "norm_variance", "norm_weight", "norm_bias")
            )
            scale = gain / np.sqrt(variance + temperature["norm_epsilon"])
            temperature_weight = slope * scale
            offset = (offset - mean) * scale + shift
        temperature_bias = float(offset)
    return Head(
        weight=np.asarray(arrays[description["weight"]], dtype=np.float32),
        bias=None if bias is None else np.asarray(arrays[bias], dtype=np.float32),
        cosine=bool(description.get("cosine", False)),
        temperature_weight=temperature_weight,
        temperature_bias=temperature_bias,
    )
