"""Policies over a socket, with the tiny model: what keys see, and that nothing leads around it."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from craft_server.ledger import administration
from craft_shared import codec
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import LinearHead, Unrefined
from craft_shared.output import scores_of, shown
from craft_shared.wire import EVERYTHING, Context, KeyPolicy, Output

Picture = Callable[..., bytes]
CLASSES = ["cat", "dog", "owl", "tree frog"]
TEMPLATES = ["a photo of a {}.", "a drawing of a {}."]
CONTEXT = Context(dim=4, seed=3, scale=3.0)
CODES = np.arange(8, dtype=np.float32).reshape(2, 4)
LABEL = Output(level="label")
LEVELS = [
    LABEL,
    Output(level="top_k", k=2),
    Output(level="probs", decimals=2),
    Output(level="probs", decimals=3, k=2),
    Output(level="log_probs", decimals=1),
    Output(level="log_probs", noise=0.5),
]
SAFETENSORS = {"Accept": codec.MEDIA_TYPE}


def by_name(output: Output) -> str:
    return f"{output.level}-{output.k}-{output.decimals}-{output.noise}"


@pytest.fixture
def keyed(server: Any) -> Any:
    """Makes clients whose key has a policy; of a new owner unless one is named."""

    def make(output: Output = EVERYTHING, owner: str | None = None, **more: Any) -> httpx.Client:
        client: httpx.Client = server.client(owner)
        give(server, client, KeyPolicy(output=output, **more))
        return client

    return make


def give(server: Any, client: httpx.Client, policy: KeyPolicy) -> None:
    prefix = client.headers["Authorization"].split("_")[1]
    with server.database.writing() as connection:
        administration.set_policy(connection, prefix, policy)


def sent(*pictures: bytes) -> list[str]:
    return [base64.b64encode(picture).decode() for picture in pictures]


def ask(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    (card,) = client.get("/v1/models").json()["models"]
    body = {"model": card["name"], "classes": CLASSES, "templates": TEMPLATES, **fields}
    answer = client.post("/v1/predictions", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def tensors(answer: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {
        name: np.array(answer[name], np.int32 if name == "top_classes" else np.float32)
        for name in ("log_probs", "probs", "top_classes")
        if answer.get(name) is not None
    }


def image_set(client: httpx.Client, *pictures: bytes) -> str:
    (card,) = client.get("/v1/models").json()["models"]
    made = client.post("/v1/image-sets", json={"model": card["name"]}).json()["id"]
    body = {"first_row": 0, "images": sent(*pictures)}
    assert client.post(f"/v1/image-sets/{made}/images", json=body).status_code == 200
    return str(made)


def publish(client: httpx.Client, output: Output, head: Any = None) -> httpx.Response:
    (card,) = client.get("/v1/models").json()["models"]
    rng = np.random.default_rng(0)
    config = AdapterConfig(
        model=card["name"],
        revision=card["revision"],
        classes=CLASSES,
        templates=TEMPLATES[:1],
        context=CONTEXT,
        codes=2,
        head="ridge" if head is None else head.kind,
        output=output,
    )
    weight = rng.normal(size=(12, 4)).astype(np.float32)
    head = head or LinearHead(weight, np.zeros(4, np.float32), 1.0, 0.5)
    return client.post(
        "/v1/adapters",
        params={"name": "pets"},
        content=Adapter(config, CODES, head).to_bytes(),
        headers={"Content-Type": codec.MEDIA_TYPE},
    )


def classify(client: httpx.Client, name: str = "pets", **fields: Any) -> httpx.Response:
    return client.post(f"/v1/adapters/{name}/predictions", json=fields)


@pytest.mark.parametrize("output", LEVELS[:-1], ids=by_name)
def test_a_key_sees_what_its_policy_shows_and_no_more(
    keyed: Any, picture: Picture, output: Output
) -> None:
    pictures = sent(*(picture(seed) for seed in range(5)))
    whole = np.array(ask(keyed(), images=pictures)["log_probs"], np.float32)
    answer = ask(keyed(output), images=pictures)
    assert Output.model_validate(answer["output"]) == output
    expected = shown(whole, output)
    found = tensors(answer)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor)


@pytest.mark.parametrize("output", LEVELS, ids=by_name)
def test_json_and_safetensors_show_the_same(keyed: Any, picture: Picture, output: Output) -> None:
    client = keyed(output)
    fields = {"images": sent(picture(1), picture(2)), "dtype": "float32"}
    as_json = ask(client, **fields)
    client.headers.update(SAFETENSORS)
    (card,) = client.get("/v1/models").json()["models"]
    body = {"model": card["name"], "classes": CLASSES, "templates": TEMPLATES, **fields}
    document, packed = codec.decode(client.post("/v1/predictions", json=body).content)
    assert document["output"] == as_json["output"]
    assert not {"log_probs", "probs", "top_classes"} & document.keys()
    assert packed.keys() == tensors(as_json).keys()
    for name, tensor in tensors(as_json).items():
        np.testing.assert_array_equal(packed[name], tensor)


def test_the_model_card_says_what_the_key_sees(keyed: Any) -> None:
    output = Output(level="probs", decimals=2, noise=0.5)
    (card,) = keyed(output, prompts_per_image_set=7).get("/v1/models").json()["models"]
    assert card["outputs"] == ["probs"]
    assert Output.model_validate(card["output"]) == output
    assert card["prompts_per_image_set"] == 7


def test_top_k_narrows_an_answer_and_never_widens_it(keyed: Any, picture: Picture) -> None:
    images = sent(picture(1))
    client = keyed(Output(level="top_k", k=2))
    assert np.shape(ask(client, images=images, top_k=3)["log_probs"]) == (2, 1, 2)
    assert np.shape(ask(client, images=images, top_k=1)["log_probs"]) == (2, 1, 1)
    assert ask(keyed(LABEL), images=images, top_k=3).keys().isdisjoint({"log_probs", "probs"})


def test_a_policy_of_another_model_changes_nothing(
    server: Any, keyed: Any, picture: Picture
) -> None:
    client = keyed()
    give(server, client, KeyPolicy(model="another", output=LABEL))
    assert "log_probs" in ask(client, images=sent(picture(1)))
    (card,) = client.get("/v1/models").json()["models"]
    give(server, client, KeyPolicy(model=card["name"], output=LABEL))
    assert "log_probs" not in ask(client, images=sent(picture(1)))


def test_an_answer_that_was_stored_shows_no_more_than_the_policy_of_now(
    server: Any, keyed: Any, picture: Picture
) -> None:
    client = keyed()
    client.headers["Idempotency-Key"] = "once"
    fields = {"images": sent(picture(1))}
    before = ask(client, **fields)
    assert ask(client, **fields) == before
    give(server, client, KeyPolicy(output=LABEL))
    narrow = ask(client, **fields)
    assert "log_probs" not in narrow
    assert narrow["output"]["level"] == "label"
    assert narrow["cost"]["charged"] == before["cost"]["charged"]
    # A policy that is widened again makes no more of a call that was answered.
    give(server, client, KeyPolicy())
    assert ask(client, **fields) == narrow
    assert client.get("/v1/usage").json()["total"]["requests"] == 1


def test_a_stored_answer_of_another_kind_than_the_policy_shows_is_gone(
    server: Any, keyed: Any, picture: Picture
) -> None:
    client = keyed(LABEL)
    client.headers["Idempotency-Key"] = "once"
    fields = {"images": sent(picture(1))}
    assert post(client, templates=TEMPLATES, **fields).is_success
    give(server, client, KeyPolicy(output=Output(noise=0.5)))
    answer = post(client, templates=TEMPLATES, **fields)
    assert answer.status_code == 410, answer.text
    assert answer.json()["type"] == "urn:craftbox:problem:answer-gone"


def test_a_bound_on_prompts_holds_for_what_is_computed_anew(
    server: Any, keyed: Any, picture: Picture
) -> None:
    client = keyed()

    def call(number: int) -> int:
        client.headers["Idempotency-Key"] = f"call-{number}"
        templates = [f"the {number} {{}}."]
        return post(client, images=sent(picture(1)), templates=templates).status_code

    assert [call(number) for number in range(3)] == [200, 200, 200]
    give(server, client, KeyPolicy(prompts_per_image_set=2))
    assert [call(number) for number in range(3)] == [200, 200, 403]


# --- noise ------------------------------------------------------------------------------------


NOISY = Output(noise=0.5)


def test_noise_is_there_and_stays_when_the_question_is_asked_again(
    keyed: Any, picture: Picture
) -> None:
    images = sent(*(picture(seed) for seed in range(6)))
    client = keyed(NOISY)
    whole = np.array(ask(keyed(), images=images)["log_probs"])
    noisy = np.array(ask(client, images=images)["log_probs"])
    assert 0.2 < (noisy - whole).std() < 1
    np.testing.assert_array_equal(ask(client, images=images)["log_probs"], noisy)


def test_noise_stays_in_other_batches_orders_and_among_other_classes(
    keyed: Any, picture: Picture
) -> None:
    pictures = [picture(seed) for seed in range(6)]
    client = keyed(NOISY)
    fields = {"context": CONTEXT.model_dump(), "codes": CODES.tolist()}
    whole = np.array(ask(client, images=sent(*pictures), **fields)["log_probs"])
    one = np.array(
        ask(
            client,
            images=sent(pictures[4], pictures[1]),
            templates=TEMPLATES[1:],
            context=fields["context"],
            codes=CODES[1:].tolist(),
        )["log_probs"]
    )
    np.testing.assert_allclose(one, whole[[1, 3]][:, [4, 1]], atol=2e-5)
    wide = np.array(
        ask(client, images=sent(*pictures), classes=["bus", *CLASSES[::-1]], **fields)["log_probs"]
    )[..., :0:-1]
    # The normaliser has one class more; the differences between classes are as they were.
    np.testing.assert_allclose(wide - wide[..., :1], whole - whole[..., :1], atol=2e-5)


def test_pictures_sent_along_and_rows_of_an_image_set_have_the_same_noise(
    keyed: Any, picture: Picture
) -> None:
    pictures = [picture(seed) for seed in range(5)]
    client = keyed(NOISY)
    inline = np.array(ask(client, images=sent(*pictures))["log_probs"])
    name = image_set(client, *pictures)
    np.testing.assert_allclose(ask(client, image_set=name)["log_probs"], inline, atol=2e-5)
    rows = ask(client, image_set=name, rows=[3, 0])["log_probs"]
    np.testing.assert_allclose(rows, inline[:, [3, 0]], atol=2e-5)


def test_words_that_the_model_reads_alike_have_the_same_noise(keyed: Any, picture: Picture) -> None:
    client, images = keyed(NOISY), sent(picture(1))
    plain = np.array(ask(client, images=images, templates=["a photo of a {}."])["log_probs"])
    alike = {
        "spelling": {"templates": ["A  PHOTO of a {}."]},
        "a code of zeros": {
            "templates": [],
            "context": Context(dim=3, seed=9).model_dump(),
            "codes": [[0.0, -0.0, 0.0]],
        },
        "names": {"templates": ["a photo {}."], "classes": [f"of a {name}" for name in CLASSES]},
    }
    for what, fields in alike.items():
        found = ask(client, images=images, **fields)["log_probs"]
        np.testing.assert_allclose(found, plain, atol=2e-5, err_msg=what)
    other = ask(client, images=images, templates=["one photo of a {}."])["log_probs"]
    assert np.abs(np.array(other) - plain).max() > 0.05


def test_another_owner_has_other_noise_and_another_key_of_the_same_owner_has_not(
    keyed: Any, picture: Picture
) -> None:
    images = sent(*(picture(seed) for seed in range(4)))
    ann, again, bob = (
        np.array(ask(keyed(NOISY, owner=owner), images=images)["log_probs"])
        for owner in ("ann of noise", "ann of noise", "bob of noise")
    )
    np.testing.assert_array_equal(again, ann)
    assert np.abs(bob - ann).mean() > 0.1


# --- adapters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("output", LEVELS, ids=by_name)
def test_an_adapter_answers_its_head_on_what_the_key_sees_at_the_keys_level(
    keyed: Any, picture: Picture, output: Output
) -> None:
    client = keyed(output)
    level = output.model_copy(update={"noise": 0.0})
    published = publish(client, level)
    assert published.status_code == 201, published.text
    images = sent(*(picture(seed) for seed in range(5)))
    scored = tensors(
        ask(
            client,
            images=images,
            templates=TEMPLATES[:1],
            context=CONTEXT.model_dump(),
            codes=CODES.tolist(),
        )
    )
    head = LinearHead(
        np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32),
        np.zeros(4, np.float32),
        1.0,
        0.5,
    )
    expected = shown(head(scores_of(scored, output, 4)), level)
    answer = classify(client, images=images)
    assert answer.status_code == 200, answer.text
    assert Output.model_validate(answer.json()["output"]) == output
    found = tensors(answer.json())
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # A number may be rounded the other way where the last bit of it differs.
        np.testing.assert_allclose(found[name], tensor, atol=1e-4)


def test_an_adapter_that_sees_everything_answers_others_at_their_level(
    keyed: Any, picture: Picture
) -> None:
    assert publish(keyed(owner="publisher of levels"), EVERYTHING).status_code == 201
    owner = keyed(owner="publisher of levels")
    assert owner.patch("/v1/adapters/pets", json={"public": True}).status_code == 200
    images = sent(*(picture(seed) for seed in range(5)))
    name = "publisher%20of%20levels/pets"
    whole = np.array(classify(keyed(), name, images=images).json()["log_probs"])
    coarse = classify(keyed(LABEL), name, images=images).json()
    assert tensors(coarse).keys() == {"top_classes"}
    assert np.array(coarse["top_classes"])[:, 0].tolist() == whole.argmax(-1).tolist()


def test_a_head_that_reads_more_than_its_publisher_sees_is_refused(keyed: Any) -> None:
    for seen, read in [
        (LABEL, EVERYTHING),
        (LABEL, Output(level="top_k", k=1)),
        (Output(level="probs", decimals=2), Output(level="probs", decimals=3)),
    ]:
        answer = publish(keyed(seen), read)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "adapter.output"
    assert publish(keyed(Output(level="top_k", k=2)), EVERYTHING, Unrefined()).status_code == 422
    assert publish(keyed(), LABEL).status_code == 201


def test_a_threshold_finds_out_no_more_than_the_answer_shows(keyed: Any, picture: Picture) -> None:
    images = sent(*(picture(seed) for seed in range(4)))
    output = Output(level="probs", decimals=1)
    client = keyed(output)
    publish(client, output)
    best = np.array(classify(client, images=images).json()["probs"]).max(-1)
    for threshold in (best[0] - 0.01, best[0], best[0] + 0.01, best[0] + 0.04):
        flags = classify(client, images=images, abstain_below=threshold).json()["abstained"]
        assert flags == (best < np.float32(threshold)).astype(int).tolist()
    blind = keyed(LABEL)
    publish(blind, LABEL)
    answer = classify(blind, images=images, abstain_below=0.5)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "abstain_below"
    assert blind.patch("/v1/adapters/pets", json={"abstain_below": 0.99}).status_code == 200
    assert classify(blind, images=images).json().get("abstained") is None


# --- the bound on prompts ---------------------------------------------------------------------


def refused(answer: httpx.Response) -> str:
    assert answer.status_code == 403, answer.text
    assert answer.json()["type"] == "urn:craftbox:problem:prompt-limit-reached"
    return str(answer.json()["detail"])


def post(client: httpx.Client, **fields: Any) -> httpx.Response:
    (card,) = client.get("/v1/models").json()["models"]
    body = {"model": card["name"], "classes": CLASSES, **fields}
    return client.post("/v1/predictions", json=body)


def test_past_the_bound_nothing_is_charged_and_old_prompts_still_are_answered(
    keyed: Any, picture: Picture
) -> None:
    client = keyed(prompts_per_image_set=3)
    name = image_set(client, picture(1), picture(2))
    assert post(client, image_set=name, templates=TEMPLATES).status_code == 200
    before = client.get("/v1/usage").json()["total"]
    codes = {"context": CONTEXT.model_dump(), "codes": CODES.tolist()}
    detail = refused(post(client, image_set=name, templates=TEMPLATES, **codes))
    assert "2 of 3" in detail
    assert "2 more" in detail
    assert client.get("/v1/usage").json()["total"] == before
    assert client.get("/v1/budget").json()["budgets"] == []
    one = {**codes, "codes": CODES[:1].tolist()}
    assert post(client, image_set=name, rows=[1], templates=TEMPLATES, **one).status_code == 200
    assert post(client, image_set=name, templates=TEMPLATES[::-1]).status_code == 200
    refused(post(client, image_set=name, templates=["{}"]))
    # Another image set has a count of its own.
    assert post(client, image_set=image_set(client, picture(1)), **codes).status_code == 200


def test_a_prompt_with_other_class_names_is_another_prompt(keyed: Any, picture: Picture) -> None:
    client = keyed(prompts_per_image_set=1)
    name = image_set(client, picture(1))
    assert post(client, image_set=name, templates=["{}"]).status_code == 200
    shuffled = post(client, image_set=name, templates=["{}"], classes=CLASSES[::-1])
    assert shuffled.status_code == 200
    names = [f"a drawing of a {one}" for one in CLASSES]
    refused(post(client, image_set=name, templates=["{}"], classes=names))


def test_pictures_sent_along_are_counted_each_by_its_content(keyed: Any, picture: Picture) -> None:
    client = keyed(prompts_per_image_set=2)
    first, second = sent(picture(1), picture(2))
    assert post(client, images=[first], templates=TEMPLATES).status_code == 200
    assert post(client, images=[second], templates=["{}"]).status_code == 200
    refused(post(client, images=[second, first], templates=["{}"]))
    assert post(client, images=[second], templates=["an {}"]).status_code == 200


def test_prompts_of_the_owners_own_adapters_count_and_others_do_not(
    keyed: Any, picture: Picture
) -> None:
    maker = keyed(owner="maker of bounds")
    assert publish(maker, EVERYTHING).status_code == 201
    assert maker.patch("/v1/adapters/pets", json={"public": True}).status_code == 200
    images = sent(picture(1))
    own = keyed(owner="maker of bounds", prompts_per_image_set=2)
    assert "0 of 2" in refused(classify(own, images=images))
    other = keyed(prompts_per_image_set=2)
    assert classify(other, "maker%20of%20bounds/pets", images=images).status_code == 200


def test_calls_at_the_same_time_do_not_pass_the_bound(keyed: Any, picture: Picture) -> None:
    client = keyed(prompts_per_image_set=5)
    name = image_set(client, picture(1))
    answers: list[int] = []

    def call(number: int) -> None:
        templates = [f"{number} {{}}", f"{number} times {{}}"]
        answers.append(post(client, image_set=name, templates=templates).status_code)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == [200, 200, 403, 403, 403, 403]
    assert client.get("/v1/usage").json()["total"]["queries"] == 4
