"""What the diagnostics share: batches of samples that ask the pipeline about images, and one short ascent.

A batch asks the pipeline exactly as the engine does (real values, gradients through the backward rule) and refuses a
model that is not frozen. Behind a random defense every sample throws its dice once, keyed by (seed, sample id), and
keeps them through the whole measurement: what is measured is one fixed pipeline per sample, not the luck of a search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from windtunnel.attacks.base import Loss, Tensor
from windtunnel.attacks.geometry import linf_bounds, per_row, project_l2, unit
from windtunnel.attacks.losses import margin as margin_of
from windtunnel.backend import torch
from windtunnel.defenses.base import Draw
from windtunnel.diagnostics.base import Inputs
from windtunnel.engine import Pipeline, RowRandom, check_guarded, device_of, judged

Projection = Callable[[Tensor, Tensor], Tensor]


class Batch:
    """Some samples of a cell: ``place`` [B] their positions in the inputs, ``x`` [B, C, H, W], ``y`` [B], ``eps`` [B]
    float64, ``random`` their streams. ``rows`` [R] says to which of them each of R asked images belongs."""

    def __init__(self, pipeline: Pipeline, inputs: Inputs, place: np.ndarray) -> None:
        device = device_of(pipeline.model)
        ids = [inputs.sample_ids[i] for i in place]
        self.pipeline, self.place = pipeline, place
        self.x = torch.from_numpy(np.ascontiguousarray(inputs.images[place])).to(device)
        self.y = torch.from_numpy(np.asarray(inputs.labels)[place].astype(np.int64)).to(device)
        self.eps = torch.full((len(place),), float(inputs.eps), dtype=torch.float64, device=device)
        self.random = RowRandom.keyed(inputs.seed, ids, device)
        dice = RowRandom.keyed(inputs.seed, [f"dice of {i}" for i in ids])
        self.draws = pipeline.draw(dice.streams, inputs.images.shape[1:])

    @property
    def rows(self) -> Tensor:
        """[B]: every sample once."""
        return torch.arange(len(self.x), device=self.x.device)

    def draws_of(self, rows: Tensor) -> list[Draw] | None:
        """The dice of the samples that ``rows`` names; None for a defense without dice."""
        if self.draws is None:
            return None
        index = rows.cpu().numpy()
        return [{name: values[index] for name, values in draw.items()} for draw in self.draws]

    def answer(self, x: Tensor, rows: Tensor) -> Tensor:
        """[R, K] logits with the graph back to ``x``."""
        return self.pipeline.differentiable(x, draws=self.draws_of(rows))

    def logits(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """[R, K] logits without a graph."""
        with torch.no_grad():
            return self.answer(x, self.rows if rows is None else rows)

    def gradient(self, x: Tensor, loss: Loss, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(logits [R, K], loss [R], gradient of each row's own loss [R, C, H, W], non-finite entries 0)."""
        rows = self.rows if rows is None else rows
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.answer(leaf, rows)
            values = loss(logits, self.y[rows])
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return logits.detach(), values.detach(), torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)

    def correct(self) -> Tensor:
        """[B] bool: the clean image is classified as labelled."""
        return ~judged(self.logits(self.x), self.y)[1]

    def write(self, out: dict[str, np.ndarray], name: str, values: Tensor, rows: Tensor | None = None) -> None:
        """Numbers of these samples (or of some ``rows`` of them) into the quantity's column."""
        place = self.place if rows is None else self.place[rows.cpu().numpy()]
        out[name][place] = values.detach().double().cpu().numpy()


def columns(names: tuple[str, ...], inputs: Inputs) -> dict[str, np.ndarray]:
    """[N] float64 of NaN per quantity."""
    return {name: np.full(len(inputs.images), np.nan) for name in names}


def by_id(inputs: Inputs) -> np.ndarray:
    """[N] positions of the inputs in the order of their sample ids: an order that no caller can change."""
    return np.array(sorted(range(len(inputs.images)), key=lambda i: str(inputs.sample_ids[i])), dtype=np.int64)


def batches(pipeline: Pipeline, inputs: Inputs, norms: tuple[str, ...], *, copies: int = 1) -> Iterator[Batch]:
    """The samples in batches of ``batch_size // copies``: each of them is asked about ``copies`` images at once."""
    if inputs.norm not in norms:
        raise ValueError(f"this diagnostic has the norms {', '.join(norms)}, not '{inputs.norm}'")
    check_guarded(pipeline.model)
    size = max(1, inputs.batch_size // copies)
    for start in range(0, len(inputs.images), size):
        yield Batch(pipeline, inputs, np.arange(start, min(start + size, len(inputs.images))))
    check_guarded(pipeline.model)


def ball(x0: Tensor, eps: Tensor, norm: str) -> Projection:
    """Projection of images onto the ball and the box; its second argument says which rows of ``x0`` they belong to."""
    if norm == "l2":
        return lambda x, rows: project_l2(x, x0[rows], eps[rows])
    low, high = linf_bounds(x0, eps)
    return lambda x, rows: torch.minimum(torch.maximum(x, low[rows]), high[rows])


def direction(gradient: Tensor, norm: str) -> Tensor:
    """The steepest direction of each row: signs (linf) or unit length (l2); zero for a zero gradient."""
    return gradient.sign() if norm == "linf" else unit(gradient)


def random_direction(random: RowRandom, shape: tuple[int, ...], norm: str) -> Tensor:
    """A random direction per row: signs (linf) or uniform on the unit sphere (l2)."""
    if norm == "linf":
        return 1.0 - 2.0 * random.integers(2, *shape).float()
    return unit(random.normal(*shape))


def ascend(
    batch: Batch,
    start: Tensor,
    rows: Tensor,
    project: Projection,
    *,
    length: Tensor,
    steps: int,
    norm: str,
    loss: Loss = margin_of,
    leave: bool = True,
) -> tuple[Tensor, Tensor]:
    """(best image per row [R, C, H, W], fooled [R]): ``x <- project(x + length direction(gradient))`` from ``start``.

    Every iterate is judged, the start and the last included; a wrong one beats a right one, then the larger margin.
    ``length`` is [R]. Rows leave at their first success, unless ``leave`` is False: then all steps are taken and the
    image with the largest margin is kept, which is what may be shown to another pipeline.
    """
    best, x = start.clone(), start
    fooled = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    best_margin = torch.full((len(rows),), -torch.inf, device=rows.device)
    active = torch.arange(len(rows), device=rows.device)
    for step in range(steps + 1):
        gradient = None
        if step == steps:
            logits = batch.logits(x, rows[active])
        else:
            logits, _, gradient = batch.gradient(x, loss, rows[active])
        margin, wrong, _ = judged(logits, batch.y[rows[active]])
        better = (wrong & ~fooled[active]) | ((wrong == fooled[active]) & (margin > best_margin[active]))
        chosen = active[better]
        best[chosen], best_margin[chosen] = x[better], margin[better]
        fooled[active] = fooled[active] | wrong
        if leave:
            stay = ~wrong
            active, x = active[stay], x[stay]
            gradient = gradient[stay] if gradient is not None else None
        if gradient is None or not len(active):
            break
        x = project(x + per_row(length[active], x) * direction(gradient, norm), active)
    return best, fooled
