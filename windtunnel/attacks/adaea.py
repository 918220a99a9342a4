"""AdaEA: members weighted by how far their own example carries, pixels dropped where members disagree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from windtunnel.attacks.ascent import accumulated, climbed, pulled_back, with_bounds
from windtunnel.attacks.base import Attack, Query, RowGenerators, Rows, Tensor
from windtunnel.attacks.geometry import per_row
from windtunnel.attacks.losses import ce
from windtunnel.backend import torch

# A loss of exactly zero (saturated logits) would divide by zero; the softmax over the weights takes any size.
SMALLEST_LOSS = 1e-12


@dataclass(frozen=True, kw_only=True)
class AdaEA(Attack):
    """Adaptive ensemble attack (Chen et al., An Adaptive Model Ensemble Adversarial Attack for Boosting Adversarial
    Transferability, 2023, https://arxiv.org/abs/2308.02897), on MI-FGSM, linf, cross-entropy L. Per step, with the
    gradient g_k of member k's own loss at x, and ``a_k = P(x + step_size eps sign(g_k))``:

    1. adaptive gradient modulation: ``w = softmax_j(beta sum_{i != j} L(f_i(a_j)) / L(f_i(a_i)))``: a member counts
       for much if its example hurts the others;
    2. disparity-reduced filter: the cosine similarity over the channels of g_i and g_j, mean over all pairs; pixels
       below ``threshold`` are masked;
    3. ``g = mask grad L(sum_k w_k f_k(x), y)``, ``m <- momentum m + g / mean|g|``, ``x <- P(x + step_size eps
       sign(m))``.

    Start: ``x0 + start_noise N(0, 1)``, clipped. Defaults: the released script (20 steps, 2/255 at 8/255, beta 10,
    threshold -.3, momentum .9, noise .001). Weights are made anew in every step. With one member it is MI-FGSM.

    Cost per step, K members: 2 K gradient evaluations, ``K^2`` forwards for the weights and K by which the engine
    judges the iterate.

    Deviations from the released code, which ``as_released`` undoes. Its weights come from losses averaged over the
    *batch*, in the first step only: with ``as_released`` a result depends on which images share a batch; here each
    row has its own weights. Its filter forgets the last member's row and counts a zero for it, so that the mean is
    drawn towards zero. A vanishing gradient leaves the momentum as it is, where the code divides 0 by 0.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf",)
    bill: ClassVar[tuple[str, ...]] = ("steps",)
    per_member: ClassVar[bool] = True
    asks_per_step: ClassVar[int] = 2

    steps: int = 20
    step_size: float = 0.25
    momentum: float = 0.9
    beta: float = 10.0
    threshold: float = -0.3
    start_noise: float = 0.001
    as_released: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.step_size <= 0 or min(self.momentum, self.beta, self.start_noise) < 0:
            raise ValueError(f"steps must be at least 1, step_size above 0, the rest not below: {self}")
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold is a cosine, in [-1, 1], not {self.threshold}")

    @property
    def max_steps(self) -> int:
        return self.steps

    def init(self, x0: Tensor, y: Tensor, eps: Tensor, norm: str, generators: RowGenerators, query: Query) -> Rows:
        rows = with_bounds({"momentum": torch.zeros_like(x0)}, x0, eps, norm)
        noise = self.start_noise * generators.normal(*x0.shape[1:]) if self.start_noise else torch.zeros_like(x0)
        rows["x"] = (x0 + noise).clamp(rows["low"], rows["high"])
        rows["weights"] = torch.full((len(x0), query.n_members), 1 / query.n_members, dtype=x0.dtype, device=x0.device)
        return rows

    def step(self, rows: Rows, norm: str, generators: RowGenerators, query: Query) -> Rows:
        x, weights = rows["x"], rows["weights"]
        length = per_row(rows["eps"] * self.step_size, x)
        if query.n_members == 1:
            gradient = query.gradient(x, ce)[2]
        else:
            query.logits(x)
            answers = [query.gradient(x, ce, member=k) for k in range(query.n_members)]
            logits, gradients = [answer[0] for answer in answers], [answer[2] for answer in answers]
            weights = self._weights(rows, gradients, length, norm, query)
            mixed = sum(weights[:, k, None] * z for k, z in enumerate(logits))
            # the derivative of cross-entropy by its logits: softmax minus the label
            slope = mixed.softmax(1) - torch.nn.functional.one_hot(rows["y"], query.n_classes).to(mixed.dtype)
            gradient = pulled_back(query, x, [weights[:, k, None] * slope for k in range(query.n_members)])
            gradient = gradient * (self.agreement(gradients) >= self.threshold)
        momentum = accumulated(rows["momentum"], gradient, self.momentum)
        return {"x": climbed(x, momentum, length, rows, norm), "momentum": momentum, "weights": weights}

    def _weights(self, rows: Rows, gradients: list[Tensor], length: Tensor, norm: str, query: Query) -> Tensor:
        """[B, K], sum 1: how much each member counts, by what its own example does to the others."""
        first = rows["t"] == 0
        if self.as_released and not bool(first.any()):
            return rows["weights"]
        count = query.n_members
        found = []  # [K (whose example), K (who is asked), B]
        for gradient in gradients:
            example = climbed(rows["x"], gradient, length, rows, norm)
            found.append(torch.stack([ce(query.logits(example, member=i), rows["y"]) for i in range(count)]))
        losses = torch.stack(found).double()
        if self.as_released:
            losses = losses.mean(2, keepdim=True).expand_as(losses)
        own = losses.diagonal(dim1=0, dim2=1).T.clamp_min(SMALLEST_LOSS)  # [K (who is asked), B]
        ratio = losses / own
        strength = self.beta * (ratio.sum(1) - ratio.diagonal(dim1=0, dim2=1).T)
        weights = strength.softmax(0).T.to(rows["weights"].dtype)
        return torch.where(first[:, None], weights, rows["weights"]) if self.as_released else weights

    def agreement(self, gradients: list[Tensor]) -> Tensor:
        """[B, 1, H, W]: the mean over pairs of members of the cosine, over the channels, of their gradients."""
        count = len(gradients)
        unit = [g / torch.linalg.vector_norm(g, dim=1, keepdim=True).clamp_min(1e-30) for g in gradients]
        pairs = {(i, j): (unit[i] * unit[j]).sum(1, keepdim=True) for i in range(count) for j in range(i + 1, count)}
        if not self.as_released:
            return sum(pairs.values()) / len(pairs)
        seen = [pair for (i, j), pair in pairs.items() for member in (i, j) if member < count - 1]
        return sum(seen) / ((count - 1) * count)
