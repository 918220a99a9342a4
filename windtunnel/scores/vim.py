"""ViM: energy plus a virtual logit made of the features' residual outside their principal space.

Paper: ViM: Out-Of-Distribution with Virtual-logit Matching (Wang et al., CVPR 2022),
https://arxiv.org/abs/2203.10807; code, https://github.com/haoqiwang/vim.

Formula: with the origin ``u = -W^+ b`` and ``R`` the eigenvectors of ``(1/N) sum (h_i - u)(h_i - u)'`` (fitting set)
belonging to all but the ``dimension`` largest eigenvalues, ``alpha = mean_i max_k z_ik / mean_i |R'(h_i - u)|`` and
``S(x) = alpha |R'(h - u)| - logsumexp(z)``; higher = more out-of-distribution.
Defaults: ``dimension`` null means the authors' rule: 1000 for features of 2048 numbers and more, else 512; where the
features have no more than 512 numbers that rule leaves no residual, and half of them is taken (as pytorch-ood does;
the paper does not cover such narrow networks).
Deviations: the logits are the observed ones, also in ``alpha``; for a cosine head or one with a learned temperature
they are not ``W h + b``, which the paper presumes: there ``u`` is 0 (no bias) and ``alpha`` still matches the mean
largest logit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import logsumexp

from windtunnel.scores.base import Head, Observations, Score, State, finite_rows, rows_times


@dataclass(frozen=True, kw_only=True)
class Vim(Score):
    """Virtual-logit matching with a principal space of ``dimension`` numbers (null: the rule above)."""

    algorithm_version: ClassVar[int] = 1
    needs_features: ClassVar[bool] = True
    needs_fit: ClassVar[bool] = True

    dimension: int | None = None

    def principal(self, width: int) -> int:
        """Dimension of the principal space for features of ``width`` numbers."""
        if self.dimension is not None:
            chosen = self.dimension
        elif width >= 2048:
            chosen = 1000
        else:
            chosen = 512 if width > 512 else width // 2
        if not 0 < chosen < width:
            raise ValueError(f"vim: dimension {chosen} leaves no residual of features of {width} numbers")
        return chosen

    def fit(self, train: Observations, head: Head) -> State:
        """``origin`` [D], ``residual`` [D, D - dimension] (orthonormal columns), ``alpha`` []."""
        h = finite_rows(train.features, "vim").astype(np.float64)
        width = h.shape[1]
        origin = np.zeros(width)
        if head.bias is not None:
            origin = -np.linalg.pinv(head.weight.astype(np.float64)) @ head.bias.astype(np.float64)
        centred = h - origin
        _, vectors = np.linalg.eigh(centred.T @ centred / len(h))  # eigenvalues ascending
        residual = np.ascontiguousarray(vectors[:, : width - self.principal(width)])
        length = np.linalg.norm(rows_times(centred, residual), axis=1).mean()
        if length <= 1e-12 * np.abs(centred).max():
            raise ValueError("vim: the fitting features have no residual outside the principal space")
        alpha = train.logits.astype(np.float64).max(axis=1).mean() / length
        return {"origin": origin, "residual": residual, "alpha": np.asarray(alpha)}

    def score(self, observations: Observations, state: State, head: Head) -> np.ndarray:
        """[N] float64; higher = more out-of-distribution."""
        outside = rows_times(observations.features.astype(np.float64) - state["origin"], state["residual"])
        virtual = float(state["alpha"]) * np.sqrt((outside * outside).sum(axis=1))
        return virtual - logsumexp(observations.logits.astype(np.float64), axis=1)
