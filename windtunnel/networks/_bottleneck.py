"""The autoencoder's body: two halvings down, a few channels, two doublings up."""

from __future__ import annotations

from windtunnel.backend import torch
from windtunnel.networks._initial import keep_variance
from windtunnel.networks._sizes import at_multiple_of

Tensor = torch.Tensor
FACTOR = 4


class Bottleneck(torch.nn.Module):
    """[N, 3, H, W] to the same shape through [N, channels, ceil(H / 4), ceil(W / 4)]; not clipped, any size (edges
    repeated up to multiples of 4, then cut off). No normalisation, so that rows do not meet."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        relu, conv = torch.nn.ReLU, torch.nn.Conv2d
        self.encode = torch.nn.Sequential(
            conv(12, width, 3, padding=1),
            relu(),
            conv(width, 2 * width, 3, stride=2, padding=1),
            relu(),
            conv(2 * width, 2 * width, 3, padding=1),
            relu(),
            conv(2 * width, channels, 1),
        )
        self.decode = torch.nn.Sequential(
            conv(channels, 2 * width, 3, padding=1),
            relu(),
            conv(2 * width, 4 * width, 3, padding=1),
            torch.nn.PixelShuffle(2),
            relu(),
            conv(width, width, 3, padding=1),
            relu(),
            conv(width, 12, 3, padding=1),
            torch.nn.PixelShuffle(2),
        )
        keep_variance(self)

    def forward(self, x: Tensor) -> Tensor:
        return at_multiple_of(FACTOR, x, self._whole)

    def _whole(self, x: Tensor) -> Tensor:
        tiles = torch.nn.functional.pixel_unshuffle(x - 0.5, 2)
        return 0.5 + self.decode(self.encode(tiles))
