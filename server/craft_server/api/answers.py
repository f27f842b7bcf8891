"""What a call's answer shows by the key's policy, how large it may be, and how it travels."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.responses import Response
from numpy.typing import NDArray
from pydantic import BaseModel

from craft_server.api.idempotency import Call, output_again
from craft_server.api.inputs import ImageSelection, digests_of
from craft_server.api.middleware import JSON_TYPE, accepts
from craft_server.engine import Prompts, prompt_identity
from craft_server.image_sets import read_digests
from craft_server.noise import Noise
from craft_server.policy import Policy, answerable, narrowed, note_prompts
from craft_server.problems import invalid_field
from craft_shared import codec
from craft_shared.codec import Tensors
from craft_shared.output import DType, ranked, shown_bytes
from craft_shared.wire import Output

# The longest number as text, such as -1.1754943508222875e-38, with its comma and brackets.
_JSON_BYTES = {"float32": 28, "float16": 28, "int32": 15}
# Fields of documents that tensors take.
_TENSORS = {"log_probs", "probs", "top_classes", "abstained", "labels"}
# Of a label with its probability, beside the label itself.
_LABEL_BYTES = 40
_NUMBERS_A_PIECE = 1 << 16


def checked_output(call: Call, policy: Policy, top_k: int | None, classes: int) -> Output:
    """The level of the answer to a call; one that is sent again has had an answer of some level.

    Raises:
        ProblemError: there are fewer classes than are asked for.
        AnswerGone: the first answer was of a level that the policy shows no more.
    """
    if top_k is not None and top_k > classes:
        raise invalid_field(
            "top_k",
            f"{top_k}; there are {classes} classes",
            f"Ask for at most {classes}, or leave top_k out for all of them.",
        )
    return output_again(call.first, narrowed(policy.output, top_k))


async def noise_of(
    call: Call,
    policy: Policy,
    output: Output,
    prompts: Prompts,
    classes: Sequence[str],
    selection: ImageSelection,
    *,
    visual: NDArray[np.float32] | None = None,
    counted: bool = True,
) -> Noise | None:
    """The noise that is added to the log-probabilities of an answer; None for none.

    Prompts are noted where their number is bounded, if they are the caller's choice (`counted`).
    An image with a `visual` prompt is another image than without, or with another one.

    Raises:
        PromptLimitReached: the key may not ask so many; none was noted.
    """
    limit = policy.prompts_per_image_set if counted else None
    if not output.noise and limit is None:
        return None  # digests take time
    services, caller, image_set = call.services, call.caller, selection.image_set
    texts = await services.engine.text_identities(prompts, classes, tenant=caller.tenant)
    images = await asyncio.to_thread(digests_of, selection.files)
    if visual is not None:
        # Of whole grey levels, since images have no others.
        levels = np.rint(visual).astype(np.int16).tobytes()
        images = digests_of([bytes.fromhex(digest) + levels for digest in images])
    if limit is not None:
        of = [f"sha256:{digest}" for digest in images] if image_set is None else [image_set.id]
        identities = [prompt_identity(prompt) for prompt in texts]
        # The disk has it with the settlement at the latest.
        await services.database.write_deferred(
            note_prompts, caller.owner, of, identities, limit=limit
        )
    if not output.noise:
        return None
    if image_set is not None:
        images = await services.database.read(read_digests, image_set, selection.rows)
    return await asyncio.to_thread(
        Noise.of,
        services.noise_secret,
        caller.owner,
        output.noise,
        images=[bytes.fromhex(digest) for digest in images],
        texts=texts,
    )


async def answer_of_parts(
    parts: AsyncIterator[tuple[slice, slice, NDArray[np.float32]]],
    output: Output,
    noise: Noise | None,
    *,
    prompts: int,
    images: int,
    dtype: DType,
) -> Tensors:
    """`craft_server.policy.answerable` of scores that come in parts and are never held as a whole.

    The parts are as `HostedModel.score_parts` yields them; `prompts` and `images` are numbers.
    """
    found: Tensors = {}

    def answer(rows: slice, columns: slice, part: NDArray[np.float32]) -> Tensors:
        added = None if noise is None else noise.at(rows, columns)
        return answerable(part, output, added, dtype)

    async for some_prompts, some_images, part in parts:
        shown = await asyncio.to_thread(answer, some_prompts, some_images, part)
        for name, tensor in shown.items():
            if name not in found:
                found[name] = np.empty((prompts, images, tensor.shape[-1]), tensor.dtype)
            found[name][some_prompts, some_images] = tensor
    return found


async def tensor_response(
    request: Request, document: BaseModel, tensors: codec.Tensors
) -> Response:
    """The response that carries a document, whose tensors' fields the tensors take."""
    fields = document.model_dump(mode="json", exclude=_TENSORS)
    if wants_safetensors(request):
        data = await asyncio.to_thread(codec.encode, fields, tensors)
        return Response(data, media_type=codec.MEDIA_TYPE)
    parts = {name: await asyncio.to_thread(_json_of, tensor) for name, tensor in tensors.items()}
    return _json_with(fields, parts)


async def labels_response(
    document: BaseModel, tensors: codec.Tensors, classes: Sequence[str]
) -> Response:
    """The response that carries a document and the classes' names with their probabilities."""
    fields = document.model_dump(mode="json", exclude=_TENSORS)
    parts = {"labels": await asyncio.to_thread(labels_json, tensors, classes)}
    if "abstained" in tensors:
        parts["abstained"] = _json_of(tensors["abstained"])
    return _json_with(fields, parts)


def labels_json(tensors: codec.Tensors, classes: Sequence[str]) -> bytes:
    """What an answer shows [..., k] as lists of `craft_shared.wire.LabelScore`, the best first."""
    heads = [f'{{"label":{json.dumps(name)},"score":' for name in classes]

    def text(order: NDArray[np.int32], numbers: NDArray[np.float64] | None) -> str:
        if order.ndim > 1:
            rows = range(len(order))
            inner = (text(order[row], None if numbers is None else numbers[row]) for row in rows)
        elif numbers is None:
            inner = (f"{heads[column]}null}}" for column in order)
        else:
            pairs = zip(order, numbers, strict=True)
            inner = (f"{heads[column]}{number:.7g}}}" for column, number in pairs)
        return f"[{','.join(inner)}]"

    return text(*ranked(tensors)).encode()


def _json_with(fields: dict[str, Any], parts: Mapping[str, bytes]) -> Response:
    """A document as JSON, with further fields that are JSON already."""
    pieces = [json.dumps(fields, separators=(",", ":")).removesuffix("}").encode()]
    for name, part in parts.items():
        pieces += [f',"{name}":'.encode(), part]
    return Response(b"".join((*pieces, b"}")), media_type=JSON_TYPE)


def json_response(document: BaseModel, *, status: int = 200) -> Response:
    """The response that carries a document without a tensor."""
    return Response(document.model_dump_json(), status_code=status, media_type=JSON_TYPE)


def wants_safetensors(request: Request) -> bool:
    """Whether `Accept` names safetensors and does not refuse it (RFC 9110, section 12.5.1)."""
    return accepts(request.headers.get("accept", ""), codec.MEDIA_TYPE)


def check_answer_size(
    call: Call,
    rows: int,
    classes: Sequence[str],
    output: Output,
    field: str,
    *,
    dtype: DType = "float32",
    labels: bool = False,
) -> None:
    """Raises ProblemError, which blames `field`, if an answer's numbers could be too large.

    There are `rows` distributions over the classes, whose names are answered with `labels`.
    """
    if labels:
        size = rows * _labels_bytes(output, classes)
    else:
        sizes = _JSON_BYTES
        if wants_safetensors(call.request):
            sizes = {name: np.dtype(name).itemsize for name in _JSON_BYTES}
        size = rows * shown_bytes(output, len(classes), sizes[dtype], sizes["int32"])
    allowed = call.services.settings.limits.answer_bytes
    if size > allowed:
        raise invalid_field(
            field,
            f"the answer would take up to {size} bytes; {allowed} are allowed",
            "Ask for fewer images or prompts in one call, for float16, for safetensors, or for a "
            "small top_k.",
        )


def _labels_bytes(output: Output, classes: Sequence[str]) -> int:
    shown = 1 if output.level == "label" else output.k or len(classes)
    longest = sorted((len(json.dumps(name)) for name in classes), reverse=True)[:shown]
    return sum(longest) + len(longest) * _LABEL_BYTES


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
