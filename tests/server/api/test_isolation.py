"""Two tenants: an id of the other one is answered as an id that never existed, by every call.

The calls are those of the API's description, so that a new one that takes an id fails here until it
has a case. How long the answers take is measured in `benchmarks/leakage.py`.
"""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest

from craft_shared import codec
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import Unrefined

Picture = Callable[..., bytes]
Send = Callable[["Tenant", str], httpx.Response]
CLASSES = ["cat", "dog", "owl"]
TEMPLATE = "a photo of a {}."
ADMINISTRATION = "/v1/admin/"
# Of no tenant: they take no id of anything that somebody owns.
WITHOUT_IDS = {
    "get_liveness",
    "get_readiness",
    "get_metrics",
    "list_models",
    "create_image_set",
    "classify_image",
    "get_budget",
    # A line's number says nothing but how many lines the key itself has before it.
    "get_usage",
    "get_receipt_keys",
    "list_adapters",
    "list_runs",
}


REPORT = {"title": "a run"}
EVALUATION = {
    "subject": "test", "n": 9, "before": 50, "accuracy": 80, "low": 70, "high": 90
}  # fmt: skip
POINTS = {"points": [{"sequence": 0, "generation": 0, "queries": 1}]}


@dataclass
class Tenant:
    """A client, and one of everything that a tenant can have.

    Attributes:
        image_set: with two pictures.
        adapter: the name of one that nobody else may use, with the alias `prod`.
        retired: the name of a retired one.
        unshared: the name of one that was public and is not any more.
        answer: the idempotency key of an answered prediction.
        run: of that prediction.
        report: the name of a run that has reported itself.
    """

    client: httpx.Client
    owner: str
    image_set: str
    adapter: str
    retired: str
    unshared: str
    answer: str
    run: str
    report: str

    @classmethod
    def of(cls, server: Any, pictures: list[bytes]) -> Tenant:
        owner, mark = secrets.token_hex(6), secrets.token_hex(6)
        client: httpx.Client = server.client(owner)
        (card,) = client.get("/v1/models").json()["models"]
        made = client.post("/v1/image-sets", json={"model": card["name"]}).json()["id"]
        tenant = cls(
            client,
            owner,
            made,
            f"a{mark}",
            f"b{mark}",
            f"c{mark}",
            f"k{mark}",
            f"r{mark}",
            f"p{mark}",
        )
        tenant.done("POST", f"/v1/image-sets/{made}/images", json=upload(0, *pictures))
        for name in (tenant.adapter, tenant.retired, tenant.unshared):
            config = AdapterConfig(
                model=card["name"],
                revision=card["revision"],
                classes=CLASSES,
                templates=[TEMPLATE],
                head="none",
            )
            tenant.done(
                "POST",
                "/v1/adapters",
                params={"name": name, "alias": "prod"},
                content=Adapter(config, np.zeros((0, 0), np.float32), Unrefined()).to_bytes(),
                headers={"Content-Type": codec.MEDIA_TYPE},
            )
        tenant.done("DELETE", f"/v1/adapters/{tenant.retired}")
        for public in (True, False):
            tenant.done("PATCH", f"/v1/adapters/{tenant.unshared}", json={"public": public})
        tenant.done("PUT", f"/v1/runs/{tenant.report}", json=REPORT)
        tenant.predict()
        return tenant

    def done(self, method: str, path: str, **body: Any) -> httpx.Response:
        answer = self.client.request(method, path, **body)
        assert answer.is_success, answer.text
        return answer

    def predict(self) -> httpx.Response:
        headers = {"Idempotency-Key": self.answer, "Craft-Run": self.run}
        return self.done("POST", "/v1/predictions", json=self.question(), headers=headers)

    def question(self, **fields: Any) -> dict[str, Any]:
        (card,) = self.client.get("/v1/models").json()["models"]
        whole = {"model": card["name"], "classes": CLASSES, "templates": [TEMPLATE]}
        return {**whole, "image_set": self.image_set, **fields}

    def belongings(self) -> list[Any]:
        """All that the tenant can read of its own."""
        paths = [
            f"/v1/image-sets/{self.image_set}",
            "/v1/adapters",
            *(
                f"/v1/adapters/{name}/{what}"
                for name in (self.adapter, self.retired, self.unshared)
                for what in ("versions", "settings", "usage")
            ),
            "/v1/runs",
            "/v1/usage?limit=1000",
            "/v1/budget",
        ]
        return [self.done("GET", path).json() for path in paths]


def upload(first_row: int, *pictures: bytes) -> dict[str, Any]:
    images = [base64.b64encode(picture).decode() for picture in pictures]
    return {"first_row": first_row, "images": images}


def image_set(tenant: Tenant) -> list[tuple[str, str]]:
    """Ids of the tenant's, each with one of the same form that never existed."""
    return [(tenant.image_set, f"is_{secrets.token_urlsafe(16)}")]


def adapter(tenant: Tenant) -> list[tuple[str, str]]:
    found = []
    for name in (tenant.adapter, tenant.retired, tenant.unshared):
        never = secrets.token_hex(6) + "x"
        for ending in ("", "@1", "@2", "@prod", "@latest"):
            found.append((name + ending, never + ending))
            found.append((f"{tenant.owner}/{name}{ending}", f"{tenant.owner}/{never}{ending}"))
            nobody = secrets.token_hex(6)
            found.append((f"{tenant.owner}/{name}{ending}", f"{nobody}/{name}{ending}"))
    return found


def answer(tenant: Tenant) -> list[tuple[str, str]]:
    return [(tenant.answer, f"k{secrets.token_hex(6)}")]


def run(tenant: Tenant) -> list[tuple[str, str]]:
    return [(tenant.run, f"r{secrets.token_hex(6)}")]


def report(tenant: Tenant) -> list[tuple[str, str]]:
    return [(tenant.report, f"p{secrets.token_hex(6)}")]


def new_name(tenant: Tenant) -> list[tuple[str, str]]:
    return [(f"{tenant.owner}/{tenant.adapter}", f"{tenant.owner}/{secrets.token_hex(6)}x")]


def _call(method: str, path: str, **body: Any) -> Send:
    return lambda tenant, name: tenant.client.request(method, path.format(name), **body)


# Of each call, what its id is of and how it is sent. What takes ids in two places has two cases.
CASES: list[tuple[str, Callable[[Tenant], list[tuple[str, str]]], Send]] = [
    ("get_image_set", image_set, _call("GET", "/v1/image-sets/{}")),
    ("delete_image_set", image_set, _call("DELETE", "/v1/image-sets/{}")),
    (
        "upload_images",
        image_set,
        lambda tenant, name: tenant.client.post(
            f"/v1/image-sets/{name}/images", json=upload(2, b"no picture")
        ),
    ),
    (
        "create_prediction",
        image_set,
        lambda tenant, name: tenant.client.post(
            "/v1/predictions", json=tenant.question(image_set=name, rows=[0])
        ),
    ),
    (
        "create_adapter_prediction",
        image_set,
        lambda tenant, name: tenant.client.post(
            f"/v1/adapters/{tenant.adapter}/predictions", json={"image_set": name}
        ),
    ),
    (
        "create_adapter_prediction",
        adapter,
        lambda tenant, name: tenant.client.post(
            f"/v1/adapters/{name}/predictions", json={"image_set": tenant.image_set}
        ),
    ),
    ("get_adapter", adapter, _call("GET", "/v1/adapters/{}")),
    ("list_adapter_versions", adapter, _call("GET", "/v1/adapters/{}/versions")),
    ("get_adapter_settings", adapter, _call("GET", "/v1/adapters/{}/settings")),
    ("get_adapter_usage", adapter, _call("GET", "/v1/adapters/{}/usage")),
    ("restore_adapter", adapter, _call("PUT", "/v1/adapters/{}/restore")),
    ("retire_adapter", adapter, _call("DELETE", "/v1/adapters/{}")),
    ("change_adapter", adapter, _call("PATCH", "/v1/adapters/{}", json={"public": True})),
    (
        "publish_adapter",
        new_name,
        lambda tenant, name: tenant.client.post(
            "/v1/adapters",
            params={"name": name},
            content=b"",
            headers={"Content-Type": codec.MEDIA_TYPE},
        ),
    ),
    ("acknowledge_answer", answer, _call("DELETE", "/v1/answers/{}")),
    ("get_receipt", run, _call("GET", "/v1/receipts?run={}")),
    ("get_run", report, _call("GET", "/v1/runs/{}")),
    ("report_points", report, _call("PUT", "/v1/runs/{}/points", json=POINTS)),
    (
        "report_evaluation",
        report,
        _call("PUT", "/v1/runs/{}/evaluation", json=EVALUATION),
    ),
    ("delete_run", report, _call("DELETE", "/v1/runs/{}")),
    ("report_run", report, _call("PUT", "/v1/runs/{}", json=REPORT)),
]


@pytest.fixture(scope="module")
def tenants(server: Any, picture: Picture) -> Iterator[tuple[Tenant, Tenant]]:
    """Bob, who asks, and Ann, whose ids he asks about."""
    bob = Tenant.of(server, [picture(1), picture(2)])
    ann = Tenant.of(server, [picture(1), picture(3)])
    with closing(ann.client), closing(bob.client):
        yield bob, ann


@pytest.fixture(scope="module")
def paths(server: Any) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    return found


def seen(answer: httpx.Response, name: str) -> tuple[int, str, dict[str, str]]:
    """All of an answer but for the call's id, the time, and the id that was asked about."""
    text = answer.text.replace(answer.headers["X-Request-Id"], "")
    text = re.sub(r'"(started|updated)_at":"[^"]*"', "", text)
    for part in (name, name.rpartition("/")[2]):
        text = text.replace(part, "ID")
    headers = {
        header: value
        for header, value in answer.headers.items()
        if header not in ("x-request-id", "date", "content-length")
    }
    return answer.status_code, text, headers


def test_each_call_has_a_case(paths: dict[str, Any]) -> None:
    described = {
        operation["operationId"]
        for path, methods in paths.items()
        for operation in methods.values()
        if not path.startswith(ADMINISTRATION)
    }
    assert described == WITHOUT_IDS | {name for name, _, _ in CASES}
    for path, methods in paths.items():
        for operation in methods.values():
            if operation["operationId"] in WITHOUT_IDS:
                assert "{" not in path


@pytest.mark.parametrize(
    ("ids", "send"),
    [pytest.param(ids, send, id=f"{name}-{ids.__name__}") for name, ids, send in CASES],
)
def test_anothers_id_is_answered_as_one_that_never_existed(
    tenants: tuple[Tenant, Tenant], ids: Any, send: Send
) -> None:
    bob, ann = tenants
    before = ann.belongings()
    for foreign, never in ids(ann):
        expected = seen(send(bob, never), never)
        assert seen(send(bob, foreign), foreign) == expected
    assert ann.belongings() == before
    again = ann.predict()
    assert again.headers["Idempotency-Replayed"] == "true"


@pytest.mark.parametrize(
    ("ids", "send"),
    [
        pytest.param(ids, send, id=f"{name}-{ids.__name__}")
        for name, ids, send in CASES
        # The others answer alike whether something is there or not, or it is gone after one call.
        if ids not in (answer, new_name)
        and name not in ("retire_adapter", "delete_image_set", "delete_run", "report_run")
    ],
)
def test_ones_own_id_is_answered_otherwise(
    server: Any, picture: Picture, ids: Any, send: Send
) -> None:
    bob = Tenant.of(server, [picture(1), picture(2)])
    with closing(bob.client):
        differing = [
            own
            for own, never in ids(bob)
            if seen(send(bob, own), own)[0] != seen(send(bob, never), never)[0]
        ]
        assert differing


def test_an_idempotency_key_of_another_tenant_is_free(
    tenants: tuple[Tenant, Tenant],
) -> None:
    bob, ann = tenants
    headers = {"Idempotency-Key": ann.answer}
    for body in (bob.question(), bob.question(classes=CLASSES[:2])):
        answer = bob.client.post("/v1/predictions", json=body, headers=headers)
        assert answer.status_code == (200 if body["classes"] == CLASSES else 422)
        assert "Idempotency-Replayed" not in answer.headers


def test_a_picture_of_another_tenant_is_charged_and_answered_as_new(
    server: Any, picture: Picture
) -> None:
    pictures = [picture(90), picture(91)]
    ann = Tenant.of(server, pictures[:1])
    bob = Tenant.of(server, [picture(92)])
    with closing(ann.client), closing(bob.client):
        charged = []
        for one in pictures:
            made = bob.client.post(
                "/v1/image-sets", json={"model": bob.question()["model"]}
            ).json()["id"]
            said = bob.client.post(f"/v1/image-sets/{made}/images", json=upload(0, one))
            charged.append(said.json()["cost"]["charged"])
        assert charged[0] == charged[1]
        assert charged[0]["images"] == 1


def test_administration_says_nothing_of_any_key_to_a_tenant(
    tenants: tuple[Tenant, Tenant], paths: dict[str, Any]
) -> None:
    bob, ann = tenants
    prefix = ann.client.headers["Authorization"].split("_")[1]
    found = 0
    for path, methods in paths.items():
        if not path.startswith(ADMINISTRATION):
            continue
        for method in methods:
            found += 1
            answers = [
                bob.client.request(
                    method.upper(), path.format(prefix=name, name=name, model=name), json={}
                )
                for name in (prefix, "zzzzzzzz")
            ]
            assert answers[0].status_code == 403, path
            assert seen(answers[0], prefix) == seen(answers[1], "zzzzzzzz"), path
    assert found > 10
