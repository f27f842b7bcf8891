from craft_shared import problems
from craft_shared.problems import PROBLEM_TYPES, FieldError, Problem


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
