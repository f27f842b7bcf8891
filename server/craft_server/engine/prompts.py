"""Prompts: what a request asks, checked against what the model can read.

It only counts tokens; it does not compute embeddings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from craft_server.engine.context import MAX_WORDS_TIMES_DIM
from craft_server.engine.tokens import SLOT, Ids, Tokens, in_steps
from craft_shared.printing import printable
from craft_shared.problems import FieldError
from craft_shared.wire import Context
from craft_shared.wire.predictions import MAX_CODE

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Prompts:
    """P prompts: the templates, in order, and after them the codes."""

    templates: tuple[str, ...]  # texts with one `{}` for the class name
    context: Context | None  # the codes' search space; without codes it is ignored
    codes: Array  # float32 [K, dim]; K may be 0

    @property
    def count(self) -> int:
        """P."""
        return len(self.templates) + len(self.codes)


def check_prompts(
    prompts: Prompts, classes: Sequence[str], tokens: Tokens
) -> Generator[None, None, list[FieldError]]:
    """Everything wrong with prompts and class names; empty when the model can read them all.

    In steps: to read many texts takes time.
    """
    errors = yield from _every(partial(_template_error, tokens), prompts.templates)
    if not prompts.count:
        errors.append(
            FieldError(
                field="templates",
                message="there is no prompt",
                remedy="Give at least one template, or a context with codes.",
            )
        )
    errors += _check_codes(prompts)
    if not errors and prompts.context is not None and len(prompts.codes):
        errors += _check_context(prompts.context, tokens)
    first: dict[Ids, int] = {}
    errors += yield from _every(partial(_class_error, tokens, classes, first), classes)
    if errors:
        return errors
    sequences = _sequences(prompts, tokens)
    return (yield from _every(partial(_length_error, tokens, sequences), classes))


def _every(
    check: Callable[[int, str], FieldError | None], texts: Sequence[str]
) -> Generator[None, None, list[FieldError]]:
    found = yield from in_steps(lambda pair: check(*pair), list(enumerate(texts)))
    return [error for error in found if error is not None]


def _template_error(tokens: Tokens, i: int, template: str) -> FieldError | None:
    if template.count(SLOT) != 1:
        return FieldError(
            field=f"templates[{i}]",
            message=f"it has {template.count(SLOT)} places '{{}}' for the class name",
            remedy="Write exactly one, such as 'a photo of a {}.'.",
        )
    if reserved := tokens.reserved_word(template):
        return _reserved(f"templates[{i}]", reserved)
    return None


def _check_codes(prompts: Prompts) -> list[FieldError]:
    codes, context = prompts.codes, prompts.context
    if not len(codes):
        return []
    if context is None:
        return [
            FieldError(
                field="context",
                message="codes are points in a context, and there is none",
                remedy="Give the context {init, dim, seed, scale} that the codes belong to.",
            )
        ]
    if codes.ndim != 2 or codes.shape[1] != context.dim:
        return [
            FieldError(
                field="codes",
                message=f"their shape is {list(codes.shape)}; [prompts, {context.dim}] is expected",
                remedy="Make each code as long as context.dim.",
            )
        ]
    errors = []
    for i in np.flatnonzero(~(np.abs(codes) <= MAX_CODE).all(axis=1)).tolist():
        finite = bool(np.isfinite(codes[i]).all())
        what = f"an entry beyond {MAX_CODE:g}" if finite else "NaN or infinity"
        errors.append(
            FieldError(
                field=f"codes[{i}]",
                message=f"it holds {what}",
                remedy=f"Send finite numbers between -{MAX_CODE:g} and {MAX_CODE:g}.",
            )
        )
    return errors


def _check_context(context: Context, tokens: Tokens) -> list[FieldError]:
    field = "context.init"
    words = len(tokens.words(context.init))
    if not words:
        return [
            FieldError(
                field=field, message="it holds no word", remedy="Write some, as 'a photo of a'."
            )
        ]
    if reserved := tokens.reserved_word(context.init):
        return [_reserved(field, reserved)]
    most = MAX_WORDS_TIMES_DIM // context.dim
    if words > most:
        return [
            FieldError(
                field=field,
                message=f"it has {words} tokens; at most {most} are allowed with this context.dim",
                remedy="Shorten it, or lower context.dim.",
            )
        ]
    return []


def _class_error(
    tokens: Tokens, classes: Sequence[str], first: dict[Ids, int], i: int, name: str
) -> FieldError | None:
    field, words = f"classes[{i}]", tokens.words(name)
    holder = first.setdefault(words, i)
    if not words:
        return FieldError(
            field=field,
            message="the name is blank",
            remedy="Give the class a name that can be read.",
        )
    if holder != i:
        alike = (
            f"'{name}' is also the name of classes[{holder}]"
            if name == classes[holder]
            else f"the tokenizer reads '{printable(name)}' as the same text as "
            f"'{printable(classes[holder])}', the name of classes[{holder}]"
        )
        return FieldError(field=field, message=alike, remedy="Give each class a name of its own.")
    if reserved := tokens.reserved_word(name):
        return _reserved(field, reserved)
    return None


def _length_error(
    tokens: Tokens, sequences: Sequence[tuple[str, Callable[[str], Ids]]], i: int, name: str
) -> FieldError | None:
    for prompt, sequence in sequences:
        length = len(sequence(name))
        if length > tokens.context_length:
            return FieldError(
                field=f"classes[{i}]",
                message=f"'{name}' in the prompt '{prompt}' has {length} tokens, "
                f"start and end included; {tokens.context_length} are allowed",
                remedy="Shorten the class name or the prompt.",
            )
    return None


def _sequences(prompts: Prompts, tokens: Tokens) -> list[tuple[str, Callable[[str], Ids]]]:
    """Of each prompt what makes the sequence of a class name; one for all codes."""
    sequences = [(template, tokens.template(template)) for template in prompts.templates]
    if prompts.context is not None and len(prompts.codes):
        init = prompts.context.init
        sequences.append((f"{init} {SLOT}.", partial(tokens.context, init)))
    return sequences


def _reserved(field: str, word: str) -> FieldError:
    return FieldError(
        field=field,
        message=f"it holds '{word}', which the tokenizer reserves",
        remedy="Leave these characters out.",
    )


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
