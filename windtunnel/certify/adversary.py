"""An attack on a certificate: if it succeeds, something is wrong.

Inside a certified radius the smoothed classifier cannot change its class; a tool that certifies must be able to try.
The attack is that of Salman et al., Provably Robust Deep Learning via Adversarially Trained Smoothed Classifiers, 2019,
https://arxiv.org/abs/1906.04584 (SmoothAdv): L2 gradient ascent on ``-log mean_i softmax(f(x + e_i))_y``, the mean
taken *inside* the logarithm, over ``eot`` fresh noise draws per step. Any attack of the library that asks for gradients
can drive it; PGD is what the paper uses. The end point is judged by PREDICT on draws of its own.

Deviation: the attacked image also stays in [0, 1] (the attacks of this library do), which the certificate does not ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from windtunnel.attacks.base import Attack, Loss
from windtunnel.attacks.pgd import PGD
from windtunnel.backend import torch
from windtunnel.certify.sampling import Smoothed
from windtunnel.engine import RowRandom

Tensor = torch.Tensor
ATTACK = "attack"


@dataclass(frozen=True, kw_only=True)
class AttackedCertificates:
    """``images`` [N, C, H, W] where the attacks ended, ``distances`` [N] in L2, ``predicted`` the smoothed class there
    (None where PREDICT abstains), ``broken`` [N]: another class than the certified one."""

    images: np.ndarray
    distances: np.ndarray
    predicted: tuple[int | None, ...]
    broken: np.ndarray


def attack_certificates(
    smoothed: Smoothed,
    images: np.ndarray,
    classes: Sequence[int],
    radii: Sequence[float],
    sample_ids: Sequence[Any],
    *,
    share: float = 0.9,
    attack: Attack | None = None,
    eot: int = 32,
    draws: int = 1000,
    alpha: float = 0.001,
) -> AttackedCertificates:
    """Attack each image [C, H, W] at ``share`` of its certified radius, away from its certified class.

    With ``share`` below 1 an entry of ``broken`` is an error of probability at most (the certificate's alpha) +
    ``alpha``; with a share well above 1 a working attack breaks some. ``attack``: PGD, 20 steps of a quarter of the
    radius (the library's own default). The defense's gradient is that of the pipeline's backward rule.
    """
    method = attack or PGD(steps=20)
    ends, predicted = [], []
    for image, label, radius, sample_id in zip(images, classes, radii, sample_ids, strict=True):
        end = _driven(smoothed, method, image, int(label), share * float(radius), sample_id, eot)
        ends.append(end)
        predicted.append(smoothed.predict(end, f"{sample_id}\0attacked", draws=draws, alpha=alpha))
    moved = np.stack(ends) if ends else np.zeros_like(images)
    flat = (moved.astype(np.float64) - images.astype(np.float64)).reshape(len(moved), -1)
    broken = [p is not None and p != int(c) for p, c in zip(predicted, classes, strict=True)]
    return AttackedCertificates(
        images=moved,
        distances=np.sqrt((flat**2).sum(1)),
        predicted=tuple(predicted),
        broken=np.array(broken, dtype=bool),
    )


def _driven(
    smoothed: Smoothed, attack: Attack, image: np.ndarray, label: int, eps: float, sample_id: Any, eot: int
) -> np.ndarray:
    """Where the attack ends: every step of one row."""
    x0 = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None].to(smoothed.device)
    y = torch.tensor([label], device=smoothed.device)
    budget = torch.tensor([eps], dtype=torch.float64, device=smoothed.device)
    query = _SmoothedQuery(smoothed, y, smoothed.stream(sample_id, ATTACK), eot)
    start = RowRandom.keyed(smoothed.seed, [f"{sample_id}\0start"], smoothed.device)
    rows = dict(attack.init(x0, y, budget, "l2", start, query))
    for step in range(attack.max_steps):
        rows |= {"x0": x0, "y": y, "eps": budget, "t": torch.full_like(y, step)}
        rows |= attack.step(rows, "l2", start, query)
    return rows["x"][0].detach().cpu().numpy()


class _SmoothedQuery:
    """``attacks.base.Query`` for one row: the smoothed classifier's soft answer, ``log mean softmax``, as logits."""

    n_members = 1

    def __init__(self, smoothed: Smoothed, y: Tensor, noise: RowRandom, eot: int) -> None:
        if eot < 1:
            raise ValueError(f"eot must be at least 1, not {eot}")
        self.smoothed, self.y, self.noise, self.eot = smoothed, y, noise, eot

    @property
    def n_classes(self) -> int:
        raise TypeError("a smoothed classifier is attacked by its label alone: choose an untargeted attack")

    def logits(self, x: Tensor, *, member: int | None = None) -> Tensor:
        with torch.no_grad():
            return self._soft(x)

    def gradient(self, x: Tensor, loss: Loss, *, member: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = self._soft(leaf)
            values = loss(logits, self.y)
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return logits.detach(), values.detach(), torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)

    def defense_error(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise TypeError("attacks on a defense's error do not attack a certificate")

    def module(self) -> torch.nn.Module:
        raise TypeError("foreign attacks cannot go through smoothing: its dice belong to the samples")

    def _soft(self, x: Tensor) -> Tensor:
        noise = self.noise.normal(self.eot, *x.shape[1:])[0]
        answers = self.smoothed.pipeline.differentiable(self.smoothed.noisy(x, noise))
        return torch.logsumexp(torch.log_softmax(answers, dim=1), dim=0, keepdim=True) - float(np.log(self.eot))
