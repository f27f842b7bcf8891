from __future__ import annotations

import pickle

import pytest

from craft_client.exceptions import (
    BudgetExhausted,
    CraftError,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    ProblemError,
    problem_error,
)
from craft_shared import problems
from craft_shared.problems import FieldError, Problem, ProblemType


@pytest.mark.parametrize("kind", problems.PROBLEM_TYPES.values(), ids=lambda kind: kind.slug)
def test_every_problem_type_has_its_own_exception(kind: ProblemType) -> None:
    error = problem_error(Problem.of(kind, "detail"))
    assert type(error) is not ProblemError
    assert type(error).kind is kind


def test_an_unknown_problem_type_is_a_plain_problem_error() -> None:
    problem = Problem(type="urn:craftbox:problem:new", title="New", status=418, detail="tea")
    assert type(problem_error(problem)) is ProblemError
    assert str(problem_error(problem)) == "New: tea"


def test_a_missing_model_is_a_missing_resource() -> None:
    assert issubclass(ModelNotFound, NotFound)


def test_the_message_tells_what_each_field_and_its_remedy_on_lines_of_their_own() -> None:
    errors = [
        FieldError(field="classes[3]", message="is too long.", remedy="Shorten it."),
        FieldError(field="codes", message="are not finite."),
    ]
    problem = Problem.of(problems.INVALID_REQUEST, "Two fields are wrong.", errors)
    error = problem_error(problem.model_copy(update={"request_id": "abc"}))
    assert isinstance(error, InvalidRequest)
    assert str(error).splitlines() == [
        "The request is not valid: Two fields are wrong.",
        "  classes[3]: is too long. Shorten it.",
        "  codes: are not finite.",
        "  (request abc)",
    ]


def test_a_detail_that_repeats_a_field_is_told_once() -> None:
    errors = [FieldError(field="rows[2]", message="is out of range.", remedy="Look.")]
    error = problem_error(Problem.of(problems.INVALID_REQUEST, "rows[2]: is out of range.", errors))
    assert str(error).count("out of range") == 1


def test_without_a_fields_remedy_the_problems_own_remedy_is_told() -> None:
    error = problem_error(Problem.of(problems.BUDGET_EXHAUSTED, "queries: needs 40, 12 are left."))
    assert isinstance(error, BudgetExhausted)
    assert str(error).splitlines() == [
        "The key's budget does not cover this call: queries: needs 40, 12 are left.",
        "  Ask for less, or ask the provider for a top-up; a retry cannot succeed.",
    ]


def test_errors_survive_pickling() -> None:
    problem = Problem.of(problems.OVERLOADED, "busy", [FieldError(field="a", message="b")])
    for error in (
        problem_error(problem, retry_after=3.0),
        CraftError("what", remedy="do", errors=[FieldError(field="a", message="b")]),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert str(copy) == str(error)
        assert vars(copy) == vars(error)
