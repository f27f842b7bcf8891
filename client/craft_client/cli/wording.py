"""Failures in the command line's words: options and commands in the place of fields and calls.

A server speaks to any program, of fields and addresses. Whoever types commands is told in theirs.
"""

from __future__ import annotations

import re
from typing import Any

from craft_client.exceptions import CraftError, ProblemError
from craft_shared import problems
from craft_shared.problems import FieldError

_LATER = "Run the command again in a while: nothing is charged twice."
_ANOTHER = "'craft --version' and the server may not fit together: update the older one."
# In the place of what a problem type advises programs.
REMEDIES = {
    problems.MALFORMED_BODY: _ANOTHER,
    problems.UNAUTHENTICATED: "Name a valid key with --key or CRAFT_API_KEY; 'craft config show' "
    "says where the present one comes from.",
    problems.FORBIDDEN: "Ask the provider for a key that may do this.",
    problems.NOT_FOUND: "Check the name that you gave, and the server's address (--url).",
    problems.MODEL_NOT_FOUND: "'craft models' lists the models.",
    problems.IMAGE_SET_NOT_FOUND: "Check the image set's id; tuning and evaluating upload the "
    "pictures again where it is gone.",
    problems.ADAPTER_NOT_FOUND: "'craft adapters' lists those that you may use.",
    problems.METHOD_NOT_ALLOWED: _ANOTHER,
    problems.CALL_IN_PROGRESS: _LATER,
    problems.RUN_IN_PROGRESS: "Run the command again when the run is over, or name a period that "
    "is, with --until.",
    problems.ANSWER_GONE: "Begin anew: the answer is no longer kept.",
    problems.BODY_TOO_LARGE: "'craft models' shows how much one call may hold.",
    problems.HEAD_TOO_LARGE: "Give shorter names.",
    problems.UNSUPPORTED_MEDIA_TYPE: _ANOTHER,
    problems.INVALID_REQUEST: "Correct what is named.",
    problems.INVALID_IMAGE: "Remove or replace the pictures that are named.",
    problems.IDEMPOTENCY_KEY_REUSED: "Begin anew, with another run directory.",
    problems.RATE_LIMITED: _LATER,
    problems.OVERLOADED: _LATER,
}
_BY_URI = {kind.uri: remedy for kind, remedy in REMEDIES.items()}
# What options are called elsewhere.
_OPTIONS = {
    "templates": "template",
    "context.dim": "dim",
    "context.scale": "scale",
    "keys": "with_key",
    "teams": "with_team",
    "aliases": "alias",
    "top_k": "top",
    "budget_unit": "budget",
    "options": "own",
    "classes": "data",
}
_WORDS = {
    "GET /v1/adapters/{name}/versions": "'craft adapters NAME'",
    "context.dim": "--dim",
    "context.scale": "--scale",
    "Craft-User": "CRAFT_USER",
    "Send an id of the end user.": "Set it to an id of the end user.",
    "leave top_k out": "leave --top out",
    "Correct the query parameter.": "Correct it.",
    "String should match pattern '^[a-z0-9]{8}$'": "is not the eight characters after craft_ in a "
    "key",
    "String should match pattern '^[A-Za-z][A-Za-z0-9._-]*$'": "is no alias, which is a letter, "
    "and after it letters, digits and any of '._-'",
}
_CALL = re.compile(r"\b(?:GET|POST|PUT|PATCH|DELETE) /[^\s:]*")
_UNKNOWN_CALL = re.compile(rf": {_CALL.pattern}: (?:Not Found|Method Not Allowed)$")
_FIELD = re.compile(r"([a-z_]+)((?:\.[a-z_]+)?)(?:\[(\d+)\])?.*")


def lines(error: CraftError, command: Any) -> list[str]:
    """What `error.lines` says, to somebody who has typed this command."""
    remedy, request = error.remedy, []
    if isinstance(error, ProblemError):
        remedy = _BY_URI.get(error.problem.type, remedy) if remedy else ""
        request = error.lines[-1:] if error.problem.request_id else []
    fields = [
        FieldError(
            field=_option(one.field, command),
            message=_in_words(one.message),
            remedy=_in_words(one.remedy),
        )
        for one in error.errors
    ]
    told = CraftError(_in_words(error.message), remedy=_in_words(remedy), errors=fields)
    return [*told.lines, *request]


def _in_words(text: str) -> str:
    for theirs, ours in _WORDS.items():
        text = text.replace(theirs, ours)
    return _CALL.sub("the call", _UNKNOWN_CALL.sub("", text))


def _option(field: str, command: Any) -> str:
    """The option that a field was given by, such as --with-key of `keys[0]`; or else the field."""
    found = _FIELD.fullmatch(field)
    if found is None:
        return _WORDS.get(field, field)
    head, part, place = found.groups()
    options = {one.name: one for one in getattr(command, "params", ())}
    for name, rest in ((f"{head}{part}", ""), (head, part.removeprefix("."))):
        option = options.get(_OPTIONS.get(name, name))
        if option is not None:
            shown = option.opts[0] if option.param_type_name == "option" else option.metavar
            number = f"number {int(place) + 1}" if place else ""
            which = f"class {number}" if head == "classes" and place else rest or number
            return f"{shown} ({which})" if which else str(shown)
    return field
