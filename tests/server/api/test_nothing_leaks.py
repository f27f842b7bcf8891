"""All that a tenant is answered, held against lists of what it may know.

One tenant makes every call of the API's description, well and badly, while another one works beside
it. Every field and header of every answer must be on a list here: a new one is a decision. No value
may be a fact about the model, the process or the other tenant. The model has widths that no other
number is likely to be.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from craft_server.engine import Engine, ModelSpec, Overloaded, Prompts
from craft_server.engine.tokens import Tokenizer, Tokens
from craft_server.ledger import administration
from craft_server.ledger.keys import find_key
from craft_server.settings import Settings
from craft_shared import codec
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import LinearHead
from craft_shared.problems import MEDIA_TYPE
from craft_shared.wire import Context, KeyPolicy, Output

Picture = Callable[..., bytes]
ODD = "craft-odd"
FEATURES, TEXT, VISION, CONTEXT_LENGTH, VOCABULARY = 37, 58, 106, 77, 49408
CLASSES = ["cat", "dog", "owl"]
TEMPLATE = "a photo of a {}."
CONTEXT = Context(dim=4, seed=5)
JOSE = "application/jose"

# --- what a tenant may know ---------------------------------------------------------------------

UNITS = {f".{unit}" for unit in ("queries", "predictions", "images", "texts", "requests")}


def _fields(prefix: str, *names: str) -> set[str]:
    return {f"{prefix}.{name}".lstrip(".") for name in names}


def _units(path: str) -> set[str]:
    return {path.lstrip("."), *(f"{path}{unit}".lstrip(".") for unit in UNITS)}


def _budgets(path: str) -> set[str]:
    names = "unit", "window", "of", "limit", "spent", "reserved", "remaining", "resets_at"
    return {path, *_fields(f"{path}[]", *names)}


def _output(path: str) -> set[str]:
    return {path, *_fields(path, "level", "k", "decimals", "noise")}


def _card(path: str) -> set[str]:
    provenance = (
        *("recipe", "data", "shots", "seed"),
        *("accuracy_before", "accuracy_after", "units"),
    )
    return {
        *_fields(path, "owner", "name", "version", "aliases", "digest", "model", "revision"),
        *_fields(path, "access_mode", "classes", "prompts", "published_at", "retired_at", "pays"),
        *_fields(path, "visual", "image_cost_micros", "image_units"),
        *_units(f"{path}.image_units"),
        *_fields(path, "abstain_below", "provenance"),
        *_fields(f"{path}.provenance", *provenance),
        *_units(f"{path}.provenance.units"),
    }


def _run(path: str) -> set[str]:
    latest = f"{path}.latest".lstrip(".")
    return {
        *_fields(path, "run", "title", "model", "dataset", "recipe", "budget", "state"),
        *_fields(path, "started_at", "updated_at", "points", "latest", "evaluation"),
        *_fields(path, "before", "note", "outcome"),
        *_fields(f"{path}.outcome".lstrip("."), "before", "after", "deployed", "candidates"),
        *_fields(f"{path}.outcome.candidates[]".lstrip("."), "name", "prompts", "texts", "loss"),
        *_fields(
            f"{path}.evaluation".lstrip("."), "subject", "n", "before", "accuracy", "low", "high"
        ),
        *_point(latest),
    }


def _point(path: str) -> set[str]:
    names = "sequence", "generation", "queries", "loss", "best_loss", "accuracy", "units"
    return {*_fields(path, *names), *_units(f"{path}.units")}


COST = {"cost", "cost.cost_micros", *_units("cost.charged"), *_budgets("cost.budgets")}
NUMBERS = {"log_probs", "probs", "top_classes"}
IMAGE_SET = _fields("", "id", "model", "revision", "count")
LIMITS = (
    *(
        "body_bytes",
        "json_bytes",
        "json_values",
        "images_per_call",
        "image_bytes",
        "image_pixels",
        "images_per_set",
    ),
    *("prompts_per_call", "classes", "dim", "answer_bytes"),
)
HEALTH = {"status"}
SETTINGS = {
    *_fields("", "owner", "name", "public", "keys", "teams", "pays", "abstain_below", "aliases"),
    "aliases.prod",
}
PROBLEM = {
    *_fields("", "type", "title", "status", "detail", "remedy", "request_id", "errors"),
    *_fields("errors[]", "field", "message", "remedy"),
}
RECEIPT = {
    *_fields("", "version", "issuer", "issued_at", "key", "owner", "run", "since", "until"),
    *_fields("", "first_at", "last_at", "items", "calls", "cost_micros", "first_line", "last_line"),
    "lines_sha256",
    *_units("total"),
    *_fields("items[]", "call", "model", "revision", "calls", "cost_micros"),
    *_units("items[].units"),
}
# Of each call's answers that are no problems; what is not named here has none.
FIELDS: dict[str, set[str]] = {
    "get_liveness": HEALTH,
    "get_readiness": HEALTH,
    "list_models": {
        "models",
        *_fields("models[]", "name", "revision", "image_size", "limits", "outputs"),
        *_fields("models[]", "prompts_per_image_set", "profile", "resize_mode", "interpolation"),
        *_fields("models[].limits", *LIMITS),
        *_output("models[].output"),
    },
    "report_run": _run(""),
    "report_points": _run(""),
    "report_evaluation": _run(""),
    "list_runs": {"runs", *_run("runs[]")},
    "get_run": {"card", *_run("card"), "points", *_point("points[]")},
    "create_image_set": IMAGE_SET,
    "get_image_set": IMAGE_SET,
    "upload_images": {"image_set", *_fields("image_set", *IMAGE_SET), *COST},
    "create_prediction": {
        *("model", "revision", *COST, *_output("output"), *NUMBERS),
        *("labels", *_fields("labels[][][]", "label", "score")),
    },
    "classify_image": _fields("[]", "label", "score"),
    "get_usage": {
        *_fields("", "cost_micros", "charges", "next_after"),
        *_units("total"),
        *_fields(
            "charges[]", "id", "at", "call", "run", "user", "adapter", "model", "revision", "state"
        ),
        "charges[].cost_micros",
        *_units("charges[].units"),
    },
    "get_budget": _budgets("budgets"),
    "get_receipt": RECEIPT | {"header", *_fields("header", "alg", "kid", "typ")},
    "get_receipt_keys": {"keys", *_fields("keys[]", "kty", "crv", "x", "kid", "alg", "use")},
    "publish_adapter": {"adapter", *_card("adapter"), *COST},
    "list_adapters": {"adapters", *_card("adapters[]"), "next_after"},
    "list_adapter_versions": {"adapters", *_card("adapters[]")},
    "get_adapter": _card(""),
    "get_adapter_settings": SETTINGS,
    "change_adapter": SETTINGS,
    "get_adapter_usage": {
        *_fields("", "owner", "name", "versions"),
        *_fields("versions[]", "version", "calls"),
        *_units("versions[].units"),
    },
    "create_adapter_prediction": {
        *_fields("", "adapter", "version", "classes", "abstained"),
        *COST,
        *_output("output"),
        *NUMBERS,
        *("labels", *_fields("labels[][]", "label", "score")),
    },
}
HEADERS = {
    *("content-type", "content-length", "content-encoding", "vary", "date", "cache-control"),
    *("x-request-id", "ratelimit", "ratelimit-policy", "retry-after", "www-authenticate", "allow"),
    *("idempotency-replayed", "idempotency-recomputed"),
    # The tests' server says that it is uvicorn; `craft-server` tells it not to.
    "server",
}

# --- what nobody may know -----------------------------------------------------------------------

HIDDEN_NUMBERS = {FEATURES, TEXT, VISION, VOCABULARY}
IN_WORDS = re.compile(rf"\b({'|'.join(map(str, sorted(HIDDEN_NUMBERS)))})\b")
# They count what the key has done, and may come by one of these numbers.
COUNTERS = {"charges[].id", "first_line", "last_line", "next_after"}
HIDDEN_WORDS = re.compile(
    r"Traceback|File \"|line \d+, in |\.py\b|0x[0-9a-f]{6,}"
    r"|craft_server|craft_shared|open_clip|torch|sqlalchemy|sqlite|psycopg|pydantic|starlette"
    r"|fastapi|uvicorn|numpy|site-packages|/(tmp|home|usr|var|root|srv|opt|etc)/"
    r"|logit|checkpoint|random weights|state_dict|embed_dim|bfloat16|float64"
    r"|(Value|Key|Type|Runtime|Attribute|Index|Memory|Assertion|Permission|OS)Error",
    re.IGNORECASE,
)
# But for the seconds of a time, which may be any.
LOGIT_SCALE = re.compile(r"(?<!\d)(?<!\d\d:)(14\.28\d*|2\.659\d*)")


@dataclass
class Heard:
    """One answer, and which call it is an answer to."""

    operation: str
    answer: httpx.Response
    tensors: dict[str, Any] = field(default_factory=dict)
    documents: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        media_type = self.answer.headers.get("content-type", "").partition(";")[0]
        if not self.answer.content:
            return
        if media_type in ("application/json", MEDIA_TYPE, "application/jwk-set+json"):
            self.documents = [self.answer.json()]
        elif media_type == codec.MEDIA_TYPE:
            document, self.tensors = codec.decode(self.answer.content)
            self.documents = [document, dict.fromkeys(self.tensors)]
        elif media_type == JOSE:
            header, payload, _ = self.answer.text.split(".")
            self.documents = [{"header": _of_base64(header)}, _of_base64(payload)]

    @property
    def fields(self) -> set[str]:
        return {path for document in self.documents for path, _ in leaves(document)}

    @property
    def text(self) -> str:
        """All that can be read, headers too."""
        headers = [
            f"{name}: {value}" for name, value in self.answer.headers.items() if name != "server"
        ]
        body = json.dumps(self.documents) if self.documents else self.answer.text
        return "\n".join([*headers, body])


def _of_base64(part: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def leaves(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every field below `part` by its path, the items of lists as `[]`, with its value."""
    if isinstance(part, dict):
        for name, value in part.items():
            below = f"{path}.{name}".lstrip(".")
            yield below, value
            yield from leaves(value, below)
    elif isinstance(part, list):
        for value in part:
            if isinstance(value, dict | list):
                yield from leaves(value, f"{path}[]")
            else:
                yield path.rstrip("[]"), value


def shapes(part: Any) -> Iterator[int]:
    """Lengths of all lists of numbers."""
    if isinstance(part, dict):
        for value in part.values():
            yield from shapes(value)
    elif isinstance(part, list):
        if part and isinstance(part[0], int | float | list):
            yield len(part)
        for value in part:
            yield from shapes(value)


@pytest.fixture(scope="module")
def odd_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A tiny CLIP whose widths are no other number of this test."""
    open_clip = pytest.importorskip("open_clip")
    config = tmp_path_factory.mktemp("odd_configs") / f"{ODD}.json"
    vision = {"image_size": 48, "layers": 1, "width": VISION, "head_width": 53, "patch_size": 16}
    text = {
        "context_length": CONTEXT_LENGTH,
        "vocab_size": VOCABULARY,
        "width": TEXT,
        "heads": 2,
        "layers": 1,
    }
    config.write_text(json.dumps({"embed_dim": FEATURES, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(config)
    engine = Engine.load(ModelSpec(name=ODD, device="cpu"))
    yield engine
    engine.close()


@dataclass
class Tenant:
    """Makes calls and remembers what it was answered."""

    client: httpx.Client
    operations: list[tuple[str, re.Pattern[str], str]]
    heard: list[Heard] = field(default_factory=list)

    def __call__(self, method: str, path: str, **body: Any) -> httpx.Response:
        answer = self.client.request(method, path, **body)
        for named, form, operation in self.operations:
            if named == method and form.fullmatch(answer.request.url.path):
                self.heard.append(Heard(operation, answer))
                break
        else:
            self.heard.append(Heard("", answer))
        return answer

    @property
    def model(self) -> dict[str, Any]:
        (card,) = self.client.get("/v1/models").json()["models"]
        return dict(card)


def operations_of(document: dict[str, Any]) -> list[tuple[str, re.Pattern[str], str]]:
    """Method, form of the path and name of each call, the longest paths first."""
    return [
        (
            method.upper(),
            re.compile(re.sub(r"\{.*?\}", ".+", path)),
            operation["operationId"],
        )
        for path, methods in sorted(document["paths"].items(), key=lambda item: -len(item[0]))
        for method, operation in methods.items()
    ]


def pack(card: dict[str, Any], **config: Any) -> bytes:
    rng = np.random.default_rng(0)
    fields = {
        "model": card["name"],
        "revision": card["revision"],
        "classes": CLASSES,
        "templates": [TEMPLATE],
        "context": CONTEXT,
        "codes": 2,
        "head": "ridge",
        **config,
    }
    head = LinearHead(
        rng.normal(size=(9, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32), 1.0, 0.5
    )
    return Adapter(AdapterConfig(**fields), rng.normal(size=(2, 4)).astype("f4"), head).to_bytes()


def work(tenant: Tenant, pictures: list[bytes], mark: str) -> str:
    """Every call that succeeds; gives the image set."""
    card = tenant.model
    sent = [base64.b64encode(picture).decode() for picture in pictures]
    once = {"Idempotency-Key": f"key-{mark}", "Craft-Run": f"run-{mark}"}
    packed = {"Accept": codec.MEDIA_TYPE}
    for path in ("/livez", "/readyz", "/v1/models", "/v1/receipts/keys", "/v1/budget"):
        tenant("GET", path)
    image_set = tenant("POST", "/v1/image-sets", json={"model": card["name"]}).json()["id"]
    tenant("POST", f"/v1/image-sets/{image_set}/images", json={"first_row": 0, "images": sent})
    tenant("GET", f"/v1/image-sets/{image_set}")
    question = {
        "model": card["name"],
        "classes": CLASSES,
        "templates": [TEMPLATE],
        "context": CONTEXT.model_dump(),
        "codes": [[0.5, 0, 0, 1]],
        "image_set": image_set,
    }
    for headers in ({}, once, once, packed):
        tenant("POST", "/v1/predictions", json=question, headers=headers)
    for more in ({"top_k": 2}, {"format": "labels"}):
        tenant("POST", "/v1/predictions", json={**question, **more})
    labels = {"candidate_labels": CLASSES}
    zero_shot = {"inputs": sent[0], "parameters": labels}
    tenant("POST", "/v1/zero-shot-image-classification", json=zero_shot)
    adapter = {"content": pack(card), "headers": {"Content-Type": codec.MEDIA_TYPE}}
    params = {"name": f"pets-{mark}", "alias": "prod"}
    for _ in range(2):
        tenant("POST", "/v1/adapters", params=params, **adapter)
    name = f"/v1/adapters/pets-{mark}"
    for path in ("/v1/adapters", name, *(f"{name}/{x}" for x in ("versions", "settings", "usage"))):
        tenant("GET", path)
    tenant("PATCH", name, json={"abstain_below": 0.5, "pays": "publisher"})
    for headers in ({}, packed):
        tenant("POST", f"{name}/predictions", json={"images": sent}, headers=headers)
    for more in ({"top_k": 1}, {"format": "labels"}):
        tenant("POST", f"{name}/predictions", json={"image_set": image_set, **more})
    tenant("DELETE", name)
    tenant("PUT", f"{name}/restore")
    run = f"/v1/runs/run-{mark}"
    ridge = {"name": "ridge", "prompts": 1, "texts": 9, "loss": 0.5}
    outcome = {"before": 50, "after": 80, "deployed": "ridge", "candidates": [ridge]}
    tenant("PUT", run, json={"title": "a run", "model": card["name"], "outcome": outcome})
    worth = {"subject": "test", "n": 9, "before": 50, "accuracy": 80, "low": 70, "high": 90}
    tenant("PUT", f"{run}/evaluation", json=worth)
    point = {"sequence": 1, "generation": 1, "queries": 2, "loss": 1.5}
    tenant("PUT", f"{run}/points", json={"points": [point]})
    tenant("PUT", f"{run}/evaluation", json=worth)
    report = {"title": "a run", "model": card["name"], "state": "finished", "outcome": outcome}
    tenant("PUT", run, json=report)
    for path in ("/v1/runs", run):
        tenant("GET", path)
    tenant("PUT", "/v1/runs/short", json={"title": "another"})
    tenant("DELETE", "/v1/runs/short")
    tenant("GET", "/v1/usage?limit=1000")
    tenant("GET", "/v1/receipts", params={"run": f"run-{mark}"})
    tenant("DELETE", f"/v1/answers/key-{mark}")
    return str(image_set)


def stumble(tenant: Tenant, image_set: str, mark: str, paths: dict[str, Any]) -> None:
    """Every call as badly as one can think of."""
    card, secret = tenant.model, tenant.client.headers["Authorization"]
    question = {"model": card["name"], "classes": CLASSES, "image_set": image_set}
    wide = {"init": "a " * 80, "dim": 4096}
    bad: list[dict[str, Any]] = [
        {},
        {"model": "another"},
        {"classes": []},
        {"classes": ["cat", "cat"]},
        {"classes": ["x " * 90]},
        {"classes": ["<start_of_text>"]},
        {"templates": ["{} {}", "", TEMPLATE * 20]},
        {"templates": ["{}"], "rows": [99]},
        {"templates": ["{}"], "top_k": 9},
        {"templates": ["{}"], "image_set": "is_none"},
        {"templates": ["{}"], "images": ["bm90IGEgcGljdHVyZQ=="], "image_set": None},
        {"templates": ["{}"], "images": ["%"], "image_set": None},
        {"codes": [[1.0]]},
        {"codes": [[1.0, 2.0], [1.0]], "context": {"dim": 2}},
        {"codes": [[1e9, 0]], "context": {"dim": 2}},
        {"codes": [[0.0] * 4096], "context": wide},
        {"codes": [[0.0] * 5], "context": {"dim": 9_999}},
        {"codes": "x", "context": {"dim": 1, "scale": "paper"}},
        {"dtype": "float64"},
        {"unknown": 1},
    ]
    for body in bad:
        tenant("POST", "/v1/predictions", json={**question, **body})
    for inputs, parameters in (
        ("%", {"candidate_labels": CLASSES}),
        ("bm90IGEgcGljdHVyZQ==", {"candidate_labels": CLASSES}),
        ("bm90IGEgcGljdHVyZQ==", {"candidate_labels": ["cat"], "hypothesis_template": "none"}),
        ({"image": 1}, {}),
    ):
        body = {"inputs": inputs, "parameters": parameters}
        tenant("POST", "/v1/zero-shot-image-classification", json=body)
    for content, media_type in (
        (b"{", "application/json"),
        (b"[" * 9000, "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"\x00" * 40, codec.MEDIA_TYPE),
        (b"x", "text/plain"),
        (codec.encode(question, {"codes": np.zeros((2, 3), np.float32)}), codec.MEDIA_TYPE),
    ):
        headers = {"Content-Type": media_type}
        for path in (
            *("/v1/predictions", "/v1/image-sets", "/v1/adapters?name=x"),
            *(f"/v1/image-sets/{image_set}/images", f"/v1/adapters/pets-{mark}/predictions"),
        ):
            tenant("POST", path, content=content, headers=headers)
    for config in (
        {"revision": "0" * 16},
        {"model": "another"},
        {"classes": ["cat"]},
        {"context": Context(**wide)},
        {"templates": ["x"]},
    ):
        try:
            content = pack(card, **config)
        except ValueError:
            continue
        headers = {"Content-Type": codec.MEDIA_TYPE}
        tenant("POST", "/v1/adapters", params={"name": "bad"}, content=content, headers=headers)
    for headers in ({"Idempotency-Key": "a b"}, {"Craft-Run": "=x"}, {"Authorization": "Bearer x"}):
        tenant("POST", "/v1/image-sets", json={"model": card["name"]}, headers=headers)
    body = {"first_row": 0, "images": ["bm90IGEgcGljdHVyZQ=="]}
    tenant("POST", f"/v1/image-sets/{image_set}/images", json=body)
    tenant("POST", f"/v1/image-sets/{image_set}/images", json={**body, "first_row": 2})
    tenant("PATCH", f"/v1/adapters/pets-{mark}", json={"aliases": {"prod": 77_777, "latest": 1}})
    tenant("PATCH", f"/v1/adapters/pets-{mark}", json={"keys": ["x"], "public": "maybe"})
    tenant("GET", "/v1/usage?after=x")
    for query in ("run=none", "run=%00", "since=x", "since=2000-01-01T00:00:00Z&until=1999-01-01"):
        tenant("GET", f"/v1/receipts?{query}")
    for path in ("/nowhere", "/v1/models/", "/../secret", "/v1/adapters/a/b/c@d", "/static/x"):
        tenant("GET", path)
    # Every call, of things that are not there and with no body, with the key and without one.
    for path, methods in paths.items():
        for method in methods:
            for headers in ({}, {"Authorization": ""}):
                made = re.sub(r"\{.*?\}", "none", path)
                tenant(method.upper(), made, headers={"Authorization": secret, **headers})


@dataclass
class Walk:
    """What Bob heard, and what is Ann's.

    Attributes:
        bob: made every call.
        before: what Bob could read of the server before Ann came.
        after: the same, after she had made every call too.
        document: the API's description.
        descriptions: that anybody can read.
        anns: names that only Ann should know.
        data_dir: the server's.
    """

    bob: Tenant
    before: list[Any]
    after: list[Any]
    document: dict[str, Any]
    descriptions: list[str]
    anns: list[str]
    data_dir: Path


def readable(tenant: Tenant, image_set: str) -> list[Any]:
    paths = [
        *("/v1/models", "/v1/adapters", "/v1/usage?limit=1000", "/v1/budget", "/readyz"),
        *("/v1/receipts/keys", f"/v1/image-sets/{image_set}"),
    ]
    return [tenant.client.get(path).json() for path in paths]


@pytest.fixture(scope="module")
def walk(
    tmp_path_factory: pytest.TempPathFactory,
    odd_engine: Engine,
    picture: Picture,
    serving_with: Any,
) -> Iterator[Walk]:
    data_dir = tmp_path_factory.mktemp("leaks")
    owner, mark = f"ann{secrets.token_hex(6)}", secrets.token_hex(6)
    with serving_with(Settings(data_dir=data_dir), odd_engine) as server:
        document = httpx.get(f"{server.url}/openapi.json").json()
        texts = [httpx.get(f"{server.url}/{path}").text for path in ("openapi.json", "docs")]
        operations = operations_of(document)
        with (
            closing(server.client(f"bob{secrets.token_hex(6)}", requests=10**6)) as bobs,
            closing(server.client(owner, predictions=10**6)) as anns,
        ):
            bob, ann = Tenant(bobs, operations), Tenant(anns, operations)
            own = work(bob, [picture(1), picture(2)], "bobs")
            before = readable(bob, own)
            theirs = work(ann, [picture(1), picture(3)], mark)
            after = readable(bob, own)
            work(bob, [picture(3), picture(4)], "again")
            stumble(bob, own, "bobs", document["paths"])
            prefix = anns.headers["Authorization"].split("_")[1]
            yield Walk(
                bob,
                before,
                after,
                document,
                texts,
                [owner, mark, theirs, prefix],
                data_dir,
            )


def described(walk: Walk) -> set[str]:
    return {
        operation["operationId"]
        for methods in walk.document["paths"].values()
        for operation in methods.values()
    }


def test_each_call_was_made_well_and_badly(walk: Walk) -> None:
    well = {one.operation for one in walk.bob.heard if one.answer.is_success}
    badly = {one.operation for one in walk.bob.heard if one.answer.is_error}
    silent = {"delete_image_set", "retire_adapter", "restore_adapter", "acknowledge_answer"}
    silent |= {"delete_run"}
    never = {name for name in described(walk) if "key" in name or "team" in name}
    never -= {"get_receipt_keys"}
    never |= {"get_metrics", "list_prices", "set_prices", "export_usage"}
    assert described(walk) - well - {"delete_image_set"} == never
    assert described(walk) - badly <= {"get_liveness", "get_readiness", "get_receipt_keys"} | silent
    assert FIELDS.keys() == described(walk) - never - silent


def test_every_field_is_on_the_list(walk: Walk) -> None:
    unlisted = set()
    for one in walk.bob.heard:
        listed = PROBLEM if one.answer.is_error else FIELDS.get(one.operation, set())
        unlisted |= {(one.operation, name) for name in one.fields - listed}
    assert unlisted == set()


def test_every_field_on_the_list_was_answered(walk: Walk) -> None:
    found: dict[str, set[str]] = {}
    for one in walk.bob.heard:
        if one.answer.is_success:
            found.setdefault(one.operation, set()).update(one.fields)
    # Levels that this key does not have.
    absent = {name: listed - found[name] - {"probs"} for name, listed in FIELDS.items()}
    assert {name: rest for name, rest in absent.items() if rest} == {}


def test_every_header_is_on_the_list(walk: Walk) -> None:
    sent = {name for one in walk.bob.heard for name in one.answer.headers}
    assert sent - HEADERS == set()


def test_an_error_is_a_problem_and_nothing_else(walk: Walk) -> None:
    errors = [one for one in walk.bob.heard if one.answer.is_error]
    assert len(errors) > 100
    for one in errors:
        assert one.answer.headers["content-type"] == MEDIA_TYPE, one
        assert one.answer.status_code < 500, one.answer.text


def test_no_word_is_about_the_process(walk: Walk) -> None:
    for text in (*(one.text for one in walk.bob.heard), walk.descriptions[0]):
        assert HIDDEN_WORDS.search(text) is None, (HIDDEN_WORDS.search(text), text)
        assert str(walk.data_dir) not in text
        assert str(Path.cwd()) not in text
        assert LOGIT_SCALE.search(text) is None


def test_no_number_is_the_models(walk: Walk) -> None:
    for one in walk.bob.heard:
        for document in one.documents:
            for path, value in leaves(document):
                if isinstance(value, int) and path not in COUNTERS:
                    assert value not in HIDDEN_NUMBERS, (one.operation, path)
                if isinstance(value, str) and path.rpartition(".")[2] in ("detail", "message"):
                    assert IN_WORDS.search(value) is None, value
            assert not HIDDEN_NUMBERS & set(shapes(document))
        for name, tensor in one.tensors.items():
            assert not HIDDEN_NUMBERS & set(tensor.shape), (one.operation, name)


def test_nothing_names_the_other_tenant(walk: Walk) -> None:
    for text in (*(one.text for one in walk.bob.heard), *walk.descriptions):
        assert [name for name in walk.anns if name in text] == []


def test_what_a_tenant_reads_is_the_same_after_another_ones_work(walk: Walk) -> None:
    assert walk.after == walk.before


def test_measurements_are_not_for_tenants(walk: Walk) -> None:
    asked = [one.answer for one in walk.bob.heard if one.operation == "get_metrics"]
    assert {answer.status_code for answer in asked} == {401, 403}


def test_ids_of_charges_do_not_count_the_calls_of_others(server: Any, picture: Picture) -> None:
    with closing(server.client()) as ann, closing(server.client()) as bob:
        (card,) = ann.get("/v1/models").json()["models"]
        question = {
            "model": card["name"],
            "classes": CLASSES,
            "templates": [TEMPLATE],
            "images": [base64.b64encode(picture(1)).decode()],
        }

        def newest() -> int:
            bob.post("/v1/predictions", json=question).raise_for_status()
            return int(bob.get("/v1/usage").json()["charges"][-1]["id"])

        gaps = []
        for calls in (0, 1, 5):
            before = newest()
            for _ in range(calls):
                ann.post("/v1/predictions", json=question).raise_for_status()
            gaps.append(newest() - before)
    assert len(set(gaps)) == 1


def test_all_texts_are_read_with_what_their_own_tenant_left_in_memory(
    server: Any, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_for: set[str] = set()
    of = Tokenizer.of

    def noted(tokenizer: Tokenizer, tenant: str = "") -> Tokens:
        read_for.add(tenant)
        return of(tokenizer, tenant)

    monkeypatch.setattr(Tokenizer, "of", noted)
    document = httpx.get(f"{server.url}/openapi.json").json()
    with closing(server.client()) as client:
        prefix = client.headers["Authorization"].split("_")[1]
        with server.database.writing() as connection:
            key_id = find_key(connection, prefix).key_id
            # So that texts are also compared with those that were asked before.
            policy = KeyPolicy(output=Output(level="log_probs", noise=0.5))
            administration.set_policy(connection, prefix, policy)
        tenant = Tenant(client, operations_of(document))
        stumble(tenant, work(tenant, [picture(1), picture(2)], "own"), "own", document["paths"])
    assert read_for == {str(key_id)}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("width 37 in /srv/models/clip.pt, line 58 of craft_server/engine"), 500),
        (Overloaded("41 turns of ann wait"), 503),
        (MemoryError(), 503),
    ],
)
def test_what_breaks_inside_is_not_told(
    serve: Any,
    odd_engine: Engine,
    monkeypatch: Any,
    picture: Picture,
    error: Exception,
    status: int,
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise error

    with serve(engine=odd_engine) as server, closing(server.client()) as client:
        monkeypatch.setattr(odd_engine, "encode_images", broken)
        answer = client.post(
            "/v1/predictions",
            json={
                "model": ODD,
                "classes": CLASSES,
                "templates": [TEMPLATE],
                "images": [base64.b64encode(picture(1)).decode()],
            },
        )
    one = Heard("create_prediction", answer)
    assert answer.status_code == status
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert one.fields <= PROBLEM
    assert set(answer.headers) <= HEADERS
    assert HIDDEN_WORDS.search(one.text) is None
    assert not re.search("width|srv|clip|turns|ann ", one.text)
    assert IN_WORDS.search(answer.json()["detail"]) is None


def test_what_is_refused_does_not_depend_on_the_models_widths(
    tiny_engine: Engine, odd_engine: Engine
) -> None:
    told = set()
    for dim in (1, 64, 512, 1024, 4096):
        for words in (1, 16, 17, 40, 100, 200):
            context = Context(init="\u5b57" * words, dim=dim)
            prompts = Prompts((), context, np.zeros((1, dim), np.float32))
            errors = asyncio.run(tiny_engine.check_prompts(prompts, CLASSES))
            assert errors == asyncio.run(odd_engine.check_prompts(prompts, CLASSES))
            told |= {error.field for error in errors}
    assert "context.init" in told
