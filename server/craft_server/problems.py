"""Problems as exceptions, and how other layers' errors read as problems."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args

from pydantic import BaseModel

from craft_shared import names
from craft_shared.problems import (
    INVALID_REQUEST,
    FieldError,
    Problem,
    ProblemType,
)

MAX_ERRORS = 100
_MAX_PART = 100

_REMEDIES = {
    names.FAULT: names.REMEDY,
    "missing": "Add the field.",
    "extra_forbidden": "Remove the field, or correct its name.",
}


class ProblemError(Exception):
    """A call cannot be answered; `problem` says why.

    Of the fields at fault, `errors`, the first `MAX_ERRORS` are shown. `retry_after` is in seconds.
    """

    def __init__(
        self,
        kind: ProblemType,
        detail: str,
        errors: Sequence[FieldError] = (),
        *,
        retry_after: int | None = None,
        headers: Mapping[str, str] = types.MappingProxyType({}),
    ) -> None:
        super().__init__(detail)
        self.problem = Problem.of(kind, detail, list(errors[:MAX_ERRORS]))
        self.headers = dict(headers)
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)


def invalid_request(errors: Sequence[FieldError]) -> ProblemError:
    """The fields that `errors` name are not valid."""
    first = f"{errors[0].field}: {errors[0].message}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return ProblemError(INVALID_REQUEST, first + more, errors)


def invalid_field(field: str, message: str, remedy: str) -> ProblemError:
    """One field is not valid."""
    return invalid_request([FieldError(field=field, message=message, remedy=remedy)])


@contextmanager
def fields_called(names: Mapping[str, str]) -> Iterator[None]:
    """Gives fields the names by which a call knows them, in what the block raises."""

    def called(text: str) -> str:
        for name, wanted in names.items():
            if text.startswith(name):
                return wanted + text.removeprefix(name)
        return text

    try:
        yield
    except ProblemError as error:
        problem = error.problem
        errors = [one.model_copy(update={"field": called(one.field)}) for one in problem.errors]
        detail = called(problem.detail) if errors else problem.detail
        error.problem = problem.model_copy(update={"detail": detail, "errors": errors})
        raise


def field_errors(errors: Sequence[Any], model: type[BaseModel]) -> list[FieldError]:
    """Pydantic's errors about a `model` in wire notation; a union's errors become one."""
    by_field: dict[str, FieldError] = {}
    for error in errors:
        field = wire_path(error["loc"], model)
        message = str(error["msg"]).removeprefix("Value error, ")
        if field in by_field:
            message = f"{by_field[field].message}; or: {message}"
        remedy = _REMEDIES.get(error["type"], "See /docs for what this field may hold.")
        by_field[field] = FieldError(field=field, message=message, remedy=remedy)
    return list(by_field.values())


def wire_path(location: Sequence[int | str], model: type[BaseModel]) -> str:
    """Where an error stands, as a client writes it: `("context", "dim")` is `context.dim`.

    Pydantic adds the names of a union's members to a location; they are no fields and are left out.
    """
    path = ""
    inside: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif inside is not None:
            path += f".{part[:_MAX_PART]}"
            field = inside.model_fields.get(part)
            kinds = (field.annotation, *get_args(field.annotation)) if field else ()
            models = (kind for kind in kinds if isinstance(kind, type))
            inside = next((kind for kind in models if issubclass(kind, BaseModel)), None)
    return path.removeprefix(".") or "body"
