"""CAM drift: does the model still look at the same places after an attack, and after the defense?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.diagnostics._probe import batches, columns
from windtunnel.diagnostics._unaware import maps_of, rows_of, unaware, write_array
from windtunnel.diagnostics.base import Diagnostic, Inputs
from windtunnel.engine import Pipeline
from windtunnel.explain.agreement import overlap, rank_correlation
from windtunnel.explain.base import explainer_named


@dataclass(frozen=True, kw_only=True)
class CamDrift(Diagnostic):
    """Class activation maps of a clean image x beside those of the attacked x', the defended D(x') and D(x).

    x' comes from PGD (``steps`` steps of eps / 4, cross-entropy, mode full) on the *bare* model: the defense is not
    attacked. All maps are the bare model's, by ``explainer`` (grad_cam, eigen_cam or smooth_grad_cam_pp with their
    defaults), and for *one class in all versions*: the one that the model predicts for x, which here is the label, as
    samples that the bare model gets wrong on x are left out. So the question is where the evidence for the first
    answer has gone, not where a new answer finds its own. Eigen-CAM knows no class.

    Quantities, each for ``attacked`` (x against x'), ``defended`` (x against D(x')) and ``defended_clean`` (x against
    D(x), what the defense alone does): ``iou_*`` in [0, 1], intersection over union of the strongest ``share`` of the
    places (round(share h w) of them, ties included, places without evidence never); ``rank_*`` in [-1, 1], Spearman's
    correlation over the places. 1 = nothing moved. ``fooled``: 1 where the bare model gets x' wrong. NaN: samples wrong
    on x; the defended ones without a defense; an IoU of two maps without evidence; a rank of a constant map.

    The maps are as small as the last feature maps (4x4 for a 32-pixel image here: three places are the strongest fifth,
    an IoU is 0, 1/5, 1/2 or 1, ties apart, and that of two unrelated maps .12 on average); means over samples are what
    to look at. Where an attack takes all evidence for the first answer away, the IoU is 0 and the rank NaN, so the mean
    rank is over what is left: read its n. Shows where the model looks, not its robustness: a map may move while the
    answer stays. A model without feature maps is refused.

    Papers: ``windtunnel.explain``. That attacks move the maps is an old observation; overlap of the top fifth and rank
    correlation as its scalar, 20 steps and the share are this library's choice.
    """

    algorithm_version: ClassVar[int] = 1
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    quantities: ClassVar[tuple[str, ...]] = (
        "iou_attacked",
        "iou_defended",
        "iou_defended_clean",
        "rank_attacked",
        "rank_defended",
        "rank_defended_clean",
        "fooled",
    )
    bill: ClassVar[tuple[str, ...]] = ("steps",)

    explainer: str = "grad_cam"
    steps: int = 20
    share: float = 0.2

    def __post_init__(self) -> None:
        explainer_named(self.explainer)
        if self.steps < 1 or not 0 < self.share < 1:
            raise ValueError(f"steps must be at least 1, share between 0 and 1: {self}")

    def measure(self, pipeline: Pipeline, inputs: Inputs) -> Mapping[str, np.ndarray]:
        out = columns(self.quantities, inputs)
        attacked = unaware(pipeline, inputs, self.steps)
        explainer = explainer_named(self.explainer)
        for batch in batches(pipeline, inputs, self.norms):
            rows = batch.rows[rows_of(batch, attacked.clean_correct, batch.rows)]
            if not len(rows):
                continue
            x, adversarial = batch.x[rows], rows_of(batch, attacked.best, rows)
            versions = {"attacked": adversarial}
            if pipeline.defense is not None:
                draws = batch.draws_of(rows)
                versions["defended"] = pipeline.purified(adversarial, draws)
                versions["defended_clean"] = pipeline.purified(x, draws)
            asked = [(images, batch.y[rows]) for images in (x, *versions.values())]
            clean, *others = maps_of(batch, rows, explainer, asked, inputs)
            for name, maps in zip(versions, others, strict=True):
                write_array(batch, out, f"iou_{name}", overlap(clean, maps, self.share), rows)
                write_array(batch, out, f"rank_{name}", rank_correlation(clean, maps), rows)
            batch.write(out, "fooled", rows_of(batch, attacked.success, rows), rows)
        return out
