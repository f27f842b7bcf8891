"""A server behind a profile, as clients see it: faults, limits, quotas, a change of revision."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from craft_server.clock import now_ms, run_at
from craft_server.ledger.tables import CHARGES
from craft_shared.problems import MEDIA_TYPE, TYPE_PREFIX

Simulated = Callable[[str], AbstractContextManager[Any]]
Picture = Callable[..., bytes]


@pytest.fixture
def simulated(serve: Any, tmp_path: Path) -> Simulated:
    """A server behind a profile of which the test gives all but the head."""

    @contextmanager
    def start(text: str) -> Iterator[Any]:
        path = tmp_path / "own.toml"
        path.write_text(f'name = "own"\nversion = 1\ndescription = "A test."\n{text}')
        with serve(profile=str(path)) as server:
            yield server

    yield start
    run_at(1)


def fault(kind: str, at: str, **more: object) -> str:
    """A fault that befalls every call."""
    lines = [f'kind = "{kind}"', f'at = "{at}"', "rate = 1"]
    return "[[faults]]\n" + "\n".join(
        [*lines, *(f"{name} = {value}" for name, value in more.items())]
    )


def predict(client: httpx.Client, picture: bytes, prompts: int = 1, **headers: str) -> Any:
    body = {
        "model": "craft-tiny",
        "classes": ["cat", "dog"],
        "templates": ["a photo of a {}."] * prompts,
        "images": [base64.b64encode(picture).decode()],
    }
    return client.post("/v1/predictions", json=body, headers=headers)


def states(server: Any) -> list[str]:
    with server.database.reading() as connection:
        return list(connection.execute(sa.select(CHARGES.c.state).order_by(CHARGES.c.id)).scalars())


PLACES = {"before-reservation": [], "after-reservation": ["refunded"], "after-work": ["settled"]}


@pytest.mark.parametrize("at", PLACES)
def test_a_status_leaves_the_ledger_as_its_place_says(
    simulated: Simulated, picture: Picture, at: str
) -> None:
    with simulated(fault("503", at, retry_after=7)) as server, server.client() as client:
        answer = predict(client, picture())
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "7"
        assert states(server) == PLACES[at]
        assert server.app.state.services.provider.faults == {("503", at): 1}


@pytest.mark.parametrize("at", [*PLACES, "during-answer"])
def test_a_reset_is_a_reset_wherever_it_is(simulated: Simulated, picture: Picture, at: str) -> None:
    with simulated(fault("reset", at)) as server, server.client() as client:
        with pytest.raises((httpx.ReadError, httpx.WriteError), match=r"reset|Broken pipe"):
            predict(client, picture())
        assert states(server) == PLACES.get(at, ["settled"])


@pytest.mark.parametrize(
    ("kind", "at", "more", "media_type"),
    [
        ("429", "before-reservation", {"retry_after": 1}, MEDIA_TYPE),
        ("429", "before-reservation", {}, "text/html"),
        ("500", "after-reservation", {}, MEDIA_TYPE),
        ("500", "after-work", {}, "text/html"),
        ("502", "before-reservation", {"retry_after": 1}, "text/html"),
        ("503", "after-reservation", {}, "text/html"),
        ("529", "before-reservation", {}, "application/json"),
    ],
)
def test_a_servers_refusal_is_a_problem_and_a_gateways_is_none(
    simulated: Simulated,
    picture: Picture,
    kind: str,
    at: str,
    more: dict[str, int],
    media_type: str,
) -> None:
    with simulated(fault(kind, at, **more)) as server, server.client() as client:
        answer = predict(client, picture())
    assert answer.status_code == int(kind)
    assert answer.headers["content-type"].partition(";")[0] == media_type
    assert (media_type == MEDIA_TYPE) == (TYPE_PREFIX in answer.text)


def test_an_answer_lost_after_the_work_is_had_again_for_nothing(
    simulated: Simulated, picture: Picture
) -> None:
    text = '[[faults]]\nkind = "502"\nat = "after-work"\nrate = 0.5\n'
    with simulated(text) as server, server.client(queries=100) as client:
        lost = 0
        for number in range(20):
            key = f"call-{number}"
            while (answer := predict(client, picture(), **{"Idempotency-Key": key})).is_error:
                assert answer.status_code == 502
                lost += 1
            assert ("idempotency-replayed" in answer.headers) == (lost > 0)
            lost = 0
        assert server.app.state.services.provider.faults["502", "after-work"] >= 5
        assert client.get("/v1/usage").json()["total"]["queries"] == 20


def test_a_slow_body_comes_whole_but_late(simulated: Simulated, picture: Picture) -> None:
    with (
        simulated(fault("slow-body", "during-answer", seconds=0.4)) as server,
        server.client() as client,
    ):
        began = time.monotonic()
        answer = predict(client, picture())
        assert time.monotonic() - began >= 0.4
    assert answer.json()["log_probs"]


def test_bandwidth_bounds_bodies_both_ways(simulated: Simulated, picture: Picture) -> None:
    with simulated("[bandwidth]\nup = 4_000\ndown = 2_000\n") as server, server.client() as client:
        began = time.monotonic()
        answer = predict(client, picture())
        seconds = time.monotonic() - began
    least = len(answer.request.content) / 4_000 + len(answer.content) / 2_000
    assert seconds >= least > 0.2


def test_each_item_adds_to_the_latency(simulated: Simulated, picture: Picture) -> None:
    with simulated("[latency]\nper_item_ms = 20\n") as server, server.client() as client:
        predict(client, picture())
        began = time.monotonic()
        predict(client, picture(), prompts=19)
        assert time.monotonic() - began >= 0.4


def test_limits_bind_every_key_beside_its_own(simulated: Simulated, picture: Picture) -> None:
    limits = "[limits]\nrequests_per_minute = 3\npredictions_per_minute = 5\nconcurrency = 4\n"
    with simulated(limits) as server, server.client() as client:
        answer = predict(client, picture(), prompts=6)
        assert answer.status_code == 429
        assert "6 predictions and 5 of 5" in answer.json()["detail"]
        assert predict(client, picture()).status_code == 200
        assert client.get("/v1/budget").status_code == 200
        refused = client.get("/v1/budget")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0
        with server.client() as other:
            assert other.get("/v1/budget").status_code == 200


def test_a_day_of_quota_is_a_second_under_a_fast_clock(
    simulated: Simulated, picture: Picture
) -> None:
    text = '[[quotas]]\nunit = "queries"\nwindow = "day"\nlimit = 2\n[clock]\nspeed = 86_400\n'
    with simulated(text) as server, server.client() as client:
        real, began = time.time(), now_ms()
        served = refused = 0
        while time.time() - real < 2.5:
            answer = predict(client, picture())
            assert answer.status_code in (200, 402)
            served += answer.status_code == 200
            refused += answer.status_code == 402
            if answer.status_code == 402:
                time.sleep(0.05)
        days = (now_ms() - began) / 86_400_000
        assert days == pytest.approx(time.time() - real, rel=0.05)
        # Two a day: of the two or three days that were whole, and of those that were not.
        assert 4 <= served <= 8
        assert refused
        (budget,) = client.get("/v1/budget").json()["budgets"]
        assert (budget["unit"], budget["window"], budget["limit"]) == ("queries", "day", 2)


def test_a_quota_leaves_an_operators_own_budget_alone(simulated: Simulated) -> None:
    text = '[[quotas]]\nunit = "queries"\nwindow = "lifetime"\nlimit = 2\n'
    with simulated(text) as server, server.client(queries=7) as own, server.client() as other:
        limits = [c.get("/v1/budget").json()["budgets"][0]["limit"] for c in (own, other)]
    assert limits == [7, 2]


def test_the_revision_changes_unannounced_and_what_was_bound_to_it_is_refused(
    simulated: Simulated, picture: Picture
) -> None:
    with simulated("[revision_change]\nafter_calls = 2\n") as server, server.client() as client:
        before = client.get("/v1/models").json()["models"][0]["revision"]
        image_set = client.post("/v1/image-sets", json={"model": "craft-tiny"}).json()
        upload = {"first_row": 0, "images": [base64.b64encode(picture()).decode()]}
        images = f"/v1/image-sets/{image_set['id']}/images"
        assert client.post(images, json=upload).status_code == 200
        assert predict(client, picture()).json()["revision"] == before == image_set["revision"]
        after = client.get("/v1/models").json()["models"][0]["revision"]
        assert after != before
        assert predict(client, picture()).json()["revision"] == after
        question = {
            "model": "craft-tiny",
            "classes": ["cat", "dog"],
            "templates": ["a {}"],
            "image_set": image_set["id"],
        }
        for refused in (
            client.post("/v1/predictions", json=question),
            client.post(images, json={**upload, "first_row": 1}),
        ):
            assert refused.status_code == 409
            assert refused.json()["type"].endswith(":revision-mismatch")
            assert before in refused.json()["detail"]
            assert after in refused.json()["detail"]
        assert server.engine.revision == before


def test_prices_are_the_profiles(simulated: Simulated, picture: Picture) -> None:
    with simulated("[prices]\nqueries = 100\nimages = 7\n") as server, server.client() as client:
        assert predict(client, picture(), prompts=2).json()["cost"]["cost_micros"] == 207


def test_the_model_card_states_the_profile(simulated: Simulated, client: httpx.Client) -> None:
    with simulated("") as server, server.client() as behind:
        (card,) = behind.get("/v1/models").json()["models"]
        profile = server.app.state.services.provider.profile
        assert card["profile"] == {"name": "own", "version": 1, "digest": profile.digest}
    assert client.get("/v1/models").json()["models"][0]["profile"] is None


def test_life_and_readiness_are_spared(simulated: Simulated) -> None:
    with simulated(fault("reset", "before-reservation")) as server:
        assert httpx.get(f"{server.url}/livez").status_code == 200
        assert httpx.get(f"{server.url}/readyz").status_code == 200
