"""Pictures: from the bytes a client sent to the tensor a vision tower reads.

It knows file formats, their dangers and colour modes. It does not know models: the preprocessing
that follows the decoding is handed in.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from craft_server.exhaustion import is_exhaustion
from craft_shared.image_formats import CONVERT, FORMATS, IN_WORDS, MAX_ASPECT, other_format

# Pillow's own process-wide bound would come before `decode`'s, with a warning instead of an error
# over half of its range. `decode` checks the size itself, from the header, before any decoding.
Image.MAX_IMAGE_PIXELS = None
# Now, not with the first picture, when there may be no descriptor left to load a plugin with.
Image.init()


class ImageError(ValueError):
    """A picture cannot be used.

    Attributes:
        message: what is wrong with it; its subject is "it".
        remedy: what to do about it.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


def decode(
    data: bytes,
    preprocess: Callable[[Image.Image], torch.Tensor],
    *,
    max_pixels: int,
) -> torch.Tensor:
    """Decodes an encoded picture (of an animation, the first frame) and preprocesses it.

    The format is told from the content and must be one of `FORMATS`; the EXIF orientation
    is honoured; every colour mode becomes RGB.

    Args:
        data: the file's bytes.
        preprocess: from an RGB picture to float32 [3, S, S].
        max_pixels: bound on the picture's width x height, checked before it is decoded.

    Returns:
        float32 [3, S, S] on the CPU.

    Raises:
        ImageError: the picture cannot be used.
    """
    image = _open(data)
    _check_size(image.size, max_pixels)
    # Whatever a decoder raises on bytes that are not what their header says, it is the picture's
    # fault: Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error and more.
    try:
        image.load()
        pixels = _rgb(_upright(image))
    except Exception as error:
        if is_exhaustion(error):
            raise
        raise ImageError(
            "it is cut short or damaged", "Open it in a viewer and save it again, or leave it out."
        ) from error
    return preprocess(pixels)


def _open(data: bytes) -> Image.Image:
    remedy = CONVERT
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        kind = other_format(data)
        what = "it is not a picture in a supported format" if kind is None else f"it is {kind}"
        raise ImageError(f"{what}; these are read: {IN_WORDS}", remedy) from error
    except Exception as error:
        if is_exhaustion(error):
            raise
        raise ImageError("it is cut short or damaged", remedy) from error


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"it has {width * height} pixels; at most {max_pixels} are accepted", "Scale it down."
        )
    if max(size) > MAX_ASPECT * max(1, min(size)):
        raise ImageError(
            f"it is {width} x {height} pixels; a side may be {MAX_ASPECT} times the other at most",
            "Crop it; the model sees a square from its middle.",
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:
        if is_exhaustion(error):
            raise
        # A picture with damaged metadata is still a picture.
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_stretched(np.asarray(image, dtype=np.float64))).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _stretched(values: np.ndarray) -> np.ndarray:
    """32-bit grey has no agreed white: its own range is spread over 0 to 255."""
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    return np.asarray((values - low) * (255.0 / max(high - low, 1e-12)), dtype=np.uint8)
