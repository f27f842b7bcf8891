"""What a call's answer shows: its level, and tensors that go through the key's policy.

Noise and the bound on prompts depend on who asks about which images and texts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np
from numpy.typing import NDArray

from craft_server.api.idempotency import Call
from craft_server.api.images import Selection, digests_of
from craft_server.api.resolution import output_again
from craft_server.asked_prompts import Asking
from craft_server.engine import Prompts, prompt_identity
from craft_server.image_sets import read_digests
from craft_server.noise import Noise
from craft_server.policy import Policy, answerable, narrowed
from craft_server.problems import invalid_field
from craft_shared.codec import Tensors
from craft_shared.output import DType
from craft_shared.wire import Output


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
    *,
    prompts: Prompts,
    classes: Sequence[str],
    selection: Selection,
    counted: bool = True,
) -> Noise | None:
    """The noise that is added to the log-probabilities of an answer; None for none.

    Prompts are noted where their number is bounded.

    Args:
        call: who asks.
        policy: of the caller's key.
        output: of the answer.
        prompts: that are scored.
        classes: texts that each of them scores.
        selection: the images.
        counted: whether the prompts are the caller's choice, and so count where they are bounded.

    Raises:
        PromptLimitReached: the key may not ask so many; none was noted.
    """
    limit = policy.prompts_per_image_set if counted else None
    if not output.noise and limit is None:
        return None  # digests take time
    services, caller = call.services, call.caller
    texts = await services.engine.text_identities(prompts, classes, tenant=caller.tenant)
    sent = await asyncio.to_thread(digests_of, selection.files)
    if limit is not None:
        of = [f"sha256:{digest}" for digest in sent]
        if selection.image_set is not None:
            of = [selection.image_set.id]
        identities = [prompt_identity(prompt) for prompt in texts]
        asking = Asking(caller.owner, of, identities, limit)
        # The disk has it with the settlement at the latest.
        await services.database.write_deferred(asking.note)
    if not output.noise:
        return None
    images = sent
    if selection.image_set is not None:
        images = await services.database.read(read_digests, selection.image_set, selection.rows)
    return await asyncio.to_thread(
        lambda: Noise.of(
            services.noise_secret,
            caller.owner,
            output.noise,
            pictures=[bytes.fromhex(digest) for digest in images],
            texts=texts,
        )
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

    Args:
        parts: prompts, images and log-probabilities, as `Engine.score_parts` yields them.
        output: the level of the answer.
        noise: that is added first; None for none.
        prompts: how many there are.
        images: how many there are.
        dtype: of numbers in the answer.
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
