"""Layers of the learned codecs: pixels to latents, latents to pixels, and the critic of realistic decoders.

All small, for one CPU core: most of the work is done at the latents' resolution. ``stride`` is 4 or a multiple of 4;
what exceeds 4 is folded into channels first. No normalisation layers: rows of a batch do not meet.
"""

from __future__ import annotations

from windtunnel.backend import torch

nn = torch.nn
Tensor = torch.Tensor
SLOPE = 0.1
CONVOLVED = 4


class Residual(nn.Module):
    """``x + conv(relu(conv(x)))``, 3x3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(SLOPE), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def analysis(*, width: int, latents: int, stride: int) -> nn.Sequential:
    """Images [N, 3, H, W] about 0 -> latents [N, latents, H / stride, W / stride], not rounded."""
    fold = stride // CONVOLVED
    return nn.Sequential(
        nn.PixelUnshuffle(fold),
        nn.Conv2d(3 * fold**2, width, 5, stride=2, padding=2),
        nn.LeakyReLU(SLOPE),
        nn.Conv2d(width, width, 5, stride=2, padding=2),
        nn.LeakyReLU(SLOPE),
        Residual(width),
        nn.Conv2d(width, latents, 3, padding=1),
    )


def synthesis(*, width: int, latents: int, stride: int) -> nn.Sequential:
    """Latents -> images about 0, not clipped."""
    fold = stride // CONVOLVED
    fine = 3 * width // 4
    return nn.Sequential(
        nn.Conv2d(latents, width, 3, padding=1),
        Residual(width),
        nn.Conv2d(width, 4 * fine, 3, padding=1),
        nn.PixelShuffle(2),
        nn.LeakyReLU(SLOPE),
        nn.Conv2d(fine, fine, 3, padding=1),
        nn.LeakyReLU(SLOPE),
        nn.Conv2d(fine, 3 * (2 * fold) ** 2, 3, padding=1),
        nn.PixelShuffle(2 * fold),
    )


def hyper_analysis(*, width: int, latents: int, hyper: int) -> nn.Sequential:
    """Latents -> [N, hyper, h / 2, w / 2], not rounded: what is told about the latents' distribution."""
    return nn.Sequential(
        nn.Conv2d(latents, width, 3, padding=1), nn.LeakyReLU(SLOPE), nn.Conv2d(width, hyper, 5, stride=2, padding=2)
    )


def hyper_synthesis(*, width: int, latents: int, hyper: int) -> nn.Sequential:
    """[N, hyper, h / 2, w / 2] -> means and logarithms of scales [N, 2 latents, h, w]."""
    return nn.Sequential(
        nn.Conv2d(hyper, 2 * width, 3, padding=1),
        nn.PixelShuffle(2),
        nn.LeakyReLU(SLOPE),
        nn.Conv2d(width // 2, 2 * latents, 3, padding=1),
    )


class Critic(nn.Module):
    """Images [N, 3, H, W] about 0 and their rounded latents -> one number per place, high where it looks real.

    Conditional on the latents as in HiFiC (Mentzer et al., https://arxiv.org/abs/2006.09965): it does not ask whether
    the picture is a likely one but whether it is a likely one *for this code*. Spectral normalisation as there.
    """

    def __init__(self, *, latents: int, stride: int, width: int = 24) -> None:
        super().__init__()
        fold = stride // CONVOLVED
        normed = nn.utils.parametrizations.spectral_norm
        self.look = nn.Sequential(
            nn.PixelUnshuffle(fold),
            normed(nn.Conv2d(3 * fold**2, width, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            normed(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
        )
        self.told = normed(nn.Conv2d(latents, width // 2, 1))
        self.judge = nn.Sequential(
            normed(nn.Conv2d(2 * width + width // 2, 2 * width, 3, padding=1)),
            nn.LeakyReLU(0.2),
            normed(nn.Conv2d(2 * width, 1, 1)),
        )

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        told = torch.nn.functional.leaky_relu(self.told(latents), 0.2)
        return self.judge(torch.cat([self.look(x), told], dim=1))
