"""Which prompts have been asked about which pictures, where their number is bounded.

Each function is part of its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from craft_server.database import METADATA
from craft_server.image_sets import lock_owner

ASKED_PROMPTS = sa.Table(
    "asked_prompts",
    METADATA,
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("pictures", sa.Text, primary_key=True),
    sa.Column("prompt", sa.Text, primary_key=True),
)


class PromptLimitReached(Exception):  # noqa: N818 - the problem type's name
    """The owner may not ask so many different prompts about some pictures. None was noted.

    `used` were asked before, the call would ask `new` more, and `limit` may be asked.
    """

    def __init__(self, used: int, new: int, limit: int) -> None:
        super().__init__(used, new, limit)
        self.used = used
        self.new = new
        self.limit = limit


@dataclass(frozen=True)
class Asking:
    """A call's prompts and pictures."""

    owner: str  # who asks
    # An image set's id, or a digest of each picture that the call sends along.
    pictures: Sequence[str]
    prompts: Sequence[str]  # the identity of each
    limit: int  # different prompts that may be asked about each of `pictures`

    def note(self, connection: sa.Connection) -> None:
        """Counts the prompts that were not asked before.

        Raises:
            PromptLimitReached: there are too many; the transaction must be undone.
        """
        # Two calls at a time would each count without the other's prompts.
        lock_owner(connection, self.owner)
        for pictures in dict.fromkeys(self.pictures):
            asked = set(
                connection.execute(
                    sa.select(ASKED_PROMPTS.c.prompt).where(
                        ASKED_PROMPTS.c.owner == self.owner, ASKED_PROMPTS.c.pictures == pictures
                    )
                ).scalars()
            )
            new = [prompt for prompt in dict.fromkeys(self.prompts) if prompt not in asked]
            if not new:
                continue
            if len(asked) + len(new) > self.limit:
                raise PromptLimitReached(len(asked), len(new), self.limit)
            connection.execute(
                sa.insert(ASKED_PROMPTS),
                [{"owner": self.owner, "pictures": pictures, "prompt": prompt} for prompt in new],
            )
