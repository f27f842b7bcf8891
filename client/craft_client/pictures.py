"""Pictures as programs have them, made into the encoded files that travel.

What is a file already travels as it is, byte for byte; pixels become PNG, which loses nothing:

- `bytes`, `bytearray`, `memoryview`: an encoded file (JPEG, PNG, ...).
- `str`, `pathlib.Path`: the path of one.
- a dict with `bytes` or `path`: a row of a Hugging Face `datasets` image column that was not
  decoded. `bytes` come first, as there.
- a PIL image: turned upright as its EXIF orientation says, as the server turns files. Grey,
  palette, RGB, alpha and 16-bit grey ("I;16") are kept, other colour spaces become RGB, and 32-bit
  grey ("I", "F"), which has no agreed white, is refused.
- a NumPy array: [H, W] or [H, W, C], channels last.
- a torch tensor, on any device: [H, W] or [C, H, W], channels first.

In arrays and tensors C is 1 (grey), 3 (RGB, in this order) or 4 (RGB and alpha, which the server
drops). `uint8` is from 0 to 255, floating-point from 0 to 1 and rounded to 255 steps, `bool` black
or white. Anything else is refused rather than guessed: values beyond these ranges, which normalised
pictures have, other integers, and channels on the wrong side.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from craft_client.exceptions import DataError
from craft_shared.problems import FieldError

if TYPE_CHECKING:
    from PIL.Image import Image

    from craft_shared.image_view import View

# What is listed above. Tensors and PIL images cannot be named without importing them.
Picture: TypeAlias = (
    "bytes | bytearray | memoryview | str | PathLike[str] | Mapping[str, Any] | NDArray[Any] | Any"
)

_CHANNELS = (1, 3, 4)
_KEPT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16"})
_GREY_WITHOUT_WHITE = frozenset({"I", "F"})
_FORMS = (
    "Give a path, an encoded file, a PIL image, an array [H, W] or [H, W, 3], or a tensor "
    "[3, H, W]."
)


def files(pictures: Iterable[Picture], field: str = "images") -> Iterator[bytes]:
    """Encoded files of pictures, lazily, one at a time.

    Args:
        pictures: a list, an iterator, a column of a data set, or an array or tensor of N pictures.
        field: what messages call it.

    Raises:
        DataError: it is one picture and not several, or one of them cannot be used.
    """
    if isinstance(pictures, str | bytes | bytearray | memoryview | PathLike | Mapping) or _is_image(
        pictures
    ):
        raise _unusable(field, "is one picture.", "Give a list of pictures.")
    if isinstance(pictures, np.ndarray) or _is_tensor(pictures):
        _check_batch(pictures, field)
    return (file(picture, f"{field}[{row}]") for row, picture in enumerate(pictures))


def file(picture: Picture, field: str = "image") -> bytes:
    """The encoded file of one picture, in any of the module's forms; messages call it `field`.

    Raises:
        DataError: it cannot be used; the message names the field and what would do.
    """
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    if isinstance(picture, str | PathLike):
        return _read(picture, field)
    if isinstance(picture, Mapping):
        return _of_row(picture, field)
    if _is_tensor(picture):
        picture = _channels_last(picture, field)
    if isinstance(picture, np.ndarray):
        return _png(_image(picture, field))
    if _is_image(picture):
        return _png(_drawable(picture, field))
    raise _unusable(field, f"is a {type(picture).__name__}.", _FORMS)


def pixels(picture: Picture, view: View, field: str = "image") -> NDArray[np.uint8]:
    """A picture as a model sees it: RGB, uint8 [height, width, 3].

    An image that has the model's size is not changed.

    Raises:
        DataError: it cannot be used.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(file(picture, field))) as image:
            rgb = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise _unusable(field, f"cannot be read: {error}.", "Save it anew, as PNG.") from error
    seen: NDArray[np.uint8] = np.asarray(view.of(rgb))
    return seen


def _read(path: str | PathLike[str], field: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _unusable(field, f"'{path}': {reason}.", "Name a file that can be read.") from error


def _of_row(row: Mapping[str, Any], field: str) -> bytes:
    if row.get("bytes") is not None:
        return file(row["bytes"], f"{field}['bytes']")
    if row.get("path") is not None:
        return file(row["path"], f"{field}['path']")
    raise _unusable(
        field,
        "is a dict with neither 'bytes' nor 'path'.",
        "Give a row of an image column, or what its 'image' holds.",
    )


def _is_image(value: object) -> bool:
    # Whoever has an image of PIL's has imported it.
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def _is_tensor(value: object) -> bool:
    module = sys.modules.get("torch")
    return module is not None and isinstance(value, module.Tensor)


def _check_batch(pictures: Any, field: str) -> None:
    """Refuses one coloured picture in the place of several, whose rows would pass for grey ones."""
    shape = tuple(pictures.shape)
    side = shape[-1] if isinstance(pictures, np.ndarray) else shape[0] if shape else 0
    if len(shape) < 3 or (len(shape) == 3 and side in _CHANNELS):
        raise _unusable(
            field,
            f"has the shape {list(shape)}, as one picture has.",
            "Give a list of pictures, or an array with a further axis before the others.",
        )


def _channels_last(tensor: Any, field: str) -> NDArray[Any]:
    tensor = tensor.detach().cpu()
    if tensor.ndim == 3:
        if tensor.shape[0] not in _CHANNELS:
            hint = " The channels come first." if tensor.shape[2] in _CHANNELS else ""
            raise _unusable(
                field,
                f"is a tensor of shape {list(tensor.shape)}.",
                f"Give [H, W], or [C, H, W] with C of 1, 3 or 4.{hint}",
            )
        tensor = tensor.permute(1, 2, 0)
    # NumPy has no bfloat16; single precision holds all of it.
    pixels: NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return pixels


def _image(pixels: NDArray[Any], field: str) -> Image:
    from PIL import Image

    if not pixels.size or not (
        pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in _CHANNELS)
    ):
        first = pixels.ndim == 3 and pixels.shape[0] in _CHANNELS
        hint = " The channels come last: np.moveaxis(array, 0, -1)." if first else ""
        raise _unusable(
            field,
            f"is an array of shape {list(pixels.shape)}.",
            f"Give [H, W], or [H, W, C] with C of 1, 3 or 4.{hint}",
        )
    levels = _levels(pixels, field)
    return Image.fromarray(levels[:, :, 0] if levels.shape[2:] == (1,) else levels)


def _levels(pixels: NDArray[Any], field: str) -> NDArray[np.uint8]:
    """Values as 0 to 255."""
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if pixels.dtype == np.bool_:
        return np.where(pixels, np.uint8(255), np.uint8(0))
    if not np.issubdtype(pixels.dtype, np.floating):
        raise _unusable(
            field,
            f"has values of type {pixels.dtype}.",
            "Give uint8 from 0 to 255, or floating-point from 0 to 1.",
        )
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise _unusable(
            field,
            f"has floating-point values from {low:g} to {high:g}.",
            "They go from 0 to 1: undo a normalisation, or divide by 255.",
        )
    levels: NDArray[np.uint8] = np.rint(pixels.astype(np.float32) * 255).astype(np.uint8)
    return levels


def _drawable(image: Image, field: str) -> Image:
    from PIL import ImageOps

    if image.mode in _GREY_WITHOUT_WHITE:
        raise _unusable(
            field,
            f"is a PIL image of mode '{image.mode}', whose white is not known.",
            "Scale it to 0 to 255 and convert it to 'L'.",
        )
    upright = ImageOps.exif_transpose(image)
    return upright if upright.mode in _KEPT_MODES else upright.convert("RGB")


def _png(image: Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _unusable(field: str, message: str, remedy: str) -> DataError:
    return DataError(
        "The pictures cannot be used.",
        errors=[FieldError(field=field, message=message, remedy=remedy)],
    )
