"""What a charged call was resolved to: all that its answer depends on beside its own bytes.

Names, aliases and image sets mean other things as time goes by, and keys' policies change. A call
that was charged and must be computed again is computed on what it was charged for, and shows no
more than the key's policy does by then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from craft_server.ledger.calls import AnswerGone
from craft_server.policy import Policy, within
from craft_shared.units import Units
from craft_shared.wire import Output


class Resolution(BaseModel):
    """What one call was resolved to.

    Attributes:
        units: that the answer takes, whoever pays for them.
        rows: number of rows of the image set.
        adapter: id of the published version.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    revision: str
    units: Units
    output: Output
    prompts_per_image_set: int | None
    rows: int | None = None
    adapter: int | None = None
    abstain_below: float | None = None

    def shown_by(self, policy: Policy) -> bool:
        """Whether the policy shows an answer to the call as it was answered."""
        return Policy(self.output, self.prompts_per_image_set).within(policy)

    def check_again(self, again: Resolution) -> None:
        """Raises AnswerGone if the call is resolved to other things now, or would show more."""
        before, now = self._work(), again._work()
        if changed := [name for name in before if before[name] != now[name]]:
            raise AnswerGone(f"it was computed with another {changed[0]} than there is now")
        if not within(again.output, self.output):
            raise _other_policy()

    def _work(self) -> Mapping[str, Any]:
        return self.model_dump(exclude={"output", "prompts_per_image_set"})


def output_again(first: Resolution | None, now: Output) -> Output:
    """The level at which a call is answered: that of its `first` answer, if it had one.

    Unless the key's policy shows less of it `now`.

    Raises:
        AnswerGone: it shows other things now, neither less nor more.
    """
    if first is None or within(now, first.output):
        return now
    if within(first.output, now):
        return first.output
    raise _other_policy()


def _other_policy() -> AnswerGone:
    return AnswerGone("the key's policy shows other things by now than it did show")
