import pytest
from pydantic import ValidationError

from craft_shared.wire import ImageSet, ImageSetCreate


def test_a_client_reads_the_answers_of_a_newer_server() -> None:
    document = {"id": "s1", "model": "m", "revision": "r", "count": 3, "expires_at": "2030-01-01"}
    assert ImageSet.model_validate(document).count == 3


def test_a_server_refuses_fields_that_it_does_not_know() -> None:
    with pytest.raises(ValidationError, match="modle"):
        ImageSetCreate.model_validate({"model": "m", "modle": "n"})
