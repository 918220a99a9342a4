"""Natural shifts of an image set: common corruptions and small translations, in integer arithmetic (JPEG apart).

The corruptions are those of Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations (https://arxiv.org/abs/1903.12261); severities 1, 2, 3 are the severities 1, 3, 5 of their CIFAR-10-C
code. Deviations: whole-number arithmetic on 8-bit pixels; noise is a sum of twelve uniform draws (standard deviation
exact, cut at six of them), keyed by sample id.

| name           | severity: setting                                                                  |
|----------------|------------------------------------------------------------------------------------|
| gaussian_noise | standard deviation .04, .08, .10 of the range                                      |
| gaussian_blur  | sigma .4, .7, 1 pixels, edges repeated                                             |
| contrast       | (x - mean) * c + mean per channel, c = .75, .40, .15                               |
| jpeg_artefacts | JPEG at quality 80, 58, 40, Pillow's default 4:2:0                                 |
| pixel_shift    | 1, 2, 4 pixels in one of eight directions, cut from the larger canvas              |
| cyclic_shift   | the same for any set: what leaves on one side enters on the other                  |
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from windtunnel.images.container import ImageSet, ImageSetError
from windtunnel.images.keyed import Draws, keys_of
from windtunnel.images.splits import CANVAS_SHIFTS, SHIFT_VERSION, SHIFTS

__all__ = ["CANVAS_SHIFTS", "SHIFTS", "SHIFT_VERSION", "apply_shift", "shift_set"]

NOISE_PER_MILLE = {1: 40, 2: 80, 3: 100}
BLUR_SIGMA = {1: 0.4, 2: 0.7, 3: 1.0}
# exp(-k^2 / 2 sigma^2) to four sigma in 1/1024; the centre takes what rounding left, so that a flat image stays flat
BLUR_KERNEL = {1: (41, 942, 41), 2: (10, 210, 584, 210, 10), 3: (5, 55, 248, 408, 248, 55, 5)}
CONTRAST_PER_CENT = {1: 75, 2: 40, 3: 15}
JPEG_QUALITY = {1: 80, 2: 58, 3: 40}
DIRECTIONS = np.array([(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)])


def apply_shift(
    images: np.ndarray,
    name: str,
    severity: int,
    sample_ids: Sequence[str],
    *,
    canvas: np.ndarray | None = None,
) -> np.ndarray:
    """Shift images uint8 [N, H, W, 3]: the same shape and type, a pure function of each image and its sample id.

    ``canvas``: uint8 [N, H + 2 m, W + 2 m, 3] with m >= severity, whose centre is ``images``; ``pixel_shift`` needs it.
    """
    if name not in SHIFTS:
        raise ImageSetError(f"unknown shift '{name}'; known: {', '.join(SHIFTS)}")
    if severity not in SHIFTS[name]:
        raise ImageSetError(f"shift '{name}' has no severity {severity}; it has {', '.join(map(str, SHIFTS[name]))}")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ImageSetError(f"images must be uint8 [N, H, W, 3], not {images.dtype} {images.shape}")
    if len(images) != len(sample_ids):
        raise ImageSetError(f"{len(images)} images but {len(sample_ids)} sample_ids")
    draws = Draws(keys_of(f"shift/{SHIFT_VERSION}/{name}/{severity}/{sample_id}" for sample_id in sample_ids))
    if name in CANVAS_SHIFTS:
        return _pixel_shift(images, severity, draws, canvas)
    return _FUNCTIONS[name](images, severity, draws)


def shift_set(image_set: ImageSet, name: str, severity: int, *, canvas: ImageSet | None = None) -> ImageSet:
    """The shifted image set, with the same labels, sample ids and sources. ``canvas``: ``build(..., canvas=True)``."""
    if canvas is not None and canvas.sample_ids != image_set.sample_ids:
        raise ImageSetError("the canvas holds other samples than the image set; build both from one split")
    larger = None if canvas is None else canvas.images
    images = apply_shift(image_set.images, name, severity, image_set.sample_ids, canvas=larger)
    labels = None if image_set.labels is None else image_set.labels.copy()
    return ImageSet(images, labels, list(image_set.sample_ids), list(image_set.source_ids))


def _gaussian_noise(images: np.ndarray, severity: int, draws: Draws) -> np.ndarray:
    out = np.empty_like(images)
    for i, image in enumerate(images):  # one image at a time: three 64-bit draws per value would be 24 times the images
        bits = Draws(draws.keys[i : i + 1]).raw(image.size, 3)[0]
        pieces = [(bits >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48)]
        total = sum(piece.sum(axis=1, dtype=np.uint64) for piece in pieces).astype(np.int64)
        unit = total - 6 * 65535  # mean 0, standard deviation 65536 (less one part in 10^9)
        scale = 255 * NOISE_PER_MILLE[severity]
        step = (2 * unit * scale + 1000 * 65536) // (2 * 1000 * 65536)
        out[i] = np.clip(image.astype(np.int64) + step.reshape(image.shape), 0, 255)
    return out


def _gaussian_blur(images: np.ndarray, severity: int, draws: Draws) -> np.ndarray:
    kernel = BLUR_KERNEL[severity]
    radius = len(kernel) // 2
    pixels = images.astype(np.int64)
    for axis in (1, 2):
        widths = [(radius, radius) if a == axis else (0, 0) for a in range(4)]
        padded = np.pad(pixels, widths, mode="edge")
        length = images.shape[axis]
        pixels = sum(w * np.take(padded, range(k, k + length), axis=axis) for k, w in enumerate(kernel))
    return ((pixels + 2**19) >> 20).astype(np.uint8)


def _contrast(images: np.ndarray, severity: int, draws: Draws) -> np.ndarray:
    share, count = CONTRAST_PER_CENT[severity], images.shape[1] * images.shape[2]
    pixels = images.astype(np.int64)
    total = pixels.sum(axis=(1, 2), keepdims=True)
    exact = share * count * pixels + (100 - share) * total  # in 1 / (100 count): the mean is never rounded
    return ((2 * exact + 100 * count) // (200 * count)).astype(np.uint8)


def _jpeg_artefacts(images: np.ndarray, severity: int, draws: Draws) -> np.ndarray:
    out = np.empty_like(images)
    for i, image in enumerate(images):
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=JPEG_QUALITY[severity])
        with Image.open(io.BytesIO(buffer.getvalue())) as decoded:
            out[i] = np.array(decoded.convert("RGB"))
    return out


def _directions(draws: Draws, severity: int) -> np.ndarray:
    return DIRECTIONS[draws.integers(0, len(DIRECTIONS))] * severity


def _pixel_shift(images: np.ndarray, severity: int, draws: Draws, canvas: np.ndarray | None) -> np.ndarray:
    n, height, width = images.shape[:3]
    if canvas is None:
        raise ImageSetError("'pixel_shift' needs the larger canvas (build(..., canvas=True)); "
                            "for a set without one use 'cyclic_shift'")  # fmt: skip
    margin = (canvas.shape[1] - height) // 2
    if canvas.shape != (n, height + 2 * margin, width + 2 * margin, 3) or margin < severity:
        raise ImageSetError(f"the canvas {canvas.shape} is no margin of {severity} or more around {images.shape}")
    if not np.array_equal(canvas[:, margin : margin + height, margin : margin + width], images):
        raise ImageSetError("the canvas shows other images at its centre; build both from one split and recipe")
    corner = margin - _directions(draws, severity)  # content moves along the direction, so the window moves against it
    rows = (corner[:, 0, None] + np.arange(height))[:, :, None]
    columns = (corner[:, 1, None] + np.arange(width))[:, None, :]
    return canvas[np.arange(n)[:, None, None], rows, columns]


def _cyclic_shift(images: np.ndarray, severity: int, draws: Draws) -> np.ndarray:
    n, height, width = images.shape[:3]
    step = _directions(draws, severity)
    rows = ((np.arange(height) - step[:, 0, None]) % height)[:, :, None]
    columns = ((np.arange(width) - step[:, 1, None]) % width)[:, None, :]
    return images[np.arange(n)[:, None, None], rows, columns]


_FUNCTIONS: dict[str, Callable[[np.ndarray, int, Draws], np.ndarray]] = {
    "gaussian_noise": _gaussian_noise,
    "gaussian_blur": _gaussian_blur,
    "contrast": _contrast,
    "jpeg_artefacts": _jpeg_artefacts,
    "cyclic_shift": _cyclic_shift,
}
