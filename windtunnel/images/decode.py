"""From the bytes of an image file to RGB pixels, trusting nothing: formats, size and depth are checked before
decoding.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

MAX_PIXELS = 4096 * 4096
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_LOSSLESS_TO_RGB = ("RGB", "L", "P", "1", "CMYK", "YCbCr")


class ImageSetError(ValueError):
    """An image set that cannot be used: the message names file, row, sample and what to do."""


def image_size(content: bytes, max_pixels: int) -> tuple[int, int]:
    """(height, width) from the header alone; raises ``ImageSetError`` where it cannot be read or exceeds
    ``max_pixels``.
    """
    with _opened(content) as image:
        width, height = image.size
    if width * height > max_pixels:
        raise ImageSetError(f"{width} x {height} pixels are more than max_pixels={max_pixels}; "
                            f"a decompression bomb, or raise max_pixels")  # fmt: skip
    return height, width


def decode_image(content: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Pixels of an encoded image: uint8 [H, W, 3]. The header is checked against ``max_pixels`` before anything is
    decoded.

    Grey, palette, CMYK and opaque RGBA become RGB; transparency and more than 8 bits are errors, because converting
    them would silently change what is seen. Of an animation the first frame counts. EXIF orientation is not applied
    (torchvision's ``ImageFolder`` does not either).
    """
    image_size(content, max_pixels)
    with _opened(content) as image:
        try:
            image.load()
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                alpha = image.convert("RGBA").getchannel("A")
                if alpha.getextrema() != (255, 255):
                    raise ImageSetError("the image is transparent in places; flatten it on a background first")
            elif image.mode not in _LOSSLESS_TO_RGB:
                raise ImageSetError(f"pixels of mode '{image.mode}' do not fit 8-bit RGB; convert the image first")
            return np.array(image.convert("RGB"))
        except ImageSetError:
            raise
        except Exception as problem:
            raise _unreadable(problem) from problem


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as PNG, the same bytes for the same pixels (one Pillow version)."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _opened(content: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels is the limit here
            return Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as problem:
        raise ImageSetError(f"a decompression bomb ({problem}); remove it") from problem
    except Exception as problem:
        raise _unreadable(problem) from problem


def _unreadable(problem: Exception) -> ImageSetError:
    return ImageSetError(f"unreadable image ({type(problem).__name__}: {problem}); restore or remove it")
