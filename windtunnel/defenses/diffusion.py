"""Diffusion purification: drown the perturbation in noise, then let a diffusion model take the noise away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from windtunnel.defenses._arrays import require_images
from windtunnel.defenses.base import BackwardRule, Draw, Images, LearnedDefense, Purified, RandomDefense

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class DiffusionPurification(LearnedDefense, RandomDefense):
    """``x_t = sqrt(a_t) x + sqrt(1 - a_t) n`` up to the fraction ``t`` of the schedule, then denoised back to 0.

    Paper: Nie, Guo, Huang, Xiao, Vahdat, Anandkumar, Diffusion Models for Adversarial Purification (DiffPure), 2022,
    https://arxiv.org/abs/2205.07460: t* = .1 for CIFAR-10 at 8/255 is ``t`` = .1 here (``diffusion-10``). Images are
    taken to [-1, 1] and back, and clipped to [0, 1] at the end; float32, not rounded to 8 bits. No file, no bits.
    A setting that is silently wrong has fooled evaluations of this method before (t = 10 for 100 of 1,000 gives a
    defense of 0 %); ``t`` is therefore a fraction, and one that the model was not trained for is refused.

    Back: every ``stride``-th timestep, diffusers' ``DDIMScheduler.step`` with ``eta`` 1, which at stride 1 is the
    ancestral sampling of Ho et al. (https://arxiv.org/abs/2006.11239); ``eta`` 0 makes the way back deterministic
    (Song, Meng, Ermon, https://arxiv.org/abs/2010.02502) and leaves the forward noise as the only dice. The noise of
    all steps is drawn first, row by row.

    Deviations: few steps of a discrete chain, where the paper solves the reverse SDE in a hundred; a small model of
    the data set at hand instead of a public one.

    Rules: ``exact`` the same map with the same dice through all steps; ``fewer-steps`` the same forward noise and
    every ``attack_stride``-th timestep (Lee, Kim, Robust Evaluation of Diffusion-Based Adversarial Purification, 2023,
    https://arxiv.org/abs/2303.09051: direct gradients through fewer steps, with expectation over draws, beat the
    adjoint method; their attack too has its own steps), the noises between two of its timesteps added up;
    ``identity``; ``blur``. Activations are not kept but computed again in the backward pass, ``SIZE`` rows at a time,
    so that memory does not grow with the batch.
    """

    algorithm_version: ClassVar[int] = 1
    is_random: ClassVar[bool] = True
    is_learned: ClassVar[bool] = True
    rules: ClassVar[tuple[str, ...]] = ("exact", "fewer-steps", "identity", "blur")
    generic_rules: ClassVar[tuple[str, ...]] = ("identity", "blur")
    libraries: ClassVar[tuple[str, ...]] = ("diffusers", "torch")

    t: float
    stride: int = 25
    attack_stride: int = 50
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.t <= 1:
            raise ValueError(f"t is a fraction of the schedule, in (0, 1], not {self.t}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], not {self.eta}")
        if self.stride < 1 or self.attack_stride < self.stride or self.attack_stride % self.stride:
            raise ValueError(f"attack_stride ({self.attack_stride}) must be a multiple of stride ({self.stride} >= 1)")

    def carrying(self, module: torch.nn.Module) -> DiffusionPurification:
        """The same defense with this model; ValueError where schedule and strides do not fit together."""
        timesteps, known = module.scheduler.config.num_train_timesteps, module.trained_up_to
        start = round(self.t * timesteps)
        if start > known:
            raise ValueError(
                f"t = {self.t} is timestep {start}, but the model was trained up to {known} of {timesteps}"
            )
        for stride in (self.stride, self.attack_stride):
            if start % stride or timesteps % stride:
                raise ValueError(f"steps of {stride} do not divide timestep {start} (t = {self.t}) of {timesteps}")
        return super().carrying(module)

    def draw(self, generators: Sequence[np.random.Generator], shape: tuple[int, ...]) -> Draw:
        steps = round(self.t * self.module.scheduler.config.num_train_timesteps) // self.stride
        # the last step lands on the picture itself and adds nothing: one noise forwards, steps - 1 on the way back
        noise = np.empty((len(generators), steps, *shape), dtype=np.float32)
        for generator, row in zip(generators, noise, strict=True):
            generator.standard_normal(dtype=np.float32, out=row)
        return {"noise": noise}

    def purify_drawn(self, images: Images, draw: Draw) -> Purified:
        from windtunnel.networks.batches import in_fixed_batches

        images = require_images(images)
        noise = draw["noise"]
        together = np.concatenate([images, noise.reshape(len(images), 3 * noise.shape[1], *images.shape[2:])], axis=1)

        def run(rows: torch.Tensor) -> torch.Tensor:
            return self._through(rows[:, :3], rows[:, 3:].unflatten(1, noise.shape[1:3]), self.stride)

        return Purified(in_fixed_batches(run, together) if len(images) else images.copy())

    def backward_rules_drawn(self, draws: Sequence[Draw]) -> dict[str, BackwardRule]:
        from windtunnel.defenses.rules import with_generic

        def through_all(stride: int) -> BackwardRule:
            def rule(x: torch.Tensor) -> torch.Tensor:
                for draw in draws:
                    x = self._sparing(x, _coarser(draw["noise"], stride // self.stride), stride)
                return x

            return rule

        return with_generic(
            self.rules, **{"exact": through_all(self.stride), "fewer-steps": through_all(self.attack_stride)}
        )

    def _sparing(self, x: torch.Tensor, noise: np.ndarray, stride: int) -> torch.Tensor:
        """``_through``, with a graph that keeps the pictures only."""
        from windtunnel.backend import torch
        from windtunnel.networks.batches import SIZE

        dice = torch.from_numpy(noise).to(x)
        parts = [
            torch.utils.checkpoint.checkpoint(
                self._through, rows, part, stride, use_reentrant=False, preserve_rng_state=False
            )
            for rows, part in zip(x.split(SIZE), dice.split(SIZE), strict=True)
        ]
        return torch.cat(parts)

    def _through(self, x: torch.Tensor, noise: torch.Tensor, stride: int) -> torch.Tensor:
        """[N, 3, H, W] in [0, 1], there and back with the noises [N, steps, 3, H, W]."""
        from windtunnel.backend import torch

        scheduler = self.module.scheduler
        timesteps = scheduler.config.num_train_timesteps
        scheduler.set_timesteps(timesteps // stride)  # step() knows its stride from this number
        t = stride * noise.shape[1] - 1
        y = scheduler.add_noise(2 * x - 1, noise[:, 0], torch.full((len(x),), t))
        for step in range(noise.shape[1]):
            last = step == noise.shape[1] - 1
            fresh = torch.zeros_like(y) if last else noise[:, step + 1]
            y = scheduler.step(self.module(y, t), t, y, eta=self.eta, variance_noise=fresh, return_dict=False)[0]
            t -= stride
        return ((y + 1) / 2).clamp(0.0, 1.0)


def _coarser(noise: np.ndarray, span: int) -> np.ndarray:
    """The noises of a walk with steps ``span`` times as long: the first stays, of the others every ``span`` become one
    of the same law (their sum over sqrt(span))."""
    if span == 1:
        return noise
    steps = noise.shape[1] // span
    joined = [noise[:, 0]]
    for step in range(1, steps):
        joined.append(noise[:, span * (step - 1) + 1 : span * step + 1].sum(1) / np.float32(np.sqrt(span)))
    return np.stack(joined, axis=1)
