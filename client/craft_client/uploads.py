"""Pictures in bodies: grouped so that every call keeps within a model's limits.

It knows sizes and limits; it does not know what a picture shows, nor how a body is sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from craft_client.exceptions import InvalidImage, LimitExceeded
from craft_shared.wire import Limits

# Room in an upload's body for the safetensors header and the document.
_HEADER_ROOM = 1024
_SIZE_BYTES = 8

T = TypeVar("T")


def picture_chunks(images: Iterable[bytes], limits: Limits) -> Iterator[list[bytes]]:
    """Groups pictures, lazily, into bodies that keep within the limits.

    Raises:
        LimitExceeded: a picture is too large.
    """

    def checked() -> Iterator[bytes]:
        for number, picture in enumerate(images):
            check_picture(picture, number, limits)
            yield picture

    return bodies(checked(), len, limits)


def bodies(
    pictures: Iterable[T],
    size_of: Callable[[T], int],
    limits: Limits,
    most: int | None = None,
) -> Iterator[list[T]]:
    """Groups what stands for pictures of a size in bytes, lazily, as `picture_chunks` does.

    `most` further bounds how many there are in a body.
    """
    most = min(limits.images_per_call, most or limits.images_per_call)
    chunk: list[T] = []
    size = 0
    for picture in pictures:
        length = size_of(picture) + _SIZE_BYTES
        full = len(chunk) == most
        if chunk and (full or size + length > limits.body_bytes - _HEADER_ROOM):
            yield chunk
            chunk, size = [], 0
        chunk.append(picture)
        size += length
    if chunk:
        yield chunk


def check_picture(picture: bytes, number: int, limits: Limits) -> None:
    """Raises LimitExceeded where one picture, `images[number]`, is too large."""
    if len(picture) > limits.image_bytes:
        raise LimitExceeded(
            f"images[{number}]: the picture has {len(picture)} bytes; the server accepts "
            f"{limits.image_bytes}.",
            remedy="Save it smaller; the model does not look at more than a few hundred pixels.",
        )


def check_count(count: int, limits: Limits) -> None:
    """Raises LimitExceeded where an image set would hold too many pictures."""
    if count > limits.images_per_set:
        raise LimitExceeded(
            f"The image set would hold {count} pictures; the server accepts "
            f"{limits.images_per_set}.",
            remedy="Use several image sets, or fewer pictures.",
        )


def renumbered(error: InvalidImage, first: int) -> InvalidImage:
    """The error of a chunk whose first picture is `images[first]` of all."""
    errors = [
        field.model_copy(
            update={
                "field": re.sub(
                    r"^images\[(\d+)\]", lambda m: f"images[{int(m[1]) + first}]", field.field
                )
            }
        )
        for field in error.problem.errors
    ]
    return InvalidImage(error.problem.model_copy(update={"errors": errors}))
