"""The first thing that is wrong with a document, as people read it."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from craft_shared.validation import first_error
from craft_shared.wire import Output, PredictionRequest


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
