"""The network that imitates a defense: two scales, a residual, and a memory of where the 8x8 blocks lie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from windtunnel.backend import torch

Tensor = torch.Tensor
FACTOR = 4
BLOCK = 8
LINEAR = 5
SLOPE = 0.1


@dataclass(frozen=True, kw_only=True)
class Shape:
    """``width`` channels at half resolution and ``deep`` at a quarter; 32 and 48 make 89 thousand weights."""

    width: int = 32
    deep: int = 48


class UNet(torch.nn.Module):
    """``x + f * x + r(x)``, f a 5x5 filter, r the U: [N, 3, H, W] in [0, 1] to the same shape, any size. No clipping,
    which would stop the gradient.

    After Ronneberger, Fischer, Brox, U-Net: Convolutional Networks for Biomedical Image Segmentation,
    https://arxiv.org/abs/1505.04597 (one level of it); as the backward rule of a codec in Raeber et al., Keep It
    Real: Challenges in Attacking Compression-Based Adversarial Purification, https://arxiv.org/abs/2508.05489.

    Deviations, all for one CPU core: pixels enter as 2x2 tiles in twelve channels, so that nothing is computed at full
    resolution; no normalisation layers, so that rows do not meet; a learned pattern of period 8 is added to the first
    features, since a codec treats the pixels of a block by their place in it and a convolution cannot tell them apart.
    The filter is there because most purifiers are mostly one; ``solve_filter`` sets it in closed form. It and the
    last layer start at zero: the untrained network is the identity. Sizes that are no multiple of 4 are padded by
    repeated edges and cut again.
    """

    def __init__(self, shape: Shape | None = None) -> None:
        super().__init__()
        shape = shape or Shape()
        width, deep = shape.width, shape.deep
        self.filter = torch.nn.Conv2d(3, 3, LINEAR, padding=LINEAR // 2, padding_mode="replicate", bias=False)
        self.enter = torch.nn.Conv2d(12, width, 3, padding=1)
        self.place = torch.nn.Parameter(torch.zeros(1, width, BLOCK // 2, BLOCK // 2))
        self.fine = torch.nn.Conv2d(width, width, 3, padding=1)
        self.down = torch.nn.Conv2d(width, deep, 2, stride=2)
        self.coarse = torch.nn.Sequential(
            torch.nn.Conv2d(deep, deep, 3, padding=1),
            torch.nn.LeakyReLU(SLOPE),
            torch.nn.Conv2d(deep, deep, 3, padding=1),
            torch.nn.LeakyReLU(SLOPE),
        )
        self.up = torch.nn.ConvTranspose2d(deep, width, 2, stride=2)
        self.join = torch.nn.Conv2d(2 * width, width, 3, padding=1)
        self.leave = torch.nn.Conv2d(width, 12, 3, padding=1)
        with torch.no_grad():
            self.filter.weight.zero_()
            self.leave.weight.zero_()
            self.leave.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        relu = partial(torch.nn.functional.leaky_relu, negative_slope=SLOPE)
        height, width = x.shape[2:]
        down, right = -height % FACTOR, -width % FACTOR
        whole = torch.nn.functional.pad(x, (0, right, 0, down), mode="replicate") if down or right else x
        tiles = self.enter(torch.nn.functional.pixel_unshuffle(2 * whole - 1, 2))
        rows, columns = (-(-side // self.place.shape[2]) for side in tiles.shape[2:])
        place = self.place.repeat(1, 1, rows, columns)[:, :, : tiles.shape[2], : tiles.shape[3]]
        fine = relu(self.fine(relu(tiles + place)))
        coarse = self.coarse(relu(self.down(fine)))
        joined = relu(self.join(torch.cat([fine, relu(self.up(coarse))], dim=1)))
        residual = torch.nn.functional.pixel_shuffle(self.leave(joined), 2)
        return x + (self.filter(whole) + residual)[:, :, :height, :width]

    def solve_filter(self, x: Tensor, real: Tensor) -> None:
        """Set the 5x5 filter to the one for which ``x + f * x`` is nearest to ``real``, in least squares.

        A tiny ridge (one part in a million of the mean variance) keeps flat pictures solvable.
        """
        reach, taps = LINEAR // 2, 3 * LINEAR**2
        gram, match = torch.zeros(taps, taps, dtype=torch.float64), torch.zeros(taps, 3, dtype=torch.float64)
        for some, goal in zip(x.split(8), (real - x).split(8), strict=True):  # large pictures unfold to much memory
            sees = torch.nn.functional.pad(some, (reach,) * 4, mode="replicate")
            seen = torch.nn.functional.unfold(sees, LINEAR).double().transpose(1, 2).flatten(0, 1)
            gram += seen.T @ seen
            match += seen.T @ goal.double().flatten(2).transpose(1, 2).flatten(0, 1)
        ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        solution = torch.linalg.solve(gram + ridge, match)
        with torch.no_grad():
            self.filter.weight.copy_(solution.T.reshape(self.filter.weight.shape))
