"""One server's simulated provider: counts its calls, delays them, and lets faults befall them.

Middleware passes each call through it and charged calls tell it how far they have come. Without a
profile it does nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from craft_server.simulate.profile import Fault, Place, Profile

_REVISION_DIGITS = 16


class Struck(Exception):  # noqa: N818 - reads as what it is where it is caught
    """A fault has befallen the call where it is now. Whoever holds something lets it go."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


def fault_of(profile: Profile, number: int) -> Fault | None:
    """The fault that befalls a call, the first that the profile lists; None for most calls."""
    for index, fault in enumerate(profile.faults):
        if _befalls(profile, index, fault, number):
            return fault
    return None


def latency_of(profile: Profile, number: int, *, others: int) -> float:
    """Seconds of a call's log-normal part while so many other calls run."""
    latency = profile.latency
    if latency.median_ms == 0:
        return 0.0
    drawn = _draws(profile, "latency", number).lognormvariate(
        math.log(latency.median_ms / 1000), latency.sigma
    )
    return drawn * (1 + latency.load * others)


def _befalls(profile: Profile, index: int, fault: Fault, number: int) -> bool:
    # Each call begins a burst with the same chance, such that `rate` of all calls are in one.
    chance = 1 - (1 - fault.rate) ** (1 / fault.burst)
    first = max(0, number - fault.burst + 1)
    return any(
        _draws(profile, f"fault {index}", start).random() < chance
        for start in range(first, number + 1)
    )


def _draws(profile: Profile, what: str, number: int) -> random.Random:
    """A generator of its own for each call, so that none depends on the calls before it."""
    return random.Random(f"{profile.seed} {what} {number}")  # noqa: S311 - nothing is kept secret


@dataclass(frozen=True)
class Passage:
    """One call on its way."""

    fault: Fault | None  # what befalls it, if it comes as far
    latency: float  # seconds that it takes beyond its work


_passage: ContextVar[Passage | None] = ContextVar("craft_passage", default=None)


class Provider:
    """What a profile makes of a server.

    Without one it does nothing. `faults` counts those that have happened, by kind and place.
    """

    def __init__(self, profile: Profile | None = None) -> None:
        self.profile = profile
        self.faults: Counter[tuple[str, str]] = Counter()
        self._calls = 0
        self._running = 0
        self._answered = 0
        self._known: set[int] = set()

    @contextmanager
    def passage(self) -> Iterator[Passage]:
        """Counts a call for the length of the block and draws what befalls it."""
        profile = self.profile
        if profile is None:
            yield Passage(None, 0.0)
            return
        number, others = self._calls, self._running
        self._calls += 1
        self._running += 1
        drawn = Passage(fault_of(profile, number), latency_of(profile, number, others=others))
        token = _passage.set(drawn)
        try:
            yield drawn
        finally:
            _passage.reset(token)
            self._running -= 1

    def reach(self, place: Place) -> None:
        """A call has come to a place.

        Raises:
            Struck: no further.
        """
        passage = _passage.get()
        if passage is not None and passage.fault is not None and passage.fault.at == place:
            self.happened(passage.fault)
            raise Struck(passage.fault)

    def happened(self, fault: Fault) -> None:
        """Counts a fault."""
        self.faults[fault.kind, fault.at] += 1

    async def reserved(self, items: int) -> None:
        """A charged call has its reservation, and so many predictions and pictures before it.

        Raises:
            Struck: no further; the reservation must be given back.
        """
        if self.profile is None:
            return
        self.reach("after-reservation")
        await asyncio.sleep(items * self.profile.latency.per_item_ms / 1000)

    def worked(self) -> None:
        """A charged call is settled and its answer stored.

        Raises:
            Struck: the answer must not be sent; the client may fetch it again.
        """
        self._answered += 1
        self.reach("after-work")

    def is_new(self, key_id: int) -> bool:
        """Whether nobody has called `known` with the key."""
        return key_id not in self._known

    def known(self, key_id: int) -> None:
        """Notes that the key has been granted what the profile grants."""
        self._known.add(key_id)

    def revision(self, hosted: str) -> str:
        """The revision that the hosted model is said to have now."""
        change = None if self.profile is None else self.profile.revision_change
        if self.profile is None or change is None or self._answered < change.after_calls:
            return hosted
        named = f"craftbox simulated revision\n{hosted}\n{self.profile.digest}"
        return hashlib.sha256(named.encode()).hexdigest()[:_REVISION_DIGITS]
