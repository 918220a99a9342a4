"""The losses that an attack increases: pure functions ``(logits [B, K], y [B]) -> [B]``, larger = nearer to being
fooled.

Saturated logits (a network whose logits are scaled by 1000): softmax underflows and the gradient of ``ce`` is *exactly*
zero although the decision boundary has not moved; the engine flags such rows (``zero_gradient``). ``margin`` is not
saturated by scale, ``dlr`` does not depend on scale or shift at all. All are finite for finite logits.
"""

from __future__ import annotations

from windtunnel.attacks.base import Loss, Tensor
from windtunnel.backend import torch

SMALLEST_DENOMINATOR = 1e-12


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy ``-log softmax(z)_y``."""
    return torch.nn.functional.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """``max_{j != y} z_j - z_y``: positive exactly when another class wins. Invariant to a shift of all logits."""
    own = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], float("-inf")).amax(1)
    return others - own[:, 0]


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, https://arxiv.org/abs/2003.01690, eq. 6):
    ``-(z_y - max_{j != y} z_j) / (z_(1) - z_(3))``. Needs three classes.

    Deviation: the denominator is bounded below by 1e-12 instead of adding 1e-12, which float32 loses at large logits:
    three tied leaders give 0, not NaN.
    """
    _need_classes(logits, 3, "dlr")
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2]).clamp_min(SMALLEST_DENOMINATOR)


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted DLR (same paper, eq. 7): ``-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)``. Needs four classes."""
    _need_classes(logits, 4, "dlr_targeted")
    top = logits.topk(4, dim=1).values
    gap = logits.gather(1, target[:, None])[:, 0] - logits.gather(1, y[:, None])[:, 0]
    return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(SMALLEST_DENOMINATOR)


LOSSES: dict[str, Loss] = {"ce": ce, "margin": margin, "dlr": dlr}


def loss_named(name: str) -> Loss:
    """The untargeted loss of that name."""
    if name not in LOSSES:
        raise ValueError(f"unknown loss '{name}'; known: {', '.join(sorted(LOSSES))}")
    return LOSSES[name]


def _need_classes(logits: Tensor, least: int, name: str) -> None:
    if logits.shape[1] < least:
        raise ValueError(f"the loss '{name}' needs {least} classes, the model has {logits.shape[1]}; use margin")
