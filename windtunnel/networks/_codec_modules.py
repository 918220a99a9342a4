"""The two learned codecs as modules: one encoder and one entropy model, two decoders of the same code.

``distortion`` is trained for rate and squared error; ``realism`` starts as its copy and is tuned to look real while
encoder and entropy model stand still (as codecs with controllable realism do: Agustsson et al., Multi-Realism Image
Compression, https://arxiv.org/abs/2212.13824; Iwai et al., Controlling Rate, Distortion, and Realism,
https://arxiv.org/abs/2405.16817). So both decode the same bits, to the bit.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from windtunnel.backend import torch
from windtunnel.networks import _codec_layers as layers
from windtunnel.networks._codec_entropy import (
    Prior,
    bounded,
    centred_bits,
    centred_starts,
    level_of,
    noisy,
    round_through,
)
from windtunnel.networks._codec_rans import HIGHEST, LOWEST, Decoder, encode

Tensor = torch.Tensor
DECODERS = ("distortion", "realism")
CENTRE = 0.5


@dataclass(frozen=True)
class Code:
    """What an encoder says of images: ``latents`` for the decoders and the estimated ``bits`` [N]; when rounded also
    the integers to be coded, ``symbols`` [N, K], and the table of each, ``rows`` [N, K] (floats that hold integers)."""

    latents: Tensor
    bits: Tensor
    symbols: Tensor | None = None
    rows: Tensor | None = None


class Codec(torch.nn.Module):
    """What both codecs share. Images are [N, 3, H, W] in [0, 1], any size: edges are repeated up to ``granule``."""

    def __init__(self, *, width: int, latents: int, stride: int, granule: int) -> None:
        super().__init__()
        if stride < layers.CONVOLVED or stride % layers.CONVOLVED:
            raise ValueError(f"stride must be a multiple of {layers.CONVOLVED}, not {stride}")
        self.channels, self.stride, self.granule = latents, stride, granule
        self.encoder = layers.analysis(width=width, latents=latents, stride=stride)
        self.distortion = layers.synthesis(width=width, latents=latents, stride=stride)
        self.realism = layers.synthesis(width=width, latents=latents, stride=stride)

    def for_cpu(self) -> Codec:
        """The same module with its weights in the memory order in which convolutions are a tenth cheaper."""
        return self.to(memory_format=torch.channels_last)

    @abstractmethod
    def code(self, x: Tensor, *, rounded: bool) -> Code:
        """Rounded latents (straight-through) or, in training, latents with uniform noise, of padded images."""

    @abstractmethod
    def starts(self) -> np.ndarray:
        """The integer tables of the entropy model, [T, n + 1]."""

    @abstractmethod
    def read(self, decoder: Decoder, height: int, width: int) -> Tensor:
        """The latents [1, C, h, w] of one stream."""

    def padded(self, x: Tensor) -> Tensor:
        """The image with its edges repeated to the next multiple of ``granule``."""
        down, right = -x.shape[2] % self.granule, -x.shape[3] % self.granule
        return torch.nn.functional.pad(x, (0, right, 0, down), mode="replicate") if down or right else x

    def decode(self, latents: Tensor, decoder: str, size: tuple[int, int]) -> Tensor:
        """Images [N, 3, H, W] of latents by one of ``DECODERS``, neither clipped nor rounded."""
        return getattr(self, decoder)(latents)[:, :, : size[0], : size[1]] + CENTRE

    def reconstruct(self, x: Tensor, decoder: str) -> tuple[Tensor, Code]:
        """Encode with rounding, decode: the images (not clipped) and their code. Differentiable, rounding aside."""
        code = self.code(self.padded(x), rounded=True)
        return self.decode(code.latents, decoder, (x.shape[2], x.shape[3])), code

    def streams(self, symbols: np.ndarray, rows: np.ndarray) -> list[bytes]:
        """The bytes of every image, from its symbols [N, K] and their tables."""
        starts = self.starts()
        symbols, rows = symbols.astype(np.int64), rows.astype(np.int64)
        return [encode(s, r, starts) for s, r in zip(symbols, rows, strict=True)]


class FactorizedCodec(Codec):
    """Latents with a density per channel."""

    def __init__(self, *, width: int, latents: int, stride: int) -> None:
        super().__init__(width=width, latents=latents, stride=stride, granule=stride)
        self.prior = Prior(latents)

    def code(self, x: Tensor, *, rounded: bool) -> Code:
        y = self.encoder(x - CENTRE)
        if not rounded:
            y = noisy(y)
            return Code(y, self.prior.bits(y))
        y = round_through(y.clamp(LOWEST, HIGHEST))
        return Code(y, self.prior.bits(y), y.detach().flatten(1), _channel_of(y))

    def starts(self) -> np.ndarray:
        return self.prior.starts()

    def read(self, decoder: Decoder, height: int, width: int) -> Tensor:
        shape = (1, self.channels, -(-height // self.stride), -(-width // self.stride))
        return _read(decoder, _channel_of(torch.zeros(shape)), shape)


class HyperpriorCodec(Codec):
    """Latents with a mean and a scale at every place, both told by a second, smaller code.

    Minnen, Balle, Toderici, https://arxiv.org/abs/1809.02736, without the autoregressive part: what is rounded and
    coded is ``y - mean``, by the table of the scale nearest to the told one. Deviation: logistic laws for normal ones,
    see ``log_mass``.
    """

    def __init__(self, *, width: int, latents: int, hyper: int, stride: int) -> None:
        super().__init__(width=width, latents=latents, stride=stride, granule=2 * stride)
        self.hyper_channels = hyper
        self.hyper_encoder = layers.hyper_analysis(width=width, latents=latents, hyper=hyper)
        self.hyper_decoder = layers.hyper_synthesis(width=width, latents=latents, hyper=hyper)
        self.prior = Prior(hyper)

    def code(self, x: Tensor, *, rounded: bool) -> Code:
        y = self.encoder(x - CENTRE)
        z = self.hyper_encoder(y)
        z = round_through(z.clamp(LOWEST, HIGHEST)) if rounded else noisy(z)
        mean, log_scale = self._told(z)
        if not rounded:
            y = noisy(y)
            return Code(y, self.prior.bits(z) + centred_bits(y - mean, log_scale))
        s = round_through((y - mean).clamp(LOWEST, HIGHEST))
        bits = self.prior.bits(z) + centred_bits(s, log_scale)
        symbols = torch.cat([z.detach().flatten(1), s.detach().flatten(1)], dim=1)
        return Code(s + mean, bits, symbols, torch.cat([_channel_of(z), self._row_of(log_scale)], dim=1))

    def starts(self) -> np.ndarray:
        return np.concatenate([self.prior.starts(), centred_starts()])

    def read(self, decoder: Decoder, height: int, width: int) -> Tensor:
        h, w = (-(-side // self.granule) for side in (height, width))
        z = _read(decoder, _channel_of(torch.zeros(1, self.hyper_channels, h, w)), (1, self.hyper_channels, h, w))
        # in the batch size of the encoder, or a last bit of a scale could choose another table
        from windtunnel.networks.batches import in_fixed_batches

        told = torch.from_numpy(in_fixed_batches(lambda part: torch.cat(self._told(part), dim=1), z.numpy()))
        mean, log_scale = told.chunk(2, dim=1)
        return _read(decoder, self._row_of(log_scale), tuple(mean.shape)) + mean

    def _told(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = self.hyper_decoder(z).chunk(2, dim=1)
        return mean, bounded(log_scale)

    def _row_of(self, log_scale: Tensor) -> Tensor:
        return self.hyper_channels + level_of(log_scale.detach()).flatten(1)


def _channel_of(y: Tensor) -> Tensor:
    """The channel of every latent, flattened like them: [N, C h w]."""
    n, channels, h, w = y.shape
    return torch.arange(channels, dtype=torch.float32).view(1, -1, 1, 1).expand(n, channels, h, w).flatten(1)


def _read(decoder: Decoder, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(decoder.read(rows[0].numpy().astype(np.int64)).astype(np.float32)).view(shape)
