"""KNN: distance of the unit-length features to the k-th nearest feature of the fitting set.

Paper: Out-of-Distribution Detection with Deep Nearest Neighbors (Sun et al., ICML 2022),
https://arxiv.org/abs/2204.06507.

Formula: ``S(x) = |z - z_(k)|_2`` with ``z = h / |h|_2`` and ``z_(k)`` the k-th nearest of the fitting set's unit
features; in [0, 2], higher = more out-of-distribution.
Defaults: ``k`` 50, the paper's for CIFAR-10 (200 for CIFAR-100, 1000 for ImageNet-1k); the whole fitting set is the
bank.
Deviations: exact search instead of FAISS. Neighbours are found by inner products in blocks (memory stays at a few
blocks of 256 x 8192 numbers however large the bank), then the distances of the best k + 8 are taken again from the
differences, because ``2 - 2 <a, b>`` loses half the digits of a small distance. A zero feature stays zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.scores.base import Head, Observations, Score, State, finite_rows

QUERIES_AT_ONCE = 256
BANK_AT_ONCE = 8192
NUMBERS_AT_ONCE = 4_000_000
SPARE = 8  # candidates beyond k, so that rounding of inner products cannot push the true k-th out


def unit(features: np.ndarray) -> np.ndarray:
    """[N, D] float64 rows of length one; a zero row stays zero."""
    h = features.astype(np.float64)
    return h / np.maximum(np.sqrt((h * h).sum(axis=1, keepdims=True)), 1e-12)


@dataclass(frozen=True, kw_only=True)
class Knn(Score):
    """Distance to the ``k``-th nearest unit feature of the fitting set."""

    algorithm_version: ClassVar[int] = 1
    needs_features: ClassVar[bool] = True
    needs_fit: ClassVar[bool] = True

    k: int = 50

    def fit(self, train: Observations, head: Head) -> State:
        """The ``bank``: the fitting features in the precision they came in (half the memory of float64)."""
        bank = finite_rows(train.features, "knn")
        if not 1 <= self.k <= len(bank):
            raise ValueError(f"knn: k = {self.k} does not lie between 1 and the {len(bank)} rows of the fitting set")
        return {"bank": bank}

    def score(self, observations: Observations, state: State, head: Head) -> np.ndarray:
        """[N] float64 in [0, 2]; higher = more out-of-distribution."""
        queries, bank = observations.features, state["bank"]
        candidates = self._candidates(queries, bank)
        out = np.empty(len(queries))
        step = max(1, NUMBERS_AT_ONCE // (candidates.shape[1] * bank.shape[1]))
        for start in range(0, len(queries), step):
            rows = slice(start, start + step)
            near = unit(bank[candidates[rows].ravel()]).reshape(*candidates[rows].shape, -1)
            gap = unit(queries[rows])[:, None, :] - near
            distance = np.sqrt((gap * gap).sum(axis=2))
            out[rows] = np.partition(distance, self.k - 1, axis=1)[:, self.k - 1]
        return out

    def _candidates(self, queries: np.ndarray, bank: np.ndarray) -> np.ndarray:
        """[N, <= k + 8] rows of the bank with the largest inner products; any rows where the query is NaN."""
        wanted = min(self.k + SPARE, len(bank))
        places = np.zeros((len(queries), wanted), dtype=np.int64)
        best = np.full((len(queries), wanted), -np.inf)
        for first in range(0, len(bank), BANK_AT_ONCE):
            part = unit(bank[first : first + BANK_AT_ONCE]).T
            for start in range(0, len(queries), QUERIES_AT_ONCE):
                rows = slice(start, start + QUERIES_AT_ONCE)
                similar = unit(queries[rows]) @ part
                # the block's best first, so that the sorting below is of a few columns only; NaN sorts as largest, and
                # whatever rows it picks, the distance of that query is NaN
                kept = min(wanted, part.shape[1])
                top = np.argpartition(similar, part.shape[1] - kept, axis=1)[:, part.shape[1] - kept :]
                merged = np.concatenate([best[rows], np.take_along_axis(similar, top, axis=1)], axis=1)
                index = np.concatenate([places[rows], top + first], axis=1)
                chosen = np.argpartition(merged, kept, axis=1)[:, kept:]
                best[rows] = np.take_along_axis(merged, chosen, axis=1)
                places[rows] = np.take_along_axis(index, chosen, axis=1)
        return places
