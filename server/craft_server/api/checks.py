"""Checks of what to score, before anything is charged: model, classes, prompts, answer size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from craft_server.api.idempotency import Call
from craft_server.api.services import Services
from craft_server.engine import Prompts
from craft_server.problems import ProblemError, invalid_request, model_not_found
from craft_shared.problems import REVISION_MISMATCH, FieldError
from craft_shared.wire import Context, Limits


def check_model(services: Services, name: str) -> None:
    """Raises ProblemError unless the server hosts the model `name`."""
    if name != services.engine.name:
        raise model_not_found(name, services.engine.name)


def counted_prompts(
    services: Services,
    *,
    classes: Sequence[str],
    templates: Sequence[str],
    context: Context | None,
    codes: NDArray[np.float32] | None,
) -> Prompts:
    """The prompts, if they and the class names are not too many; nobody has read them yet.

    Raises:
        ProblemError: `invalid-request` with all that is wrong.
    """
    points = np.zeros((0, 0), np.float32) if codes is None else codes
    if errors := _count_errors(services.settings.limits, classes, templates, context, points):
        raise invalid_request(errors)
    return Prompts(templates=tuple(templates), context=context, codes=points)


async def check_prompts(call: Call, prompts: Prompts, classes: Sequence[str]) -> None:
    """Checks that the model can read prompts and class names, which takes time for each of them.

    Raises:
        ProblemError: `invalid-request` with all that is wrong.
    """
    engine, tenant = call.services.engine, call.caller.tenant
    if errors := await engine.check_prompts(prompts, classes, tenant=tenant):
        raise invalid_request(errors)


def _count_errors(
    limits: Limits,
    classes: Sequence[str],
    templates: Sequence[str],
    context: Context | None,
    codes: NDArray[np.float32],
) -> list[FieldError]:
    errors = []
    if len(classes) > limits.classes:
        errors.append(
            FieldError(
                field="classes",
                message=f"{len(classes)} classes; {limits.classes} are allowed",
                remedy="Score fewer classes in one call.",
            )
        )
    prompts = len(templates) + len(codes)
    if prompts > limits.prompts_per_call:
        errors.append(
            FieldError(
                field="codes" if len(codes) else "templates",
                message=f"{prompts} prompts; {limits.prompts_per_call} are allowed",
                remedy="Spread the prompts over several calls.",
            )
        )
    if context is not None and context.dim > limits.dim:
        errors.append(
            FieldError(
                field="context.dim",
                message=f"{context.dim}; at most {limits.dim} is allowed",
                remedy="Search in fewer dimensions.",
            )
        )
    return errors


def check_revision(
    services: Services,
    model: str,
    revision: str,
    *,
    made: str = "the adapter was tuned on",
    errors: Sequence[FieldError] = (),
) -> None:
    """Raises ProblemError if what was `made` under this model and revision is of no use here."""
    hosted, current = services.engine.name, services.revision
    if (model, revision) != (hosted, current):
        raise ProblemError(
            REVISION_MISMATCH,
            f"{made} '{model}' revision {revision}; the server hosts '{hosted}' revision {current}",
            errors,
        )
