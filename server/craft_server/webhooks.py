"""Signatures of webhooks, as Standard Webhooks 1.0 has them.

Source: https://github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md.
"""

from __future__ import annotations

import base64
import hmac

_PREFIX = "whsec_"


def secret_bytes(secret: str) -> bytes:
    """What a secret of Standard Webhooks holds.

    Raises:
        ValueError: it is none: 24 to 64 bytes in Base64 behind `whsec_`.
    """
    held = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    if not secret.startswith(_PREFIX) or not 24 <= len(held) <= 64:
        raise ValueError("it is not 24 to 64 bytes")
    return held


def signed(secret: bytes, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The header fields that say who sends a body, and when."""
    content = b".".join((message_id.encode(), str(timestamp).encode(), body))
    signature = base64.b64encode(hmac.digest(secret, content, "sha256")).decode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{signature}",
    }
