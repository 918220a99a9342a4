"""What a diagnostic is: a measurement on one pipeline around single images, one number per sample and quantity.

An attack answers "is this sample fooled?"; a diagnostic measures what surrounds it (how far the boundary is, how
linear the loss, whether the gradient points anywhere). It sees the pipeline as an attack does: real forward values,
gradients through the backward rule that the cell names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from windtunnel.engine import Pipeline


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The samples of one cell: [N, 3, H, W] float32 in [0, 1], their labels [N] int64 and ids, and the budget.

    ``eps`` is a fraction of the pixel range; randomness is keyed by (``seed``, sample id) through
    ``engine.RowRandom.keyed``, so that a number depends neither on the batch nor on its neighbours.
    """

    images: np.ndarray
    labels: np.ndarray
    sample_ids: Sequence[Any]
    eps: float
    norm: str
    seed: int = 0
    batch_size: int = 128


class Diagnostic(ABC):
    """One measurement. Subclasses are frozen keyword-only dataclasses: fields are the catalogue's settings.

    Class constants (literals, read by the plan without importing torch): ``algorithm_version``; ``norms`` the norms it
    is defined for; ``quantities`` the names of the numbers it gives per sample (names that begin with ``slice_`` may
    come on top: pictures, of which no mean is taken); ``bill`` the settings whose product is
    the number of gradient evaluations per sample.
    """

    algorithm_version: ClassVar[int] = 1
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    quantities: ClassVar[tuple[str, ...]] = ()
    bill: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def measure(self, pipeline: Pipeline, inputs: Inputs) -> Mapping[str, np.ndarray]:
        """[N] float64 per quantity; NaN where it is not defined for a sample (a wrong one, one without boundary)."""
