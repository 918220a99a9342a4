"""Level set traversal: how far from its image a confident prediction reaches (blind spots)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.attacks.base import Tensor
from windtunnel.attacks.geometry import per_row
from windtunnel.attacks.losses import ce
from windtunnel.backend import torch
from windtunnel.diagnostics._probe import Batch, batches, by_id, columns
from windtunnel.diagnostics.base import Diagnostic, Inputs
from windtunnel.engine import Pipeline

NOISE = 4 / 255
TINY = 1e-30


@dataclass(frozen=True, kw_only=True)
class LevelSet(Diagnostic):
    """Level Set Traversal (Balasubramanian et al., Exploring Geometry of Blind Spots in Vision Models,
    2023, https://arxiv.org/abs/2310.19889): walk towards an image of another class while staying in the level set of
    the source's class.

    From ``x = clip(x_s + (4/255)(U - 1/2))``, ``steps`` times: ``g = grad CE(f(x), c)``, ``v = x_t - x``,
    ``d <- clip(d + (a / 2) g, -a, a)``, ``x' = clip(x + eta (v - (v.g / |g|^2) g) - d, 0, 1)``; x' is taken where
    ``p_c(x_s) - p_c(x') < threshold``, else x stays. a = ``adversarial_step``. One forward and backward per step.

    Two targets per sample are drawn by the sample's own dice, without repetition, from the inputs with another label,
    in the order of their sample ids: they depend on the *set* of inputs (and their number), never on batches or order.

    Quantities; NaN for samples that are wrong on the clean image or have fewer than two possible targets:
    ``p_source`` p_c(x_s); ``rmse``, ``linf`` distance of the end to its target, mean of both walks (a blind spot: near
    0); ``rmse_start`` the same at the source, to read them by; ``path_confidence`` the smallest p_c at 11 points of the
    straight line from source to end, mean of both. Over the triangle source, end 1, end 2, on the 66 points of a
    barycentric grid of tenths: ``triangle_mean`` mean p_c; ``share_0`` .. ``share_3`` share of points with
    ``p_c > p_source - {0, .1, .2, .3}``; ``edge_mean`` mean p_c on the two edges at the source; ``edge_drop``
    p_source minus the smallest p_c on them.

    Defaults are those of the released code: eta .05, threshold .05, 100 steps, adversarial step .002 (its command for
    ImageNet: .01, .2, 400, .002, five targets). Deviations: the class is the label, as only correct samples count; SSIM
    and LPIPS distances are not computed; ``edge_drop`` is our reading of "edge drop". It does not use eps or the norm.
    """

    algorithm_version: ClassVar[int] = 1
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    quantities: ClassVar[tuple[str, ...]] = (
        "p_source", "rmse", "linf", "rmse_start", "path_confidence", "triangle_mean", "share_0", "share_1", "share_2",
        "share_3", "edge_mean", "edge_drop",
    )  # fmt: skip
    bill: ClassVar[tuple[str, ...]] = ("walks", "steps")

    walks: int = 2
    steps: int = 100
    eta: float = 0.05
    threshold: float = 0.05
    adversarial_step: float = 0.002

    def __post_init__(self) -> None:
        if self.walks != 2:
            raise ValueError(f"a triangle has two ends, so walks is 2, not {self.walks}")
        if self.steps < 1 or self.eta <= 0 or self.threshold <= 0 or self.adversarial_step < 0:
            raise ValueError(
                f"steps must be at least 1, eta and threshold above 0, adversarial_step at least 0: {self}"
            )

    def measure(self, pipeline: Pipeline, inputs: Inputs) -> Mapping[str, np.ndarray]:
        out = columns(self.quantities, inputs)
        order, labels = by_id(inputs), np.asarray(inputs.labels)
        for batch in batches(pipeline, inputs, self.norms, copies=self.walks):
            rivals = [order[labels[order] != labels[i]] for i in batch.place]
            enough = torch.tensor([len(of) >= 2 for of in rivals], device=batch.x.device)
            rows = batch.rows[batch.correct() & enough]
            if not len(rows):
                continue
            random = batch.random.select(rows)
            counts = torch.tensor([len(rivals[i]) for i in rows.tolist()])
            first = random.integers(counts).cpu()
            second = (first + 1 + random.integers(counts - 1).cpu()) % counts
            ends = []
            for drawn in (first, second):
                chosen = [rivals[i][k] for i, k in zip(rows.tolist(), drawn.tolist(), strict=True)]
                target = torch.from_numpy(np.ascontiguousarray(inputs.images[chosen])).to(batch.x.device)
                noise = NOISE * (random.uniform(*batch.x.shape[1:]) - 0.5)
                ends.append((target, noise))
            source = batch.x[rows]
            p_source = _confidence(batch, source, rows)
            targets = torch.cat([target for target, _ in ends])
            start = (source.repeat(2, 1, 1, 1) + torch.cat([noise for _, noise in ends])).clamp(0, 1)
            x = self._walk(batch, start, targets, rows.repeat(2), p_source.repeat(2))
            for name, values in _distances(x, targets, source, len(rows)).items():
                batch.write(out, name, values, rows)
            for name, values in _triangle(batch, source, x[: len(rows)], x[len(rows) :], rows, p_source).items():
                batch.write(out, name, values, rows)
        return out

    def _walk(self, batch: Batch, x: Tensor, targets: Tensor, rows: Tensor, p_source: Tensor) -> Tensor:
        step = self.adversarial_step
        push = torch.zeros_like(x)
        _, _, gradient = batch.gradient(x, ce, rows)
        for _ in range(self.steps):
            v = targets - x
            along = (v * gradient).flatten(1).sum(1) / gradient.square().flatten(1).sum(1).clamp_min(TINY)
            push = (push + step / 2 * gradient).clamp(-step, step)
            moved = (x + self.eta * (v - per_row(along, x) * gradient) - push).clamp(0, 1)
            _, loss, slope = batch.gradient(moved, ce, rows)
            taken = (p_source - torch.exp(-loss.double()) < self.threshold).view(-1, 1, 1, 1)
            x, gradient = torch.where(taken, moved, x), torch.where(taken, slope, gradient)
        return x


def _confidence(batch: Batch, x: Tensor, rows: Tensor) -> Tensor:
    """[R] float64 probability of the label."""
    return torch.exp(-ce(batch.logits(x, rows).double(), batch.y[rows]))


def _distances(x: Tensor, targets: Tensor, source: Tensor, n: int) -> dict[str, Tensor]:
    """Distances to the targets, mean over both walks (the first n rows are the first walk)."""
    gap = (x - targets).double().flatten(1)
    begin = (source.repeat(2, 1, 1, 1) - targets).double().flatten(1)
    found = {
        "rmse": gap.square().mean(1).sqrt(),
        "linf": gap.abs().amax(1),
        "rmse_start": begin.square().mean(1).sqrt(),
    }
    return {name: values.view(2, n).mean(0) for name, values in found.items()}


def _triangle(
    batch: Batch, source: Tensor, one: Tensor, two: Tensor, rows: Tensor, p_source: Tensor
) -> dict[str, Tensor]:
    grid = [(i, j) for i in range(11) for j in range(11 - i)]  # tenths of end 1 and of end 2; the rest is the source
    points = [_confidence(batch, source + i / 10 * (one - source) + j / 10 * (two - source), rows) for i, j in grid]
    p = torch.stack(points, dim=1)
    edges = [p[:, [place for place, of in enumerate(grid) if of[other] == 0]] for other in (1, 0)]
    both = torch.cat(edges, dim=1)
    found = {f"share_{k}": (p > (p_source - k / 10)[:, None]).double().mean(1) for k in range(4)}
    return found | {
        "p_source": p_source,
        "triangle_mean": p.mean(1),
        "path_confidence": torch.stack([edge.amin(1) for edge in edges]).mean(0),
        "edge_mean": both.mean(1),
        "edge_drop": p_source - both.amin(1),
    }
