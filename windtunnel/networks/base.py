"""What a network is: the trained part of a defense. One recipe, one seed, one file of weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    import torch

State = dict[str, "torch.Tensor"]


class NoTraining(TypeError):
    """A network that cannot be trained here and needs a file of weights."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a network may learn from; never a test split.

    ``epoch(e)`` gives uint8 images [N, H, W, 3] and int64 labels [N] of epoch e, fresh composites where the data set
    has them; ``held_out`` [M, 3, H, W] float32 in [0, 1] and ``labels`` [M] are the split on which scores are fitted:
    metrics of the card come from there. ``teachers`` are frozen classifiers, in the order in which the entry names
    them.
    """

    epoch: Callable[[int], tuple[np.ndarray, np.ndarray]]
    held_out: np.ndarray
    labels: np.ndarray
    teachers: tuple[torch.nn.Module, ...] = ()


class Network(ABC):
    """A recipe. Subclasses are frozen keyword-only dataclasses: fields are the catalogue's settings.

    Class constants (literals, read by the plan without importing torch): ``algorithm_version``, raised whenever the
    same recipe would give other weights; ``libraries`` the packages it needs beside torch; ``teachers`` how many
    teachers it needs at least; ``last_teacher_measures`` whether the last of them has no part in training and only
    measures on the card (it may then measure in a run, too; those that teach may not judge).
    """

    algorithm_version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()
    teachers: ClassVar[int] = 0
    last_teacher_measures: ClassVar[bool] = False

    @abstractmethod
    def build(self) -> torch.nn.Module:
        """The module with fresh weights, drawn from torch's random state (which the caller has seeded and restores)."""

    def train(self, module: torch.nn.Module, data: TrainingData, *, seed: int) -> None:
        """Move the weights of a freshly built module, in place: a function of (recipe, data, seed) alone.

        torch's random state is seeded by ``seed`` and restored by the caller; numpy draws come from
        ``np.random.default_rng([seed, ...])``.
        """
        raise NoTraining(
            f"{type(self).__name__} is not trained here: give its weights (weights and sha256 in the catalogue entry)"
        )

    def measure(self, module: torch.nn.Module, data: TrainingData) -> dict[str, Any]:
        """Metrics of the module as it is stored, on held-out images; they go on the card. JSON values."""
        return {}

    def adopt(self, state: State) -> State:
        """A foreign state dict in the names and shapes of ``build()``: for weights given as a file."""
        return state
