"""Decode images in one way for preparation, training, evaluation and prediction.

Pixels are OpenCV's, and the orientation in the EXIF block is applied, as mmcv's loading transform
does. Annotations carry no orientation: they are read as stored.
"""

import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image

from cae_seg.errors import UserError

MOST_PIXELS = 89_478_485
"""Width times height that is decoded; above it, Pillow warns of a decompression bomb."""
# Pillow's own warning at that size would only precede our error.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
_TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def read_image(path: Path) -> np.ndarray:
    """Return an image as (H, W, 3) uint8, RGB.

    Raises:
        UserError: the file cannot be read, is no image, or is too large.
    """
    try:
        content = Path(path).read_bytes()
        with Image.open(path) as header:
            check_pixels(header.size)
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except TooLarge as error:
        raise UserError(f"{path}: {error}; scale the image down") from error
    except Exception as error:  # Pillow and OpenCV raise a dozen kinds on damaged bytes
        raise UserError(f"{path}: {_unreadable(error)}") from error
    if image is None:
        raise UserError(f"{path}: not a readable image; remove it or convert it to PNG or JPEG")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


class TooLarge(ValueError):
    """An image has more pixels than we decode."""


def check_pixels(size: tuple[int, int]) -> None:
    """Check the width and height that an image's header gives.

    Raises:
        TooLarge: their product is over `MOST_PIXELS`.
    """
    if size[0] * size[1] > MOST_PIXELS:
        raise TooLarge(f"{size[0]}×{size[1]} is more than {MOST_PIXELS // 10**6} megapixels")


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) of a Pillow image after its EXIF orientation is applied."""
    turned = image.getexif().get(ExifTags.Base.Orientation) in _TRANSPOSED
    return image.size[::-1] if turned else image.size


def _unreadable(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MOST_PIXELS // 10**6} megapixels; scale the image down"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror}); check the file and its permissions"
    return "not a readable image; remove it or convert it to PNG or JPEG"
