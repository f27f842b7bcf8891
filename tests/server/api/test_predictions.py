"""`POST /v1/predictions` and `/v1/image-sets`, over a socket, with the tiny model."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from craft_server.engine import NotFinite
from craft_server.engine.hosted import preprocessing_of
from craft_shared import codec
from craft_shared.units import UNITS

SAFETENSORS = {"Content-Type": codec.MEDIA_TYPE, "Accept": codec.MEDIA_TYPE}
CONTEXT = {"init": "a photo of a", "dim": 4, "seed": 3, "scale": 1.0}
CODES = np.arange(8, dtype=np.float32).reshape(2, 4)

Picture = Callable[..., bytes]


def b64(*files: bytes) -> list[str]:
    return [base64.b64encode(file).decode() for file in files]


def hosted(client: httpx.Client) -> dict[str, Any]:
    (card,) = client.get("/v1/models").json()["models"]
    return dict(card)


def new_set(client: httpx.Client, *files: bytes) -> str:
    answer = client.post("/v1/image-sets", json={"model": hosted(client)["name"]})
    assert answer.status_code == 201, answer.text
    image_set_id: str = answer.json()["id"]
    if files:
        assert upload(client, image_set_id, 0, *files).status_code == 200
    return image_set_id


def upload(client: httpx.Client, image_set_id: str, first_row: int, *files: bytes) -> Any:
    return client.post(
        f"/v1/image-sets/{image_set_id}/images",
        json={"first_row": first_row, "images": b64(*files)},
    )


def request(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    return {
        "model": hosted(client)["name"],
        "classes": ["cat", "dog", "tree frog"],
        "templates": ["a photo of a {}."],
        **fields,
    }


def usage(client: httpx.Client) -> dict[str, int]:
    return dict(client.get("/v1/usage").json()["total"])


def units(**amounts: int) -> dict[str, int]:
    return {unit: amounts.get(unit, 0) for unit in UNITS}


def check_problem(answer: httpx.Response, status: int, slug: str, *fields: str) -> dict[str, Any]:
    """The answer is this problem about exactly these fields, each with words and a remedy."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["type"] == f"urn:craftbox:problem:{slug}"
    assert problem["status"] == status
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem["detail"]
    assert problem["remedy"]
    assert [error["field"] for error in problem["errors"]] == list(fields)
    assert all(error["message"] and error["remedy"] for error in problem["errors"])
    return problem


def test_a_prediction_is_a_distribution_for_each_prompt_and_picture(
    client: httpx.Client, picture: Picture
) -> None:
    body = request(
        client,
        templates=["a photo of a {}.", "{}"],
        context=CONTEXT,
        codes=CODES.tolist(),
        images=b64(picture(1), picture(2), picture(3)),
    )
    answer = client.post("/v1/predictions", json=body).json()
    log_probs = np.array(answer["log_probs"])
    assert log_probs.shape == (4, 3, 3)
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, rtol=1e-5)
    expected = units(queries=4, predictions=12, images=3, texts=12, requests=1)
    assert answer["cost"]["charged"] == expected
    assert usage(client) == expected
    assert answer["revision"] == hosted(client)["revision"]


def test_json_and_safetensors_give_equal_numbers(client: httpx.Client, picture: Picture) -> None:
    files = [picture(1), picture(2)]
    fields = request(client, context=CONTEXT)
    as_json = client.post(
        "/v1/predictions", json={**fields, "codes": CODES.tolist(), "images": b64(*files)}
    )
    packed = codec.encode(fields, {"codes": CODES, **codec.pack_files(files)})
    as_tensors = client.post("/v1/predictions", content=packed, headers=SAFETENSORS)
    assert as_tensors.headers["content-type"] == codec.MEDIA_TYPE
    document, tensors = codec.decode(as_tensors.content)
    assert "log_probs" not in document
    assert document["cost"] == as_json.json()["cost"]
    assert tensors["log_probs"].dtype == np.float32
    parsed = np.array(as_json.json()["log_probs"], np.float32)
    np.testing.assert_array_equal(tensors["log_probs"], parsed)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("application/x-safetensors;q=0", "application/json"),
        ("application/json;q=0.1, Application/X-Safetensors;q=0.9", codec.MEDIA_TYPE),
    ],
)
def test_the_answers_media_type_is_the_clients_choice(
    client: httpx.Client, picture: Picture, accept: str, expected: str
) -> None:
    answer = client.post(
        "/v1/predictions",
        json=request(client, images=b64(picture())),
        headers={"Accept": accept},
    )
    assert answer.headers["content-type"] == expected


def test_half_precision_is_the_same_answer_rounded(client: httpx.Client, picture: Picture) -> None:
    tensors = {}
    for dtype in ("float32", "float16"):
        answer = client.post(
            "/v1/predictions",
            json=request(client, images=b64(picture()), dtype=dtype),
            headers={"Accept": codec.MEDIA_TYPE},
        )
        tensors[dtype] = codec.decode(answer.content)[1]["log_probs"]
    assert tensors["float16"].dtype == np.float16
    np.testing.assert_array_equal(tensors["float16"], tensors["float32"].astype(np.float16))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_top_k_leaves_the_most_probable_classes_of_the_same_answer_at_the_same_charge(
    client: httpx.Client, picture: Picture, dtype: str
) -> None:
    fields = request(
        client,
        context=CONTEXT,
        classes=["cat", "dog", "tree frog", "owl", "bee"],
        codes=CODES.tolist(),
        images=b64(picture(1), picture(2)),
        dtype=dtype,
    )
    whole = client.post("/v1/predictions", json=fields).json()
    assert "top_classes" not in whole
    as_json = client.post("/v1/predictions", json={**fields, "top_k": 2})
    as_tensors = client.post(
        "/v1/predictions", json={**fields, "top_k": 2}, headers={"Accept": codec.MEDIA_TYPE}
    )
    document, tensors = codec.decode(as_tensors.content)
    assert not {"log_probs", "top_classes"} & document.keys()
    assert tensors["log_probs"].dtype == dtype
    assert tensors["top_classes"].dtype == np.int32
    scores = np.array(whole["log_probs"])
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :2]
    for found in (as_json.json(), tensors):
        np.testing.assert_array_equal(found["top_classes"], order)
        np.testing.assert_array_equal(
            np.array(found["log_probs"], dtype),
            np.take_along_axis(scores, order, -1).astype(dtype),
        )
    for cost in (as_json.json()["cost"], document["cost"]):
        assert cost["charged"] == whole["cost"]["charged"]


def test_top_k_may_be_all_classes(client: httpx.Client, picture: Picture) -> None:
    fields = request(client, images=b64(picture()), top_k=3)
    answer = client.post("/v1/predictions", json=fields).json()
    assert sorted(answer["top_classes"][0][0]) == [0, 1, 2]


def test_an_image_set_scores_as_its_pictures_do(client: httpx.Client, picture: Picture) -> None:
    files = [picture(seed) for seed in range(5)]
    image_set = new_set(client, *files)
    inline = client.post("/v1/predictions", json=request(client, images=b64(*files))).json()
    stored = client.post("/v1/predictions", json=request(client, image_set=image_set)).json()
    np.testing.assert_allclose(stored["log_probs"], inline["log_probs"], atol=2e-5)
    assert stored["cost"]["charged"] == units(queries=1, predictions=5, texts=3, requests=1)
    rows = client.post(
        "/v1/predictions", json=request(client, image_set=image_set, rows=[4, 0, 4])
    ).json()
    np.testing.assert_allclose(
        rows["log_probs"][0], np.array(stored["log_probs"])[0, [4, 0, 4]], atol=1e-6
    )
    assert rows["cost"]["charged"]["predictions"] == 3


def test_a_grown_image_set_is_scored_whole(client: httpx.Client, picture: Picture) -> None:
    image_set = new_set(client, picture(1))
    body = request(client, image_set=image_set)
    assert len(client.post("/v1/predictions", json=body).json()["log_probs"][0]) == 1
    assert upload(client, image_set, 1, picture(2)).status_code == 200
    assert len(client.post("/v1/predictions", json=body).json()["log_probs"][0]) == 2


def test_known_pictures_are_not_charged_again(client: httpx.Client, picture: Picture) -> None:
    first = new_set(client)
    answer = upload(client, first, 0, picture(1), picture(2), picture(1)).json()
    assert answer["image_set"]["count"] == 3
    assert answer["cost"]["charged"] == units(images=2, requests=1)
    second = new_set(client)
    answer = upload(client, second, 0, picture(2), picture(3)).json()
    assert answer["cost"]["charged"] == units(images=1, requests=1)
    assert client.get(f"/v1/image-sets/{second}").json()["count"] == 2
    assert usage(client) == units(images=3, requests=2)


def test_chunks_travel_as_safetensors_too(client: httpx.Client, picture: Picture) -> None:
    image_set = new_set(client)
    body = codec.encode({"first_row": 0}, codec.pack_files([picture(1), picture(2)]))
    answer = client.post(
        f"/v1/image-sets/{image_set}/images",
        content=body,
        headers={"Content-Type": codec.MEDIA_TYPE},
    )
    assert answer.json()["image_set"]["count"] == 2


def test_a_deleted_image_set_is_gone(client: httpx.Client, picture: Picture) -> None:
    image_set = new_set(client, picture())
    assert client.delete(f"/v1/image-sets/{image_set}").status_code == 204
    check_problem(client.get(f"/v1/image-sets/{image_set}"), 404, "image-set-not-found")
    check_problem(client.delete(f"/v1/image-sets/{image_set}"), 404, "image-set-not-found")
    answer = client.post("/v1/predictions", json=request(client, image_set=image_set))
    check_problem(answer, 404, "image-set-not-found")


def test_a_model_says_how_it_resizes_images(
    server: Any, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = server.app.state.services.engine
    assert (hosted(client)["resize_mode"], hosted(client)["interpolation"]) == (
        "shortest",
        "bicubic",
    )
    siglip, _ = preprocessing_of(
        {**engine.facts.preprocess_cfg, "resize_mode": "squash", "interpolation": "bilinear"}
    )
    monkeypatch.setattr(engine, "view", siglip)
    assert (hosted(client)["resize_mode"], hosted(client)["interpolation"]) == (
        "squash",
        "bilinear",
    )


def test_models_show_limits_and_nothing_of_the_inside(client: httpx.Client) -> None:
    card = hosted(client)
    assert set(card) == {
        *("name", "revision", "image_size", "limits", "outputs", "output"),
        *("prompts_per_image_set", "profile", "resize_mode", "interpolation"),
    }
    assert card["limits"]["images_per_call"] == 256


# --- bad input: each names its field and costs nothing ------------------------------------------

BAD_REQUESTS: list[tuple[dict[str, Any], int, str, list[str]]] = [
    ({"model": "no-such"}, 404, "model-not-found", ["model"]),
    ({"classes": []}, 422, "invalid-request", ["classes"]),
    ({"classes": ["cat", "dog", "cat"]}, 422, "invalid-request", ["classes[2]"]),
    ({"classes": ["cat", ""]}, 422, "invalid-request", ["classes[1]"]),
    ({"classes": ["cat", 7]}, 422, "invalid-request", ["classes[1]"]),
    (
        {"classes": ["cat", "dog " * 49], "templates": ["very " * 50 + "{}"]},
        422,
        "invalid-request",
        ["classes[1]"],
    ),
    ({"templates": []}, 422, "invalid-request", ["templates"]),
    ({"templates": ["a photo"]}, 422, "invalid-request", ["templates[0]"]),
    ({"templates": ["{}", "{} {}"]}, 422, "invalid-request", ["templates[1]"]),
    ({"codes": [[1.0, 2.0]]}, 422, "invalid-request", ["context"]),
    ({"codes": [[1.0]], "context": CONTEXT}, 422, "invalid-request", ["codes"]),
    ({"codes": [[1.0], [1.0, 2.0]], "context": CONTEXT}, 422, "invalid-request", ["codes"]),
    ({"codes": [["1", "2", "3", "4"]], "context": CONTEXT}, 422, "invalid-request", ["codes"]),
    ({"codes": 5, "context": CONTEXT}, 422, "invalid-request", ["codes"]),
    (
        {"codes": [[1, 2, 3, 4], [1, 2, 3, 1e39]], "context": CONTEXT},
        422,
        "invalid-request",
        ["codes[1]"],
    ),
    ({"context": {"dim": 0}}, 422, "invalid-request", ["context.dim"]),
    ({"context": {"dim": 4, "scale": -1}}, 422, "invalid-request", ["context.scale"]),
    ({"context": {"dim": 4, "sclae": 1}}, 422, "invalid-request", ["context.sclae"]),
    ({"image_set": "is_" + "x" * 22}, 404, "image-set-not-found", []),
    ({"image_set": "\0"}, 404, "image-set-not-found", []),
    ({"rows": [0]}, 422, "invalid-request", ["image_set"]),
    ({"images": []}, 422, "invalid-request", ["images"]),
    ({"images": "cat.png"}, 422, "invalid-request", ["images"]),
    ({"images": ["?"]}, 422, "invalid-image", ["images[0]"]),
    ({"images": [5]}, 422, "invalid-image", ["images[0]"]),
    ({"images": ["AAAA"], "rows": [0]}, 422, "invalid-request", ["rows"]),
    ({"images": ["AAAA"], "image_set": "is_x"}, 422, "invalid-request", ["image_set"]),
    ({"dtype": "float64"}, 422, "invalid-request", ["dtype"]),
    ({"top_k": 0}, 422, "invalid-request", ["top_k"]),
    ({"top_k": 4}, 422, "invalid-request", ["top_k"]),
    ({"top_k": 1.5}, 422, "invalid-request", ["top_k"]),
    ({"picture": 1}, 422, "invalid-request", ["picture"]),
    ({}, 422, "invalid-request", ["image_set"]),
]


@pytest.mark.parametrize(("fields", "status", "slug", "named"), BAD_REQUESTS)
def test_a_bad_request_names_the_field_and_costs_nothing(
    client: httpx.Client, fields: dict[str, Any], status: int, slug: str, named: list[str]
) -> None:
    answer = client.post("/v1/predictions", json=request(client, **fields))
    check_problem(answer, status, slug, *named)
    assert usage(client) == units()


@pytest.mark.parametrize(
    ("rows", "named"),
    [([0, 2], ["rows[1]"]), ([-1], ["rows[0]"]), ([], ["rows"]), ([10**30], ["rows[0]"])],
)
def test_rows_must_exist(
    client: httpx.Client, picture: Picture, rows: list[int], named: list[str]
) -> None:
    image_set = new_set(client, picture(1), picture(2))
    before = usage(client)
    answer = client.post("/v1/predictions", json=request(client, image_set=image_set, rows=rows))
    check_problem(answer, 422, "invalid-request", *named)
    assert usage(client) == before


def test_an_empty_image_set_is_told(client: httpx.Client) -> None:
    answer = client.post("/v1/predictions", json=request(client, image_set=new_set(client)))
    check_problem(answer, 422, "invalid-request", "image_set")


@pytest.mark.parametrize("codes", [np.full((2, 4), np.nan), np.full((2, 4), np.inf)])
def test_codes_that_are_not_finite_are_refused(
    client: httpx.Client, picture: Picture, codes: np.ndarray[Any, Any]
) -> None:
    tensors = {"codes": codes.astype(np.float32), **codec.pack_files([picture()])}
    body = codec.encode(request(client, context=CONTEXT), tensors)
    answer = client.post("/v1/predictions", content=body, headers=SAFETENSORS)
    check_problem(answer, 422, "invalid-request", "codes[0]", "codes[1]")
    assert usage(client) == units()


def test_every_bad_picture_is_named_and_nothing_is_added(
    client: httpx.Client, picture: Picture
) -> None:
    image_set = new_set(client)
    good = picture(1)
    files = [good, b"no picture", good, good[: len(good) // 2], b""]
    answer = upload(client, image_set, 0, *files)
    check_problem(answer, 422, "invalid-image", "images[1]", "images[3]", "images[4]")
    assert client.get(f"/v1/image-sets/{image_set}").json()["count"] == 0
    assert usage(client) == units()
    inline = client.post("/v1/predictions", json=request(client, images=b64(*files)))
    check_problem(inline, 422, "invalid-image", "images[1]", "images[3]", "images[4]")
    assert usage(client) == units()


def test_a_chunk_at_the_wrong_row_is_refused_with_the_count(
    client: httpx.Client, picture: Picture
) -> None:
    image_set = new_set(client, picture(1))
    before = usage(client)
    problem = check_problem(
        upload(client, image_set, 0, picture(1)), 422, "invalid-request", "first_row"
    )
    assert "1" in problem["errors"][0]["message"]
    assert usage(client) == before


def test_an_upload_without_pictures_is_refused(client: httpx.Client) -> None:
    image_set = new_set(client)
    answer = client.post(f"/v1/image-sets/{image_set}/images", json={"first_row": 0})
    check_problem(answer, 422, "invalid-request", "images")


def test_an_image_set_of_an_unknown_model_is_refused(client: httpx.Client) -> None:
    answer = client.post("/v1/image-sets", json={"model": "no-such"})
    check_problem(answer, 404, "model-not-found", "model")


def test_limits_are_told_before_the_work(serve: Any, picture: Picture) -> None:
    limits = {
        "images_per_call": 2,
        "image_bytes": 10_000,
        "image_pixels": 5_000,
        "images_per_set": 3,
        "prompts_per_call": 2,
        "classes": 4,
        "dim": 8,
        "answer_bytes": 200,
    }
    with serve(limits=limits) as server, server.client() as client:
        ok = b64(picture())
        cases: list[tuple[dict[str, Any], str, str]] = [
            ({"images": ok * 3}, "invalid-request", "images"),
            ({"images": b64(picture(size=(100, 51)))}, "invalid-image", "images[0]"),
            ({"images": b64(picture(size=(60, 60)))}, "invalid-image", "images[0]"),
            ({"images": ok, "templates": ["{}", "a {}", "b {}"]}, "invalid-request", "templates"),
            ({"images": ok, "classes": list("abcde")}, "invalid-request", "classes"),
            ({"images": ok, "context": {"dim": 9}}, "invalid-request", "context.dim"),
            (
                {"images": ok * 2, "classes": list("abcd"), "templates": ["{}", "a {}"]},
                "invalid-request",
                "images",
            ),
        ]
        for fields, slug, field in cases:
            answer = client.post("/v1/predictions", json=request(client, **fields))
            check_problem(answer, 422, slug, field)
        image_set = new_set(client, picture(1), picture(2))
        answer = upload(client, image_set, 2, picture(3), picture(4))
        check_problem(answer, 422, "invalid-request", "images")
        assert usage(client) == units(images=2, requests=1)


def test_an_answer_too_large_as_json_may_fit_as_safetensors(serve: Any, picture: Picture) -> None:
    with serve(limits={"answer_bytes": 12}) as server, server.client() as client:
        body = request(client, images=b64(picture()))
        check_problem(client.post("/v1/predictions", json=body), 422, "invalid-request", "images")
        answer = client.post("/v1/predictions", json=body, headers={"Accept": codec.MEDIA_TYPE})
        assert answer.status_code == 200


def test_with_top_k_the_answers_size_is_that_of_both_tensors(serve: Any, picture: Picture) -> None:
    # Two pictures, three classes: 24 bytes without top_k, 8 for each class that it leaves of each.
    with serve(limits={"answer_bytes": 16}) as server, server.client() as client:
        for top_k, status in ((None, 422), (1, 200), (2, 422)):
            answer = client.post(
                "/v1/predictions",
                json=request(client, images=b64(picture(1), picture(2)), top_k=top_k),
                headers={"Accept": codec.MEDIA_TYPE},
            )
            assert answer.status_code == status, (top_k, answer.text)
        assert usage(client)["requests"] == 1


def test_an_image_set_of_another_revision_is_refused(
    serve: Any, tiny_engine: Any, picture: Picture
) -> None:
    class Retrained:
        revision = "f" * 16

        def __getattr__(self, name: str) -> Any:
            return getattr(tiny_engine, name)

    with serve() as server, server.client("owner") as client:
        image_set = new_set(client, picture())
    with serve(engine=Retrained()) as server, server.client("owner") as client:
        answer = client.post("/v1/predictions", json=request(client, image_set=image_set))
        check_problem(answer, 409, "revision-mismatch", "image_set")
        answer = upload(client, image_set, 1, picture(1))
        check_problem(answer, 409, "revision-mismatch", "image_set")
        assert client.delete(f"/v1/image-sets/{image_set}").status_code == 204


def test_an_image_set_read_in_another_precision_is_refused(
    serve: Any, tiny_engine: Any, picture: Picture
) -> None:
    class Half:
        facts = tiny_engine.facts.model_copy(update={"images_in": "float16"})

        def __getattr__(self, name: str) -> Any:
            return getattr(tiny_engine, name)

    def use(client: httpx.Client, image_set: str) -> httpx.Response:
        return client.post("/v1/predictions", json=request(client, image_set=image_set))

    with serve() as server, server.client("owner") as client:
        in_float32 = new_set(client, picture())
    with serve(engine=Half()) as server, server.client("owner") as client:
        check_problem(use(client, in_float32), 409, "revision-mismatch", "image_set")
        answer = upload(client, in_float32, 1, picture(1))
        check_problem(answer, 409, "revision-mismatch", "image_set")
        before = usage(client)["images"]
        in_half = new_set(client, picture())
        assert usage(client)["images"] == before + 1, "the row of the other precision was taken"
        assert use(client, in_half).status_code == 200
        shown = client.get(f"/v1/image-sets/{in_half}").json()
        assert shown["revision"] == tiny_engine.revision
        assert "images_in" not in shown
    with serve() as server, server.client("owner") as client:
        check_problem(use(client, in_half), 409, "revision-mismatch", "image_set")
        assert use(client, in_float32).status_code == 200


@pytest.mark.parametrize("method", ["encode_prompts", "encode_images", "score"])
def test_an_answer_that_is_not_finite_is_refused_and_charged_to_nobody(
    serve: Any, tiny_engine: Any, picture: Picture, method: str
) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            return refuse if name == method else getattr(tiny_engine, name)

    async def refuse(*_: Any, **__: Any) -> Any:
        raise NotFinite("nan")

    with serve(engine=Broken()) as server, server.client(queries=5) as client:
        answer = client.post("/v1/predictions", json=request(client, images=b64(picture())))
        check_problem(answer, 500, "internal-error")
        assert "not finite" in answer.json()["detail"]
        assert usage(client) == units()


def test_documents_and_tensors_do_not_mix(client: httpx.Client, picture: Picture) -> None:
    files = codec.pack_files([picture()])
    fields = request(client, context=CONTEXT)
    wrong: list[tuple[dict[str, Any], codec.Tensors, str]] = [
        ({**fields, "codes": CODES.tolist()}, files, "codes"),
        ({**fields, "images": []}, files, "images"),
        (fields, {**files, "log_probs": CODES}, "log_probs"),
        (fields, {**files, "codes": CODES.astype(np.int64)}, "codes"),
        (fields, {"files": files["files"]}, "file_sizes"),
        (fields, {**files, "file_sizes": np.array([1], np.int64)}, "file_sizes"),
    ]
    for document, tensors, field in wrong:
        body = codec.encode(document, tensors)
        answer = client.post("/v1/predictions", content=body, headers=SAFETENSORS)
        check_problem(answer, 422, "invalid-request", field)
    assert usage(client) == units()


@pytest.mark.parametrize(
    ("content_type", "body", "status", "slug"),
    [
        ("application/json", b"", 400, "malformed-body"),
        ("application/json", b"{", 400, "malformed-body"),
        ("application/json", b"[1]", 400, "malformed-body"),
        ("application/json", b'{"model": "a", "model": "b"}', 400, "malformed-body"),
        ("application/json", b'{"model": NaN}', 400, "malformed-body"),
        ("application/json", b'{"codes": ' + b"[" * 1000, 400, "malformed-body"),
        ("application/json", b'{"codes": ' + b"[" * 200_000, 413, "body-too-large"),
        ("application/json", b'{"codes": ' + b"1" * 10_000 + b"}", 400, "malformed-body"),
        ("application/json", b'{"model": "\xff"}', 400, "malformed-body"),
        ("application/json", rb'{"model": "\ud800", "classes": ["a"]}', 400, "malformed-body"),
        (codec.MEDIA_TYPE, b"", 400, "malformed-body"),
        (codec.MEDIA_TYPE, b"\xff" * 100, 400, "malformed-body"),
        (codec.MEDIA_TYPE, b'{"model": "a"}', 400, "malformed-body"),
        ("text/plain", b"{}", 415, "unsupported-media-type"),
        ("", b"{}", 415, "unsupported-media-type"),
    ],
)
def test_a_body_that_cannot_be_read_is_told(
    client: httpx.Client, content_type: str, body: bytes, status: int, slug: str
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    answer = client.post("/v1/predictions", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.json()["type"].endswith(slug)
    assert usage(client) == units()


def test_no_answer_tells_what_is_inside(client: httpx.Client, picture: Picture) -> None:
    image_set = new_set(client, picture())
    answers = [
        client.get("/v1/models"),
        client.get(f"/v1/image-sets/{image_set}"),
        client.post("/v1/predictions", json=request(client, image_set=image_set)),
        client.post("/v1/predictions", json=request(client, image_set=image_set, classes=["", ""])),
    ]
    for answer in answers:
        text = json.dumps([dict(answer.headers), answer.json()]).lower()
        for word in ("width", "feature", "embedding", "logit_scale", "checkpoint", "torch", "/tmp"):
            assert word not in text


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        (["café", "dog", "cafe\u0301"], "reads 'cafe\u0301' as the same text as 'café'"),
        (["cat", "\uff43\uff41\uff54"], "as the same text as 'cat', the name of classes[0]"),
        (["cat", "Cat"], "reads 'Cat' as the same text as 'cat'"),
        (["salt & pepper", "salt &amp; pepper"], "'salt & pepper', the name of classes[0]"),
        (["cat's", "cat\u2019s"], "'cat's', the name of classes[0]"),
        (["a b", "a\u00a0b", "c"], "'a b', the name of classes[0]"),
        (["Boeing 737", "Boeing 7 37"], "'Boeing 737', the name of classes[0]"),
        (["cat", "cat"], "'cat' is also the name of classes[0]"),
    ],
)
def test_classes_that_the_tokenizer_reads_as_one_are_refused_as_twins(
    client: httpx.Client, picture: Picture, classes: list[str], told: str
) -> None:
    asked = request(client, classes=classes, images=b64(picture(1)))
    answer = client.post("/v1/predictions", json=asked)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert told in error["message"]
    assert usage(client)["queries"] == 0


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("x\x1b[31mred", "U+001B, a control character, as character 2"),
        ("abc\u202etxt", "U+202E"),
        ("zero\u200bwidth", "U+200B"),
        ("=1+1", "begins with '=' (U+003D)"),
        ("-1", "U+002D"),
    ],
)
def test_a_class_name_that_misleads_is_refused_by_its_code_point(
    client: httpx.Client, picture: Picture, name: str, told: str
) -> None:
    asked = request(client, classes=["dog", name], images=b64(picture(1)))
    answer = client.post("/v1/predictions", json=asked)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["field"] == "classes[1]"
    assert told in error["message"]
    assert error["remedy"].startswith("Rename it")
