"""Answers with a tensor: JSON, or safetensors where the client asks for it by `Accept`.

A tensor is encoded before the call is settled, so that what can fail has been done by then.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from fastapi import Request
from fastapi.responses import Response
from numpy.typing import NDArray
from pydantic import BaseModel

from craft_shared import codec

DType = Literal["float32", "float16"]

JSON_TYPE = "application/json"
JSON_BYTES_A_NUMBER = 26  # the longest float32 as text, such as -1.1754943508222875e-38, and more
_NUMBERS_A_PIECE = 1 << 16


class TensorAnswer:
    """An answer whose tensor is encoded and whose document is still to come."""

    def __init__(self, log_probs: NDArray[Any], text: bytes | None) -> None:
        self._log_probs = log_probs
        self._text = text

    async def with_document(self, document: BaseModel) -> Response:
        """The response: `document`, whose field `log_probs` the tensor takes."""
        fields = document.model_dump(mode="json", exclude={"log_probs"})
        if self._text is None:
            data = await asyncio.to_thread(codec.encode, fields, {"log_probs": self._log_probs})
            return Response(data, media_type=codec.MEDIA_TYPE)
        head = json.dumps(fields, separators=(",", ":")).removesuffix("}").encode()
        body = b"".join((head, b',"log_probs":', self._text, b"}"))
        return Response(body, media_type=JSON_TYPE)


def json_response(document: BaseModel, *, status: int = 200) -> Response:
    """The response that carries a document without a tensor."""
    return Response(document.model_dump_json(), status_code=status, media_type=JSON_TYPE)


async def encode_log_probs(request: Request, log_probs: NDArray[Any]) -> TensorAnswer:
    """Encodes the tensor as the request wants it."""
    if wants_safetensors(request):
        return TensorAnswer(log_probs, None)
    return TensorAnswer(log_probs, await asyncio.to_thread(_json_of, log_probs))


def wants_safetensors(request: Request) -> bool:
    """Whether `Accept` names safetensors and does not refuse it (RFC 9110, section 12.5.1)."""
    for media_range in request.headers.get("accept", "").split(","):
        media_type, *parameters = (part.strip().lower() for part in media_range.split(";"))
        if media_type == codec.MEDIA_TYPE:
            return not any(_is_zero_weight(parameter) for parameter in parameters)
    return False


def answer_bytes(request: Request, numbers: int, dtype: DType) -> int:
    """An upper bound of an answer's tensor of so many numbers, in bytes."""
    return numbers * (
        np.dtype(dtype).itemsize if wants_safetensors(request) else JSON_BYTES_A_NUMBER
    )


def _is_zero_weight(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    return name.strip() == "q" and value.strip(" 0.") == ""


def _json_of(array: NDArray[Any]) -> bytes:
    return b"".join(_json_pieces(array))


def _json_pieces(array: NDArray[Any]) -> Iterator[bytes]:
    # The C encoder holds the interpreter lock: small pieces let the event loop run between them.
    if array.ndim == 1 or array.size <= _NUMBERS_A_PIECE:
        yield json.dumps(array.tolist(), separators=(",", ":")).encode()
        return
    for index, part in enumerate(array):
        yield b"," if index else b"["
        yield from _json_pieces(part)
    yield b"]"
