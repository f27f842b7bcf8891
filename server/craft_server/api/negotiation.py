"""Content negotiation: what a header of weighted choices says (RFC 9110, section 12.4.2).

It knows weights; it does not know what is chosen between.
"""

from __future__ import annotations


def names(header: str, choice: str) -> bool:
    """Whether the header names `choice` itself, not a wildcard, and does not refuse it by q=0."""
    for item in header.split(","):
        value, *parameters = (part.strip().lower() for part in item.split(";"))
        if value == choice:
            return not any(_is_zero_weight(parameter) for parameter in parameters)
    return False


def _is_zero_weight(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    return name.strip() == "q" and value.strip(" 0.") == ""
