"""From the bytes that a client sent to the pixels that a model sees.

It does not import torch, nor know that it runs in a process of its own.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

# Each format's plug-in, so that nothing is imported, and no file opened, for the sake of an image.
from PIL import (  # noqa: F401
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from craft_server.exhaustion import is_exhaustion
from craft_shared.image_formats import CONVERT, FORMATS, IN_WORDS, MAX_ASPECT, other_format
from craft_shared.image_parts import (
    MOST_EXIF_BYTES,
    TooManyPartsError,
    check_tags,
    without_extras,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Pillow's own process-wide bound would come before `decode`'s, with a warning instead of an error
# over half of its range. `decode` checks the size itself, from the header, before any decoding.
Image.MAX_IMAGE_PIXELS = None
# Whoever runs several decoders gives each one core.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_PIXELS_AT_ONCE = 2**21


class ImageError(ValueError):
    """An image cannot be used.

    `message` says what is wrong with it (its subject is "it"), `remedy` what to do.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


def decode(
    data: bytes, *, max_pixels: int, on_size: Callable[[int], None] = lambda _: None
) -> Image.Image:
    """Decodes an encoded image (of an animation, the first frame).

    The format is read from the content and must be one of `FORMATS`; the EXIF orientation is
    honoured; every colour mode becomes RGB. Before it is decoded, its width x height is compared
    with `max_pixels` and given to `on_size`.

    Raises:
        ImageError: the image cannot be used.
    """
    image = _open(data)
    _check_size(image.size, max_pixels)
    on_size(image.width * image.height)
    # Whatever a decoder raises on bytes that are not what their header says, it is the image's
    # fault: Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error and more.
    try:
        image.load()
        return _rgb(_upright(image))
    except Exception as error:
        if is_exhaustion(error):
            raise
        raise ImageError(
            "it is cut short or damaged", "Open it in a viewer and save it again, or leave it out."
        ) from error


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(without_extras(data)), formats=FORMATS)
    except TooManyPartsError as error:
        raise _excessive(error) from error
    except UnidentifiedImageError as error:
        kind = other_format(data)
        what = "it is not a picture in a supported format" if kind is None else f"it is {kind}"
        raise ImageError(f"{what}; these are read: {IN_WORDS}", CONVERT) from error
    except Exception as error:
        if is_exhaustion(error):
            raise
        raise ImageError("it is cut short or damaged", CONVERT) from error
    return image


def _excessive(error: TooManyPartsError) -> ImageError:
    return ImageError(f"{error}, far more than an image needs", "Save it again as a plain JPEG.")


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
    if image.format == "TIFF":
        # Pillow has turned it already.
        return image
    try:
        _leave_out_long_metadata(image)
        orientation = image.getexif().get(_ORIENTATION, 1)
        turn = _UPRIGHT.get(orientation)
    except Exception as error:
        if is_exhaustion(error):
            raise
        # An image with damaged metadata is still an image.
        return image
    return image if turn is None else image.transpose(turn)


def _leave_out_long_metadata(image: Image.Image) -> None:
    for name in ("exif", "xmp", "XML:com.adobe.xmp"):
        if len(image.info.get(name) or b"") > MOST_EXIF_BYTES:
            del image.info[name]
    exif = image.info.get("exif")
    if isinstance(exif, bytes):
        check_tags(exif.removeprefix(b"Exif\0\0"))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        return _in_strips(image, lambda values: values >> 8).convert("RGB")
    if image.mode in ("I", "F"):
        return _stretched(image).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _stretched(image: Image.Image) -> Image.Image:
    """32-bit grey has no agreed white: its own range is spread over 0 to 255."""
    import numpy as np

    def finite(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)

    ends = [(strip.min(), strip.max()) for strip in map(finite, _strips(image))]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    scale = 255.0 / max(high - low, 1e-12)
    return _in_strips(image, lambda strip: (finite(strip) - low) * scale)


def _in_strips(image: Image.Image, grey: Callable[[NDArray[Any]], NDArray[Any]]) -> Image.Image:
    """Grey of 8 bits, some rows at a time, so that wide numbers take little room."""
    import numpy as np

    found, top = Image.new("L", image.size), 0
    for strip in _strips(image):
        found.paste(Image.fromarray(grey(strip).astype(np.uint8)), (0, top))
        top += len(strip)
    return found


def _strips(image: Image.Image) -> Iterator[NDArray[Any]]:
    import numpy as np

    rows = max(1, _PIXELS_AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        yield np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
