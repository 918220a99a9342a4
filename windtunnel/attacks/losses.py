"""The losses that an attack increases: pure functions ``(logits [B, K], y [B]) -> [B]``, larger = nearer to being
fooled.

Saturated logits (a network whose logits are scaled by 1000): softmax underflows and the gradient of ``ce`` is *exactly*
zero although the decision boundary has not moved; the engine flags such rows (``zero_gradient``). ``margin`` is not
saturated by scale, ``dlr`` does not depend on scale or shift at all. The losses on probabilities
(``probability_margin`` and its terms, ``comp-sum-*``) saturate as ``ce`` does. None depends on a shift of all logits.
All are finite for finite logits of any size that a network answers (up to 1e20).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

from windtunnel.attacks.base import Loss, Tensor
from windtunnel.backend import torch

SMALLEST_DENOMINATOR = 1e-12
# Beyond exp(30) a comp-sum loss goes on as a straight line: the square of a gradient this large still fits in float32.
LARGEST_EXPONENT = 30.0
COMP_SUM = "comp-sum-"


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
    spread = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
    return margin_targeted(logits, y, target) / spread.clamp_min(SMALLEST_DENOMINATOR)


def margin_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """``z_t - z_y``: positive when the target beats the label. Invariant to a shift of all logits."""
    return logits.gather(1, target[:, None])[:, 0] - logits.gather(1, y[:, None])[:, 0]


def true_probability(logits: Tensor, y: Tensor) -> Tensor:
    """``-p_y``, p = softmax(z), in [-1, 0]: the first term of ``probability_margin``."""
    return -logits.softmax(1).gather(1, y[:, None])[:, 0]


def wrong_probability(logits: Tensor, y: Tensor) -> Tensor:
    """``max_{j != y} p_j``, p = softmax(z), in [0, 1]: the second term of ``probability_margin``."""
    return logits.softmax(1).scatter(1, y[:, None], float("-inf")).amax(1)


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    """``max_{j != y} p_j - p_y``, p = softmax(z), in [-1, 1] (Xie et al., Towards Million-Scale Adversarial Robustness
    Evaluation With Stronger Individual Attacks, 2024, https://arxiv.org/abs/2411.15210)."""
    return margin(logits.softmax(1), y)


def comp_sum(logits: Tensor, y: Tensor, tau: float) -> Tensor:
    """The comp-sum family (Mao, Mohri & Zhong, Cross-Entropy Loss Functions: Theoretical Analysis and Applications,
    2023, https://arxiv.org/abs/2304.07288, section 2): ``Phi_tau(sum_{j != y} exp(z_j - z_y))`` with
    ``Phi_tau(u) = ((1 + u)^(1 - tau) - 1) / (1 - tau)``, and ``log(1 + u)`` at tau = 1.

    tau 0: sum-exponential; 1: logistic, which is cross-entropy; between 1 and 2: generalised cross-entropy,
    ``(1 - p_y^(tau - 1)) / (tau - 1)``; 2: mean absolute error, ``1 - p_y``. At least 0.

    Since 1 + u = 1 / p_y it is computed from the cross-entropy c as ``expm1((1 - tau) c) / (1 - tau)``. Deviation:
    where tau < 1 and (1 - tau) c > 30 it goes on as its tangent, in place of an overflow.
    """
    loss = ce(logits, y)
    if tau == 1:
        return loss
    exponent = (1 - tau) * loss
    if tau > 1:
        return torch.expm1(exponent) / (1 - tau)
    beyond = (exponent - LARGEST_EXPONENT).clamp_min(0)
    inside = torch.expm1(exponent.clamp_max(LARGEST_EXPONENT))
    return (inside + math.exp(LARGEST_EXPONENT) * beyond) / (1 - tau)


LOSSES: dict[str, Loss] = {
    "ce": ce,
    "margin": margin,
    "dlr": dlr,
    "probability_margin": probability_margin,
    "true_probability": true_probability,
    "wrong_probability": wrong_probability,
} | {f"{COMP_SUM}{tau}": partial(comp_sum, tau=float(tau)) for tau in ("0", "0.5", "1", "1.5", "2")}

TARGETED_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "dlr_targeted": dlr_targeted,
    "margin_targeted": margin_targeted,
}


@cache
def loss_named(name: str) -> Loss:
    """The untargeted loss of that name; ``comp-sum-<tau>`` takes any tau of at least 0."""
    if name in LOSSES:
        return LOSSES[name]
    if name.startswith(COMP_SUM):
        try:
            tau = float(name.removeprefix(COMP_SUM))
        except ValueError:
            tau = math.nan
        if math.isfinite(tau) and tau >= 0:
            return partial(comp_sum, tau=tau)
        raise ValueError(f"'{name}': after '{COMP_SUM}' comes tau, a number of at least 0")
    raise ValueError(f"unknown loss '{name}'; known: {', '.join(sorted(LOSSES))}")


def _need_classes(logits: Tensor, least: int, name: str) -> None:
    if logits.shape[1] < least:
        instead = "margin_targeted" if name in TARGETED_LOSSES else "margin"
        raise ValueError(f"the loss '{name}' needs {least} classes, the model has {logits.shape[1]}; use {instead}")
