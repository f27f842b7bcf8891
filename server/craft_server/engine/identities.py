"""Identities: which texts of a request are one and the same to the model, however they are written.

Two texts with the same tokens, moved by the same code, have the same identity; a code of zeros
moves nothing. Texts that are merely much alike do not. It counts tokens; it does not know what
identities are good for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from functools import partial

import numpy as np

from craft_server.engine.prompts import Prompts
from craft_server.engine.tokens import Ids, Tokens, in_steps


def text_identities(
    prompts: Prompts, classes: Sequence[str], tokens: Tokens
) -> Generator[None, None, list[tuple[bytes, ...]]]:
    """Of each of P prompts the identities of its C texts, 32 bytes each; in steps.

    The prompts and classes are ones that `check_prompts` has passed.
    """
    found: list[tuple[bytes, ...]] = []
    for template in prompts.templates:
        sequences = yield from in_steps(tokens.template(template), classes)
        texts = yield from in_steps(_identity, sequences)
        found.append(tuple(texts))
    if prompts.context is not None and len(prompts.codes):
        init, space = prompts.context.init, prompts.context.model_dump_json().encode()
        words = len(tokens.words(init)).to_bytes(4, "little")
        sequences = yield from in_steps(partial(tokens.context, init), classes)
        # Adding nothing takes the sign from a zero.
        for code in prompts.codes + np.float32(0):
            moved = space + words + code.astype("<f4").tobytes() if code.any() else b""
            texts = yield from in_steps(partial(_identity, moved=moved), sequences)
            found.append(tuple(texts))
    return found


def prompt_identity(texts: Sequence[bytes]) -> str:
    """The identity of a prompt that has these texts, in whatever order: hexadecimal."""
    return hashlib.sha256(b"".join(sorted(texts))).hexdigest()


def _identity(sequence: Ids, moved: bytes = b"") -> bytes:
    return hashlib.sha256(np.array(sequence, "<i4").tobytes() + moved).digest()
