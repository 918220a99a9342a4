"""A trained image-to-image network in front of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from windtunnel.defenses.base import BackwardRule, Images, LearnedDefense, Purified


@dataclass(frozen=True, kw_only=True)
class DenoiserDefense(LearnedDefense):
    """Whatever network its catalogue entry names, clipped to [0, 1]: a denoiser (``dncnn``, ``cdd_red``) or a
    reconstruction (``autoencoder``); the papers stand with the networks.

    As a defense: Liao et al., Defense against Adversarial Attacks Using High-Level Representation Guided Denoiser,
    https://arxiv.org/abs/1712.02976, whose break is Athalye, Carlini, On the Robustness of the CVPR 2018 White-Box
    Adversarial Example Defenses, https://arxiv.org/abs/1804.03286: it holds against attacks that do not know of it
    and against no other. Output is float32, not rounded to 8 bits. No file, hence no bits. Before certified smoothing
    it is a denoised-smoothing defense (Salman et al., https://arxiv.org/abs/2003.01908) for noise that is clipped to
    [0, 1].

    Rules: the network is differentiable, so ``surrogate-n`` is the exact gradient through all rounds and, for one
    round, ``surrogate-1`` *is* that exact gradient (then it alone is listed). The clipping is part of both.
    """

    algorithm_version: ClassVar[int] = 1
    is_random: ClassVar[bool] = False
    is_learned: ClassVar[bool] = True
    rules: ClassVar[tuple[str, ...]] = ("surrogate-n", "surrogate-1", "identity", "blur")
    generic_rules: ClassVar[tuple[str, ...]] = ("identity", "blur")
    libraries: ClassVar[tuple[str, ...]] = ("torch",)

    def purify(self, images: Images) -> Purified:
        from windtunnel.defenses._through_module import purified_by

        return purified_by(self.module, lambda module, x: module(x), images)

    def backward_rules(self, rounds: int = 1) -> dict[str, BackwardRule]:
        from windtunnel.defenses._through_module import rule_through
        from windtunnel.defenses.rules import repeated, with_generic

        once = rule_through(self.module, lambda module, x: module(x))
        return with_generic(self.rules, **{"surrogate-n": repeated(once, rounds), "surrogate-1": once})
