"""The one attack that training needs: a projected gradient on the linf ball, to make batches and to write cards.

Not the attack of the benchmark (``windtunnel.attacks``): a card must state a robust accuracy on the day the weights are
made, without the engine. Towards Deep Learning Models Resistant to Adversarial Attacks (Madry et al.,
https://arxiv.org/abs/1706.06083).
"""

from __future__ import annotations

from windtunnel.backend import torch

Tensor = torch.Tensor


def one_step(
    model: torch.nn.Module, x: Tensor, y: Tensor, *, eps: float, step: float, generator: torch.Generator
) -> Tensor:
    """[N, C, H, W] single-step examples: uniform start in the ball, one signed step, projected on ball and box."""
    start = x + (2 * torch.rand(x.shape, generator=generator) - 1) * eps
    start = start.clamp(0, 1).requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(model(start), y)
    (gradient,) = torch.autograd.grad(loss, start)
    moved = start.detach() + step * gradient.sign()
    return torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(0, 1)


def pgd_correct(
    model: torch.nn.Module, x: Tensor, y: Tensor, *, eps: float, steps: int, generator: torch.Generator
) -> Tensor:
    """[N] bool: right on the clean image and on *every* iterate of PGD (uniform start, step 2.5 eps / steps)."""
    step = 2.5 * eps / steps
    with torch.no_grad():
        correct = model(x).argmax(1) == y
    moved = (x + (2 * torch.rand(x.shape, generator=generator) - 1) * eps).clamp(0, 1)
    for index in range(steps + 1):
        moved = moved.detach().requires_grad_(True)
        logits = model(moved)
        correct &= logits.detach().argmax(1) == y
        if index == steps:
            break
        # The sum, not the mean: rows stay independent of each other's number.
        loss = torch.nn.functional.cross_entropy(logits, y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, moved)
        moved = moved.detach() + step * gradient.sign()
        moved = torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(0, 1)
    return correct


def pgd_accuracy(
    model: torch.nn.Module, x: Tensor, y: Tensor, *, eps_255: float, steps: int = 20, seed: int = 0, batch: int = 125
) -> float:
    """Share of images that PGD at ``eps_255`` / 255 never fools. The model must be frozen."""
    generator = torch.Generator().manual_seed(seed)
    pairs = zip(x.split(batch), y.split(batch), strict=True)
    right = [pgd_correct(model, a, b, eps=eps_255 / 255, steps=steps, generator=generator) for a, b in pairs]
    return float(torch.cat(right).double().mean())
