"""What a defense is: images in, images out, the real thing; plus backward rules by which attacks differentiate it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

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
    ``libraries`` the packages whose version moves the numbers (recorded in the identity of a cell).
    """

    algorithm_version: ClassVar[int] = 1
    is_random: ClassVar[bool] = False
    rules: ClassVar[tuple[str, ...]] = ("identity", "blur")
    generic_rules: ClassVar[tuple[str, ...]] = ("identity", "blur", "jpeg")
    libraries: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def purify(self, images: Images) -> Purified:
        """The real defense on [N, 3, H, W] float32 images in [0, 1]; the result has the same shape, type and range."""

    def backward_rules(self, rounds: int = 1) -> dict[str, BackwardRule]:
        """Differentiable stand-ins ``x -> x`` ([N, 3, H, W] in and out), one per name in ``rules``.

        Only their *gradient* is used: the forward value in an attack is always that of ``purify``. ``rounds`` is how
        often the cell applies the defense; a rule decides how many of them it goes through.
        """
        from windtunnel.defenses.rules import generic_rules

        known = generic_rules()
        return {name: known[name] for name in self.rules}


def repeat(defense: Defense, images: Images, rounds: int) -> Purified:
    """The defense applied ``rounds`` times; bits are those of the last round (what would be stored)."""
    result = Purified(images)
    for _ in range(rounds):
        result = defense.purify(result.images)
    return result
