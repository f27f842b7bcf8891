"""What a client is asked for and cannot send is a typed error, never one of pydantic's."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

import craft_client
from craft_client import Client
from craft_client.calls import message
from craft_client.exceptions import CraftError, InvalidRequest
from craft_shared import adapter, run_reports, wire
from craft_shared.wire import PredictionRequest

NOT_UTF_8 = "caf\udce9"
CLIENT = Path(craft_client.__file__).parent


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"templates": ["{}" + "x" * 299]}, "templates[0]: String should have at most 300"),
        ({"classes": ["x" * 201]}, "classes[0]: String should have at most 200"),
        ({"classes": []}, "classes: List should have at least 1 item"),
        ({"classes": [NOT_UTF_8]}, "classes[0]"),
        ({"classes": ["\x1b[31m"]}, "classes[0]: the name holds U+001B"),
        ({"rows": []}, "rows: "),
        ({"top_k": 0}, "top_k: "),
        ({"dtype": "float8"}, "dtype: "),
    ],
)
def test_a_prediction_that_no_server_takes_is_an_invalid_request(
    fields: dict[str, Any], told: str
) -> None:
    asked = {"model": "pocket", "classes": ["a", "b"], **fields}
    with pytest.raises(InvalidRequest) as error:
        message(PredictionRequest, **asked)
    assert told in str(error.value)
    assert "nothing was sent" in str(error.value)
    assert "pydantic" not in str(error.value)


def _set() -> Any:
    return wire.ImageSet(id="x", model="m", revision="r", count=0)


@pytest.mark.parametrize(
    "operation",
    [
        lambda client: client.create_image_set(NOT_UTF_8),
        lambda client: client.image_set(NOT_UTF_8),
        lambda client: client.adapter_predict("x", image_set="s", top_k=0),
        lambda client: client.adapter_predict("x", image_set="s", rows=[-1]),
        lambda client: client.adapter_predict("x", image_set=NOT_UTF_8),
        lambda client: client.adapter_predict("x", abstain_below=1.5),
        lambda client: client.adapter_predict(NOT_UTF_8),
        lambda client: client.report_points("run", []),
        lambda client: client.adapter(NOT_UTF_8),
        lambda client: client.retire(NOT_UTF_8),
        lambda client: client.receipt(NOT_UTF_8),
    ],
)
def test_what_cannot_be_sent_is_a_typed_error(operation: Callable[[Client], Any]) -> None:
    def sent(request: httpx.Request) -> httpx.Response:
        raise AssertionError(f"{request.url} was sent")

    client = Client("http://server", "craft_key", transport=httpx.MockTransport(sent))
    with pytest.raises(CraftError):
        operation(client)


def test_messages_of_what_somebody_asks_for_are_made_in_one_place() -> None:
    models = {
        name
        for module in (wire, run_reports, adapter)
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, wire.Message) and kind is not BaseModel
    }
    # Of settings and answers that were checked before.
    checked = {"Context", "Output", "AdapterConfig", "Budget", "Provenance"}
    checked |= {"RunPoint", "RunCandidate", "RunOutcome"}
    made = [
        f"{file.relative_to(CLIENT)}:{node.lineno}: {node.func.id}"
        for file in CLIENT.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in models - checked
    ]
    assert made == []
