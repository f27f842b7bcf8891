from __future__ import annotations

import math
import statistics
from typing import Any

import pytest

from craft_server.simulate.profile import Fault, Latency, Profile
from craft_server.simulate.provider import fault_of, latency_of

CALLS = 4000


def profile(*faults: Fault, **more: Any) -> Profile:
    return Profile(name="own", version=1, description="Mine.", faults=faults, **more)


def reset(rate: float, burst: int = 1) -> Fault:
    return Fault(kind="reset", at="after-work", rate=rate, burst=burst)


def fates(of: Profile) -> list[Fault | None]:
    return [fault_of(of, number) for number in range(CALLS)]


def test_the_same_seed_draws_the_same_fates_in_any_order() -> None:
    one = profile(reset(0.1), seed=3)
    assert [fault_of(one, number) for number in reversed(range(CALLS))][::-1] == fates(one)
    assert fates(profile(reset(0.1), seed=3)) == fates(one)
    assert fates(profile(reset(0.1), seed=4)) != fates(one)


@pytest.mark.parametrize("burst", [1, 5])
def test_a_fault_befalls_its_share_of_calls(burst: int) -> None:
    befallen = sum(fault is not None for fault in fates(profile(reset(0.2, burst))))
    assert befallen / CALLS == pytest.approx(0.2, abs=0.03)


def test_a_burst_befalls_calls_in_a_row() -> None:
    befallen = [fault is not None for fault in fates(profile(reset(0.02, 4)))]
    first = [n for n in range(1, CALLS - 4) if befallen[n] and not befallen[n - 1]]
    assert len(first) > 5
    assert all(all(befallen[n : n + 4]) for n in first)


def test_faults_that_are_alike_befall_calls_of_their_own() -> None:
    both = fates(profile(reset(0.2), Fault(kind="502", at="after-work", rate=0.2)))
    assert {fault.kind for fault in both if fault} == {"reset", "502"}


def test_latency_is_log_normal() -> None:
    of = profile(latency=Latency(median_ms=100, sigma=0.5))
    logarithms = [math.log(latency_of(of, number, others=0)) for number in range(CALLS)]
    assert statistics.mean(logarithms) == pytest.approx(math.log(0.1), abs=0.03)
    assert statistics.stdev(logarithms) == pytest.approx(0.5, abs=0.03)
    skew = statistics.mean(((x - math.log(0.1)) / 0.5) ** 3 for x in logarithms)
    assert skew == pytest.approx(0, abs=0.15)


def test_calls_beside_it_make_a_call_slower() -> None:
    of = profile(latency=Latency(median_ms=100, load=0.5))
    alone = latency_of(of, 7, others=0)
    assert alone == pytest.approx(0.1)
    assert latency_of(of, 7, others=4) == pytest.approx(3 * alone)


def test_without_a_latency_nothing_waits() -> None:
    assert latency_of(profile(), 0, others=100) == 0
