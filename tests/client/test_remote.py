from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from craft_client.api import Client
from craft_client.blackbox import BlackBox, Question
from craft_client.exceptions import CraftError, LimitExceeded
from craft_client.remote import RemoteAdapter, RemoteBlackBox
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import Unrefined, log_softmax
from craft_shared.image_view import View
from craft_shared.units import Units
from craft_shared.wire import Context

from .fake_clip import budget
from .wire_server import Fault, WireServer

CLASSES = ("cat", "dog", "owl")
TEMPLATES = ("a {}.", "the {}.", "one {}.")
CODES = np.arange(20, dtype=np.float32).reshape(5, 4)
CONTEXT = Context(dim=4)
PICTURES = [f"{number:06}".encode() for number in range(10)]


@pytest.fixture
def client(connected: WireServer, fast_retries: None) -> Iterator[Client]:
    with Client() as client:
        yield client


@pytest.fixture
def black_box(client: Client) -> RemoteBlackBox:
    image_set = client.upload_images(client.create_image_set("fake"), PICTURES)
    return RemoteBlackBox(client, image_set, CLASSES)


def test_what_the_model_sees_of_an_image_is_as_its_card_says(black_box: RemoteBlackBox) -> None:
    how = {"image_size": 384, "resize_mode": "squash", "interpolation": "bilinear"}
    card = black_box.client.model().model_copy(update=how)
    seen = replace(black_box, card=card).view
    assert seen == View(384, 384, "squash", bilinear=True)


def limit(server: WireServer, **limits: int) -> None:
    server.limits = server.limits.model_copy(update=limits)


def predictions(server: WireServer) -> int:
    return server.calls.count("POST /v1/predictions")


def test_it_is_a_black_box(black_box: RemoteBlackBox) -> None:
    asked: BlackBox = black_box
    assert (asked.model, asked.revision, asked.classes) == ("fake", "0123456789abcdef", CLASSES)


def test_one_question_is_one_call_and_a_query_a_prompt(
    black_box: RemoteBlackBox, connected: WireServer
) -> None:
    scores = black_box.score(templates=TEMPLATES, context=CONTEXT, codes=CODES)
    assert scores.log_probs.shape == (8, 10, 3)
    assert scores.log_probs.dtype == np.float32
    assert scores.charged == Units(queries=8, predictions=80, texts=24, requests=1)
    assert predictions(connected) == 1


def test_answers_travel_in_half_precision_unless_asked_otherwise(
    black_box: RemoteBlackBox,
) -> None:
    half = black_box.score(templates=TEMPLATES).log_probs
    np.testing.assert_array_equal(half, half.astype(np.float16).astype(np.float32))
    single = replace(black_box, dtype="float32").score(templates=TEMPLATES).log_probs
    assert (single != half).any()
    np.testing.assert_allclose(single, half, rtol=1e-3)


@pytest.mark.parametrize("at_once", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("bound", ["prompts", "bytes"])
def test_prompts_spread_over_calls_cost_and_answer_the_same(
    black_box: RemoteBlackBox, connected: WireServer, at_once: int, bound: str
) -> None:
    """Blocks of every size cut templates and codes apart, together, and within each."""
    whole = black_box.score(templates=TEMPLATES, context=CONTEXT, codes=CODES)
    if bound == "prompts":
        limit(connected, prompts_per_call=at_once)
    else:
        limit(connected, answer_bytes=at_once * 10 * 3 * 2)
    calls = predictions(connected)
    cut = RemoteBlackBox(black_box.client, black_box.image_set, CLASSES)
    scores = cut.score(templates=TEMPLATES, context=CONTEXT, codes=CODES)
    np.testing.assert_array_equal(scores.log_probs, whole.log_probs)
    assert predictions(connected) - calls == -(-8 // at_once)
    assert scores.charged.queries == cut.units(Question(8)).queries == 8
    assert scores.charged.predictions == 80


def test_rows_are_cut_only_where_one_prompts_answer_is_too_large(
    black_box: RemoteBlackBox, connected: WireServer
) -> None:
    whole = black_box.score(templates=TEMPLATES)
    limit(connected, answer_bytes=4 * 3 * 2)
    cut = RemoteBlackBox(black_box.client, black_box.image_set, CLASSES)
    scores = cut.score(templates=TEMPLATES)
    np.testing.assert_array_equal(scores.log_probs, whole.log_probs)
    assert scores.charged.queries == cut.units(Question(3)).queries == 9
    assert scores.charged.predictions == 30


def test_some_rows_are_asked_about_and_charged(
    black_box: RemoteBlackBox, connected: WireServer
) -> None:
    whole = black_box.score(templates=TEMPLATES)
    rows = [7, 2, 9]
    scores = black_box.score(templates=TEMPLATES, rows=rows)
    np.testing.assert_array_equal(scores.log_probs, whole.log_probs[:, rows])
    assert scores.charged == black_box.units(Question(3, 0, 3))
    assert scores.charged.predictions == 9
    limit(connected, answer_bytes=2 * 3 * 2)
    cut = RemoteBlackBox(black_box.client, black_box.image_set, CLASSES)
    again = cut.score(templates=TEMPLATES, rows=rows)
    np.testing.assert_array_equal(again.log_probs, scores.log_probs)
    assert again.charged == cut.units(Question(3, 0, 3))
    assert again.charged.queries == 6


def test_texts_alone_are_scored_without_the_class_names(black_box: RemoteBlackBox) -> None:
    texts = ("tree", "sky", "sea", "hill")
    beside = black_box.score(templates=TEMPLATES, texts=texts).log_probs[..., 3:]
    alone = black_box.score(templates=TEMPLATES, texts=texts, alone=True)
    assert alone.log_probs.shape == (3, 10, 4)
    np.testing.assert_allclose(alone.log_probs, log_softmax(beside), atol=5e-2)
    assert alone.charged == black_box.units(Question(3, 4, alone=True))
    assert alone.charged.texts == 12


@pytest.mark.parametrize("most", [8, 3, 1])
def test_images_that_come_along_are_cut_into_calls_and_charged_as_announced(
    black_box: RemoteBlackBox, connected: WireServer, most: int
) -> None:
    """Templates, and codes, in each call anew."""
    limit(connected, images_per_call=most)
    cut = RemoteBlackBox(black_box.client, black_box.image_set, CLASSES)
    prompts = {"templates": TEMPLATES, "context": CONTEXT, "codes": CODES}
    images = [PICTURES[place] for place in (1, 0, 5, 9, 2, 3, 4)]
    scores = cut.score(**prompts, images=images)
    whole = black_box.score(**prompts)
    np.testing.assert_array_equal(scores.log_probs, whole.log_probs[:, [1, 0, 5, 9, 2, 3, 4]])
    assert scores.charged == cut.units(Question(8, 0, 7, True))
    calls = -(-7 // most)
    assert scores.charged == Units(
        queries=8 * calls, predictions=56, images=7, texts=24 * calls, requests=calls
    )


def test_an_image_that_is_larger_than_any_of_the_models_size_is_not_sent(
    black_box: RemoteBlackBox, connected: WireServer
) -> None:
    before = predictions(connected)
    with pytest.raises(
        LimitExceeded, match=r"images\[1\]: it has 5,000 bytes, more than any of 8 x"
    ):
        black_box.score(templates=TEMPLATES, images=[b"x", b"y" * 5000])
    assert predictions(connected) == before


def test_an_answer_that_cannot_be_cut_is_told(
    black_box: RemoteBlackBox, connected: WireServer
) -> None:
    limit(connected, answer_bytes=5)
    cut = RemoteBlackBox(black_box.client, black_box.image_set, CLASSES)
    with pytest.raises(LimitExceeded, match="6 bytes; the server sends 5"):
        cut.score(templates=TEMPLATES)
    assert predictions(connected) == 0


@pytest.mark.parametrize("limits", [{}, {"prompts_per_call": 3}, {"answer_bytes": 24}])
def test_what_a_question_will_be_charged_is_known_beforehand(
    black_box: RemoteBlackBox, connected: WireServer, limits: dict[str, int]
) -> None:
    """In one call, with prompts spread over calls, and with rows spread over calls too."""
    limit(connected, **limits)
    scores = black_box.score(templates=TEMPLATES, context=CONTEXT, codes=CODES)
    assert scores.charged == black_box.units(Question(8))
    assert (scores.charged.requests > 1) == bool(limits)


@pytest.mark.parametrize("texts", [(), ("tree", "sky")])
def test_how_many_bytes_a_question_brings_is_known_beforehand(
    black_box: RemoteBlackBox, connected: WireServer, texts: tuple[str, ...]
) -> None:
    """The server sends that many at once if it is allowed to, and not one less."""
    expected = black_box.answer_bytes(Question(3, len(texts)))
    assert expected == black_box.score(templates=TEMPLATES, texts=texts).log_probs.nbytes // 2
    assert replace(black_box, dtype="float32").answer_bytes(Question(3, len(texts))) == 2 * expected
    for allowed, requests in ((expected, 1), (expected - 1, 2)):
        limit(connected, answer_bytes=allowed)
        fresh = replace(black_box)  # which has not seen the limits yet
        assert fresh.score(templates=TEMPLATES, texts=texts).charged.requests == requests


def test_an_answer_tells_its_price_and_the_budgets_after_it(
    black_box: RemoteBlackBox, connected: WireServer
) -> None:
    limit(connected, prompts_per_call=2)
    connected.prices = {"queries": 1000, "texts": 3}
    connected.budgets = {"queries": 10, "images": 1000}
    connected.more_budgets = [budget("queries", 50, spent=40, of="team", window="day")]
    scores = black_box.score(templates=TEMPLATES)
    assert scores.cost_micros == connected.charged_micros == 3 * 1000 + 9 * 3
    left = [(one.unit, one.of, one.window, one.remaining) for one in scores.budgets]
    assert left == [
        ("queries", "key", "lifetime", 7),
        ("images", "key", "lifetime", 990),
        ("queries", "team", "day", 7),
    ]
    assert list(scores.budgets) == list(black_box.budgets())


def test_what_is_acknowledged_is_every_call_of_the_question(
    black_box: RemoteBlackBox, connected: WireServer
) -> None:
    limit(connected, prompts_per_call=2)
    scores = black_box.score(templates=TEMPLATES)
    assert connected.acknowledged == []
    black_box.acknowledge(scores)
    sent = [
        seen.headers["Idempotency-Key"]
        for seen in connected.seen
        if seen.call == "POST /v1/predictions"
    ]
    assert connected.acknowledged == sent
    assert len(set(sent)) == 2


@pytest.mark.parametrize(
    "fault",
    [
        Fault("DELETE .*", status=404),
        Fault("DELETE .*", status=503, headers={"Retry-After": "1"}),
        Fault("DELETE .*", drop="before"),
    ],
    ids=["refused", "overloaded", "lost"],
)
def test_a_failed_acknowledgement_is_no_error_and_is_not_waited_for(
    black_box: RemoteBlackBox, connected: WireServer, fault: Fault
) -> None:
    scores = black_box.score(templates=TEMPLATES)
    connected.faults.append(replace(fault))
    black_box.acknowledge(scores)
    assert connected.faults == []
    assert connected.acknowledged == []


def test_a_class_name_that_cannot_travel_is_named_in_the_wires_words(
    client: Client, black_box: RemoteBlackBox
) -> None:
    long = RemoteBlackBox(client, black_box.image_set, ("cat", "x" * 201))
    with pytest.raises(CraftError, match=r"classes\[1\]: .*200 characters"):
        long.score(templates=TEMPLATES)


def test_an_adapter_classifies_in_as_many_calls_as_limits_ask_for(
    client: Client, connected: WireServer, black_box: RemoteBlackBox
) -> None:
    config = AdapterConfig(
        model="fake",
        revision=black_box.revision,
        classes=list(CLASSES),
        templates=["a {}."],
        head="none",
    )
    adapter = Adapter(config, np.zeros((0, 0), np.float32), Unrefined())
    card = client.publish("pets", adapter).adapter
    whole = RemoteAdapter(client, card).classify_image_set(black_box.image_set)
    assert whole.log_probs.shape == (10, 3)
    assert whole.charged == Units(queries=1, predictions=10, requests=1)

    limit(connected, answer_bytes=4 * 3 * 4, images_per_call=3)
    cut = RemoteAdapter(client, card).classify_image_set(black_box.image_set)
    np.testing.assert_array_equal(cut.log_probs, whole.log_probs)
    assert cut.charged == Units(queries=3, predictions=10, requests=3)

    calls = list(RemoteAdapter(client, card).image_calls(PICTURES, len, top=3))
    # Three of eight bytes each, of a picture.
    assert [len(call) for call in calls] == [2] * 5
    calls = list(RemoteAdapter(client, card).image_calls(PICTURES, len, top=1))
    assert [len(call) for call in calls] == [3, 3, 3, 1]
    assert [picture for call in calls for picture in call] == PICTURES
