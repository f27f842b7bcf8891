"""The texts of class names, as a model reads them.

It knows tokenizers; it does not know what reading takes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from craft_server.engine.hosted import tokenizer_of
from craft_server.engine.tokens import Tokenizer
from craft_server.plan.workload import Texts
from craft_shared.wire import Context

PLAIN = "a photo of a"


def texts_of(model: str, classes: Sequence[str]) -> Texts:
    """The texts of class names under the plain prompt, or under a code that moves it."""
    tokenize = tokenizer_of(model)
    tokens = Tokenizer(tokenize, tokenize.context_length).of()
    sequences = tuple(tokens.context(PLAIN, name) for name in classes)
    return Texts(sequences, len(json.dumps(list(classes)).encode()))


def context(dim: int, seed: int) -> Context:
    """The search space of codes that move the plain prompt."""
    return Context(init=PLAIN, dim=dim, seed=seed, scale=3.0)
