"""Training of a surrogate on pairs of the real defense: images in, weights and their fidelity out. No files."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from windtunnel.backend import torch
from windtunnel.defenses.base import Defense, RandomDefense, repeat
from windtunnel.defenses.rules import blur
from windtunnel.surrogates.unet import Shape, UNet

Images = np.ndarray
State = dict[str, torch.Tensor]
HELD_OUT = 10
FILTERED = 64  # images (and as many perturbed ones) on which the linear part is solved


class NoSurrogate(ValueError):
    """A defense for which this kind of surrogate makes no sense."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a surrogate is trained: ``steps`` of ``batch`` images, half of them clean, half perturbed.

    So the cost does not depend on the number of images, the making of pairs apart. ``versions`` perturbed copies of
    every image, their distance up to ``largest_eps`` in [0, 1]; ``difference`` weighs the term that compares what a
    perturbation *changes*; ``width`` and ``deep`` are the network's.

    The defaults are chosen by hand on webp-50 (small batches and many steps matter most: 16 images a step left 5.3,
    64 images a step 6.0 of 255 after the same number of images).
    """

    steps: int = 1200
    batch: int = 16
    versions: int = 2
    largest_eps: float = 16 / 255
    learning_rate: float = 2e-3
    difference: float = 1.0
    width: int = 32
    deep: int = 48

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.versions, self.width, self.deep) < 1:
            raise ValueError(f"steps, batch, versions, width and deep must be at least 1: {self}")
        if not (0 < self.largest_eps <= 1 and self.learning_rate > 0 and self.difference >= 0):
            raise ValueError(f"largest_eps must lie in (0, 1], learning_rate above 0, difference at least 0: {self}")


def train_surrogate(
    defense: Defense, rounds: int, images: Images, *, seed: int = 0, recipe: Recipe | None = None
) -> tuple[State, dict[str, Any]]:
    """(weights of a ``UNet`` that imitates ``defense`` applied ``rounds`` times, its fidelity).

    ``images`` [N, 3, H, W] float32 in [0, 1], N of at least 20, of the kind that will be attacked; the last tenth is
    held out. Every image is seen as it is and with ``versions`` perturbations (see ``perturbed``), because an attack
    asks for gradients *around* images. The loss of a pair (x, x + d) with the real g and the surrogate u is

        |u(x) - g(x)|^2 + |u(x + d) - g(x + d)|^2 + difference |(u(x + d) - u(x)) - (g(x + d) - g(x))|^2,

    means over pixels; the last term asks for the change that a perturbation makes, which is what an attack uses of u.
    The linear part is solved in closed form first; then Adam, one cosine down to 0, gradient norm cut at 1. Always on
    the CPU in one thread; the weights are a function of (defense, rounds, images, seed, recipe) alone and the global
    random state is left alone.

    Metrics, all on held-out images, mean absolute differences in 1/255: ``error_255`` of the surrogate and
    ``identity_error_255``, ``blur_error_255`` of the two rules that know nothing; the same with the prefix
    ``perturbed_`` on perturbed held-out images; ``n`` and ``n_train`` images, ``weights`` the number of weights.

    A random defense is refused: its surrogate would imitate the mean over its dice, a picture that no model is ever
    shown; it is attacked through its own drawn rules and an expectation over them.
    """
    recipe = recipe or Recipe()
    if isinstance(defense, RandomDefense) or defense.is_random:
        raise NoSurrogate(
            f"{type(defense).__name__} is random: a surrogate would imitate the mean over its dice, which no model "
            f"ever sees; attack it through its own rules with an expectation over draws"
        )
    if images.ndim != 4 or images.dtype != np.float32 or len(images) < 2 * HELD_OUT:
        raise ValueError(f"at least {2 * HELD_OUT} float32 images [N, 3, H, W] wanted, not {images.shape}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    draws = np.random.default_rng([seed, 1])
    kept = len(images) - len(images) // HELD_OUT
    clean, others = images[:kept], [perturbed(images[:kept], recipe.largest_eps, draws) for _ in range(recipe.versions)]
    unseen = [images[kept:], perturbed(images[kept:], recipe.largest_eps, draws)]
    pairs = [(_tensor(x), _tensor(repeat(defense, x, rounds).images)) for x in (clean, *others)]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = UNet(Shape(width=recipe.width, deep=recipe.deep))
        _fit(network, pairs, recipe, draws)
    network.eval().requires_grad_(False)
    metrics: dict[str, Any] = {"n": len(unseen[0]), "n_train": kept, "weights": _size(network)}
    for prefix, x in zip(("", "perturbed_"), unseen, strict=True):
        metrics |= {prefix + name: value for name, value in fidelity(network, defense, rounds, x).items()}
    return {name: value.detach().clone() for name, value in network.state_dict().items()}, metrics


def perturbed(images: Images, largest_eps: float, draws: np.random.Generator) -> Images:
    """Each image moved by its own share of ``largest_eps``: by random signs, by signs constant on 2x2 or 4x4 tiles
    (attacks on small networks are smoother than white noise), or by uniform noise; clipped to [0, 1]."""
    n, channels, height, width = images.shape
    eps = draws.uniform(0, largest_eps, n)
    kinds = draws.integers(0, 4, n)
    result = np.empty_like(images)
    for row, kind in enumerate(kinds):
        if kind == 3:
            noise = draws.uniform(-1, 1, (channels, height, width))
        else:
            tile = 2**kind
            signs = draws.integers(0, 2, (channels, -(-height // tile), -(-width // tile))) * 2 - 1
            noise = signs.repeat(tile, axis=1).repeat(tile, axis=2)[:, :height, :width]
        result[row] = images[row] + eps[row] * noise
    return np.clip(result, 0, 1, out=result)


def fidelity(rule: Any, defense: Defense, rounds: int, images: Images) -> dict[str, float]:
    """Mean absolute difference to the real defense, in 1/255, of a rule, of the identity and of the blur."""
    real, x = repeat(defense, images, rounds).images.astype(np.float64), _tensor(images)
    with torch.no_grad():
        stand_ins = {"": torch.cat([rule(part) for part in x.split(256)]), "identity_": x, "blur_": blur(x)}
    return {f"{k}error_255": float(255 * np.abs(v.numpy() - real).mean()) for k, v in stand_ins.items()}


def settings(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it is written on a card."""
    return asdict(recipe)


def _fit(
    network: UNet, pairs: list[tuple[torch.Tensor, torch.Tensor]], recipe: Recipe, draws: np.random.Generator
) -> None:
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
    (x, real), versions = pairs[0], pairs[1:]
    half = max(recipe.batch // 2, 1)
    first = pairs[1][0][:FILTERED], pairs[1][1][:FILTERED]
    network.solve_filter(torch.cat([x[:FILTERED], first[0]]), torch.cat([real[:FILTERED], first[1]]))
    order = torch.zeros(0, dtype=torch.int64)
    epoch = 0
    for step in range(recipe.steps):
        if len(order) < half:
            order, epoch = torch.cat([order, torch.from_numpy(draws.permutation(len(x)))]), epoch + 1
        rows, order = order[:half], order[half:]
        moved, moved_real = versions[epoch % len(versions)]
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        error = network(torch.cat([x[rows], moved[rows]])) - torch.cat([real[rows], moved_real[rows]])
        here, there = error.chunk(2)
        loss = here.square().mean() + there.square().mean() + recipe.difference * (there - here).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
    if not math.isfinite(float(loss.detach())):
        raise FloatingPointError("the surrogate's loss is not finite; lower the learning rate")


def _tensor(images: Images) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))


def _size(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
