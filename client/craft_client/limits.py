"""What a model's limits allow in one call: images and bytes of a body, rows of an answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import httpx

from craft_client.calls import JSON_TYPE, Call, message, path, read_json
from craft_client.exceptions import InvalidImage, LimitExceeded, ProtocolError, problem_error
from craft_client.network import most_body_bytes
from craft_shared import codec, problems
from craft_shared.problems import Problem
from craft_shared.wire import ImageSet, ImageUpload, ImageUploadAnswer, Limits, ModelCard

# Room in an upload's body for the safetensors header and the document.
_HEADER_ROOM = 1024
_SIZE_BYTES = 8

T = TypeVar("T")


def with_body_bound(cards: Sequence[ModelCard]) -> list[ModelCard]:
    """The cards, none of which allows larger bodies than CRAFT_BODY_BYTES does."""
    most = most_body_bytes()
    if most is None:
        return list(cards)
    bounded = []
    for card in cards:
        body = {"body_bytes": min(most, card.limits.body_bytes)}
        bounded.append(card.model_copy(update={"limits": card.limits.model_copy(update=body)}))
    return bounded


def model_named(name: str | None, cards: Sequence[ModelCard]) -> ModelCard:
    """The card of that name; without a name the first one.

    Raises:
        ModelNotFound: there is none.
    """
    for card in cards:
        if name is None or card.name == name:
            return card
    hosted = ", ".join(f"'{card.name}'" for card in cards) or "none"
    wanted = f"There is no model '{name}'" if name else "There is no model"
    raise problem_error(
        Problem.of(problems.MODEL_NOT_FOUND, f"{wanted}; the server hosts {hosted}.")
    )


# --- answers --------------------------------------------------------------------------------------


def rows_per_call(limits: Limits, row_bytes: int, rows: int) -> int:
    """How many rows of an answer fit into one.

    Raises:
        LimitExceeded: not even one does.
    """
    at_once = limits.answer_bytes // row_bytes
    if at_once < 1:
        raise LimitExceeded(
            f"One picture's answer has {row_bytes} bytes; the server sends {limits.answer_bytes}.",
            remedy="Use fewer classes, or ask the provider to raise the limit.",
        )
    return max(1, min(at_once, rows))


# --- bodies ---------------------------------------------------------------------------------------


def image_chunks(images: Iterable[bytes], limits: Limits) -> Iterator[list[bytes]]:
    """Groups encoded images, lazily, into bodies that keep within the limits.

    Raises:
        LimitExceeded: an image is too large.
    """

    def checked() -> Iterator[bytes]:
        for number, image in enumerate(images):
            check_image(image, number, limits)
            yield image

    return bodies(checked(), len, limits)


def bodies(
    images: Iterable[T],
    size_of: Callable[[T], int],
    limits: Limits,
    most: int | None = None,
) -> Iterator[list[T]]:
    """Groups what stands for images of a size in bytes into bodies, lazily, of `most` at most."""
    most = min(limits.images_per_call, most or limits.images_per_call)
    chunk: list[T] = []
    size = 0
    for image in images:
        length = size_of(image) + _SIZE_BYTES
        full = len(chunk) == most
        if chunk and (full or size + length > limits.body_bytes - _HEADER_ROOM):
            yield chunk
            chunk, size = [], 0
        chunk.append(image)
        size += length
    if chunk:
        yield chunk


def images_per_body(limits: Limits, image_bytes: int) -> int:
    """How many images of so many bytes each one body holds, whatever else there is to say.

    Raises:
        LimitExceeded: not even one.
    """
    room = limits.body_bytes * 3 // 4 // (image_bytes + _SIZE_BYTES)
    if room < 1 or image_bytes > limits.image_bytes:
        raise LimitExceeded(
            f"An image of {image_bytes:,} bytes does not fit into a call.",
            remedy="Ask the provider to raise the limit, or use a recipe that makes no images.",
        )
    return min(limits.images_per_call, room)


def check_images(images: Sequence[Any], before: int, limits: Limits) -> None:
    """Raises LimitExceeded where images that follow `before` others are too many or too large."""
    for number, image in enumerate(images):
        if isinstance(image, bytes):
            check_image(image, number, limits)
    check_count(before + len(images), limits)


def check_image(image: bytes, number: int, limits: Limits) -> None:
    """Raises LimitExceeded where one encoded image, `images[number]`, is too large."""
    if len(image) > limits.image_bytes:
        raise LimitExceeded(
            f"images[{number}]: the picture has {len(image)} bytes; the server accepts "
            f"{limits.image_bytes}.",
            remedy="Save it smaller; the model does not look at more than a few hundred pixels.",
        )


def check_count(count: int, limits: Limits) -> None:
    """Raises LimitExceeded where an image set would hold too many images."""
    if count > limits.images_per_set:
        raise LimitExceeded(
            f"The image set would hold {count} pictures; the server accepts "
            f"{limits.images_per_set}.",
            remedy="Use several image sets, or fewer pictures.",
        )


def upload_call(image_set: ImageSet, chunk: Sequence[bytes], idempotency_key: str | None) -> Call:
    """The call that appends images; `idempotency_key` is of the whole upload."""
    document = message(ImageUpload, first_row=image_set.count).model_dump(exclude={"images"})
    return Call(
        "POST",
        path("image-sets", image_set.id, "images"),
        tensors=codec.encode(document, codec.pack_files(chunk)),
        accept=JSON_TYPE,
        idempotency_key=idempotency_key and f"{idempotency_key}-{image_set.count}",
    )


def upload_answer(
    response: httpx.Response, image_set: ImageSet, chunk: Sequence[bytes]
) -> ImageUploadAnswer:
    """The answer to a call that appended images.

    Raises:
        ProtocolError: it counts other images.
    """
    answer = read_json(ImageUploadAnswer, response)
    if answer.image_set.count != image_set.count + len(chunk):
        raise ProtocolError(
            f"The image set has {answer.image_set.count} pictures after {len(chunk)} were "
            f"added to {image_set.count}."
        )
    return answer


def renumbered(error: InvalidImage, first: int) -> InvalidImage:
    """The error of a chunk whose first image is `images[first]` of all."""

    def of_all(field: str) -> str:
        return re.sub(r"^images\[(\d+)\]", lambda m: f"images[{int(m[1]) + first}]", field)

    errors = [one.model_copy(update={"field": of_all(one.field)}) for one in error.problem.errors]
    return InvalidImage(error.problem.model_copy(update={"errors": errors}))
