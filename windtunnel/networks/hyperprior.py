"""A small learned codec with a mean and scale hyperprior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from windtunnel.networks._codec_training import CodecNetwork

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Hyperprior(CodecNetwork):
    """Latents at 1/``stride`` of the resolution, each with a mean and a scale that a second code tells
    (``_codec_modules``).

    Papers: Balle et al., Variational image compression with a scale hyperprior, https://arxiv.org/abs/1802.01436;
    Minnen, Balle, Toderici, Joint Autoregressive and Hierarchical Priors, https://arxiv.org/abs/1809.02736 (mean and
    scale, no autoregression). Deviations as in ``factorized``; in training the decoder sees noise, not rounding.

    ``hyper`` channels of the second code, at half the latents' resolution; all else as in ``factorized``. 201 thousand
    weights with both decoders at stride 4, 235 thousand at stride 8 with 32 latents.
    """

    algorithm_version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()
    teachers: ClassVar[int] = 2
    last_teacher_measures: ClassVar[bool] = True

    rate: int
    stride: int = 4
    width: int = 32
    latents: int = 24
    hyper: int = 8
    epochs: int = 4
    realism_epochs: int = 2
    batch: int = 16
    learning_rate: float = 2.0e-3
    distortion_weight: float = 0.25
    adversarial_weight: float = 1.5
    feature_weight: float = 1.0

    def build(self) -> torch.nn.Module:
        from windtunnel.networks._codec_modules import HyperpriorCodec

        codec = HyperpriorCodec(width=self.width, latents=self.latents, hyper=self.hyper, stride=self.stride)
        return codec.for_cpu()
