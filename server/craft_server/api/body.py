"""Requests' bodies: JSON or safetensors in, one message with its codes and pictures out.

It knows media types and the syntax of both; what a value means is checked by the calls. Parsing
happens on a thread. What a body says about tensors and pictures ends up the same for both types.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from craft_server.problems import ProblemError, field_errors, invalid_field, invalid_request
from craft_shared import codec
from craft_shared.problems import INVALID_IMAGE, MALFORMED_BODY, UNSUPPORTED_MEDIA_TYPE, FieldError

JSON_TYPE = "application/json"

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Body(Generic[M]):
    """A request's body.

    Attributes:
        message: the document; its fields `codes` and `images` are None.
        codes: float32 [K, dim], or None where the body has none.
        files: pictures' bytes, or None where the body has none.
    """

    message: M
    codes: NDArray[np.float32] | None
    files: list[bytes] | None


def body_of(model: type[M]) -> Callable[[Request], Awaitable[Body[M]]]:
    """A dependency that reads a request's body as a `model`."""

    async def read(request: Request) -> Body[M]:
        media_type = content_type(request)
        if media_type not in (JSON_TYPE, codec.MEDIA_TYPE):
            raise unsupported(media_type, f"{JSON_TYPE} or {codec.MEDIA_TYPE}")
        data = await read_bytes(request)
        parse = _parse_json if media_type == JSON_TYPE else _parse_safetensors
        return await asyncio.to_thread(parse, data, model)

    return read


async def read_bytes(request: Request) -> bytes:
    """The whole body.

    Raises:
        ProblemError: it is too large, it is compressed, or the client went away.
    """
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise ProblemError(
            UNSUPPORTED_MEDIA_TYPE,
            f"the body's content encoding is '{coding[:100]}'; bodies are taken as they are",
        )
    try:
        return await request.body()
    except ClientDisconnect as error:
        raise ProblemError(MALFORMED_BODY, "the body ended before it was complete") from error


def content_type(request: Request) -> str:
    """The body's media type without parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def unsupported(media_type: str, expected: str) -> ProblemError:
    """The body's media type is not one that the call takes."""
    given = f"'{media_type[:100]}'" if media_type else "missing"
    return ProblemError(
        UNSUPPORTED_MEDIA_TYPE, f"the content type is {given}; this call takes {expected}"
    )


def _parse_json(data: bytes, model: type[M]) -> Body[M]:
    document = _strict_json(data)
    codes = document.pop("codes", None) if "codes" in model.model_fields else None
    images = document.pop("images", None) if "images" in model.model_fields else None
    return Body(
        _validate(document, model),
        None if codes is None else _codes_from_lists(codes),
        None if images is None else _files_from_base64(images),
    )


def _parse_safetensors(data: bytes, model: type[M]) -> Body[M]:
    try:
        document, tensors = codec.decode(data)
    except ValueError as error:
        raise ProblemError(MALFORMED_BODY, str(error)) from error
    message = _validate(document, model)
    for field in ("codes", "images"):
        if getattr(message, field, None) is not None:
            raise invalid_field(
                field,
                "in a safetensors body this field is a tensor, not a part of the document",
                "Send codes as the tensor 'codes', pictures as 'files' and 'file_sizes'.",
            )
    codes = tensors.pop("codes", None) if "codes" in model.model_fields else None
    files = None
    if "images" in model.model_fields and ("files" in tensors or "file_sizes" in tensors):
        files = _unpacked(tensors)
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


def _strict_json(data: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("an object names a field twice")
        return dict(pairs)

    def no_constant(name: str) -> float:
        raise ValueError(f"{name} is not JSON")

    def number(text: str) -> float:
        value = float(text)
        # To JSON Schema 8.0 is an integer, and a client may write it so.
        return int(value) if value.is_integer() and abs(value) < 2**63 else value

    try:
        value = json.loads(
            data, object_pairs_hook=unique, parse_constant=no_constant, parse_float=number
        )
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ProblemError(MALFORMED_BODY, f"the body is not valid JSON: {reason[:200]}") from error
    if not isinstance(value, dict):
        raise ProblemError(MALFORMED_BODY, "the body is not a JSON object")
    return value


def _validate(document: dict[str, Any], model: type[M]) -> M:
    try:
        text = json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ProblemError(MALFORMED_BODY, "a text holds half of a surrogate pair") from error
    try:
        # Strictly, as the API's description has it: neither "8" nor true is a number.
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False, include_context=False)
        raise invalid_request(field_errors(details, model)) from error


def _codes_from_lists(value: Any) -> NDArray[np.float32]:
    remedy = "Send one list of numbers for each prompt, all of the length context.dim."
    if value == []:
        return np.zeros((0, 0), np.float32)
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise invalid_field("codes", "the rows differ in length", remedy) from error
    if array.dtype.kind not in "iuf" or array.ndim != 2:
        raise invalid_field("codes", "this is not a list of lists of numbers", remedy)
    with np.errstate(over="ignore"):  # a number too large becomes infinite, which is refused
        return array.astype(np.float32)


def _codes_from_tensor(tensor: NDArray[Any]) -> NDArray[np.float32]:
    if tensor.dtype.kind != "f" or tensor.ndim != 2:
        raise invalid_field(
            "codes",
            f"the tensor is {tensor.dtype} with {tensor.ndim} axes",
            "Send a float32 tensor of shape [prompts, dim].",
        )
    return tensor.astype(np.float32)


def _files_from_base64(value: Any) -> list[bytes]:
    if not isinstance(value, list):
        raise invalid_field("images", "this is not a list", "Send a list of base64 strings.")
    files, errors = [], []
    for index, text in enumerate(value):
        try:
            if not isinstance(text, str):
                raise ValueError("not a string")
            files.append(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError):
            errors.append(
                FieldError(
                    field=f"images[{index}]",
                    message="this is not base64",
                    remedy="Send the picture file's bytes as a base64 string.",
                )
            )
    if errors:
        raise ProblemError(INVALID_IMAGE, f"{len(errors)} pictures are not base64", errors)
    return files


def _unpacked(tensors: codec.Tensors) -> list[bytes]:
    try:
        return codec.unpack_files(tensors)
    except codec.CodecError as error:
        raise invalid_field(
            "file_sizes", str(error), "Pack pictures as the API description says."
        ) from error
