"""The residual denoiser's body, shared by the networks that differ in what they are trained on."""

from __future__ import annotations

from windtunnel.backend import torch
from windtunnel.networks._sizes import at_multiple_of

Tensor = torch.Tensor


class SkipChain(torch.nn.Module):
    """``depth`` 3x3 convolutions of ``width`` channels with ReLU between them, every inner one skipped past:
    ``h + conv(relu(h))``; zero padding, no normalisation, so that rows do not meet. [N, inputs, H, W] to
    [N, outputs, H, W]. The last layer starts at zero."""

    def __init__(self, inputs: int, outputs: int, depth: int, width: int) -> None:
        super().__init__()
        if depth < 3 or width < 1:
            raise ValueError(f"depth must be at least 3 and width at least 1, not {depth} and {width}")
        self.first = torch.nn.Conv2d(inputs, width, 3, padding=1)
        self.inner = torch.nn.ModuleList(torch.nn.Conv2d(width, width, 3, padding=1) for _ in range(depth - 2))
        self.last = torch.nn.Conv2d(width, outputs, 3, padding=1, bias=False)
        torch.nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        features = self.first(x)
        for layer in self.inner:
            features = features + layer(torch.relu(features))
        return self.last(features)


class ResidualDenoiser(SkipChain):
    """``x - r(x)``, r a chain of convolutions: [N, 3, H, W] to the same shape, any size, not clipped.

    After Zhang et al. 2017, section III: the network predicts what is to be taken away. Deviations, without which a few
    minutes of one CPU core are not enough (photodigits, noise of 25/255: the paper's plain chain with batch
    normalisation stood at 26.3 dB after 1,200 steps, this one at 27.6 after 250): the skips of ``SkipChain`` in place
    of normalisation; and pixels enter and leave as ``tile`` x ``tile`` tiles in so many more channels, after the same
    authors' FFDNet (https://arxiv.org/abs/1710.04026), which is several times cheaper (1: no tiles). Edges are repeated
    up to whole tiles. The untrained network is the identity.
    """

    def __init__(self, depth: int, width: int, tile: int) -> None:
        if tile < 1:
            raise ValueError(f"tile must be at least 1, not {tile}")
        super().__init__(3 * tile**2, 3 * tile**2, depth, width)
        self.tile = tile

    def forward(self, x: Tensor) -> Tensor:
        return x - at_multiple_of(self.tile, x, self._noise)

    def _noise(self, x: Tensor) -> Tensor:
        tiles = torch.nn.functional.pixel_unshuffle(x - 0.5, self.tile)
        return torch.nn.functional.pixel_shuffle(super().forward(tiles), self.tile)
