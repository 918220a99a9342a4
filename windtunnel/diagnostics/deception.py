"""Reverse engineering of deception: how much of the clean image and of the attack's perturbation a defense recovers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.attacks.base import Tensor
from windtunnel.backend import torch
from windtunnel.diagnostics._probe import Batch, batches, columns
from windtunnel.diagnostics._unaware import maps_of, rows_of, unaware, write_array
from windtunnel.diagnostics.base import Diagnostic, Inputs
from windtunnel.engine import Pipeline, distances
from windtunnel.explain.agreement import overlap
from windtunnel.explain.base import NotExplainable, explainer_named, feature_maps


@dataclass(frozen=True, kw_only=True)
class Deception(Diagnostic):
    """Pixel, prediction and attribution alignment of a defense D with what an attack did (Gong et al., Reverse
    Engineering of Imperceptible Adversarial Image Perturbations, 2022, https://arxiv.org/abs/2203.14145).

    x' comes from PGD (``steps`` steps of eps / 4, cross-entropy, mode full) on the bare model F, so D is not attacked;
    D is the pipeline's defense with its rounds. ``x' - D(x')`` is the perturbation that D claims to have found;
    ``r = x' - D(x') + x`` puts it on the clean image. Quantities per sample:

    - pixels: ``l2`` = |x - D(x')|_2, which is also the error of the recovered perturbation, and the same difference as
      ``mse`` and ``mae`` (means over values); ``l2_recovered`` = |x' - D(x')|_2, to be compared with
      ``l2_perturbation`` = |x' - x|_2. Units of the pixel range; ``l2`` below ``l2_perturbation`` = D comes nearer to
      x than doing nothing;
    - prediction: ``pa_benign`` 1 where F(D(x')) = F(x); ``pa_adversarial`` 1 where F(r) = F(x'), i.e. where what was
      taken out of x' is what fooled F; ``logits_benign`` = |z(D(x')) - z(x)|_2, ``logits_adversarial`` =
      |z(r) - z(x')|_2;
    - attribution: ``cam_benign`` and ``cam_adversarial``, intersection over union of the strongest ``share`` of the
      places in the ``explainer``'s maps of x and D(x') for the class F(x), and of x' and r for F(x');
    - ``fooled`` 1 where F(x') is wrong: where it is not, ``pa_adversarial`` says little.

    Without a defense D is the identity: r = x, so ``pa_adversarial`` is 1 - ``fooled`` and ``pa_benign`` the same.
    r is not clipped to [0, 1]. NaN: samples that F gets wrong on x; the attribution part for a model without feature
    maps or where neither map has any evidence.

    Pixel, prediction and logit measures are those of the released code (``test_denoiser_shift.py``). Deviations: that
    code's attribution measure is not at hand, so overlap of Grad-CAM's strongest places stands for it; its attacks are
    stored images of several kinds, here one PGD per cell, whose 20 steps and ``share`` are this library's choice; wrong
    samples are left out.
    """

    algorithm_version: ClassVar[int] = 1
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    quantities: ClassVar[tuple[str, ...]] = (
        "l2",
        "mse",
        "mae",
        "l2_recovered",
        "l2_perturbation",
        "pa_benign",
        "pa_adversarial",
        "logits_benign",
        "logits_adversarial",
        "cam_benign",
        "cam_adversarial",
        "fooled",
    )
    bill: ClassVar[tuple[str, ...]] = ("steps",)

    steps: int = 20
    explainer: str = "grad_cam"
    share: float = 0.2

    def __post_init__(self) -> None:
        explainer_named(self.explainer)
        if self.steps < 1 or not 0 < self.share < 1:
            raise ValueError(f"steps must be at least 1, share between 0 and 1: {self}")

    def measure(self, pipeline: Pipeline, inputs: Inputs) -> Mapping[str, np.ndarray]:
        out = columns(self.quantities, inputs)
        attacked = unaware(pipeline, inputs, self.steps)
        for batch in batches(pipeline, inputs, self.norms):
            rows = batch.rows[rows_of(batch, attacked.clean_correct, batch.rows)]
            if not len(rows):
                continue
            x, adversarial = batch.x[rows], rows_of(batch, attacked.best, rows)
            cleaned = pipeline.purified(adversarial, batch.draws_of(rows))
            recovered = adversarial - cleaned + x
            with torch.no_grad():
                z = [pipeline.model(images) for images in (x, adversarial, cleaned, recovered)]
            found = _pixels(x, adversarial, cleaned) | _answers(*z)
            found["fooled"] = rows_of(batch, attacked.success, rows)
            for name, values in found.items():
                batch.write(out, name, values, rows)
            if _has_maps(pipeline.model, x[:1]):
                was, became = z[0].argmax(1), z[1].argmax(1)
                asked = [(x, was), (cleaned, was), (adversarial, became), (recovered, became)]
                self._attributions(out, batch, rows, asked, inputs)
        return out

    def _attributions(
        self,
        out: dict[str, np.ndarray],
        batch: Batch,
        rows: Tensor,
        asked: list[tuple[Tensor, Tensor]],
        inputs: Inputs,
    ) -> None:
        maps = maps_of(batch, rows, explainer_named(self.explainer), asked, inputs)
        for name, one, two in (("cam_benign", *maps[:2]), ("cam_adversarial", *maps[2:])):
            write_array(batch, out, name, overlap(one, two, self.share), rows)


def _pixels(x: Tensor, adversarial: Tensor, cleaned: Tensor) -> dict[str, Tensor]:
    gap = (x.double() - cleaned.double()).flatten(1)
    return {
        "l2": gap.square().sum(1).sqrt(),
        "mse": gap.square().mean(1),
        "mae": gap.abs().mean(1),
        "l2_recovered": distances(adversarial, cleaned, "l2"),
        "l2_perturbation": distances(adversarial, x, "l2"),
    }


def _answers(clean: Tensor, adversarial: Tensor, cleaned: Tensor, recovered: Tensor) -> dict[str, Tensor]:
    def same(one: Tensor, two: Tensor) -> Tensor:
        known = ~(torch.isnan(one).any(1) | torch.isnan(two).any(1))  # an answer of NaN agrees with nothing
        return known & (one.argmax(1) == two.argmax(1))

    def apart(one: Tensor, two: Tensor) -> Tensor:
        return (one.double() - two.double()).square().sum(1).sqrt()

    return {
        "pa_benign": same(cleaned, clean),
        "pa_adversarial": same(recovered, adversarial),
        "logits_benign": apart(cleaned, clean),
        "logits_adversarial": apart(recovered, adversarial),
    }


def _has_maps(model: torch.nn.Module, image: Tensor) -> bool:
    try:
        feature_maps(model, image)
    except NotExplainable:
        return False
    return True
