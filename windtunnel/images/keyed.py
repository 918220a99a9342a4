"""Random integers that depend on names only: the same sample gets the same draws in any batch, order or library
version.

The generator is SplitMix64 (Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators,
https://doi.org/10.1145/2660193.2660195) in counter form: draw ``i`` of a key is ``mix(key + (i + 1) * GOLDEN)``. It is
written in plain 64-bit integer arithmetic, because NumPy promises no stable stream for its own ``Generator`` methods
and a changed stream would silently change every data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mix(state: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser on an array of uint64, modulo 2^64. Pure."""
    state = np.atleast_1d(np.asarray(state, dtype=np.uint64))
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))


def keys_of(names: Iterable[str]) -> np.ndarray:
    """One uint64 key per name: the first eight bytes of its SHA-256."""
    digests = b"".join(hashlib.sha256(name.encode()).digest()[:8] for name in names)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def numbered_keys(name: str, count: int) -> np.ndarray:
    """``count`` keys under one name, cheaper than hashing ``count`` strings."""
    return mix(mix(keys_of([name]) + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN))


class Draws:
    """Consecutive draws for a row of keys; every call advances all rows by the same count.

    ``keys``: uint64 [N]. The rows are independent of one another: a subset of keys gives the subset of draws.
    """

    def __init__(self, keys: np.ndarray) -> None:
        self.keys = np.asarray(keys, dtype=np.uint64)
        self._used = 0

    def raw(self, *shape: int) -> np.ndarray:
        """uint64 [N, *shape], uniform over all 64 bits."""
        count = int(np.prod(shape, dtype=np.int64)) if shape else 1
        steps = np.arange(self._used + 1, self._used + count + 1, dtype=np.uint64) * GOLDEN
        self._used += count
        return mix(self.keys[:, None] + steps[None, :]).reshape(len(self.keys), *shape)

    def integers(self, low: int | np.ndarray, high: int | np.ndarray, *shape: int) -> np.ndarray:
        """int64 [N, *shape] in [low, high), bounds scalar or [N]; the bias is below (high - low) / 2^32."""
        low, high = np.asarray(low, dtype=np.int64), np.asarray(high, dtype=np.int64)
        if np.any(high <= low):
            raise ValueError(f"an empty range to draw from: [{low.min()}, {high.max()})")
        tail = (slice(None),) + (None,) * len(shape)
        span = (high - low).astype(np.uint64)
        span = span[tail] if span.ndim else span
        offset = low[tail] if low.ndim else low
        top = self.raw(*shape) >> np.uint64(32)
        return ((top * span) >> np.uint64(32)).astype(np.int64) + offset
