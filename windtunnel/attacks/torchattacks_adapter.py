"""Both directions between torchattacks and this library: theirs in our form, ours as a callable of their kind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from windtunnel.attacks.base import Attack, Tensor
from windtunnel.attacks.torchattacks import TorchattacksAttack
from windtunnel.backend import torch
from windtunnel.engine import AttackResult, frozen, run_attack


def run_torchattacks(
    model: torch.nn.Module,
    class_name: str,
    arguments: dict[str, Any] | None,
    images: np.ndarray,
    labels: np.ndarray,
    sample_ids: Sequence[Any] | None = None,
    *,
    eps: float,
    norm: str = "linf",
    **options: Any,
) -> AttackResult:
    """An audited torchattacks class on arrays, with our record of it; ``options`` are those of ``engine.run_attack``.

    Everything said in ``attacks.torchattacks`` holds: unaudited classes are refused, the caller's random state and the
    model's mode stay as they were, and a result depends on ``batch_size``.
    """
    attack = TorchattacksAttack(class_name=class_name, arguments=arguments)
    ids = range(len(images)) if sample_ids is None else sample_ids
    return run_attack(model, attack, images, labels, list(ids), eps=eps, norm=norm, **options)


def as_torchattacks(
    attack: Attack, model: torch.nn.Module, *, eps: float, norm: str = "linf", seed: int = 0, **options: Any
) -> Callable[[Tensor, Tensor], Tensor]:
    """``adversarial = callable(images, labels)`` as torchattacks objects are called: tensors [B, C, H, W] in [0, 1].

    Returns the best images (mode ``full``). The random numbers of an image are keyed by its content, so that its
    result does not depend on its place in the batch. The model is frozen for the call and every flag of it put back.
    """
    options.setdefault("mode", "full")

    def call(images: Tensor, labels: Tensor) -> Tensor:
        array = np.ascontiguousarray(images.detach().cpu().float().numpy())
        ids = [hashlib.sha256(image.tobytes()).hexdigest() for image in array]
        with frozen(model):
            result = run_attack(
                model, attack, array, labels.cpu().numpy(), ids, eps=eps, norm=norm, seed=seed, **options
            )
        return torch.from_numpy(result.best).to(device=images.device, dtype=images.dtype)

    return call
