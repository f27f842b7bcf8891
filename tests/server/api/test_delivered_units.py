"""Whatever happens between a call and its repetition, no more is delivered than was charged.

The machine keeps what it has been answered, not what the server says of it: which prompts were
scored on which images, by the shape of the answers. It knows no records, versions' digests or
resolutions, so that it cannot share the server's mistakes.
"""

from __future__ import annotations

import base64
import itertools
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from craft_server.app import create_app
from craft_server.clock import now_ms
from craft_server.database import Database
from craft_server.ledger import administration, calls, keys
from craft_server.settings import Settings
from craft_shared import codec
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import Unrefined
from craft_shared.wire import KeyPolicy, Output

FULL = os.environ.get("CRAFT_TEST_FULL") == "1"
CLASSES = ["cat", "dog", "owl"]
WORDS = ["a photo of a {}.", "a {}.", "the {}.", "one {}.", "my {}.", "some {}."]
# Each shows less than the one before it.
LEVELS = [
    Output(level="log_probs"),
    Output(level="top_k", k=2),
    Output(level="probs", decimals=2, k=2),
    Output(level="label"),
]
# How often one call may be computed anew.
MOST = 8
Cell = tuple[object, ...]


@dataclass
class Sent:
    """A call that was charged, and what it has shown.

    Attributes:
        charged: predictions, to whoever pays.
        cells: a prompt and an image each, that its answers have scored.
        recomputed: how often it was computed anew.
    """

    path: str
    body: dict[str, Any]
    key: str
    charged: int
    first: dict[str, Any]
    level: int
    cells: set[Cell] = field(default_factory=set)
    recomputed: int = 0


@dataclass
class House:
    """A running application and its database."""

    http: httpx.Client
    database: Database
    image: Callable[..., bytes]

    def key(self, owner: str) -> str:
        with self.database.writing() as connection:
            return keys.create_key(connection, owner=owner, at=now_ms())

    def call(self, secret: str, method: str, path: str, **request: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {secret}", **request.pop("headers", {})}
        return self.http.request(method, path, headers=headers, **request)


class Delivery(RuleBasedStateMachine):
    """One caller, who owns an image set, and a publisher, whose adapter changes."""

    def __init__(self, house: House) -> None:
        super().__init__()
        self.house = house
        mark = secrets.token_hex(4)
        self.caller, self.publisher = house.key(f"caller {mark}"), house.key(f"publisher {mark}")
        self.name = f"publisher {mark}/pets"
        (card,) = house.call(self.caller, "GET", "/v1/models").json()["models"]
        self.model, self.revision = card["name"], card["revision"]
        self.sent: list[Sent] = []
        self.numbers = itertools.count()
        self.images: list[int] = []
        self.prompts: dict[int, int] = {}
        self.retired: set[int] = set()
        self.level = 0
        self.bound: int | None = None

    # --- the world ------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        made = self.ask("POST", "/v1/image-sets", json={"model": self.model})
        self.image_set = made.json()["id"]
        self.upload(1)
        self.publish(1)
        shared = {"public": True, "aliases": {"live": 1}}
        assert self.publishing("PATCH", "/v1/adapters/pets", json=shared).is_success
        self.predict(WORDS[:2], whole=True)
        for reference in ("", "@live"):
            self.classify(reference, whole=True)

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        return self.house.call(self.caller, method, path, **request)

    def publishing(self, method: str, path: str, **request: Any) -> httpx.Response:
        return self.house.call(self.publisher, method, path, **request)

    def upload(self, count: int) -> None:
        """The image set grows."""
        new = [len(self.images) + i for i in range(count)]
        files = [base64.b64encode(self.house.image(seed, size=(8, 8))).decode() for seed in new]
        body = {"first_row": len(self.images), "images": files}
        answer = self.ask("POST", f"/v1/image-sets/{self.image_set}/images", json=body)
        assert answer.is_success, answer.text
        self.images += new

    def publish(self, prompts: int) -> None:
        """The adapter's name means another version."""
        version = len(self.prompts) + 1
        config = AdapterConfig(
            model=self.model,
            revision=self.revision,
            classes=[*CLASSES, f"kind {version}"],
            templates=WORDS[:prompts],
            head="none",
        )
        body = Adapter(config, np.zeros((0, 0), np.float32), Unrefined()).to_bytes()
        headers = {"Content-Type": codec.MEDIA_TYPE}
        answer = self.publishing("POST", "/v1/adapters?name=pets", content=body, headers=headers)
        assert answer.status_code == 201, answer.text
        assert answer.json()["adapter"]["version"] == version
        self.prompts[version] = prompts

    def move_the_alias(self, choice: int) -> None:
        version = 1 + choice % len(self.prompts)
        answer = self.publishing("PATCH", "/v1/adapters/pets", json={"aliases": {"live": version}})
        assert answer.is_success == (version not in self.retired), answer.text

    def change_the_terms(self, choice: int) -> None:
        terms = {
            "pays": ("caller", "publisher")[choice % 2],
            "abstain_below": (None, 0.9)[choice // 2 % 2],
        }
        assert self.publishing("PATCH", "/v1/adapters/pets", json=terms).is_success

    def retire(self, choice: int) -> None:
        version = 1 + choice % len(self.prompts)
        self.publishing("DELETE", f"/v1/adapters/pets@{version}")
        self.retired.add(version)

    def restore(self, _choice: int) -> None:
        for version in self.retired:
            path = f"/v1/adapters/pets@{version}/restore"
            answer = self.publishing("PUT", path)
            assert answer.is_success, answer.text
        self.retired.clear()

    def rotate(self, _choice: int) -> None:
        with self.house.database.writing() as connection:
            prefix = keys.prefix_of(self.caller)
            self.caller = keys.rotate_key(connection, prefix, overlap_ms=0, at=now_ms())

    def narrow(self, choice: int) -> None:
        """The key's policy shows less, or about fewer prompts."""
        self.level = max(self.level, choice % len(LEVELS))
        bound = (None, None, 6, 3)[choice // len(LEVELS) % 4]
        if bound is not None:
            self.bound = bound if self.bound is None else min(self.bound, bound)
        policy = KeyPolicy(output=LEVELS[self.level], prompts_per_image_set=self.bound)
        with self.house.database.writing() as connection:
            administration.set_policy(connection, keys.prefix_of(self.caller), policy)

    def stay(self, _choice: int) -> None:
        """Nothing changes."""

    # --- calls ----------------------------------------------------------------------------------

    @rule(
        words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=3, unique=True),
        whole=st.booleans(),
    )
    def predict(self, words: list[str], whole: bool) -> None:
        body = {"model": self.model, "classes": CLASSES, "templates": words}
        self.send("/v1/predictions", {**body, **self.of_images(whole)})

    @rule(reference=st.sampled_from(["", "@live", "@latest", "@1"]), whole=st.booleans())
    def classify(self, reference: str, whole: bool) -> None:
        self.send(f"/v1/adapters/{self.name}{reference}/predictions", self.of_images(whole))

    def of_images(self, whole: bool) -> dict[str, Any]:
        found: dict[str, Any] = {"image_set": self.image_set}
        return found if whole else {**found, "rows": sorted({0, len(self.images) - 1})}

    def send(self, path: str, body: dict[str, Any]) -> None:
        before = self.usage()
        key = f"call-{next(self.numbers)}"
        answer = self.ask("POST", path, json=body, headers={"Idempotency-Key": key})
        charged = self.usage() - before
        if answer.status_code != 200:
            slug = answer.json()["type"].rpartition(":")[2]
            assert slug in ("prompt-limit-reached", "adapter-not-found"), answer.text
            assert charged == 0
            return
        sent = Sent(path, body, key, charged, answer.json(), self.level)
        self.sent.append(sent)
        self.take_in(sent, answer.json())

    def usage(self) -> int:
        """Predictions that were charged to both."""
        answers = [
            self.house.call(key, "GET", "/v1/usage") for key in (self.caller, self.publisher)
        ]
        return sum(answer.json()["total"]["predictions"] for answer in answers)

    def take_in(self, sent: Sent, document: dict[str, Any]) -> None:
        shown = LEVELS.index(Output(**document["output"]))
        assert shown >= self.level, "an answer shows more than the key's policy does"
        name = next(one for one in ("log_probs", "probs", "top_classes") if one in document)
        scores = np.asarray(document[name])
        rows = sent.body.get("rows", range(scores.shape[-2]))
        if "version" in document:
            prompts = self.prompts[document["version"]]
            asked: list[Cell] = [(document["version"], number) for number in range(prompts)]
        else:
            asked = [(word,) for word in sent.body["templates"]]
            assert len(asked) == len(scores)
        assert len(rows) == scores.shape[-2]
        sent.cells |= {(*prompt, row) for prompt in asked for row in rows}
        assert len(sent.cells) <= sent.charged, "more is delivered than was charged"

    @rule(
        change=st.sampled_from(
            [
                *("stay", "upload", "publish", "move_the_alias", "change_the_terms"),
                *("retire", "restore", "rotate", "narrow"),
            ]
        ),
        choice=st.integers(1, 4),
        forgotten=st.sampled_from(["acknowledged", "evicted", "kept"]),
        which=st.integers(0, 10**6),
    )
    def the_world_changes_and_a_call_is_sent_again(
        self, change: str, choice: int, forgotten: str, which: int
    ) -> None:
        getattr(self, change)(choice)
        sent = self.sent[which % len(self.sent)]
        if forgotten == "acknowledged":
            assert self.ask("DELETE", f"/v1/answers/{sent.key}").status_code == 204
        elif forgotten == "evicted":
            with self.house.database.writing() as connection:
                calls.evict(connection, most_bytes=0, before=0)
        before = self.usage()
        answer = self.ask("POST", sent.path, json=sent.body, headers={"Idempotency-Key": sent.key})
        assert self.usage() == before
        sent.recomputed += "idempotency-recomputed" in answer.headers
        assert sent.recomputed <= MOST
        if answer.status_code == 200:
            self.take_in(sent, answer.json())
            if sent.level == self.level:
                self.check_same(sent, answer.json())
            return
        slug = answer.json()["type"].rpartition(":")[2]
        if slug == "answer-gone":
            assert sent.recomputed == MOST
        elif slug == "adapter-not-found":
            assert sent.first["version"] in self.retired
        else:
            assert slug == "prompt-limit-reached", answer.text
            assert self.bound is not None

    def check_same(self, sent: Sent, document: dict[str, Any]) -> None:
        assert document["output"] == sent.first["output"]
        assert document.get("version") == sent.first.get("version")
        for name in ("log_probs", "probs", "top_classes", "abstained"):
            assert (name in document) == (name in sent.first)
            if name in document:
                np.testing.assert_allclose(document[name], sent.first[name], atol=0.011)

    @invariant()
    def no_more_is_delivered_than_was_charged(self) -> None:
        delivered = sum(len(sent.cells) for sent in self.sent)
        assert delivered == sum(sent.charged for sent in self.sent) == self.usage()


@pytest.fixture
def house(
    store: Database, tmp_path: Path, tiny_engine: Any, picture: Callable[..., bytes]
) -> Iterator[House]:
    app = create_app(Settings(data_dir=tmp_path), tiny_engine, store)
    with TestClient(app) as client:
        yield House(client, store, picture)


def test_no_more_is_delivered_than_was_charged(house: House) -> None:
    examples, steps = (60, 50) if FULL else (5, 25)
    run_state_machine_as_test(
        lambda: Delivery(house),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=not FULL,
            phases=[Phase.generate],  # to shrink a failure takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
