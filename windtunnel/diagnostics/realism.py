"""Realism: how far the defended images are, as a set, from the clean ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.diagnostics._probe import batches, by_id, columns
from windtunnel.diagnostics.base import Diagnostic, Inputs
from windtunnel.engine import Pipeline, predict
from windtunnel.metrics.realism import frechet_rows, kid_rows


@dataclass(frozen=True, kw_only=True)
class Realism(Diagnostic):
    """KID and Frechet distance between the images x and what the defense makes of them, D(x), on the penultimate
    features of the cell's model. No attack: eps and norm mean nothing here. Lower = more realistic.

    A distance between sets has no value per sample; what is given per sample is a number whose *mean* over the samples
    is the distance and whose spread is its sampling error, so that means and bootstrap intervals over samples are right
    (``metrics.realism.kid_rows`` and ``frechet_rows``: jackknife pseudo-values, and influences). Single numbers mean
    nothing, and, unlike those of other diagnostics, depend on the other samples of the cell (not on order or batches).

    Quantities: ``kid``, unbiased with a cubic kernel (Binkowski et al., Demystifying MMD GANs, 2018,
    https://arxiv.org/abs/1801.01401): its interval excludes 0 where the defense changes the set; ``frechet`` (Heusel et
    al. 2017, https://arxiv.org/abs/1706.08500): biased at small n, so that only cells with the *same n and images* may
    be compared, and their bias is not in the interval. Both are exactly 0 where D changes nothing. KID is the headline.

    The feature network is the cell's model. A codec trained with a loss on a network's features must be judged on
    another's, so put a model into the cell that had no part in the codec's training; numbers of two models cannot be
    compared. The deviation from the papers is just that: they use Inception features.

    NaN: pipelines without a defense; samples whose features are not finite (left out); fewer than three samples.
    """

    algorithm_version: ClassVar[int] = 1
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    quantities: ClassVar[tuple[str, ...]] = ("kid", "frechet")
    bill: ClassVar[tuple[str, ...]] = ()

    degree: int = 3

    def __post_init__(self) -> None:
        if self.degree < 1:
            raise ValueError(f"degree must be at least 1, not {self.degree}")

    def measure(self, pipeline: Pipeline, inputs: Inputs) -> Mapping[str, np.ndarray]:
        out = columns(self.quantities, inputs)
        defended = np.empty_like(inputs.images)
        for batch in batches(pipeline, inputs, self.norms):
            defended[batch.place] = pipeline.purified(batch.x, batch.draws).cpu().numpy()
        if pipeline.defense is None or not len(defended):
            return out
        before, after = (self._features(pipeline, images, inputs.batch_size) for images in (inputs.images, defended))
        order = by_id(inputs)  # sums of floats depend on the order: it is that of the ids
        known = order[(np.isfinite(before) & np.isfinite(after)).all(axis=1)[order]]
        out["kid"][known] = kid_rows(before[known], after[known], degree=self.degree)
        out["frechet"][known] = frechet_rows(before[known], after[known])
        return out

    @staticmethod
    def _features(pipeline: Pipeline, images: np.ndarray, batch_size: int) -> np.ndarray:
        if not hasattr(pipeline.model, "features"):
            raise ValueError(f"{type(pipeline.model).__name__} offers no features(x): realism needs a feature network")
        _, features = predict(pipeline.model, images, batch_size=batch_size, with_features=True)
        assert features is not None
        return features
