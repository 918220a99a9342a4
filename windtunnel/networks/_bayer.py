"""A camera's picture pipeline, forwards and backwards: gamma, white balance, Bayer mosaic, bilinear demosaic."""

from __future__ import annotations

from windtunnel.backend import torch
from windtunnel.networks._dncnn import SkipChain
from windtunnel.networks._sizes import at_multiple_of

Tensor = torch.Tensor
KNEE, SLOPE, OFFSET, EXPONENT = 0.0031308, 12.92, 0.055, 2.4
"""The sRGB transfer curve, IEC 61966-2-1."""
_CROSS = ((0.0, 1.0, 0.0), (1.0, 4.0, 1.0), (0.0, 1.0, 0.0))
_SQUARE = ((1.0, 2.0, 1.0), (2.0, 4.0, 2.0), (1.0, 2.0, 1.0))


def linear_light(display: Tensor) -> Tensor:
    """sRGB values in [0, 1] as linear light in [0, 1]. The curve's straight foot keeps its inverse's slope finite."""
    power = ((display + OFFSET) / (1 + OFFSET)).clamp_min(0) ** EXPONENT
    return torch.where(display <= SLOPE * KNEE, display / SLOPE, power)


def display_light(linear: Tensor) -> Tensor:
    """Linear light in [0, 1] as sRGB values in [0, 1]: the inverse of ``linear_light``."""
    power = (1 + OFFSET) * linear.clamp_min(KNEE) ** (1 / EXPONENT) - OFFSET
    return torch.where(linear <= KNEE, SLOPE * linear, power)


def colour_filter(height: int, width: int, like: Tensor) -> Tensor:
    """[3, H, W] of 0 and 1: which colour the sensor sees at a pixel. RGGB: red at even rows and columns, blue at odd
    ones, green elsewhere."""
    odd_row = (torch.arange(height, device=like.device) % 2)[:, None]
    odd_column = (torch.arange(width, device=like.device) % 2)[None, :]
    red, blue = (1 - odd_row) * (1 - odd_column), odd_row * odd_column
    return torch.stack([red, 1 - red - blue, blue]).to(like.dtype)


def mosaic(colours: Tensor) -> Tensor:
    """[N, 1, H, W]: one of the three colours of [N, 3, H, W] at every pixel."""
    return (colours * colour_filter(*colours.shape[2:], colours)).sum(1, keepdim=True)


def demosaic_bilinear(raw: Tensor) -> Tensor:
    """[N, 3, H, W] from the mosaic [N, 1, H, W]: a colour that was not seen at a pixel is the mean of its nearest seen
    neighbours (2 or 4 inside; those that exist at the border). Seen values stay. A constant colour is exact."""
    seen = colour_filter(*raw.shape[2:], raw)
    kernel = torch.tensor([_SQUARE, _CROSS, _SQUARE], dtype=raw.dtype, device=raw.device)[:, None]
    total = torch.nn.functional.conv2d(raw * seen, kernel, padding=1, groups=3)
    mass = torch.nn.functional.conv2d(seen[None], kernel, padding=1, groups=3)
    return torch.where(seen.bool(), raw, total / mass)


class Camera(torch.nn.Module):
    """RGB to RAW and back, by a conventional and by a learned demosaic: see ``camera.CameraNetwork``."""

    def __init__(self, *, red_gain: float, blue_gain: float, raw_bits: int | None, depth: int, width: int) -> None:
        super().__init__()
        self.raw_bits = raw_bits
        self.register_buffer("gains", torch.tensor([red_gain, 1.0, blue_gain]).view(1, 3, 1, 1), persistent=False)
        self.correction = SkipChain(4, 12, depth, width)

    def raw(self, x: Tensor) -> Tensor:
        """[N, 1, H, W] in [0, 1]: what the sensor would have seen of the display picture [N, 3, H, W] in [0, 1].

        With ``raw_bits`` rounded to that many bits, noise-free; the gradient passes the rounding unchanged."""
        seen = mosaic(linear_light(x) / self.gains)
        if self.raw_bits is None:
            return seen
        levels = 2**self.raw_bits - 1
        return seen + ((seen * levels).round() / levels - seen).detach()

    def conventional(self, raw: Tensor) -> Tensor:
        """The display picture by bilinear demosaic, white balance and gamma: no weights, exact arithmetic."""
        return display_light((demosaic_bilinear(raw) * self.gains).clamp(0, 1))

    def learned(self, raw: Tensor) -> Tensor:
        """The conventional picture plus a correction computed from the mosaic, its 2x2 cells as four channels."""
        cells = torch.nn.functional.pixel_unshuffle(display_light(raw), 2) - 0.5
        return self.conventional(raw) + torch.nn.functional.pixel_shuffle(self.correction(cells), 2)

    def forward(self, x: Tensor, blend: float = 1.0) -> Tensor:
        """``blend`` times the learned picture plus ``1 - blend`` times the conventional one; any size."""
        return at_multiple_of(2, x, lambda whole: self._developed(self.raw(whole), blend))

    def _developed(self, raw: Tensor, blend: float) -> Tensor:
        if blend == 0:
            return self.conventional(raw)
        if blend == 1:
            return self.learned(raw)
        return blend * self.learned(raw) + (1 - blend) * self.conventional(raw)
