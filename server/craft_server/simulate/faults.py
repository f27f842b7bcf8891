"""What befalls the n-th call, drawn from the profile's seed: the same n, the same fate.

It knows rates, bursts and distributions; it does not know calls.
"""

from __future__ import annotations

import math
import random

from craft_server.simulate.profile import Fault, Profile


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
