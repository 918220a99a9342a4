"""CDD-RED: a denoiser that restores the classes of the clean picture and of the perturbation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from windtunnel.backend import torch
from windtunnel.networks._dncnn import ResidualDenoiser
from windtunnel.networks._pairs import Pairs, attacked, attacked_batches, augmented, surviving
from windtunnel.networks._training import HELD_OUT, answers, descend, mean_psnr, require_positive
from windtunnel.networks.base import Network, TrainingData

Tensor = torch.Tensor
CARD_EPS_255, CARD_STEPS = 8, 20


@dataclass(frozen=True, kw_only=True)
class CddRed(Network):
    """Class-discriminative denoiser for reverse engineering of deceptions.

    Paper: Gong, Yao, Li, Zhang, Liu, Lin, Liu, Reverse Engineering of Imperceptible Adversarial Image Perturbations,
    2022, https://arxiv.org/abs/2203.14145. With pairs of a clean x and an attacked x', and a classifier f whose
    decision is F:

        mean |D(x') - x| + benign_weight CE(f(D(x')), F(x)) + adversarial_weight CE(f(x' - D(x') + x), F(x')),

    on every pair and on an augmented version of it (crop-and-pad or CutMix, the same window for both pictures) if
    F is unchanged by the augmentation on x *and* on x'. Weights .025 each, as in the authors' script. Both weights 0
    and ``augment`` false is the paper's baseline, denoising only (DO).

    Teachers: the last one is f, the others are the victims of PGD, FGSM and a margin (Carlini-Wagner) attack; f is
    robust in the authors' script (an adversarially trained ResNet-50). Name none that will be judged. The attacks aim
    at the victims' own answers, under linf, with a budget drawn from 1 to ``largest_eps_255`` for every forty
    pictures, and are made by this library.

    Deviations: the body is ``dncnn``'s small one; a CW-type attack is PGD on its margin loss under linf, not the l2
    attack; a pair has one augmented version, not two; pairs are made on the fly, never repeated; Adam with one half
    cosine from scratch, where the authors start from a trained denoiser. In the authors' released code the check of
    the augmented labels compares every prediction with itself, so that all augmented pairs count in the two
    prediction terms, and dropped ones would still count in the first; here a dropped pair counts nowhere, as the
    paper's text asks.
    """

    algorithm_version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()
    teachers: ClassVar[int] = 2

    depth: int = 7
    width: int = 48
    tile: int = 2
    benign_weight: float = 0.025
    adversarial_weight: float = 0.025
    augment: bool = True
    attacks: tuple[str, ...] = ("pgd", "fgsm", "cw")
    largest_eps_255: int = 12
    attack_steps: int = 10
    steps: int = 1600
    batch: int = 8
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        require_positive(
            largest_eps_255=self.largest_eps_255, attack_steps=self.attack_steps, steps=self.steps, batch=self.batch,
            learning_rate=self.learning_rate,
        )  # fmt: skip
        if min(self.benign_weight, self.adversarial_weight) < 0:
            raise ValueError("benign_weight and adversarial_weight must be at least 0")
        if not self.attacks or not set(self.attacks) <= {"pgd", "fgsm", "cw"}:
            raise ValueError(f"attacks must be some of pgd, fgsm and cw, not {self.attacks}")

    def build(self) -> torch.nn.Module:
        return ResidualDenoiser(self.depth, self.width, self.tile)

    def train(self, module: torch.nn.Module, data: TrainingData, *, seed: int) -> None:
        *victims, surrogate = data.teachers
        draws = np.random.default_rng([seed, 4])
        supply = attacked_batches(
            data, victims, size=self.batch, kinds=self.attacks, largest_eps_255=self.largest_eps_255,
            steps=self.attack_steps, seed=seed,
        )  # fmt: skip

        def loss_of(pairs: Pairs) -> Tensor:
            if self.augment:
                changed = augmented(pairs, draws)
                kept = surviving(surrogate, pairs, changed)
                pairs = Pairs(*(torch.cat([x, new[kept]]) for x, new in zip(pairs, changed, strict=True)))
            return self.loss(module(pairs.attacked), pairs, surrogate)

        descend(module, supply, loss_of, steps=self.steps, learning_rate=self.learning_rate)

    def loss(self, denoised: Tensor, pairs: Pairs, surrogate: torch.nn.Module) -> Tensor:
        """The formula above on N pairs and their denoised pictures."""
        total = (denoised - pairs.clean).abs().mean()
        cross_entropy = torch.nn.functional.cross_entropy
        if self.benign_weight > 0:
            total = total + self.benign_weight * cross_entropy(surrogate(denoised), _decision(surrogate, pairs.clean))
        if self.adversarial_weight > 0:
            recovered = pairs.attacked - denoised + pairs.clean
            wanted = _decision(surrogate, pairs.attacked)
            total = total + self.adversarial_weight * cross_entropy(surrogate(recovered), wanted)
        return total

    def measure(self, module: torch.nn.Module, data: TrainingData) -> dict[str, Any]:
        """On ``n`` held-out pictures, PGD-20 at 8/255 on the first victim F: mean PSNR in dB of clean pictures after
        denoising, of attacked ones before and after; ``fooled`` the share with F(x') other than F(x); ``pa_benign``
        that with F(D(x')) = F(x) and ``pa_adversarial`` that with F(x' - D(x') + x) = F(x'), as fractions."""
        victim, clean = data.teachers[0], data.held_out[:HELD_OUT]
        moved = attacked(
            victim, clean, kind="pgd", eps=CARD_EPS_255 / 255, steps=CARD_STEPS, seed=0, name="card"
        )  # fmt: skip
        denoised = answers(module, moved)
        decisions = {
            name: _decision(victim, torch.tensor(images)).numpy()
            for name, images in {
                "clean": clean, "moved": moved, "denoised": denoised, "recovered": moved - denoised + clean
            }.items()
        }  # fmt: skip
        return {
            "n": len(clean),
            "psnr_clean": mean_psnr(clean, answers(module, clean)),
            "psnr_attacked": mean_psnr(clean, moved),
            "psnr_denoised": mean_psnr(clean, denoised),
            "fooled": float((decisions["moved"] != decisions["clean"]).mean()),
            "pa_benign": float((decisions["denoised"] == decisions["clean"]).mean()),
            "pa_adversarial": float((decisions["recovered"] == decisions["moved"]).mean()),
        }


def _decision(classifier: torch.nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return classifier(images).argmax(1)
