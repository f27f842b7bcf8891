"""Requests' bodies: JSON or safetensors in, one message with its codes and images out.

How many bytes there may be is bounded before (`BodyGate`), and how many values before anything is
parsed. Each body is parsed once, on a thread. Checks of what a value means are the calls'.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from craft_server.api.middleware import JSON_TYPE, media_type_of
from craft_server.api.openapi import refuses, takes
from craft_server.api.services import WithServices
from craft_server.problems import (
    MAX_ERRORS,
    ProblemError,
    field_errors,
    invalid_field,
    invalid_request,
)
from craft_shared import codec, problems
from craft_shared.problems import FieldError
from craft_shared.strict_json import JsonError, TooManyValues, parse_object, with_whole_numbers
from craft_shared.wire import Limits

# With which a body may be refused, whatever it should hold.
REFUSALS = (
    problems.MALFORMED_BODY,
    problems.BODY_TOO_LARGE,
    problems.UNSUPPORTED_MEDIA_TYPE,
    problems.INVALID_REQUEST,
)
_NUMBERS = frozenset((int, float))

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Body(Generic[M]):
    """A request's body."""

    message: M  # the document; its fields `codes` and `images` are None
    codes: NDArray[np.float32] | None  # [K, dim], if the body has some
    files: list[bytes] | None  # images' bytes, if the body has some


def body_of(model: type[M]) -> Callable[..., Awaitable[Body[M]]]:
    """A dependency that reads a request's body as a `model`."""

    @takes(model)
    @refuses(*REFUSALS)
    async def read(request: Request, services: WithServices) -> Body[M]:
        media_type = media_type_of(request.headers)
        if media_type not in (JSON_TYPE, codec.MEDIA_TYPE):
            raise unsupported(media_type, f"{JSON_TYPE} or {codec.MEDIA_TYPE}")
        data = await read_bytes(request)
        parse = _parse_json if media_type == JSON_TYPE else _parse_safetensors
        return await asyncio.to_thread(parse, data, model, services.settings.limits)

    return read


async def read_bytes(request: Request) -> bytes:
    """The whole body.

    Raises:
        ProblemError: it is too large, it is compressed, or the client went away.
    """
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise ProblemError(
            problems.UNSUPPORTED_MEDIA_TYPE,
            f"the body's content encoding is '{coding[:100]}'; bodies are taken as they are",
        )
    try:
        return await request.body()
    except ClientDisconnect as error:
        raise ProblemError(
            problems.MALFORMED_BODY, "the body ended before it was complete"
        ) from error


def unsupported(media_type: str, expected: str) -> ProblemError:
    """The body's media type is not one that the call takes."""
    given = f"'{media_type[:100]}'" if media_type else "missing"
    return ProblemError(
        problems.UNSUPPORTED_MEDIA_TYPE, f"the content type is {given}; this call takes {expected}"
    )


def _parse_json(data: bytes, model: type[M], limits: Limits) -> Body[M]:
    try:
        document = parse_object(data, max_values=limits.json_values)
        # Neither is part of the message, and of codes there are many.
        codes = document.pop("codes", None) if "codes" in model.model_fields else None
        images = document.pop("images", None) if "images" in model.model_fields else None
        document = with_whole_numbers(document)
    except TooManyValues as error:
        raise ProblemError(problems.BODY_TOO_LARGE, f"the body may hold {error}") from error
    except JsonError as error:
        raise ProblemError(
            problems.MALFORMED_BODY, f"the body is not valid JSON: {error}"
        ) from error
    return Body(
        _validate(document, model),
        None if codes is None else _codes_from_lists(codes),
        None if images is None else _files_from_base64(images, limits),
    )


def _parse_safetensors(data: bytes, model: type[M], limits: Limits) -> Body[M]:
    try:
        document, tensors = codec.decode(data, max_values=limits.json_values)
    except codec.CodecError as error:
        raise ProblemError(problems.MALFORMED_BODY, str(error)) from error
    message = _validate(document, model)
    for field in ("codes", "images"):
        if getattr(message, field, None) is not None:
            raise invalid_field(
                field,
                "in a safetensors body this field is a tensor, not a part of the document",
                "Send codes as the tensor 'codes', images as 'files' and 'file_sizes'.",
            )
    codes = tensors.pop("codes", None) if "codes" in model.model_fields else None
    files = None
    if "images" in model.model_fields and ("files" in tensors or "file_sizes" in tensors):
        files = _unpacked(tensors, limits)
        del tensors["files"], tensors["file_sizes"]
    if tensors:
        raise invalid_request(
            [
                FieldError(
                    field=name[:100],
                    message="this call takes no such tensor",
                    remedy="Leave the tensor out.",
                )
                for name in tensors
            ]
        )
    return Body(message, None if codes is None else _codes_from_tensor(codes), files)


def _validate(document: dict[str, Any], model: type[M]) -> M:
    try:
        # Strictly, as the API's description has it: neither "8" nor true is a number.
        return model.model_validate(document, strict=True)
    except ValidationError as error:
        raise _refusal(error, document, model) from error


def _refusal(error: ValidationError, document: dict[str, Any], model: type[M]) -> ProblemError:
    """What is wrong, in words. They take longer than to find it: no more than are shown."""
    count = error.error_count()
    if count > MAX_ERRORS:
        try:
            model.model_validate(_beginning(document), strict=True)
        except ValidationError as first:
            error = first
        else:
            return ProblemError(problems.INVALID_REQUEST, f"{count} values are not valid")
    details = error.errors(include_url=False, include_input=False, include_context=False)
    return invalid_request(field_errors(details, model))


def _beginning(value: Any) -> Any:
    """The first few items of each list and object."""
    if isinstance(value, dict):
        return {name: _beginning(value[name]) for name in islice(value, MAX_ERRORS)}
    if isinstance(value, list):
        return [_beginning(item) for item in value[:MAX_ERRORS]]
    return value


def _codes_from_lists(value: Any) -> NDArray[np.float32]:
    remedy = "Send one list of numbers for each prompt, all of the length context.dim."
    if not isinstance(value, list) or not all(
        isinstance(row, list) and _NUMBERS.issuperset(map(type, row)) for row in value
    ):
        raise invalid_field("codes", "this is not a list of lists of numbers", remedy)
    if not value:
        return np.zeros((0, 0), np.float32)
    if len({len(row) for row in value}) > 1:
        raise invalid_field("codes", "the rows differ in length", remedy)
    with np.errstate(over="ignore"):  # a number too large becomes infinite, which is refused
        try:
            return np.array(value, np.float64).astype(np.float32)
        except OverflowError as error:  # an integer past double precision
            raise invalid_field("codes", "a number is too large", remedy) from error


def _codes_from_tensor(tensor: NDArray[Any]) -> NDArray[np.float32]:
    if tensor.dtype.kind != "f" or tensor.ndim != 2:
        raise invalid_field(
            "codes",
            f"the tensor is {tensor.dtype} with {tensor.ndim} axes",
            "Send a float32 tensor of shape [prompts, dim].",
        )
    return tensor.astype(np.float32)


def file_from_base64(text: object, field: str = "images[0]") -> bytes:
    """An image file's bytes.

    Raises:
        ProblemError: it is not base64; `field` is named.
    """
    try:
        if not isinstance(text, str):
            raise ValueError("not a string")
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _not_base64([field]) from error


def _not_base64(fields: Sequence[str]) -> ProblemError:
    errors = [
        FieldError(
            field=field,
            message="this is not base64",
            remedy="Send the image file's bytes as a base64 string.",
        )
        for field in fields
    ]
    return ProblemError(problems.INVALID_IMAGE, f"{len(errors)} images are not base64", errors)


def _files_from_base64(value: Any, limits: Limits) -> list[bytes]:
    if not isinstance(value, list):
        raise invalid_field("images", "this is not a list", "Send a list of base64 strings.")
    _check_count(len(value), limits)
    files, faulty = [], []
    for index, text in enumerate(value):
        field = f"images[{index}]"
        try:
            files.append(file_from_base64(text, field))
        except ProblemError:
            faulty.append(field)
    if faulty:
        raise _not_base64(faulty)
    return files


def _unpacked(tensors: codec.Tensors, limits: Limits) -> list[bytes]:
    if "file_sizes" in tensors:
        _check_count(tensors["file_sizes"].size, limits)
    try:
        return codec.unpack_files(tensors)
    except codec.CodecError as error:
        raise invalid_field(
            "file_sizes", str(error), "Pack images as the API description says."
        ) from error


def _check_count(count: int, limits: Limits) -> None:
    """Before each is looked at."""
    if count > limits.images_per_call:
        raise invalid_field(
            "images",
            f"{count} images; {limits.images_per_call} are allowed",
            "Send fewer in one call.",
        )
