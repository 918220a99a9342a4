"""What a defense is: images in, images out, the real thing; plus backward rules by which attacks differentiate it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

if TYPE_CHECKING:
    import torch

Images = np.ndarray
BackwardRule = Callable[["torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class Purified:
    """Cleaned images and, for a codec, what they cost. Absent is None, never 0."""

    images: Images
    file_bits: np.ndarray | None = None
    payload_bits: np.ndarray | None = None


class Defense(ABC):
    """A purifier at one strength. Subclasses are frozen keyword-only dataclasses: fields are the catalogue's
    settings.

    Class constants (literals, read by the plan without importing anything heavy): ``algorithm_version``;
    ``is_random``; ``rules`` the names of the backward rules, in the order of ``backward_rules``; ``generic_rules``
    those that know nothing of this defense (a number found with generic rules only carries the dagger "upper bound");
    ``libraries`` the packages whose version moves the numbers (recorded in the identity of a cell); ``is_learned``
    whether it carries a trained network.
    """

    algorithm_version: ClassVar[int] = 1
    is_random: ClassVar[bool] = False
    is_learned: ClassVar[bool] = False
    rules: ClassVar[tuple[str, ...]] = ("identity", "blur")
    generic_rules: ClassVar[tuple[str, ...]] = ("identity", "blur", "jpeg")
    libraries: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def purify(self, images: Images) -> Purified:
        """The real defense on [N, 3, H, W] float32 images in [0, 1]; the result has the same shape, type and range."""

    def cleaned(self, images: Images) -> Images:
        """The images of ``purify`` alone: what attacks ask for at every step. To be overridden where bits cost time."""
        return self.purify(images).images

    def backward_rules(self, rounds: int = 1) -> dict[str, BackwardRule]:
        """Differentiable stand-ins ``x -> x`` ([N, 3, H, W] in and out), one per name in ``rules``.

        Only their *gradient* is used: the forward value in an attack is always that of ``purify``. ``rounds`` is how
        often the cell applies the defense; a rule decides how many of them it goes through.
        """
        from windtunnel.defenses.rules import generic_rules

        known = generic_rules()
        return {name: known[name] for name in self.rules}


class UnboundDefense(RuntimeError):
    """A learned defense that was not given its trained network."""


class LearnedDefense(Defense):
    """A defense with trained weights. Which network it carries is a matter of its catalogue entry (``network: name``);
    the module is handed over once, by ``carrying``, before the first use.

    Subclasses state ``is_learned: ClassVar[bool] = True`` themselves (the plan reads their source). ``purify`` runs
    under ``torch.no_grad`` on batches of one fixed size (``networks.batches.in_fixed_batches``), so that an image's
    answer does not depend on its neighbours.
    """

    is_learned: ClassVar[bool] = True

    def carrying(self, module: torch.nn.Module) -> Self:
        """The same defense with this trained module, frozen and in eval mode."""
        bound = copy.copy(self)
        object.__setattr__(bound, "_module", module)
        return bound

    @property
    def module(self) -> torch.nn.Module:
        """The trained module."""
        found = getattr(self, "_module", None)
        if found is None:
            raise UnboundDefense(f"{type(self).__name__} has no trained network yet: use defense.carrying(module)")
        return found


Draw = Mapping[str, np.ndarray]


class RandomDefense(Defense):
    """A defense that throws dice. The dice are drawn first, per row, so that an attack can repeat or vary them.

    Subclasses state ``is_random: ClassVar[bool] = True`` themselves (the plan reads their source).
    """

    is_random: ClassVar[bool] = True

    @abstractmethod
    def draw(self, generators: Sequence[np.random.Generator], shape: tuple[int, ...]) -> Draw:
        """The dice of one round for N rows of [3, H, W] ``shape``: arrays with leading dimension N, row i from
        generator i alone."""

    @abstractmethod
    def purify_drawn(self, images: Images, draw: Draw) -> Purified:
        """The real defense with these dice."""

    def backward_rules_drawn(self, draws: Sequence[Draw]) -> dict[str, BackwardRule]:
        """Stand-ins for the rounds with these dice, one per name in ``rules``; generic ones where none is better."""
        return super().backward_rules(len(draws))

    def backward_rules(self, rounds: int = 1) -> dict[str, BackwardRule]:
        raise TypeError(f"{type(self).__name__} is random: draw its dice first, then backward_rules_drawn")

    def purify(self, images: Images) -> Purified:
        raise TypeError(f"{type(self).__name__} is random: draw its dice first, then purify_drawn")


def repeat(
    defense: Defense, images: Images, rounds: int, generators: Sequence[np.random.Generator] | None = None
) -> Purified:
    """The defense applied ``rounds`` times; bits are those of the last round (what would be stored).

    A random defense takes its dice from ``generators``, one per row.
    """
    if isinstance(defense, RandomDefense):
        if generators is None:
            raise TypeError(f"{type(defense).__name__} is random: it needs one generator per image")
        return apply_draws(defense, images, [defense.draw(generators, images.shape[1:]) for _ in range(rounds)])
    result = Purified(images)
    for _ in range(rounds):
        result = defense.purify(result.images)
    return result


def apply_draws(defense: RandomDefense, images: Images, draws: Sequence[Draw]) -> Purified:
    """A random defense with the dice of every round."""
    result = Purified(images)
    for draw in draws:
        result = defense.purify_drawn(result.images, draw)
    return result
