"""Problem types, and the first thing that is wrong with a document, as people read it."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from craft_shared import problems
from craft_shared.problems import PROBLEM_TYPES, FieldError, Problem, first_error
from craft_shared.wire import Output, PredictionRequest


def test_every_problem_type_is_registered_under_its_uri() -> None:
    defined = [
        value for value in vars(problems).values() if isinstance(value, problems.ProblemType)
    ]
    assert len(defined) == len(PROBLEM_TYPES)
    assert all(PROBLEM_TYPES[kind.uri] is kind for kind in defined)


def test_problem_survives_json() -> None:
    problem = Problem.of(
        problems.INVALID_REQUEST,
        "one field is wrong",
        [FieldError(field="classes[1]", message="m")],
    )
    assert Problem.model_validate_json(problem.model_dump_json()) == problem
    assert problem.status == 422


def refused(model: type[BaseModel], document: Any) -> ValidationError:
    with pytest.raises(ValidationError) as refusal:
        model.model_validate(document)
    return refusal.value


def test_a_field_is_named_as_on_the_wire() -> None:
    error = refused(PredictionRequest, {"model": "m", "classes": ["a", 3]})
    assert first_error(error).startswith("classes[1]: ")
    error = refused(PredictionRequest, {"model": "m", "classes": ["a"], "context": {"dim": 0}})
    assert first_error(error).startswith("context.dim: ")


def test_what_is_wrong_with_the_whole_is_said_without_pydantics_words() -> None:
    error = refused(Output, {"level": "top_k"})
    assert first_error(error) == "level 'top_k' needs k"
    assert first_error(error, "output") == "output: level 'top_k' needs k"


def test_what_was_sent_is_not_repeated() -> None:
    assert "secret" not in first_error(refused(PredictionRequest, {"model": ["secret"]}))
