"""Weights on disk: safetensors, large tensors as float16, everything else as it is.

What is rounded is decided by name and shape alone: floating tensors of two dimensions or more outside the head. Biases,
norms, running statistics (whose range float16 does not cover) and the head, which scores replay in numpy, keep float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from windtunnel.backend import torch

Tensor = torch.Tensor


def is_half(name: str, tensor: Tensor) -> bool:
    """Whether this tensor is stored as float16 when the model's weights are rounded."""
    return tensor.is_floating_point() and tensor.dim() >= 2 and not name.startswith("head.")


def round_to_half(name: str, tensor: Tensor) -> Tensor:
    """The tensor with values that float16 holds, in its own type."""
    return tensor.half().to(tensor.dtype) if is_half(name, tensor) else tensor


def to_bytes(state: Mapping[str, Tensor], *, rounded: bool) -> bytes:
    """The safetensors file of a state dict: the same state gives the same bytes."""
    from safetensors.torch import save

    stored = {}
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        half = tensor.half() if rounded and is_half(name, tensor) else tensor
        if half.dtype != tensor.dtype and not torch.equal(half.to(tensor.dtype).nan_to_num(), tensor.nan_to_num()):
            raise ValueError(f"{name} holds values that float16 does not: round the model before it is measured")
        stored[name] = half
    return save(stored)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a safetensors file, floating tensors as float32."""
    from safetensors.torch import load_file

    state = load_file(path)
    return {name: t.float() if t.is_floating_point() else t for name, t in state.items()}


def non_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return sorted(name for name, t in state.items() if t.is_floating_point() and not bool(t.isfinite().all()))
