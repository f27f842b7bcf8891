"""What of an image a model sees: which pixels, in which size.

The server reads images so, and a client that makes images of others must see the same of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageOps


@dataclass(frozen=True)
class View:
    """What of an image a model sees: open_clip's preprocessing up to the pixels, bit for bit."""

    height: int  # of what it sees, in pixels
    width: int  # of it
    # "shortest" and "longest" fit that side and crop or pad, "squash" fits both.
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    bilinear: bool = False  # or else bicubic
    fill: int = 0  # grey of what is padded

    def of(self, image: Image.Image) -> Image.Image:
        """Of an RGB image, [height, width]."""
        if self.resize_mode == "squash":
            return self._resized(image, self.height, self.width)
        if self.resize_mode == "longest":
            return self._middle(self._fitted(image, max), self.fill)
        if self.height != self.width:
            return self._middle(self._fitted(image, min, bicubic=True), 0)
        short, long = sorted(image.size)
        longer = int(self.width * long / short)
        size = (longer, self.width) if image.width <= image.height else (self.width, longer)
        return self._middle(self._resized(image, *size), 0)

    def _fitted(
        self, image: Image.Image, side: Callable[[float, float], float], *, bicubic: bool = False
    ) -> Image.Image:
        ratio = side(image.height / self.height, image.width / self.width)
        size = round(image.height / ratio), round(image.width / ratio)
        return self._resized(image, *size, bicubic=bicubic)

    def _resized(
        self, image: Image.Image, height: int, width: int, *, bicubic: bool = False
    ) -> Image.Image:
        if image.size == (width, height):
            return image
        bilinear = self.bilinear and not bicubic
        how = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
        return image.resize((width, height), how)

    def _middle(self, image: Image.Image, fill: int) -> Image.Image:
        wide, high = max(0, self.width - image.width), max(0, self.height - image.height)
        if wide or high:
            border = (wide // 2, high // 2, (wide + 1) // 2, (high + 1) // 2)
            image = ImageOps.expand(image, border, fill=(fill, fill, fill))
        left = round((image.width - self.width) / 2.0)
        top = round((image.height - self.height) / 2.0)
        return image.crop((left, top, left + self.width, top + self.height))
