from __future__ import annotations

import numpy as np
import pytest

from craft_server.byte_cache import ByteCache

KILOBYTE = np.zeros(1024, np.uint8)


@pytest.fixture
def cache() -> ByteCache[str, np.ndarray]:
    made: ByteCache[str, np.ndarray] = ByteCache(2048)
    made.put("a", KILOBYTE)
    made.put("b", KILOBYTE)
    return made


def test_what_was_used_least_recently_goes(cache: ByteCache[str, np.ndarray]) -> None:
    assert cache.get("a") is KILOBYTE
    cache.put("c", KILOBYTE)
    assert cache.nbytes == cache.max_bytes == 2048
    assert [cache.get(key) is not None for key in "abc"] == [True, False, True]
    assert (cache.hits, cache.misses) == (3, 1)


def test_what_has_no_place_drives_nothing_out(cache: ByteCache[str, np.ndarray]) -> None:
    cache.put("large", np.zeros(2049, np.uint8))
    assert [cache.get(key) is not None for key in ("a", "b", "large")] == [True, True, False]


def test_discarded_keys_are_gone_and_others_stay(cache: ByteCache[str, np.ndarray]) -> None:
    cache.discard(lambda key: key == "a")
    assert cache.get("a") is None
    assert cache.get("b") is KILOBYTE
    assert cache.nbytes == 1024
