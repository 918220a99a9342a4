"""Training under Gaussian noise, and the consistency of two noisy views: base models for randomised smoothing.

Noise: Certified Adversarial Robustness via Randomized Smoothing (Cohen et al., https://arxiv.org/abs/1902.02918): every
training image gets N(0, sigma^2 I) in units of [0, 1], not clipped, as the smoothed classifier will at test time.

Consistency: Consistency Regularization for Certified Robustness of Smoothed Classifiers (Jeong and Shin,
https://arxiv.org/abs/2006.04062), which rRCM (Lei et al., https://arxiv.org/abs/2501.13094) uses for its fine-tuning.
With F_i the softmax of view i and F the mean of the m = 2 views,

    loss = mean_i CE(F_i, y) + weight * mean_i KL(F || F_i) + eta * H(F),

averaged over images; eta .5, weight 10 or 20 in both papers' commands. The gradient flows through F too, as in both
released codes. What is not rRCM here: no pre-training along a diffusion trajectory, no time-conditioned transformer,
weights from scratch on one network; only the fine-tuning loss is the same.
"""

from __future__ import annotations

from windtunnel.backend import torch

Tensor = torch.Tensor
VIEWS = 2


def noisy_views(x: Tensor, *, sigma: float, views: int, generator: torch.Generator) -> Tensor:
    """[views * N, C, H, W]: the batch repeated view by view, each copy with its own noise of deviation ``sigma``."""
    repeated = x.repeat(views, 1, 1, 1)
    return repeated + sigma * torch.randn(repeated.shape, generator=generator)


def consistency_loss(logits: Tensor, *, weight: float, eta: float) -> Tensor:
    """The two terms beside cross-entropy, a scalar of at least 0, for logits [m, N, K] of m views of the same images.

    The divergences KL(F || F_i) are 0 if and only if all views agree, and have no bound: the mean comes first, so that
    a view which rules out what the others say is expensive (Jensen and Shannon take the other order).
    """
    logs = torch.log_softmax(logits, dim=2)
    mean = logs.exp().mean(dim=0)
    log_mean = torch.log(mean.clamp(min=1e-20))
    divergence = (mean * (log_mean - logs)).sum(dim=2).mean(dim=0)
    entropy = -(mean * log_mean).sum(dim=1)
    return (weight * divergence + eta * entropy).mean()
