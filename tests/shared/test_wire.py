import pytest
from pydantic import ValidationError

from craft_shared.wire import AdapterList, Budget, ImageSet, ImageSetCreate, ModelList, Usage


def test_a_client_reads_the_answers_of_a_newer_server() -> None:
    document = {"id": "s1", "model": "m", "revision": "r", "count": 3, "expires_at": "2030-01-01"}
    assert ImageSet.model_validate(document).count == 3


def test_a_server_refuses_fields_that_it_does_not_know() -> None:
    with pytest.raises(ValidationError, match="modle"):
        ImageSetCreate.model_validate({"model": "m", "modle": "n"})


def test_of_a_list_with_many_faults_only_the_first_is_looked_for() -> None:
    """A million of them took a gigabyte."""
    wrong = b"[" + b"{}," * 1000 + b"{}]"
    for kind, field in ((AdapterList, b"adapters"), (ModelList, b"models"), (Usage, b"charges")):
        with pytest.raises(ValidationError) as caught:
            kind.model_validate_json(b'{"' + field + b'":' + wrong + b"}")
        assert caught.value.error_count() < 20


@pytest.mark.parametrize("number", ["1e400", "NaN", str(2**53 + 1), str(-(2**53) - 1)])
def test_numbers_that_no_reader_holds_are_no_answer(number: str) -> None:
    text = '{"unit":"queries","limit":%s,"spent":0,"reserved":0,"remaining":0}' % number  # noqa: UP031
    with pytest.raises(ValidationError):
        Budget.model_validate_json(text)
