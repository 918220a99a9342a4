"""Pairs of a clean picture and an attacked one, and augmentations that treat both alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from windtunnel.attacks.fgsm import FGSM
from windtunnel.attacks.pgd import PGD
from windtunnel.backend import torch
from windtunnel.engine import run_attack
from windtunnel.networks._training import batches
from windtunnel.networks.base import TrainingData

Tensor = torch.Tensor
GROUP = 40
"""Pictures attacked together: one victim, one attack, one budget."""
SMALLEST_SIDE = 0.5
"""The smallest side of a kept or mixed window, as a share of the picture's."""


class Pairs(NamedTuple):
    """Clean pictures and their attacked versions, [N, 3, H, W] float32 in [0, 1] each."""

    clean: Tensor
    attacked: Tensor


def attacked(
    victim: torch.nn.Module, images: np.ndarray, *, kind: str, eps: float, steps: int, seed: int, name: str
) -> np.ndarray:
    """[N, 3, H, W] images attacked under linf ``eps`` against the victim's own answers on them (no label is needed):
    ``pgd`` and ``cw`` take ``steps`` steps on cross-entropy and on the margin, the loss of Carlini and Wagner
    (https://arxiv.org/abs/1608.04644); ``fgsm`` one. Random starts are keyed by (``seed``, ``name``, row)."""
    with torch.no_grad():
        own = victim(torch.tensor(images)).argmax(1).numpy()
    attack = FGSM() if kind == "fgsm" else PGD(steps=steps, loss="margin" if kind == "cw" else "ce")
    found = run_attack(
        victim, attack, images, own, [f"{name}-{row}" for row in range(len(images))], eps=eps, norm="linf", seed=seed,
        mode="full",
    )  # fmt: skip
    return np.asarray(found.best, dtype=np.float32)


def attacked_batches(
    data: TrainingData,
    victims: Sequence[torch.nn.Module],
    *,
    size: int,
    kinds: Sequence[str],
    largest_eps_255: int,
    steps: int,
    seed: int,
) -> Iterator[Pairs]:
    """Batches of ``size`` pairs, without end: groups of ``GROUP`` pictures in turn against every (victim, attack),
    each with a budget drawn from 1 to ``largest_eps_255``; the pairs of one turn are mixed before they are cut into
    batches (what is left over is dropped)."""
    draws = np.random.default_rng([seed, 3])
    supply = batches(data, GROUP)
    turn = 0
    while True:
        clean, moved = [], []
        for number, (victim, kind) in enumerate(product(victims, kinds)):
            images, eps = next(supply), int(draws.integers(1, largest_eps_255 + 1)) / 255
            clean.append(images)
            moved.append(
                attacked(victim, images, kind=kind, eps=eps, steps=steps, seed=seed, name=f"pair-{turn}-{number}")
            )
        order = draws.permutation(GROUP * len(clean))
        x, y = (torch.from_numpy(np.concatenate(parts)[order]) for parts in (clean, moved))
        for start in range(0, len(order) - size + 1, size):
            yield Pairs(x[start : start + size], y[start : start + size])
        turn += 1


def windows(number: int, height: int, width: int, draws: np.random.Generator) -> Tensor:
    """[N, 1, H, W] bool: one random rectangle per row, each side at least ``SMALLEST_SIDE`` of the picture's."""
    inside = []
    for side in (height, width):
        least = max(1, round(SMALLEST_SIDE * side))
        length = draws.integers(least, side + 1, number)
        first = draws.integers(0, side - length + 1)
        place = np.arange(side)
        inside.append((place >= first[:, None]) & (place < (first + length)[:, None]))
    rows, columns = inside
    return torch.from_numpy((rows[:, :, None] & columns[:, None, :])[:, None])


def crop_and_pad(pairs: Pairs, keep: Tensor) -> Pairs:
    """Both pictures with everything outside the window ``keep`` [N, 1, H, W] set to 0."""
    return Pairs(*(torch.where(keep, x, torch.zeros_like(x)) for x in pairs))


def cut_mix(pairs: Pairs, keep: Tensor, partners: Tensor) -> Pairs:
    """Both pictures with everything outside the window taken from the row ``partners`` [N] names (Yun et al., CutMix,
    https://arxiv.org/abs/1905.04899): clean from clean, attacked from attacked."""
    return Pairs(*(torch.where(keep, x, x[partners]) for x in pairs))


def augmented(pairs: Pairs, draws: np.random.Generator) -> Pairs:
    """Every pair once more: even rows cropped and padded, odd rows mixed with another row of the batch."""
    n, _, height, width = pairs.clean.shape
    keep = windows(n, height, width, draws)
    partners = torch.from_numpy((np.arange(n) + draws.integers(1, max(n, 2), n)) % n)
    cropped, mixed = crop_and_pad(pairs, keep), cut_mix(pairs, keep, partners)
    odd = (torch.arange(n) % 2).bool()[:, None, None, None]
    return Pairs(*(torch.where(odd, m, c) for m, c in zip(mixed, cropped, strict=True)))


def surviving(classifier: torch.nn.Module, pairs: Pairs, changed: Pairs) -> Tensor:
    """[N] bool: rows for which the classifier answers on both changed pictures what it answers on the originals."""
    with torch.no_grad():
        same = [
            classifier(before).argmax(1) == classifier(after).argmax(1)
            for before, after in zip(pairs, changed, strict=True)
        ]
    return same[0] & same[1]
