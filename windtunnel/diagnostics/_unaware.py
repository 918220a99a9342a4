"""What two diagnostics share: images made in full against the bare model, and maps of several versions of a sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from windtunnel.attacks.base import Tensor
from windtunnel.attacks.pgd import PGD
from windtunnel.backend import torch
from windtunnel.diagnostics._probe import Batch
from windtunnel.diagnostics.base import Inputs
from windtunnel.engine import AttackResult, Pipeline, RowRandom, run_attack
from windtunnel.explain.base import Explainer


def unaware(pipeline: Pipeline, inputs: Inputs, steps: int) -> AttackResult:
    """PGD with the catalogue's step size on the *bare* model, mode full: ``best`` is the image with the largest margin
    (in float32, not rounded to 8 bits), what any defense may be shown."""
    return run_attack(
        pipeline.model,
        PGD(steps=steps),
        inputs.images,
        np.asarray(inputs.labels),
        inputs.sample_ids,
        eps=inputs.eps,
        norm=inputs.norm,
        seed=inputs.seed,
        mode="full",
        batch_size=inputs.batch_size,
    )


def rows_of(batch: Batch, values: np.ndarray, rows: Tensor) -> Tensor:
    """The part of ``values`` [N, ...] that belongs to some rows of a batch, on its device."""
    part = np.ascontiguousarray(values[batch.place[rows.cpu().numpy()]])
    return torch.from_numpy(part).to(batch.x.device)


def maps_of(
    batch: Batch, rows: Tensor, explainer: Explainer, versions: Sequence[tuple[Tensor, Tensor]], inputs: Inputs
) -> list[np.ndarray]:
    """[R, h, w] maps per version (images [R, C, H, W], classes [R]); noise, if any, is that of the sample, the same in
    every version, so that maps differ by what the images differ by."""
    found = []
    for images, classes in versions:
        ids = [f"map of {inputs.sample_ids[i]}" for i in batch.place[rows.cpu().numpy()]]
        random = RowRandom.keyed(inputs.seed, ids, batch.x.device)
        found.append(explainer.explain(batch.pipeline.model, images, classes, random))
    return found


def write_array(batch: Batch, out: dict[str, np.ndarray], name: str, values: np.ndarray, rows: Tensor) -> None:
    """[R] numbers of some rows of a batch into the quantity's column."""
    out[name][batch.place[rows.cpu().numpy()]] = values
