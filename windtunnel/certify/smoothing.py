"""The statistics of randomised smoothing: bounds, radii, CERTIFY, PREDICT. Counts in, numbers out; no model, no noise.

Paper: Cohen, Rosenfeld, Kolter, Certified Adversarial Robustness via Randomized Smoothing, 2019,
https://arxiv.org/abs/1902.02918. The smoothed classifier g answers the class that a base classifier f gives most often
to x + e, e ~ N(0, sigma^2 I). If f gives class c with probability at least p > 1/2 there, g answers c at every image
nearer than ``R = sigma Phi^-1(p)`` to x in L2. p is not known: it is bounded from below by counting (one-sided
Clopper-Pearson), so that a certificate is wrong with probability at most ``alpha`` per sample, over the draws. The
other classes are given everything that is left, 1 - p, as in the paper's procedure (its theorem allows a second bound).

**Fixed**: one look after all draws, which is the paper's CERTIFY.

**Sequential** (not in the paper): K looks declared beforehand, after n_1 < ... < n_K draws, each with a bound of level
``alpha / K``. Each bound fails with probability at most alpha / K, so by the union bound all K hold together with
probability at least 1 - alpha; *whatever* rule decides when to stop, what it stops with is one of these bounds. The
rule here: stop at the first look at which

- the best bound so far certifies the radius that is asked for, ``asked = sigma Phi^-1((alpha / K)^(1 / n_1))``, the
  largest that the first look can certify (all its draws agreeing); or
- the *upper* bound (same level) is at most 1/2: this class is not the majority's, and the sample abstains; or
- it is the last.

The radius is that of the best bound so far, and never more than ``asked``: a sample that stopped early could not have
more, so radii beyond it would compare samples by when they stopped. Looking without such a correction certifies a
class of probability 1/2 in 27 % of the cases at alpha .05 (a look every 10 draws up to 1,000).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special, stats

HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What was found for one sample. ``predicted`` and ``radius`` are None where it abstains.

    ``chosen`` is the class that the choosing draws voted for (None where no answer was finite), ``agreeing`` how many
    of the ``n_used`` certifying draws gave it.
    """

    predicted: int | None
    radius: float | None
    chosen: int | None
    agreeing: int
    n_used: int


@lru_cache(maxsize=65_536)
def lower_bound(agreeing: int, draws: int, level: float) -> float:
    """One-sided Clopper-Pearson: p with P(Binomial(draws, p) >= agreeing) = ``level``; 0 where nothing agrees.

    The true probability lies below it with probability at most ``level``. All agreeing: ``level^(1 / draws)``, which is
    returned in this form, so that ``largest_radius`` is reached exactly and never passed by a rounding.
    """
    if not 0 <= agreeing <= draws or draws < 1:
        raise ValueError(f"{agreeing} of {draws} draws: a count must lie between 0 and the number of draws, at least 1")
    if not 0 < level < 1:
        raise ValueError(f"the level is a probability in (0, 1), not {level}")
    if agreeing == 0:
        return 0.0
    if agreeing == draws:
        return float(level ** (1.0 / draws))
    return float(special.betaincinv(agreeing, draws - agreeing + 1, level))


def upper_bound(agreeing: int, draws: int, level: float) -> float:
    """The other side: the true probability lies above it with probability at most ``level``."""
    return 1.0 - lower_bound(draws - agreeing, draws, level)


def radius_of(probability: float, sigma: float) -> float | None:
    """``sigma Phi^-1(p)`` in L2, images in [0, 1]; None unless p > 1/2, where the sample abstains."""
    return float(sigma * special.ndtri(probability)) if probability > HALF else None


def probability_within(radius: float, sigma: float) -> float:
    """The probability that certifies a radius: ``Phi(radius / sigma)``."""
    return float(special.ndtr(radius / sigma))


def largest_radius(draws: int, alpha: float, sigma: float) -> float | None:
    """What these draws can certify at most: all agree, ``sigma Phi^-1(alpha^(1 / draws))``. None: they always
    abstain."""
    return radius_of(lower_bound(draws, draws, alpha), sigma)


def looks_of(draws: int, looks: Sequence[int] = ()) -> tuple[int, ...]:
    """After how many draws the count is looked at: the declared looks, or once, after all."""
    found = tuple(looks) or (draws,)
    if found[0] < 1 or any(a >= b for a, b in zip(found, found[1:], strict=False)) or found[-1] != draws:
        raise ValueError(f"looks must rise and end with the draws ({draws}), not {list(found)}")
    return found


def asked_radius(draws: int, alpha: float, sigma: float, looks: Sequence[int] = ()) -> float | None:
    """The largest radius that a certificate of this kind can have; None where it always abstains.

    Fixed: ``largest_radius``. Sequential: that of the first look which can certify anything.
    """
    declared = looks_of(draws, looks)
    reach = [largest_radius(look, alpha / len(declared), sigma) for look in declared]
    return next((r for r in reach if r is not None), None)


def certify(
    chosen: int | None,
    more: Callable[[int], int],
    *,
    draws: int,
    alpha: float,
    sigma: float,
    looks: Sequence[int] = (),
) -> Certificate:
    """CERTIFY for the class that other draws have ``chosen``: ``more(m)`` draws m fresh ones and says how many agree.

    Fresh: the draws that chose the class must not be among them, or the count would be biased towards the class. A
    draw without a finite answer agrees with nothing. ``chosen`` None abstains without a draw.
    """
    declared = looks_of(draws, looks)
    if chosen is None:
        return Certificate(predicted=None, radius=None, chosen=None, agreeing=0, n_used=0)
    level = alpha / len(declared)
    asked = asked_radius(draws, alpha, sigma, looks)
    best, agreeing, seen = 0.0, 0, 0
    for look in declared:
        agreeing += more(look - seen)
        seen = look
        best = max(best, lower_bound(agreeing, seen, level))
        radius = radius_of(best, sigma)
        if radius is not None and asked is not None and radius >= asked:
            break
        if upper_bound(agreeing, seen, level) <= HALF:
            best = 0.0  # an earlier bound above 1/2 would contradict this one: nothing is claimed
            break
    radius = radius_of(best, sigma)
    if radius is None or asked is None:
        return Certificate(predicted=None, radius=None, chosen=chosen, agreeing=agreeing, n_used=seen)
    return Certificate(
        predicted=chosen, radius=min(radius, asked), chosen=chosen, agreeing=agreeing, n_used=seen
    )  # fmt: skip


def predict(votes: np.ndarray, alpha: float) -> int | None:
    """PREDICT from votes [K]: the class with most votes, or None (abstains) where the second is not clearly behind.

    Two-sided binomial test of the two leading classes against 1/2, abstention for p > ``alpha``. The smoothed
    classifier answers another class than this one with probability at most alpha.
    """
    counted = np.asarray(votes, dtype=np.int64)
    order = np.argsort(-counted, kind="stable")
    first, second = int(counted[order[0]]), int(counted[order[1]]) if len(counted) > 1 else 0
    if first == 0 or stats.binomtest(first, first + second, HALF).pvalue > alpha:
        return None
    return int(order[0])


def choose(votes: np.ndarray) -> int | None:
    """The class with most votes [K], the lower number among equals; None where nothing was voted."""
    return int(np.argmax(votes)) if len(votes) and votes.max() > 0 else None


def check_radii(radii: Sequence[float | None], draws: int, alpha: float, sigma: float, looks: Sequence[int]) -> None:
    """Raise ``ImpossibleRadius`` where a radius is more than (n, alpha, sigma) and the looks allow."""
    asked = asked_radius(draws, alpha, sigma, looks)
    found = [r for r in radii if r is not None]
    worst = max(found, default=None)
    if worst is not None and (asked is None or not worst <= asked):
        raise ImpossibleRadius(
            f"a radius of {worst} was certified; {draws} draws at alpha {alpha} and sigma {sigma} allow "
            f"{'none' if asked is None else f'at most {asked}'}"
        )


class ImpossibleRadius(RuntimeError):
    """A certificate says more than its draws can say."""
