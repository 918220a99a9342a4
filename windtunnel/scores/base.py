"""What an out-of-distribution score is: arrays in, one number per image out, higher = more OOD. No torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import expit

State = dict[str, np.ndarray]
ROWS_AT_ONCE = 256


def rows_times(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """[N, M] float64 product of ``rows`` [N, D] and ``matrix`` [D, M], each row's bits independent of its neighbours.

    A matrix product may round a row differently in a batch of 3 than in one of 500, and so break ties between equal
    images. Every product here has the same shape (blocks of 256 rows, the last one filled with zeros), so that it
    does not.
    """
    rows, matrix = np.asarray(rows), np.ascontiguousarray(matrix, dtype=np.float64)
    out = np.empty((len(rows), matrix.shape[1]))
    block = np.zeros((ROWS_AT_ONCE, rows.shape[1]))
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        block[: len(part)] = part
        block[len(part) :] = 0.0
        out[start : start + len(part)] = (block @ matrix)[: len(part)]
    return out


def finite_rows(features: np.ndarray, what: str) -> np.ndarray:
    """``features`` as given, or a ValueError that says how many rows of a *fitting* set are not finite.

    A test image may be NaN (its score is NaN); a fitting set may not, for its statistics would be NaN for every image.
    """
    bad = int((~np.isfinite(features).all(axis=1)).sum())
    if bad:
        raise ValueError(f"{what}: {bad} of {len(features)} fitting rows are not finite")
    if not len(features):
        raise ValueError(f"{what}: the fitting set is empty")
    return features


@dataclass(frozen=True)
class Head:
    """The classification head as arrays, so that scores can replay it on changed features.

    ``weight`` [K, D]; ``bias`` [K] or None; ``cosine``: logits are cosines ``<w,h> / ((|w|+1e-4)(|h|+1e-4))`` instead
    of inner products; the temperature is ``1`` unless ``temperature_weight`` [D] and ``temperature_bias`` are there
    (learned per sample, batch norm folded in: ``T = sigmoid(h @ weight + bias) + 1e-12``) or only
    ``temperature_bias`` (one global learned temperature, ``T = sigmoid(bias) + 1e-12``).
    """

    weight: np.ndarray
    bias: np.ndarray | None = None
    cosine: bool = False
    temperature_weight: np.ndarray | None = None
    temperature_bias: float | None = None

    def temperature(self, features: np.ndarray) -> np.ndarray:
        """[N] float64 temperature of each sample, from *unclipped* features."""
        if self.temperature_bias is None:
            return np.ones(len(features))
        z = np.full(len(features), float(self.temperature_bias))
        if self.temperature_weight is not None:
            z = z + rows_times(features, self.temperature_weight.astype(np.float64)[:, None])[:, 0]
        return expit(z) + 1e-12

    def logits(self, features: np.ndarray, temperature: np.ndarray | None = None) -> np.ndarray:
        """[N, K] float64 logits of (possibly changed) features, divided by the given or own temperature."""
        h = features.astype(np.float64)
        w = self.weight.astype(np.float64)
        if self.cosine:
            wn = np.linalg.norm(w, axis=1) + 1e-4
            hn = np.linalg.norm(h, axis=1, keepdims=True) + 1e-4
            z = rows_times(h, w.T) / (wn * hn)
        else:
            z = rows_times(h, w.T)
        if self.bias is not None:
            z = z + self.bias.astype(np.float64)
        t = self.temperature(features) if temperature is None else temperature
        return z / t[:, None]


@dataclass(frozen=True)
class Observations:
    """What a model said of N images: ``logits`` [N, K], ``features`` [N, D] (penultimate), ``labels`` [N] or None."""

    logits: np.ndarray
    features: np.ndarray
    labels: np.ndarray | None = None


class Score(ABC):
    """One score. Subclasses are frozen keyword-only dataclasses: fields are the catalogue's settings.

    Class constants (literals): ``algorithm_version``; ``needs_features``; ``needs_fit``; ``needs_temperature`` True
    for scores that exist only on a head with a per-sample learned temperature (null elsewhere).
    """

    algorithm_version: ClassVar[int] = 1
    needs_features: ClassVar[bool] = False
    needs_fit: ClassVar[bool] = False
    needs_temperature: ClassVar[bool] = False

    def applies_to(self, head: Head) -> bool:
        """Whether the score exists on this head; where it does not, its column is null and ``score`` is not called."""
        return not self.needs_temperature or head.temperature_weight is not None

    def fit(self, train: Observations, head: Head) -> State:
        """Statistics of the fitting set, as arrays. Never sees a test image."""
        return {}

    @abstractmethod
    def score(self, observations: Observations, state: State, head: Head) -> np.ndarray:
        """[N] float64; higher = more out-of-distribution. Pure. A row with a NaN gives NaN and touches no other row."""
