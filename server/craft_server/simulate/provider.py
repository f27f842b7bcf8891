"""One server's simulated provider: counts its calls, delays them, and lets faults befall them.

Middleware passes each call through it and charged calls tell it how far they have come. Without a
profile it does nothing. It knows places on a call's way; it does not know HTTP, ledgers or models.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from craft_server.simulate.faults import Struck, fault_of, latency_of
from craft_server.simulate.profile import Fault, Place, Profile

_REVISION_DIGITS = 16


@dataclass(frozen=True)
class Passage:
    """One call on its way.

    Attributes:
        fault: what befalls it, if it comes as far.
        latency: seconds that it takes beyond its work.
    """

    fault: Fault | None
    latency: float


_passage: ContextVar[Passage | None] = ContextVar("craft_passage", default=None)


class Provider:
    """What a profile makes of a server.

    Args:
        profile: None simulates nothing.

    Attributes:
        profile: as given.
        faults: how many faults have happened, by kind and place.
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
