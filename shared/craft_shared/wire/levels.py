"""Output levels: what an answer shows of a distribution."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from craft_shared.amounts import MAX_DECIMALS
from craft_shared.wire.messages import Message, TopK

Level = Literal["label", "top_k", "probs", "log_probs"]

Decimals = Annotated[int, Field(ge=1, le=MAX_DECIMALS)]
Noise = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class Output(Message):
    """What an answer shows of each distribution over the classes.

    Attributes:
        level: `label`: the most probable class, no number. `top_k`: the log-probabilities of the k
            most probable classes. `probs`: probabilities. `log_probs`: log-probabilities; without
            `decimals` they are all that the model says.
        k: how many classes are named, the most probable ones; all when null. `top_k` has one,
            `probs` may.
        decimals: to which numbers are rounded; not at all when null. `probs` has some.
        noise: standard deviation, in nats, of what was added to each log-probability before
            anything else. The same question has the same noise each time.
    """

    level: Level = "log_probs"
    k: TopK | None = None
    decimals: Decimals | None = None
    noise: Noise = 0.0

    @model_validator(mode="after")
    def _possible(self) -> Output:
        if self.level == "label" and (self.k or self.decimals):
            raise ValueError("level 'label' shows no numbers: it has neither k nor decimals")
        if self.level == "top_k" and self.k is None:
            raise ValueError("level 'top_k' needs k")
        if self.level == "log_probs" and self.k is not None:
            raise ValueError("level 'log_probs' is of all classes: it has no k")
        if self.level == "probs" and self.decimals is None:
            raise ValueError("level 'probs' needs decimals")
        return self

    def same_level(self, other: Output) -> bool:
        """Whether both show the same, whatever noise comes before it."""
        return self == other.model_copy(update={"noise": self.noise})

    @property
    def whole(self) -> bool:
        """Whether nothing is left out of the log-probabilities, noisy or not."""
        return self.level == "log_probs" and self.decimals is None


EVERYTHING = Output()
