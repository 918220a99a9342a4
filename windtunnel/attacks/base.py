"""What an attack is: a stepper on rows that do not know of each other.

The engine (``windtunnel.engine``) owns the loop. It asks ``init`` for the rows of some samples, calls ``step`` until
every row has taken ``max_steps``, lets fooled rows leave (mode ``search``) and refills the batch with waiting
samples. An attack therefore keeps *all* its memory in per-row tensors, uses each row's own age ``rows["t"]`` in
schedules, draws only from each row's own generator (``generators.select`` when only some rows draw) and never sums or
normalises over the batch.

The engine judges every image that is asked about, the clean image before the first step and ``rows["x"]`` after the
last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Protocol

from windtunnel.backend import torch

Tensor = torch.Tensor
Rows = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


class RowGenerators(Protocol):
    """Random numbers per row: row i's stream depends on (attack seed, sample id of row i) alone."""

    def uniform(self, *shape: int) -> Tensor:
        """[B, *shape] float32 in [0, 1)."""

    def normal(self, *shape: int) -> Tensor:
        """[B, *shape] float32, standard normal."""

    def integers(self, high: Tensor | int, *shape: int) -> Tensor:
        """[B, *shape] int64 in [0, high); ``high`` may be a [B] tensor."""

    def select(self, rows: Tensor) -> RowGenerators:
        """The same streams (not copies) of some rows, by boolean mask [B] or by index: only these rows then draw."""


class Query(Protocol):
    """The attacked pipeline (defense, then model), counted per row. Everything asked here is a candidate that is
    judged.

    ``x`` is [B, C, H, W] in the box [0, 1]. The forward value is always that of the *real* defense; the gradient goes
    through the backward rule that the cell names.
    """

    n_classes: int
    n_members: int
    """Models of the attacked ensemble; 1 for a single model. The pipeline's own answer is the mean of their logits."""

    def logits(self, x: Tensor, *, member: int | None = None) -> Tensor:
        """[B, K] without a gradient; one forward per row. One ``member`` alone answers without being judged."""

    def gradient(self, x: Tensor, loss: Loss, *, member: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(logits [B, K], loss [B], gradient of each row's own loss [B, C, H, W]); one forward and one backward per
        row.

        The labels are the query's own. ``loss(logits, y)`` is to be *increased* by the attack. The gradient is the
        caller's to overwrite; non-finite entries come back as 0 and the row is recorded as having had them. With
        ``member`` only that model of an ensemble is asked, which judges nothing: ask the whole pipeline for that.
        """

    def defense_error(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mean squared difference between the real defense's answer to x and x itself [B], its gradient [B, C, H, W]
        through the backward rule); for attacks on a codec. One forward and one backward per row, without the model."""

    def module(self) -> torch.nn.Module:
        """The pipeline as a differentiable module, for foreign code. Its calls are counted but not judged, because
        foreign code also asks about points outside the ball. Its training flag is its own: it reaches no model."""


class Attack(ABC):
    """One attack at one budget. Subclasses are frozen keyword-only dataclasses: fields are the catalogue's settings.

    Class constants (literals, read by the plan without importing torch): ``algorithm_version`` raised whenever results
    change; ``norms`` the norms it can be run under; ``uses_gradient`` False for black-box attacks and baselines;
    ``bill`` the settings whose product is the number of queries per sample (each a forward, and a backward where
    ``uses_gradient``), for the estimate of a run's cost; ``minimal_norm`` True for attacks that look for the
    *nearest* adversarial image: they may ask about images outside the ball (these count for nothing), and among
    fooling ones the nearest is kept instead of the one with the largest margin. Their ``rows["x"]`` stays inside.
    """

    algorithm_version: ClassVar[int] = 1
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    uses_gradient: ClassVar[bool] = True
    bill: ClassVar[tuple[str, ...]] = ()
    minimal_norm: ClassVar[bool] = False

    @property
    @abstractmethod
    def max_steps(self) -> int:
        """Calls of ``step`` per row, one query each; 0 for foreign code that does everything in ``init``."""

    @abstractmethod
    def init(self, x0: Tensor, y: Tensor, eps: Tensor, norm: str, generators: RowGenerators, query: Query) -> Rows:
        """The first rows: a dict of tensors with leading dimension B, at least ``x`` (the current iterate).

        The engine adds ``x0, y, eps, t`` itself. ``eps`` is [B] float64; ``x`` must lie in the ball and the box.
        """

    @abstractmethod
    def step(self, rows: Rows, norm: str, generators: RowGenerators, query: Query) -> Rows:
        """One step for every row: new values of ``x`` and of the attack's own tensors. Inputs are not modified."""
