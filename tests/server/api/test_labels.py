"""Answers that name the classes, and zero-shot classification as Hugging Face's clients call it."""

from __future__ import annotations

import base64
import io
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from PIL import Image

from craft_server.ledger import administration
from craft_shared import codec
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import Unrefined
from craft_shared.output import scores_of
from craft_shared.units import UNITS
from craft_shared.wire import KeyPolicy, Output

Picture = Callable[..., bytes]
CLASSES = ["cat", "dog", 'a "tree" frog']
TEMPLATE = "a photo of a {}."
ZERO_SHOT = "/v1/zero-shot-image-classification"
LEVELS = [
    Output(level="log_probs"),
    Output(level="top_k", k=2),
    Output(level="probs", decimals=2),
    Output(level="log_probs", noise=0.5),
]


def sent(*pictures: bytes) -> list[str]:
    return [base64.b64encode(picture).decode() for picture in pictures]


def give(server: Any, client: httpx.Client, output: Output) -> None:
    prefix = client.headers["Authorization"].split("_")[1]
    with server.database.writing() as connection:
        administration.set_policy(connection, prefix, KeyPolicy(output=output))


def zero_shot(client: httpx.Client, picture: bytes, **more: Any) -> httpx.Response:
    parameters = {"candidate_labels": CLASSES, "hypothesis_template": TEMPLATE}
    body = {"inputs": sent(picture)[0], "parameters": parameters, **more}
    return client.post(ZERO_SHOT, json=body)


def predicted(client: httpx.Client, picture: bytes, **more: Any) -> dict[str, Any]:
    (card,) = client.get("/v1/models").json()["models"]
    body = {"model": card["name"], "classes": CLASSES, "templates": [TEMPLATE]}
    answer = client.post("/v1/predictions", json={**body, "images": sent(picture), **more})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def publish(client: httpx.Client) -> None:
    (card,) = client.get("/v1/models").json()["models"]
    config = AdapterConfig(
        model=card["name"],
        revision=card["revision"],
        classes=CLASSES,
        templates=[TEMPLATE],
        head="none",
    )
    client.post(
        "/v1/adapters",
        params={"name": "pets"},
        content=Adapter(config, np.zeros((0, 0), np.float32), Unrefined()).to_bytes(),
        headers={"Content-Type": codec.MEDIA_TYPE},
    ).raise_for_status()


def as_labels(answer: dict[str, Any]) -> list[tuple[str, float]]:
    """What the tensors of an answer about one image say, the best first."""
    output = Output(**answer["output"])
    tensors = {
        name: np.array(answer[name], dtype).reshape(1, -1)
        for name, dtype in (("log_probs", "f4"), ("probs", "f4"), ("top_classes", "i4"))
        if answer.get(name) is not None
    }
    if "top_classes" in tensors:
        order = tensors["top_classes"][0]
    else:
        order = np.argsort(-scores_of(tensors, output, len(CLASSES))[0], kind="stable")
    numbers = tensors.get("probs")
    numbers = np.exp(tensors["log_probs"]) if numbers is None else numbers
    numbers = numbers[0] if "top_classes" in tensors else numbers[0][order]
    return [(CLASSES[one], float(number)) for one, number in zip(order, numbers, strict=True)]


def check(found: list[dict[str, Any]], expected: list[tuple[str, float]]) -> None:
    assert [one["label"] for one in found] == [label for label, _ in expected]
    np.testing.assert_allclose(
        [one["score"] for one in found], [score for _, score in expected], rtol=1e-5
    )
    scores = [one["score"] for one in found]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("output", LEVELS, ids=lambda output: f"{output.level}-{output.noise}")
def test_labels_say_what_the_tensors_do_and_no_more(
    server: Any, picture: Picture, output: Output
) -> None:
    with server.client() as client:
        publish(client)
        give(server, client, output)
        file = picture(1)
        tensors = predicted(client, file)
        labels = predicted(client, file, format="labels")
        assert labels["output"] == tensors["output"]
        assert not {"log_probs", "probs", "top_classes"} & labels.keys()
        check(labels["labels"][0][0], as_labels(tensors))
        check(zero_shot(client, file).json(), as_labels(tensors))
        tuned, named = (
            client.post("/v1/adapters/pets/predictions", json={"images": sent(file), **more}).json()
            for more in ({}, {"format": "labels", "abstain_below": 1})
        )
        check(named["labels"][0], as_labels(tuned))
        assert named["abstained"] == [1]
        assert not {"log_probs", "probs", "top_classes"} & named.keys()


def test_labels_alone_have_no_scores(server: Any, picture: Picture) -> None:
    with server.client() as client:
        publish(client)
        best = zero_shot(client, picture(1)).json()[0]["label"]
        give(server, client, Output(level="label"))
        expected = [{"label": best, "score": None}]
        assert zero_shot(client, picture(1)).json() == expected
        assert predicted(client, picture(1), format="labels")["labels"] == [[expected]]
        body = {"images": sent(picture(1)), "format": "labels"}
        answer = client.post("/v1/adapters/pets/predictions", json=body)
        assert answer.json()["labels"] == [expected]


def test_labels_are_json_whatever_is_accepted(client: httpx.Client, picture: Picture) -> None:
    client.headers["Accept"] = codec.MEDIA_TYPE
    assert zero_shot(client, picture()).headers["content-type"] == "application/json"
    assert [
        len(row) for row in predicted(client, picture(), format="labels", top_k=2)["labels"][0]
    ] == [2]


def test_labels_of_prompts_and_images_keep_their_places(
    client: httpx.Client, picture: Picture
) -> None:
    files = [picture(seed) for seed in range(3)]
    more = {"templates": [TEMPLATE, "{}"], "images": sent(*files)}
    labels = np.array(
        [
            [
                [one["score"] for one in sorted(row, key=lambda one: CLASSES.index(one["label"]))]
                for row in rows
            ]
            for rows in predicted(client, files[0], format="labels", **more)["labels"]
        ]
    )
    tensors = np.exp(np.array(predicted(client, files[0], **more)["log_probs"]))
    np.testing.assert_allclose(labels, tensors, rtol=1e-5)


def test_an_answer_with_too_many_labels_is_refused_and_costs_nothing(
    serve: Any, picture: Picture
) -> None:
    with serve(limits={"answer_bytes": 200}) as server, server.client() as client:
        (card,) = client.get("/v1/models").json()["models"]
        body = {"model": card["name"], "classes": ["x" * 150, "y"], "templates": ["{}"]}
        body |= {"images": sent(picture())}
        assert client.post("/v1/predictions", json=body).status_code == 200
        spent = client.get("/v1/usage").json()["total"]
        answer = client.post("/v1/predictions", json={**body, "format": "labels"})
        assert answer.status_code == 422
        assert [error["field"] for error in answer.json()["errors"]] == ["images"]
        labels = {"candidate_labels": body["classes"]}
        answer = client.post(ZERO_SHOT, json={"inputs": body["images"][0], "parameters": labels})
        assert [error["field"] for error in answer.json()["errors"]] == ["inputs"]
        assert client.get("/v1/usage").json()["total"] == spent


# --- zero-shot ------------------------------------------------------------------------------------


def test_a_zero_shot_call_is_charged_as_the_prediction_that_it_is(
    client: httpx.Client, picture: Picture
) -> None:
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    body = {"inputs": sent(picture())[0], "parameters": {"candidate_labels": CLASSES}}
    first, again = (client.post(ZERO_SHOT, json=body, headers=headers) for _ in range(2))
    assert again.content == first.content
    assert again.headers["idempotency-replayed"] == "true"
    usage = client.get("/v1/usage").json()
    expected = {"queries": 1, "predictions": 1, "images": 1, "texts": 3, "requests": 1}
    assert usage["total"] == expected
    assert list(expected) == list(UNITS)
    assert [line["call"] for line in usage["charges"]] == ["predictions"]


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({}, "parameters.candidate_labels"),
        ({"candidate_labels": []}, "parameters.candidate_labels"),
        ({"candidate_labels": ["cat", "cat"]}, "parameters.candidate_labels[1]"),
        ({"candidate_labels": ["cat", "x " * 90]}, "parameters.candidate_labels[1]"),
        (
            {"candidate_labels": ["cat"], "hypothesis_template": "no place"},
            "parameters.hypothesis_template",
        ),
        ({"candidate_labels": ["cat"], "top_k": 1}, "parameters.top_k"),
    ],
)
def test_what_is_wrong_is_called_as_the_call_has_it(
    client: httpx.Client, picture: Picture, parameters: dict[str, Any], field: str
) -> None:
    body = {"inputs": sent(picture())[0], "parameters": parameters}
    answer = client.post(ZERO_SHOT, json=body)
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert [error["field"] for error in problem["errors"]] == [field]
    assert problem["detail"].startswith(f"{field}: ")
    assert client.get("/v1/usage").json()["charges"] == []


@pytest.mark.parametrize("inputs", ["%", base64.b64encode(b"no picture").decode()])
def test_an_image_that_cannot_be_used_is_called_inputs(client: httpx.Client, inputs: str) -> None:
    parameters = {"candidate_labels": CLASSES}
    answer = client.post(ZERO_SHOT, json={"inputs": inputs, "parameters": parameters})
    assert answer.status_code == 422
    assert answer.json()["type"] == "urn:craftbox:problem:invalid-image"
    assert [error["field"] for error in answer.json()["errors"]] == ["inputs"]


def test_the_image_may_stand_in_an_object_as_huggingface_js_has_it(
    client: httpx.Client, picture: Picture
) -> None:
    plain = zero_shot(client, picture(2))
    wrapped = zero_shot(client, picture(2), inputs={"image": sent(picture(2))[0]})
    assert wrapped.json() == plain.json()


def test_huggingface_hubs_client_classifies_with_this_server(server: Any, picture: Picture) -> None:
    with server.client() as client:
        secret = client.headers["Authorization"].removeprefix("Bearer ")
        theirs = InferenceClient(model=server.url + ZERO_SHOT, token=secret)
        image = Image.open(io.BytesIO(picture(3)))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        found = theirs.zero_shot_image_classification(
            buffer.getvalue(), CLASSES, hypothesis_template=TEMPLATE
        )
        expected = zero_shot(client, buffer.getvalue()).json()
        assert [{"label": one.label, "score": one.score} for one in found] == expected
        default = theirs.zero_shot_image_classification(buffer.getvalue(), CLASSES)
        assert {one.label for one in default} == set(CLASSES)
        assert client.get("/v1/usage").json()["total"]["requests"] == 3
