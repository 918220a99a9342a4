"""A small learned codec with a factorised prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from windtunnel.networks._codec_training import CodecNetwork

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Factorized(CodecNetwork):
    """Latents at 1/``stride`` of the resolution, rounded, each channel with its own density (``_codec_modules``).

    Paper: Balle, Laparra, Simoncelli, End-to-end Optimized Image Compression, https://arxiv.org/abs/1611.01704; the
    factorised prior of Balle et al. 2018, https://arxiv.org/abs/1802.01436. Deviations: a hundred times smaller,
    LeakyReLU and one residual block in place of GDN, stride 4 (32-pixel images) or 8 (64) in place of 16, logistic
    mixtures as densities; loss and second phase as in ``_codec_training``. 176 thousand weights with both decoders.

    ``rate`` 1 to 4, low to high: lambda of .0015, .0045, .0135, .0405. ``width`` channels inside, ``latents`` channels
    coded. ``distortion_weight``, ``adversarial_weight`` and ``feature_weight`` balance the realistic decoder: by them
    the shipped hyperprior-2 has 27.2 dB in place of 28.8, and neighbouring pixels whose mean squared difference is .99
    of the originals' in place of .59, at .40 payload bits per pixel (988 held-out images; its card).
    """

    algorithm_version: ClassVar[int] = 2
    prior_speed: ClassVar[float] = 10.0
    libraries: ClassVar[tuple[str, ...]] = ()
    teachers: ClassVar[int] = 2
    last_teacher_measures: ClassVar[bool] = True

    rate: int
    stride: int = 4
    width: int = 32
    latents: int = 24
    epochs: int = 4
    realism_epochs: int = 2
    batch: int = 16
    learning_rate: float = 2.0e-3
    distortion_weight: float = 0.25
    adversarial_weight: float = 1.5
    feature_weight: float = 1.0

    def build(self) -> torch.nn.Module:
        from windtunnel.networks._codec_modules import FactorizedCodec

        return FactorizedCodec(width=self.width, latents=self.latents, stride=self.stride).for_cpu()
