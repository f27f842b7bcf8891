"""A large question in blocks, each of whose answers the server sends at once.

It knows a model's limits; it does not know what is asked.
"""

from __future__ import annotations

from craft_client.exceptions import LimitExceeded
from craft_shared.wire import Limits


def rows_per_call(limits: Limits, row_bytes: int, rows: int) -> int:
    """How many rows of an answer fit into one.

    Raises:
        LimitExceeded: not even one does.
    """
    at_once = limits.answer_bytes // row_bytes
    if at_once < 1:
        raise LimitExceeded(
            f"One picture's answer has {row_bytes} bytes; the server sends {limits.answer_bytes}.",
            remedy="Use fewer classes, or ask the provider to raise the limit.",
        )
    return max(1, min(at_once, rows))
