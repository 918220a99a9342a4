"""Curves of shares of samples with pointwise 95 % bands over sources."""

from __future__ import annotations

import numpy as np

from windtunnel.metrics.intervals import source_codes, source_draws, wilson

REPLICATES = 400


def share_curve(
    drops_at: np.ndarray, places: np.ndarray, sources: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of samples whose ``drops_at`` [n] is above each of ``places`` [K], with the lower and upper ends [K].

    Infinity never drops. Wilson's interval where every sample has its own source, else the percentile interval of
    a bootstrap over sources (Wilson over sources where the share is 0 or 1), as for every accuracy of the tables.
    """
    left = drops_at[:, None] > places[None, :]
    value = left.mean(axis=0)
    names, codes = source_codes(sources)
    n, clusters = len(drops_at), len(names)
    ends = np.array([wilson(v * clusters, clusters) for v in value], dtype=float)
    if clusters < n:
        drawn = source_draws(names, REPLICATES, 0).astype(np.float64)
        sums = np.zeros((clusters, len(places)))
        np.add.at(sums, codes, left.astype(np.float64))
        means = (drawn @ sums) / (drawn @ np.bincount(codes, minlength=clusters).astype(np.float64))[:, None]
        inner = (value > 0) & (value < 1)
        ends[inner] = np.quantile(means, [0.025, 0.975], axis=0).T[inner]
    return value, ends[:, 0], ends[:, 1]


def sizes(counts: set[int]) -> str:
    """``n = 200`` or ``n = 100 to 200``, with spaces that no line breaks at."""
    if not counts:
        return ""
    return f"n\u00a0=\u00a0{min(counts)}" + (f"\u00a0to\u00a0{max(counts)}" if len(counts) > 1 else "")
