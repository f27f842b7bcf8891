"""Policies: what an answer may reveal, and how many prompts may be asked.

A policy belongs to a key and a model. Every answer with numbers of the model goes through
`answerable`, whether it is a prompt's or an adapter's, before it is encoded or stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from pydantic import TypeAdapter

from craft_server.database import METADATA
from craft_server.image_sets import lock_owner
from craft_shared.codec import Tensors
from craft_shared.head import log_softmax
from craft_shared.output import DType, shown
from craft_shared.wire import EVERYTHING, KeyPolicy, Output

_STORED: TypeAdapter[list[KeyPolicy]] = TypeAdapter(list[KeyPolicy])


@dataclass(frozen=True)
class Policy:
    """What a key may see of a model. The default is everything."""

    output: Output = EVERYTHING  # the level, and the noise that comes before it
    # How many different prompts may be asked; None is not bounded.
    prompts_per_image_set: int | None = None

    def reads(self, output: Output) -> bool:
        """Whether a head may read scores of that level, its noise apart: the key has seen them.

        What a head makes of scores can be answered at another level, so that a head which read
        finer ones than its publisher may see would be a way around the level.
        """
        return self.output.whole or self.output.same_level(output)

    def within(self, other: Policy) -> bool:
        """Whether this shows nothing finer than the other, about no more prompts."""
        return within(self.output, other.output) and _at_most(
            self.prompts_per_image_set, other.prompts_per_image_set
        )


def policy_of(stored: str | None, model: str, otherwise: Policy = Policy()) -> Policy:
    """The policy for a model, of those that a key has (`with_policy`); `otherwise` without one."""
    for one in reversed(policies(stored)):
        if one.model in (None, model):
            return Policy(one.output, one.prompts_per_image_set)
    return otherwise


def policies(stored: str | None) -> list[KeyPolicy]:
    """What is stored of a key's policies: the one for all models first, then by model."""
    return [] if stored is None else _STORED.validate_json(stored)


def with_policy(stored: str | None, wanted: Sequence[KeyPolicy]) -> str:
    """What is to be stored once each wanted policy has taken the place of its model's."""
    by_model = {one.model: one for one in (*policies(stored), *wanted)}
    in_order = sorted(by_model.values(), key=lambda one: (one.model is not None, one.model or ""))
    return _STORED.dump_json(in_order).decode()


def narrowed(output: Output, top_k: int | None) -> Output:
    """The level of an answer to a request for the `top_k` most probable classes, or for all.

    A request can only narrow what the key may see.
    """
    if top_k is None or output.level == "label":
        return output
    k = top_k if output.k is None else min(output.k, top_k)
    level = "top_k" if output.level == "log_probs" else output.level
    return output.model_copy(update={"level": level, "k": k})


def within(output: Output, other: Output) -> bool:
    """Whether one level is no finer than the other."""
    if output.noise < other.noise:
        return False
    if output.level == "label":
        return True
    if output.level == other.level:
        return _at_most(output.k, other.k) and _at_most(output.decimals, other.decimals)
    if output.level == "top_k":
        return other.level == "log_probs" and _at_most(output.decimals, other.decimals)
    # Probabilities can be told from log-probabilities unless those were rounded before.
    exact = other.level in ("log_probs", "top_k") and other.decimals is None
    return output.level == "probs" and exact and _at_most(output.k, other.k)


def _at_most(bound: int | None, other: int | None) -> bool:
    return other is None or (bound is not None and bound <= other)


def answerable(
    log_probs: NDArray[np.float32],
    output: Output,
    noise: NDArray[np.float32] | None = None,
    dtype: DType = "float32",
) -> Tensors:
    """What may be answered of log-probabilities [P, N, C], or [N, C].

    `noise`, of the same shape, is added first.

    Returns:
        The answer's tensors, as `craft_shared.output.shown` describes them.
    """
    return shown(noisy(log_probs, noise), output, dtype)


def noisy(log_probs: NDArray[np.float32], noise: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Log-probabilities with noise added, normalised anew; without noise, as they are."""
    return log_probs if noise is None else log_softmax(log_probs + noise)


ASKED_PROMPTS = sa.Table(
    "asked_prompts",
    METADATA,
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("pictures", sa.Text, primary_key=True),
    sa.Column("prompt", sa.Text, primary_key=True),
)


class PromptLimitReached(Exception):  # noqa: N818 - the problem type's name
    """The owner may not ask so many different prompts about some images. None was noted.

    `used` were asked before, the call would ask `new` more, and `limit` may be asked.
    """

    def __init__(self, used: int, new: int, limit: int) -> None:
        super().__init__(used, new, limit)
        self.used = used
        self.new = new
        self.limit = limit


def note_prompts(
    connection: sa.Connection,
    owner: str,
    about: Sequence[str],
    prompts: Sequence[str],
    *,
    limit: int,
) -> None:
    """Counts those of the prompts (identities) that the owner did not ask before.

    They are asked `about` an image set, by its id, or about each image's digest; of each `limit`
    different ones may be asked. It is part of the caller's transaction.

    Raises:
        PromptLimitReached: there are too many; the transaction must be undone.
    """
    # Two calls at a time would each count without the other's prompts.
    lock_owner(connection, owner)
    for images in dict.fromkeys(about):
        asked = set(
            connection.execute(
                sa.select(ASKED_PROMPTS.c.prompt).where(
                    ASKED_PROMPTS.c.owner == owner, ASKED_PROMPTS.c.pictures == images
                )
            ).scalars()
        )
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in asked]
        if not new:
            continue
        if len(asked) + len(new) > limit:
            raise PromptLimitReached(len(asked), len(new), limit)
        connection.execute(
            sa.insert(ASKED_PROMPTS),
            [{"owner": owner, "pictures": images, "prompt": prompt} for prompt in new],
        )
