"""What the clock, charges and ids tell a tenant: classes, caches, other tenants, their pictures.

Two tenants of one running server. Every pair of arms is interleaved, in random order within each
pair, on one connection that is kept open, so that what else the machine does falls on both alike.
It knows HTTP and two keys; it does not know levels or features.
"""

from __future__ import annotations

import base64
import random
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import numpy as np

from craft_shared import codec
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import Unrefined
from leakage_attacks import auc

Arm = Callable[[int], Any]
Prepare = Callable[[int, bool], Any]
COMPARED = 20  # uploaded pictures whose answers are held against others
WAIT = 0.004  # seconds that a neighbour's call is ahead of the attacker's


class Tenant:
    """A key's connection."""

    def __init__(self, url: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)
        (card,) = self.http.get("/v1/models").json()["models"]
        self.model, self.revision = card["name"], card["revision"]

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """The answer's document."""
        answer = self.http.post(path, json=body)
        answer.raise_for_status()
        return dict(answer.json())

    def ask(self, classes: Sequence[str], template: str, **pictures: Any) -> dict[str, Any]:
        """One prompt on some pictures."""
        return self.post(
            "/v1/predictions",
            model=self.model,
            classes=list(classes),
            templates=[template],
            **pictures,
        )

    def upload(self, *pictures: bytes) -> tuple[str, dict[str, Any]]:
        """A new image set's id, and the answer of the upload."""
        made = self.post("/v1/image-sets", model=self.model)["id"]
        images = [base64.b64encode(picture).decode() for picture in pictures]
        return made, self.post(f"/v1/image-sets/{made}/images", first_row=0, images=images)

    def publish(self, name: str, classes: Sequence[str]) -> None:
        """An adapter of the plain prompt that refines nothing."""
        config = AdapterConfig(
            model=self.model,
            revision=self.revision,
            classes=list(classes),
            templates=["a photo of a {}."],
            head="none",
        )
        self.http.post(
            "/v1/adapters",
            params={"name": name},
            content=Adapter(config, np.zeros((0, 0), np.float32), Unrefined()).to_bytes(),
            headers={"Content-Type": codec.MEDIA_TYPE},
        ).raise_for_status()


def interleaved(trials: int, act: Arm, prepare: Prepare = lambda _, __: None) -> dict[str, float]:
    """The area for `trials` pairs: `prepare(i, within)` gives what the timed `act` is called with.

    If `prepare` gives a thread, it is waited for after the trial.
    """
    seconds: dict[bool, list[float]] = {False: [], True: []}
    draw = random.Random(1)
    for i in range(-2, trials):
        for within in draw.sample((False, True), 2):
            given = prepare(i, within)
            running = given if isinstance(given, threading.Thread) else None
            began = time.perf_counter()
            act(given)
            taken = time.perf_counter() - began
            if running:
                running.join()
            if i >= 0:  # the first ones warm up
                seconds[within].append(taken)
    return auc(seconds[False], seconds[True])


def by_the_clock(
    ann: Tenant, bob: Tenant, pictures: Sequence[bytes], classes: Sequence[str], trials: int
) -> dict[str, Any]:
    """What Ann's latency tells of classes, caches and of Bob, who is her neighbour."""
    plain = "a photo of a {}."
    own, _ = ann.upload(*pictures[:48])
    answers = ann.ask(classes, plain, image_set=own)
    best = np.array(answers["log_probs"])[0].argmax(axis=1)
    common = np.bincount(best).argsort()[::-1][:2]
    of_class = [np.flatnonzero(best == label) for label in common]
    found: dict[str, Any] = {}

    found["a picture's class (one of two)"] = interleaved(
        trials,
        lambda row: ann.ask(classes, plain, image_set=own, rows=[int(row)]),
        lambda i, within: of_class[within][i % len(of_class[within])],
    )

    few = list(classes[:20])
    ann.ask(few, "seen by Ann: a {}.", image_set=own, rows=[0])
    found["whether the tenant has asked a prompt before (its own cache)"] = interleaved(
        trials // 2,
        lambda template: ann.ask(few, template, image_set=own, rows=[0]),
        lambda i, within: "seen by Ann: a {}." if within else f"{secrets.token_hex(4)} a {{}}.",
    )

    theirs, _ = bob.upload(*pictures[48:64])

    def asked_by_bob(_: int, within: bool) -> str:
        word = f"{secrets.token_hex(4)} a {{}}."
        other = f"{secrets.token_hex(4)} a {{}}."
        bob.ask(few, word, image_set=theirs, rows=[0])
        return word if within else other

    found["whether another tenant has asked a prompt before"] = interleaved(
        trials // 2,
        lambda template: ann.ask(few, template, image_set=own, rows=[0]),
        asked_by_bob,
    )

    empty = ann.post("/v1/image-sets", model=ann.model)["id"]

    def words_of_bob(_: int, within: bool) -> str:
        words = [" ".join(secrets.token_hex(5) for _ in range(4)) + " {}" for _ in range(2)]
        bob.ask(few, words[0], image_set=theirs, rows=[0])
        return words[0] if within else words[1]

    def refused(template: str) -> Any:
        question = {"model": ann.model, "classes": few, "templates": [template]}
        return ann.http.post("/v1/predictions", json={**question, "image_set": empty})

    found["whether another tenant has used words before (refused calls, free)"] = interleaved(
        trials, refused, words_of_bob
    )

    def one_code(tenant: Tenant, seed: int, image_set: str, names: Sequence[str] = few[:2]) -> Any:
        return tenant.post(
            "/v1/predictions",
            model=tenant.model,
            classes=names,
            context={"dim": 1024, "seed": seed},
            codes=[[0.0] * 1024],
            image_set=image_set,
            rows=[0],
        )

    def seed_of_bob(_: int, within: bool) -> int:
        seeds = [secrets.randbelow(2**62) for _ in range(2)]
        one_code(bob, seeds[0], theirs)
        return seeds[0] if within else seeds[1]

    found["whether another tenant has used a context before"] = interleaved(
        trials // 2, lambda seed: one_code(ann, seed, own), seed_of_bob
    )

    draw = random.Random(4)

    def list_of_bob(_: int, within: bool) -> list[str]:
        lists = [draw.sample(classes, len(classes)) for _ in range(2)]
        one_code(bob, 1, theirs, lists[0])
        return lists[0] if within else lists[1]

    found["whether another tenant has used a list of class names before"] = interleaved(
        trials // 2, lambda names: one_code(ann, 2, own, names), list_of_bob
    )

    def busy(_: int, within: bool) -> threading.Thread:
        template = f"{secrets.token_hex(4)} a {{}}."
        work: dict[str, Any] = {"image_set": theirs}
        target = (lambda: bob.ask(classes, template, **work)) if within else (lambda: None)
        thread = threading.Thread(target=target)
        thread.start()
        time.sleep(WAIT)
        return thread

    found["whether another tenant's call runs at that moment"] = interleaved(
        trials // 2, lambda _: ann.ask(classes, plain, image_set=own, rows=[0]), busy
    )

    bob.publish("secret", few)
    bobs = secrets.token_hex(4)
    bob.http.post(
        "/v1/predictions",
        headers={"Idempotency-Key": bobs, "Craft-Run": bobs},
        json={
            "model": bob.model,
            "classes": few,
            "templates": [plain],
            "image_set": theirs,
        },
    ).raise_for_status()
    owner = "bob"

    def absent() -> str:
        return f"is_{secrets.token_urlsafe(16)}"

    def get(path: str) -> Any:
        return ann.http.get(path)

    foreign: dict[str, tuple[Arm, Prepare]] = {
        "GET image set": (
            lambda name: get(f"/v1/image-sets/{name}"),
            lambda _, within: theirs if within else absent(),
        ),
        "predict on an image set": (
            lambda name: ann.http.post(
                "/v1/predictions",
                json={
                    "model": ann.model,
                    "classes": few,
                    "templates": [plain],
                    "image_set": name,
                },
            ),
            lambda _, within: theirs if within else absent(),
        ),
        "GET adapter": (
            lambda name: get(f"/v1/adapters/{owner}/{name}"),
            lambda _, within: "secret" if within else secrets.token_hex(3),
        ),
        "predict with an adapter": (
            lambda name: ann.http.post(
                f"/v1/adapters/{owner}/{name}/predictions", json={"image_set": own}
            ),
            lambda _, within: "secret" if within else secrets.token_hex(3),
        ),
        "DELETE answer": (
            lambda name: ann.http.delete(f"/v1/answers/{name}"),
            lambda _, within: bobs if within else secrets.token_hex(4),
        ),
        "GET receipt of a run": (
            lambda name: get(f"/v1/receipts?run={name}"),
            lambda _, within: bobs if within else secrets.token_hex(4),
        ),
    }
    for what, (act, prepare) in foreign.items():
        found[f"whether an id is another tenant's or nobody's: {what}"] = interleaved(
            trials, act, prepare
        )
    return found


def membership(
    ann: Tenant, bob: Tenant, pictures: Sequence[bytes], classes: Sequence[str]
) -> dict[str, Any]:
    """Whether Ann can tell which pictures Bob has uploaded: he has every second one."""
    bob.upload(*pictures[::2])
    seconds: dict[bool, list[float]] = {True: [], False: []}
    again: list[float] = []
    charged: dict[bool, set[int]] = {True: set(), False: set()}
    few = list(classes[:10])
    answers: dict[bool, list[float]] = {True: [], False: []}
    for i, picture in enumerate(pictures):
        within = i % 2 == 0
        body = {"first_row": 0, "images": [base64.b64encode(picture).decode()]}
        for repeated in (False, True):
            made = ann.post("/v1/image-sets", model=ann.model)["id"]
            began = time.perf_counter()
            said = ann.post(f"/v1/image-sets/{made}/images", **body)
            taken = time.perf_counter() - began
            if repeated:
                again.append(taken)
                continue
            seconds[within].append(taken)
            charged[within].add(said["cost"]["charged"]["images"])
            if i < COMPARED:  # with the same picture sent along, which is encoded anew
                stored = ann.ask(few, "a photo of a {}.", image_set=made)["log_probs"]
                sent = ann.ask(few, "a photo of a {}.", images=body["images"])["log_probs"]
                answers[within].append(float(np.abs(np.array(stored) - sent).max()))
    return {
        "charged_if_uploaded_by_another": sorted(charged[True]),
        "charged_if_by_nobody": sorted(charged[False]),
        "largest_difference_if_uploaded_by_another": max(answers[True]),
        "largest_difference_if_by_nobody": max(answers[False]),
        "latency": auc(seconds[False], seconds[True]),
        "latency of the tenant's own second upload": auc([*seconds[False], *seconds[True]], again),
    }


def counting(ann: Tenant, bob: Tenant, classes: Sequence[str], pictures: Sequence[bytes]) -> Any:
    """Whether the ids of Ann's charges tell how many calls Bob has made between two of hers."""
    own, _ = ann.upload(pictures[0])
    theirs, _ = bob.upload(pictures[1])
    draw = random.Random(2)
    exact, made, guessed = 0, [], []

    def newest() -> int:
        ann.ask(classes[:3], "a photo of a {}.", image_set=own)
        page = ann.http.get("/v1/usage?limit=1000").json()
        while page["next_after"] is not None:
            page = ann.http.get(f"/v1/usage?limit=1000&after={page['next_after']}").json()
        return int(page["charges"][-1]["id"])

    last = newest()
    for _ in range(20):
        calls = draw.randrange(6)
        for _ in range(calls):
            bob.ask(classes[:3], "a photo of a {}.", image_set=theirs)
        now = newest()
        made.append(calls)
        guessed.append(now - last - 1)
        exact += guessed[-1] == calls
        last = now
    return {"trials": len(made), "counted_exactly": exact, "made": made, "gaps": guessed}
