"""The draws of randomised smoothing: how a pipeline votes on noisy copies of one image.

The noise of a sample is a Philox stream keyed by (seed, sample id, purpose), read in order. So a result depends neither
on the shard nor on the batch, the order or the other samples (a batch holds copies of one image only); the draws that
choose a class, those that certify it and those that judge an attack are different streams and never share a number;
and looking after 100, 300 and 1,000 draws reads one stream further, whose first 1,000 draws are those of the fixed
procedure. The streams name neither model nor sigma: two models, denoisers or sigmas see the same directions, scaled, so
that their difference is not blurred by other dice.

The noise is **not clipped**, as in the paper (Cohen et al., https://arxiv.org/abs/1902.02918): the model sees x + e as
it is, outside [0, 1] too. A purifier is defined on [0, 1], so with one the base classifier is
``x -> model(purify(clip(x + e)))`` (denoised smoothing: Salman et al., https://arxiv.org/abs/2003.01908, who do not
clip). The certificate speaks of x and of e before that: whatever stands behind the noise, clipping included, belongs to
the base classifier, which may be any function, so the radius holds either way; a purifier with dice of its own would
be one more average and is refused by the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from windtunnel.backend import torch
from windtunnel.certify.smoothing import Certificate, certify, choose, predict
from windtunnel.engine import Pipeline, RowRandom, check_guarded, device_of

Tensor = torch.Tensor
CHOOSE, CERTIFY, PREDICT = "choose", "certify", "predict"


@dataclass
class Votes:
    """The running vote on one sample for one purpose; ``more`` reads its stream further."""

    smoothed: Smoothed
    image: np.ndarray
    noise: RowRandom
    counts: np.ndarray | None = field(default=None)

    def more(self, draws: int) -> np.ndarray:
        """[K] votes of ``draws`` further draws."""
        found = self.smoothed.ask(self.image, self.noise, draws)
        self.counts = found if self.counts is None else self.counts + found
        return found


class Smoothed:
    """A pipeline under Gaussian noise of deviation ``sigma`` (images in [0, 1]).

    ``pipeline`` may carry a defense (rounds included) without dice. ``batch_size`` changes float rounding only.
    """

    def __init__(self, pipeline: Pipeline, *, sigma: float, seed: int = 0, batch_size: int = 250) -> None:
        if pipeline.is_random:
            raise ValueError("the defense throws its own dice: a certificate has its noise, put a fixed one behind it")
        if not sigma > 0 or batch_size < 1:
            raise ValueError(f"sigma must be above 0 and batch_size at least 1, not {sigma} and {batch_size}")
        check_guarded(pipeline.model)
        self.pipeline = pipeline
        self.sigma = float(sigma)
        self.seed = seed
        self.batch_size = batch_size
        self.device = device_of(pipeline.model)

    def stream(self, sample_id: Any, purpose: str) -> RowRandom:
        """The noise of one sample for one purpose, at its beginning."""
        return RowRandom.keyed(self.seed, [f"{sample_id}\0smoothing\0{purpose}"], self.device)

    def votes(self, image: np.ndarray, sample_id: Any, purpose: str) -> Votes:
        """The vote on one image [C, H, W] float32, before its first draw."""
        return Votes(self, image, self.stream(sample_id, purpose))

    def noisy(self, x: Tensor, noise: Tensor) -> Tensor:
        """What the base classifier is given of x + sigma * noise: clipped only before a defense."""
        moved = x + self.sigma * noise
        return moved if self.pipeline.defense is None else moved.clamp(0.0, 1.0)

    def ask(self, image: np.ndarray, noise: RowRandom, draws: int) -> np.ndarray:
        """[K] int64 votes of the next ``draws`` of a stream. An answer that is not finite is no vote."""
        x = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)).to(self.device)
        counts: Tensor | None = None
        with torch.inference_mode():
            for start in range(0, draws, self.batch_size):
                size = min(self.batch_size, draws - start)
                logits = self.pipeline.logits(self.noisy(x[None], noise.normal(size, *x.shape)[0]))
                finite = torch.isfinite(logits).all(1)
                found = torch.bincount(logits.argmax(1)[finite], minlength=logits.shape[1])
                counts = found if counts is None else counts + found
        if counts is None:
            raise ValueError(f"at least one draw is needed, not {draws}")
        return counts.cpu().numpy()

    def certify(
        self,
        image: np.ndarray,
        sample_id: Any,
        *,
        choose_draws: int,
        draws: int,
        alpha: float,
        looks: Sequence[int] = (),
    ) -> Certificate:
        """CERTIFY of one image: ``choose_draws`` (n0) choose the class, up to ``draws`` (n) fresh ones certify it."""
        chosen = choose(self.votes(image, sample_id, CHOOSE).more(choose_draws))
        vote = self.votes(image, sample_id, CERTIFY)
        return certify(
            chosen, lambda m: int(vote.more(m)[chosen]), draws=draws, alpha=alpha, sigma=self.sigma, looks=looks
        )

    def predict(self, image: np.ndarray, sample_id: Any, *, draws: int, alpha: float) -> int | None:
        """PREDICT of one image on draws of its own: the smoothed classifier's class, None where it abstains."""
        return predict(self.votes(image, sample_id, PREDICT).more(draws), alpha)
