"""Mahalanobis: distance of the features to the nearest class mean under one shared covariance.

Paper: A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks (Lee et al.,
NeurIPS 2018), https://arxiv.org/abs/1807.03888.

Formula: ``S(x) = min_c (h - mu_c)' Sigma^+ (h - mu_c)`` with ``mu_c`` the mean of the fitting features of class c
(true labels) and ``Sigma = (1/N) sum_c sum_{i in c} (h_i - mu_c)(h_i - mu_c)'``; non-negative, higher = more
out-of-distribution.
Defaults: ``ridge`` 0, as in the paper: ``Sigma + ridge * mean eigenvalue * I`` is inverted. ``cutoff`` 1e-10: the
pseudo-inverse leaves out directions whose variance is below cutoff times the largest; float32 features carry a
relative rounding of 6e-8, 3.6e-15 in variance, so that what lies below is noise, as for units that never fire.
Deviations: penultimate features only, without the paper's ensemble over layers and without its input preprocessing,
which need the model; the authors' code also inverts by pseudo-inverse (there with scikit-learn's cutoff).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.scores.base import Head, Observations, Score, State, finite_rows, rows_times


@dataclass(frozen=True, kw_only=True)
class Mahalanobis(Score):
    """Squared Mahalanobis distance to the nearest class mean. ``ridge`` and ``cutoff`` regularise the inverse."""

    algorithm_version: ClassVar[int] = 1
    needs_features: ClassVar[bool] = True
    needs_fit: ClassVar[bool] = True

    ridge: float = 0.0
    cutoff: float = 1e-10

    def fit(self, train: Observations, head: Head) -> State:
        """``whitening`` [D, R] and the whitened class ``means`` [C, R] of the classes that occur in the fitting set."""
        if train.labels is None:
            raise ValueError("mahalanobis: the fitting set has no labels")
        h = finite_rows(train.features, "mahalanobis").astype(np.float64)
        classes, codes = np.unique(train.labels, return_inverse=True)
        means = np.stack([h[codes == c].mean(axis=0) for c in range(len(classes))])
        centred = h - means[codes]
        values, vectors = np.linalg.eigh(centred.T @ centred / len(h))
        values = values + self.ridge * values.mean()
        kept = values > max(self.cutoff * values[-1], 0.0)
        if not kept.any():
            raise ValueError("mahalanobis: the fitting features do not vary within any class")
        whitening = vectors[:, kept] / np.sqrt(values[kept])
        return {"whitening": whitening, "means": rows_times(means, whitening)}

    def score(self, observations: Observations, state: State, head: Head) -> np.ndarray:
        """[N] float64, non-negative; higher = more out-of-distribution."""
        white = rows_times(observations.features, state["whitening"])
        nearest = np.full(len(white), np.inf)
        for mean in state["means"]:
            nearest = np.minimum(nearest, ((white - mean) ** 2).sum(axis=1))
        return nearest
