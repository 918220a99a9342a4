"""Linear maps of images, one per row: a random resize with padding, and a Gaussian blur. Pure functions.

Linear, so that the gradient at an image is the transposed map of the gradient at the mapped image, and nothing has to
be differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass

from windtunnel.attacks.base import RowGenerators, Tensor
from windtunnel.backend import torch

GAUSSIAN_REACH = 3.0  # a kernel spans three standard deviations to either side: Dong et al. 2019, released code


@dataclass(frozen=True)
class Resize:
    """Every row shrunk bilinearly to its own size and put at its own place on black, or left alone.

    ``vertical`` [B, H, H], ``horizontal`` [B, W, W]: out = vertical x horizontal^T; ``moved`` [B, 1, 1, 1] bool.
    """

    vertical: Tensor
    horizontal: Tensor
    moved: Tensor

    @classmethod
    def drawn(cls, x: Tensor, probability: float, smallest: float, generators: RowGenerators) -> Resize:
        """Four dice per row: whether, which size in [smallest, 1) of the image, and the two places."""
        dice = generators.uniform(4)
        height, width = x.shape[2:]
        vertical = _shrink(height, smallest, dice[:, 1], dice[:, 2])
        horizontal = _shrink(width, smallest, dice[:, 1], dice[:, 3])
        return cls(vertical.to(x.dtype), horizontal.to(x.dtype), (dice[:, 0] < probability).view(-1, 1, 1, 1))

    def __call__(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in the box: the mapped images."""
        mapped = self.vertical[:, None] @ x @ self.horizontal[:, None].transpose(2, 3)
        return torch.where(self.moved, mapped.clamp(0.0, 1.0), x)

    def transposed(self, gradient: Tensor) -> Tensor:
        """The gradient at the images, from that at the mapped ones."""
        mapped = self.vertical[:, None].transpose(2, 3) @ gradient @ self.horizontal[:, None]
        return torch.where(self.moved, mapped, gradient)


def _shrink(size: int, smallest: float, size_die: Tensor, place_die: Tensor) -> Tensor:
    """[B, size, size] float64: bilinear interpolation (no corner alignment, no antialiasing) of ``size`` pixels to a
    drawn smaller number, at a drawn place."""
    least = int(smallest * size)
    kept = least + (size_die.double() * (size - least)).long().clamp_max(size - least - 1)
    first = (place_die.double() * (size - kept + 1)).long().minimum(size - kept)
    position = torch.arange(size, device=kept.device)[None] - first[:, None]
    inside = (position >= 0) & (position < kept[:, None])
    source = ((position + 0.5) * (size / kept.double())[:, None] - 0.5).clamp(0.0, size - 1.0)
    left = source.floor().long()
    weight = source - left
    matrix = torch.zeros(len(kept), size, size, dtype=torch.float64, device=kept.device)
    matrix.scatter_add_(2, left[..., None], (1 - weight)[..., None])
    matrix.scatter_add_(2, (left + 1).clamp_max(size - 1)[..., None], weight[..., None])
    return matrix * inside[..., None]


def gaussian_weights(size: int) -> list[float]:
    """``size`` (odd) weights of a Gaussian over three standard deviations to either side, sum 1; [1.0] for size 1."""
    if size == 1:
        return [1.0]
    raw = torch.exp(-0.5 * torch.linspace(-GAUSSIAN_REACH, GAUSSIAN_REACH, size, dtype=torch.float64) ** 2)
    return (raw / raw.sum()).tolist()


def smoothed(gradient: Tensor, size: int) -> Tensor:
    """[B, C, H, W] convolved with the ``size`` x ``size`` Gaussian, channel by channel, zeros outside.

    Sums of shifted images instead of a library's convolution, whose rounding may depend on the batch.
    """
    if size == 1:
        return gradient
    reach, (height, width) = size // 2, gradient.shape[2:]
    weights = gaussian_weights(size)
    padded = torch.nn.functional.pad(gradient, (0, 0, reach, reach))
    rows = sum(w * padded[:, :, i : i + height] for i, w in enumerate(weights))
    padded = torch.nn.functional.pad(rows, (reach, reach, 0, 0))
    return sum(w * padded[:, :, :, i : i + width] for i, w in enumerate(weights))
