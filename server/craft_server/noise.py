"""Noise that stays: what is added to log-probabilities, a fixed function of who asks and what.

The same owner, image and text have the same noise whatever the call, its order, its classes or
its batch, so that asking again shows nothing new. It is drawn by a counter-based generator from
digests under the server's secret, without which nobody can tell noise from what is beneath it.

Source: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from craft_server.database import METADATA

# One row, made with the table.
NOISE_SECRETS = sa.Table(
    "noise_secrets",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("secret", sa.LargeBinary, nullable=False),
)

Words = NDArray[np.uint64]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def read_secret(connection: sa.Connection) -> bytes:
    """The server's secret, the same for all servers on one database."""
    secret: bytes = connection.execute(sa.select(NOISE_SECRETS.c.secret)).scalar_one()
    return secret


@dataclass(frozen=True)
class Noise:
    """The noise of one question: P prompts, N images, C texts of each prompt."""

    deviation: float  # standard deviation, in nats
    key: int  # of the owner, 64 bits
    images: Words  # uint64 [N]
    texts: Words  # uint64 [P, C]

    @classmethod
    def of(
        cls,
        secret: bytes,
        owner: str,
        deviation: float,
        *,
        images: Sequence[bytes],
        texts: Sequence[Sequence[bytes]],
    ) -> Noise:
        """The noise that an owner gets.

        `secret` has at most 64 bytes; there is a digest of each image, and of each text of each
        prompt.
        """
        own = hashlib.blake2b(owner.encode(), key=secret, digest_size=32).digest()

        def word(digest: bytes, kind: bytes) -> int:
            made = hashlib.blake2b(digest, key=own, person=kind, digest_size=8).digest()
            return int.from_bytes(made, "little")

        return cls(
            deviation,
            word(b"", b"key"),
            np.array([word(digest, b"picture") for digest in images], np.uint64),
            np.array([[word(text, b"text") for text in prompt] for prompt in texts], np.uint64),
        )

    def at(self, prompts: slice, images: slice) -> NDArray[np.float32]:
        """The noise of some prompts and images, float32 [p, n, C]."""
        rows = self.images[images, None]
        return np.stack(
            [
                np.float32(self.deviation) * _normal(rows, texts[None], self.key)
                for texts in self.texts[prompts]
            ]
        )


def _normal(rows: Words, columns: Words, key: int) -> NDArray[np.float32]:
    """Standard normal numbers, one for each row [n, 1] and column [1, C] (Box and Muller, 1958)."""
    first, second, _, _ = philox(
        (rows & _LOW, rows >> _HALF, columns & _LOW, columns >> _HALF), key
    )
    radius = np.sqrt(-2 * np.log((first.astype(np.float64) + 0.5) * 2.0**-32))
    normal: NDArray[np.float64] = radius * np.cos(second.astype(np.float64) * (2.0**-31 * np.pi))
    return normal.astype(np.float32)


def philox(counter: tuple[Words, Words, Words, Words], key: int) -> tuple[Words, ...]:
    """Four random 32-bit words for each counter of four, all as uint64; `key` has 64 bits."""
    a, b, c, d = counter
    low, high = key & 0xFFFFFFFF, key >> 32
    for _ in range(_ROUNDS):
        p, q = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            (q >> _HALF) ^ b ^ np.uint64(low),
            q & _LOW,
            (p >> _HALF) ^ d ^ np.uint64(high),
            p & _LOW,
        )
        low, high = (low + _WEYL[0]) & 0xFFFFFFFF, (high + _WEYL[1]) & 0xFFFFFFFF
    return a, b, c, d
