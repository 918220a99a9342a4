"""The picture as a camera would have taken it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from windtunnel.defenses._codec import require_range
from windtunnel.defenses.base import BackwardRule, Images, LearnedDefense, Purified

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class CameraPipelineDefense(LearnedDefense):
    """RGB to Bayer RAW, developed by a learned and a conventional pipeline, the two blended.

    Paper: Zhang, Dong, Heide, All You Need is RAW: Defending Against Adversarial Attacks with Camera Image Pipelines,
    2022, https://arxiv.org/abs/2112.09219. Two of three numbers of a picture are thrown away and made up again. What
    of it is the paper's and what is ours stands with the network (``networks/camera.py``). ``blend`` in [0, 1] is the
    share of the learned picture, ``blend G(F(x)) + (1 - blend) S(F(x))``: that the paper joins them so, and with which
    share, could not be verified; .5 is ours. 0 is the bilinear demosaic alone, a fixed linear map between two exact
    curves in which the trained weights have no part; 1 the learned one alone.

    Output is float32 in [0, 1], not rounded to 8 bits. No file, hence no bits.

    Rules: all of it is differentiable, so ``surrogate-n`` is the exact gradient through all rounds and, for one round,
    ``surrogate-1`` *is* that exact gradient. A network with ``raw_bits`` has steps, which both rules pass straight
    through.
    """

    algorithm_version: ClassVar[int] = 1
    is_random: ClassVar[bool] = False
    is_learned: ClassVar[bool] = True
    rules: ClassVar[tuple[str, ...]] = ("surrogate-n", "surrogate-1", "identity", "blur")
    generic_rules: ClassVar[tuple[str, ...]] = ("identity", "blur")
    libraries: ClassVar[tuple[str, ...]] = ("torch",)

    blend: float = 0.5

    def __post_init__(self) -> None:
        require_range("blend", self.blend, 0, 1)

    def purify(self, images: Images) -> Purified:
        from windtunnel.defenses._through_module import purified_by

        return purified_by(self.module, self._developed, images)

    def backward_rules(self, rounds: int = 1) -> dict[str, BackwardRule]:
        from windtunnel.defenses._through_module import rule_through
        from windtunnel.defenses.rules import repeated, with_generic

        once = rule_through(self.module, self._developed)
        return with_generic(self.rules, **{"surrogate-n": repeated(once, rounds), "surrogate-1": once})

    def _developed(self, module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return module(x, blend=self.blend)
