"""A range coder: integers to bytes and back, with integer tables, the same on every machine.

Duda, Asymmetric numeral systems, https://arxiv.org/abs/1311.2540, in its streaming form: a state of 32 bits, words
of 16, probabilities in 65536ths. A table is one row of *starts* [n + 1], from 0 to 65536, for symbols -reach..reach and
an escape behind them; a symbol beyond the reach is the escape and then its own 16 bits.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

BITS = 16
TOTAL = 1 << BITS
FIRST = 1
"""The encoder's first state. Not 65536, as is usual: that would cost 16 bits, which at 32 pixels is some percent."""
LOWEST, HIGHEST = -(1 << 15), (1 << 15) - 1
"""What an escaped symbol can be; symbols are clipped to it before they are coded."""


class BadStream(ValueError):
    """Bytes that are no stream of this coder, or not the whole of one."""


def starts_of(masses: np.ndarray) -> np.ndarray:
    """[T, n + 1] int64 starts of tables from masses [T, n] (sums at most about 1): no symbol is impossible.

    Every symbol gets one 65536th and the floor of its share of the rest; what is left over goes to the likeliest.
    """
    tables, symbols = masses.shape
    shares = masses / np.maximum(masses.sum(1, keepdims=True), 1e-300)
    counts = 1 + np.floor(shares * (TOTAL - symbols)).astype(np.int64)
    counts[np.arange(tables), counts.argmax(1)] += TOTAL - counts.sum(1)
    return np.concatenate([np.zeros((tables, 1), dtype=np.int64), counts.cumsum(1)], axis=1)


def encode(symbols: np.ndarray, rows: np.ndarray, starts: np.ndarray) -> bytes:
    """The stream of integers ``symbols`` [K], symbol k by table ``rows[k]``: at least 4 bytes, an even number."""
    reach = _reach(starts)
    escaped = np.abs(symbols) > reach
    place = np.where(escaped, 2 * reach + 1, symbols + reach)
    low, size = starts[rows, place], starts[rows, place + 1] - starts[rows, place]
    if escaped.any():
        behind = np.flatnonzero(escaped) + 1
        low, size = np.insert(low, behind, symbols[escaped] - LOWEST), np.insert(size, behind, 1)
    state, words = FIRST, []
    for start, count in zip(low[::-1].tolist(), size[::-1].tolist(), strict=True):
        if state >= count << BITS:
            words.append(state & 0xFFFF)
            state >>= BITS
        state = (state // count << BITS) + start + state % count
    words += [state & 0xFFFF, state >> BITS]
    return np.array(words[::-1], dtype=">u2").tobytes()


class Decoder:
    """Reads a stream piece by piece: what is read first may decide by which tables the rest is read."""

    def __init__(self, stream: bytes, starts: np.ndarray) -> None:
        if len(stream) < 4 or len(stream) % 2:
            raise BadStream(f"a stream has an even number of bytes, at least 4, not {len(stream)}")
        self._words = iter(np.frombuffer(stream, dtype=">u2").tolist())
        self._state = next(self._words) << BITS | next(self._words)
        self._starts, self._reach = starts.tolist(), _reach(starts)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The next len(rows) symbols, int64."""
        found = np.empty(len(rows), dtype=np.int64)
        for k, row in enumerate(rows.tolist()):
            table = self._starts[row]
            place = bisect_right(table, self._state & 0xFFFF) - 1
            self._take(table[place], table[place + 1] - table[place])
            if place > 2 * self._reach:
                raw = self._state & 0xFFFF
                self._take(raw, 1)
                found[k] = raw + LOWEST
            else:
                found[k] = place - self._reach
        return found

    def finish(self) -> None:
        """Raise ``BadStream`` unless all of it was read and the state is the one that the encoder began with."""
        if self._state != FIRST or next(self._words, None) is not None:
            raise BadStream("the stream holds more, or something else, than was read from it")

    def _take(self, start: int, count: int) -> None:
        self._state = count * (self._state >> BITS) + (self._state & 0xFFFF) - start
        if self._state < TOTAL:
            # no word is left when what the encoder coded first is read: its state had not filled 16 bits yet
            word = next(self._words, None)
            self._state = self._state if word is None else self._state << BITS | word


def _reach(starts: np.ndarray) -> int:
    return (starts.shape[1] - 3) // 2
