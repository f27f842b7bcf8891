"""A cache bounded in bytes that forgets what was used least recently, and counts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from cachetools import LRUCache
from pydantic import BaseModel


class Sized(Protocol):
    """What tells how much memory it takes."""

    @property
    def nbytes(self) -> int:
        """In bytes."""


class CacheUse(BaseModel):
    """How full a cache is, in bytes, and how often it held what was asked for."""

    nbytes: int
    max_bytes: int
    hits: int
    misses: int


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Sized)


class ByteCache(Generic[K, V]):
    """A bounded, thread-safe cache."""

    def __init__(self, max_bytes: int) -> None:
        self._values: LRUCache[K, V] = LRUCache(max_bytes, lambda value: value.nbytes)
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    @property
    def nbytes(self) -> int:
        """Memory that the values take."""
        return int(self._values.currsize)

    @property
    def max_bytes(self) -> int:
        """Memory that they may take."""
        return int(self._values.maxsize)

    @property
    def use(self) -> CacheUse:
        """How full it is, and how often it held what was asked for."""
        return CacheUse(
            nbytes=self.nbytes, max_bytes=self.max_bytes, hits=self.hits, misses=self.misses
        )

    def get(self, key: K) -> V | None:
        """The value, or None."""
        with self._lock:
            value: V | None = self._values.get(key)
            if value is None:
                self.misses += 1
            else:
                self.hits += 1
            return value

    def put(self, key: K, value: V) -> None:
        """Keeps a value until others need its place; one that has no place is not kept."""
        with self._lock:
            if value.nbytes <= self._values.maxsize:
                self._values[key] = value

    def discard(self, which: Callable[[K], bool]) -> None:
        """Forgets the values of these keys."""
        with self._lock:
            for key in [key for key in self._values if which(key)]:
                del self._values[key]
