"""A small server that speaks API v1 over real sockets, with a random model and faults on demand."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from craft_shared import codec, problems
from craft_shared.adapter import Adapter
from craft_shared.head import log_softmax
from craft_shared.problems import FieldError, Problem, ProblemType
from craft_shared.units import MEASURES, Measure, Unit, Units
from craft_shared.wire import (
    AdapterCard,
    AdapterPredictionRequest,
    Budget,
    Charge,
    ImageSet,
    ImageUpload,
    Limits,
    ModelCard,
    PredictionRequest,
)

KEY = "craft_test_key"
REVISION = "0123456789abcdef"
WIDTH = 16

Answer = tuple[int, dict[str, Any], codec.Tensors | None]


class Refused(Exception):  # noqa: N818
    """Becomes a problem document."""

    def __init__(
        self,
        kind: ProblemType,
        detail: str,
        errors: Sequence[FieldError] = (),
        retry_after: str | None = None,
    ) -> None:
        self.problem = Problem.of(kind, detail, list(errors))
        self.headers = {} if retry_after is None else {"Retry-After": retry_after}


@dataclass
class Fault:
    """What befalls the next call whose "METHOD /path" matches the pattern.

    `drop` is "before" or "after": the connection closes before or after the work; or "during": it
    closes before the work, which waits for the call to be sent again and is then done. Otherwise
    the answer is `status` with `headers` and a `body` of the content type `kind`, and the work is
    not done. `also` is run first.
    """

    pattern: str
    drop: str = ""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = ""
    body: str = ""
    also: Callable[[], None] = lambda: None


@dataclass
class Seen:
    """A request as it arrived."""

    call: str
    headers: dict[str, str]


@dataclass
class Made:
    """A call under an idempotency key: what made it, and once it is done, what was answered."""

    fingerprint: tuple[object, ...]
    answer: tuple[int, str, bytes] | None = None
    cost: dict[str, Any] | None = None
    done: bool = False
    sent_again: threading.Event = field(default_factory=threading.Event)


class WireServer:
    """The server's state; `calls` lists every request that arrived."""

    def __init__(self) -> None:
        self.limits = Limits(
            body_bytes=2**20,
            images_per_call=8,
            image_bytes=2**16,
            image_pixels=100_000,
            images_per_set=1000,
            prompts_per_call=64,
            classes=100,
            dim=1024,
            answer_bytes=2**20,
        )
        self.budgets: dict[Measure, int] = {}
        # Further ones, of the team and of windows: what they have spent is somebody else's.
        self.more_budgets: list[Budget] = []
        self.prices: dict[Unit, int] = {}
        self.made: dict[str, Made] = {}
        self.acknowledged: list[str] = []
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.charges: list[Charge] = []
        self.features: dict[str, NDArray[np.float32]] = {}
        self.image_sets: dict[str, list[str]] = {}
        self.adapters: list[tuple[AdapterCard, Adapter]] = []
        self.longest_class_name = 60
        self.refused_pictures: set[bytes] = set()
        self.url = ""
        self._created = 0
        self._call: Made | None = None
        self._lock = threading.Lock()

    @property
    def calls(self) -> list[str]:
        return [seen.call for seen in self.seen]

    @property
    def charged(self) -> Units:
        return sum((charge.units for charge in self.charges), Units())

    @property
    def charged_micros(self) -> int:
        return sum(charge.cost_micros for charge in self.charges)

    @contextlib.contextmanager
    def listening(self) -> Iterator[WireServer]:
        """Serves on a free port of this machine."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def handle(
        self,
        method: str,
        target: str,
        document: dict[str, Any],
        tensors: codec.Tensors,
        body: bytes,
        call: Made | None = None,
    ) -> Answer:
        with self._lock:
            self._call = call
            path = urlsplit(target).path
            query = {key: values[0] for key, values in parse_qs(urlsplit(target).query).items()}
            match [method, *path.removeprefix("/v1/").split("/")]:
                case ["GET", "models"]:
                    card = ModelCard(
                        name="fake",
                        revision=REVISION,
                        image_size=8,
                        limits=self.limits,
                        outputs=["log_probs"],
                    )
                    return 200, {"models": [card.model_dump()]}, None
                case ["POST", "image-sets"]:
                    if document["model"] != "fake":
                        raise Refused(problems.MODEL_NOT_FOUND, "There is no such model.")
                    self._created += 1
                    name = f"set-{self._created}"
                    self.image_sets[name] = []
                    return 201, self.image_set(name).model_dump(), None
                case ["GET", "image-sets", name]:
                    return 200, self.image_set(name).model_dump(), None
                case ["DELETE", "image-sets", name]:
                    self.image_set(name)
                    del self.image_sets[name]
                    return 204, {}, None
                case ["POST", "image-sets", name, "images"]:
                    return self._upload(name, ImageUpload.model_validate(document), tensors)
                case ["POST", "predictions"]:
                    return self._predict(PredictionRequest.model_validate(document), tensors)
                case ["DELETE", "answers", quoted]:
                    key = unquote(quoted)
                    self.acknowledged.append(key)
                    if key in self.made:
                        self.made[key].answer = None
                    return 204, {}, None
                case ["GET", "usage"]:
                    return self._usage(int(query.get("after", 0)))
                case ["GET", "budget"]:
                    budgets = [budget.model_dump() for budget in self._budgets()]
                    return 200, {"budgets": budgets}, None
                case ["POST", "adapters"]:
                    return self._publish(query["name"], Adapter.from_bytes(body))
                case ["GET", "adapters"]:
                    return 200, {"adapters": [card.model_dump() for card, _ in self.adapters]}, None
                case ["GET", "adapters", name]:
                    return 200, self._adapter(name)[0].model_dump(), None
                case ["DELETE", "adapters", name]:
                    self.adapters.remove(self._adapter(name))
                    return 204, {}, None
                case ["POST", "adapters", name, "predictions"]:
                    request = AdapterPredictionRequest.model_validate(document)
                    return self._adapter_predict(name, request, tensors)
            raise Refused(problems.NOT_FOUND, f"{method} {path}")

    def made_before(
        self, key: str, fingerprint: tuple[object, ...]
    ) -> tuple[Made, tuple[int, str, bytes] | None]:
        """The call under an idempotency key, noted if it is new, and its answer if it is there."""
        with self._lock:
            made = self.made.get(key)
            if made is None:
                self.made[key] = made = Made(fingerprint)
                return made, None
            if made.fingerprint != fingerprint:
                raise Refused(problems.IDEMPOTENCY_KEY_REUSED, "Another call has this key.")
            if not made.done:
                made.sent_again.set()
                raise Refused(problems.CALL_IN_PROGRESS, "It is running.", retry_after="1")
            return made, made.answer

    def forget(self, key: str) -> None:
        """A call that failed may be made again under its key."""
        with self._lock:
            self.made.pop(key, None)

    def image_set(self, name: str) -> ImageSet:
        if name not in self.image_sets:
            raise Refused(problems.IMAGE_SET_NOT_FOUND, f"There is no image set '{name}'.")
        return ImageSet(id=name, model="fake", revision=REVISION, count=len(self.image_sets[name]))

    def _upload(self, name: str, upload: ImageUpload, tensors: codec.Tensors) -> Answer:
        image_set = self.image_set(name)
        files = self._files(tensors)
        if upload.first_row != image_set.count:
            errors = [FieldError(field="first_row", message=f"the set has {image_set.count} rows")]
            raise Refused(problems.INVALID_REQUEST, "first_row", errors)
        if len(files) > self.limits.images_per_call:
            raise Refused(problems.INVALID_REQUEST, "too many pictures")
        digests = [hashlib.sha256(file).hexdigest() for file in files]
        new = set(digests) - self.features.keys()
        cost = self._charge("upload", Units(images=len(new), requests=1))
        self.features |= {digest: _feature(digest) for digest in new}
        self.image_sets[name] += digests
        return 200, {"image_set": self.image_set(name).model_dump(), "cost": cost}, None

    def _predict(self, request: PredictionRequest, tensors: codec.Tensors) -> Answer:
        codes = tensors.get("codes", np.zeros((0, 0), np.float32))
        errors = [
            FieldError(field=f"classes[{i}]", message="is too long", remedy="Shorten it.")
            for i, name in enumerate(request.classes)
            if len(name) > self.longest_class_name
        ]
        if request.image_set and not self.image_set(request.image_set).count:
            errors.append(FieldError(field="image_set", message="is empty", remedy="Upload."))
        if errors:
            raise Refused(problems.INVALID_REQUEST, "The request is not valid", errors)
        images = self._images(request, tensors)
        log_probs = self._score(
            [*request.templates, *(code.tobytes() for code in codes)], request.classes, images
        )
        if log_probs.nbytes // (2 if request.dtype == "float16" else 1) > self.limits.answer_bytes:
            raise Refused(problems.INVALID_REQUEST, "The answer is larger than answer_bytes")
        prompts, count, classes = log_probs.shape
        cost = self._charge(
            "predict",
            Units(
                queries=prompts,
                predictions=prompts * count,
                texts=prompts * classes,
                images=len(tensors.get("file_sizes", ())),
                requests=1,
            ),
        )
        answer = {"model": "fake", "revision": REVISION, "cost": cost}
        return 200, answer, _top(log_probs.astype(request.dtype), request.top_k)

    def _usage(self, after: int) -> Answer:
        page = [charge for charge in self.charges if charge.id > after]
        more = page[2].id if len(page) > 3 else None
        return (
            200,
            {
                "total": self.charged.model_dump(),
                "cost_micros": self.charged_micros,
                "charges": [charge.model_dump() for charge in page[:3]],
                "next_after": more,
            },
            None,
        )

    def _publish(self, name: str, adapter: Adapter) -> Answer:
        versions = [card for card, _ in self.adapters if card.name == name]
        for card in versions:
            if card.digest == adapter.digest:
                return 201, {"adapter": card.model_dump(), "cost": self._cost(Units())}, None
        config = adapter.config
        texts = config.prompts * len(config.scored)
        cost = self._charge("publish", Units(texts=texts, requests=1))
        card = AdapterCard(
            name=name,
            version=len(versions) + 1,
            digest=adapter.digest,
            model="fake",
            revision=REVISION,
            access_mode=config.access_mode,
            classes=list(config.classes),
            prompts=config.prompts,
            published_at="2026-01-01T00:00:00Z",
        )
        self.adapters.append((card, adapter))
        return 201, {"adapter": card.model_dump(), "cost": cost}, None

    def _adapter(self, name: str) -> tuple[AdapterCard, Adapter]:
        for card, adapter in reversed(self.adapters):
            if name in (card.name, f"{card.name}@{card.version}"):
                return card, adapter
        raise Refused(problems.ADAPTER_NOT_FOUND, f"There is no adapter '{name}'.")

    def _adapter_predict(
        self, name: str, request: AdapterPredictionRequest, tensors: codec.Tensors
    ) -> Answer:
        card, adapter = self._adapter(name)
        prompts = [*adapter.config.templates, *(code.tobytes() for code in adapter.codes)]
        images = self._images(request, tensors)
        log_probs = adapter.head(self._score(prompts, adapter.config.scored, images))
        cost = self._charge(
            "adapter",
            Units(
                queries=len(prompts),
                predictions=len(prompts) * len(images),
                images=len(tensors.get("file_sizes", ())),
                requests=1,
            ),
        )
        answer = {"adapter": card.name, "version": card.version, "classes": card.classes}
        scores = _top(log_probs, request.top_k)
        if request.abstain_below is not None:
            sure = np.exp(log_probs.max(axis=-1)) >= request.abstain_below
            scores["abstained"] = (~sure).astype(np.uint8)
        return 200, answer | {"cost": cost}, scores

    def _images(
        self, request: PredictionRequest | AdapterPredictionRequest, tensors: codec.Tensors
    ) -> NDArray[np.float32]:
        if request.image_set is None:
            files = self._files(tensors)
            return np.stack([_feature(hashlib.sha256(file).hexdigest()) for file in files])
        self.image_set(request.image_set)
        digests = self.image_sets[request.image_set]
        rows = range(len(digests)) if request.rows is None else request.rows
        return np.stack([self.features[digests[row]] for row in rows])

    def _files(self, tensors: codec.Tensors) -> list[bytes]:
        files = codec.unpack_files(tensors)
        errors = [
            FieldError(field=f"images[{i}]", message="cannot be used.", remedy="Replace it.")
            for i, file in enumerate(files)
            if file in self.refused_pictures
        ]
        if errors:
            raise Refused(problems.INVALID_IMAGE, "A picture cannot be used.", errors)
        return files

    def _score(
        self, prompts: Sequence[str | bytes], classes: Sequence[str], images: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        texts = np.stack(
            [np.stack([_feature(f"{prompt!r}{name}") for name in classes]) for prompt in prompts]
        )
        return log_softmax(10 * np.einsum("nd,pcd->pnc", images, texts))

    def _charge(self, call: str, units: Units) -> dict[str, Any]:
        if self._call and self._call.cost:  # charged before, and its bytes are gone
            return self._call.cost
        micros = sum(units[unit] * price for unit, price in self.prices.items())
        for budget in self._budgets():
            needed = micros if budget.unit == "cost_micros" else units[budget.unit]
            if needed > budget.remaining:
                raise Refused(
                    problems.BUDGET_EXHAUSTED,
                    f"{budget.unit}: the call needs {needed}, {budget.remaining} are left.",
                )
        self.charges.append(
            Charge(
                id=len(self.charges) + 1,
                at="2026-01-01T00:00:00Z",
                call=call,
                model="fake",
                state="settled",
                units=units,
                cost_micros=micros,
            )
        )
        cost = self._cost(units, micros)
        if self._call:
            self._call.cost = cost
        return cost

    def _cost(self, units: Units, micros: int = 0) -> dict[str, Any]:
        budgets = [budget.model_dump() for budget in self._budgets()]
        return {"charged": units.model_dump(), "cost_micros": micros, "budgets": budgets}

    def _budgets(self) -> list[Budget]:
        own = [
            Budget(unit=unit, limit=self.budgets[unit], spent=0, reserved=0, remaining=0)
            for unit in MEASURES
            if unit in self.budgets
        ]
        return [self._after_charges(budget) for budget in (*own, *self.more_budgets)]

    def _after_charges(self, budget: Budget) -> Budget:
        charged = self.charged_micros if budget.unit == "cost_micros" else self.charged[budget.unit]
        spent = budget.spent + charged
        return budget.model_copy(update={"spent": spent, "remaining": budget.limit - spent})


def _top(log_probs: NDArray[Any], top_k: int | None) -> codec.Tensors:
    if top_k is None:
        return {"log_probs": log_probs}
    order = np.argsort(-log_probs, axis=-1, kind="stable")[..., :top_k]
    best = np.take_along_axis(log_probs, order, -1)
    return {"log_probs": best, "top_classes": order.astype(np.int32)}


def _feature(name: str) -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    vector = np.random.default_rng(seed).standard_normal(WIDTH)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _handler(server: WireServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
            pass

        def _respond(self, status: int, content_type: str, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in ({"Content-Type": content_type} | headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _drop(self) -> None:
            self.close_connection = True
            self.connection.shutdown(2)

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            call = f"{self.command} {urlsplit(self.path).path}"
            server.seen.append(Seen(call, dict(self.headers.items())))
            fault = next((f for f in server.faults if re.fullmatch(f.pattern, call)), None)
            if fault:
                server.faults.remove(fault)
                fault.also()
                if fault.status:
                    return self._respond(
                        fault.status, fault.kind, fault.body.encode(), **fault.headers
                    )
                if fault.drop in ("before", "during"):
                    self._drop()
                if fault.drop == "before":
                    return None
            key, made = self.headers.get("Idempotency-Key"), None
            try:
                if self.headers["Authorization"] != f"Bearer {KEY}":
                    raise Refused(problems.UNAUTHENTICATED, "The key is not valid.")
                if key is not None:
                    wanted = (self.command, self.path, self.headers["Accept"], body)
                    made, answer = server.made_before(key, wanted)
                    if answer is not None:
                        return self._drop() if fault else self._respond(*answer)
            except Refused as refusal:
                return self._refuse(refusal)
            if fault and fault.drop == "during":
                assert made
                assert made.sent_again.wait(30)
            try:
                answer = self._done(body, made)
            except Refused as refusal:
                if key is not None:
                    server.forget(key)
                return self._refuse(refusal)
            if made is not None:
                made.answer, made.done = answer, True
            if fault and fault.drop == "after":
                return self._drop()
            if not (fault and fault.drop):
                self._respond(*answer)
            return None

        def _refuse(self, refusal: Refused) -> None:
            text = refusal.problem.model_dump_json().encode()
            self._respond(refusal.problem.status, problems.MEDIA_TYPE, text, **refusal.headers)

        def _done(self, body: bytes, made: Made | None) -> tuple[int, str, bytes]:
            tensors: codec.Tensors = {}
            document: dict[str, Any] = {}
            if self.headers.get("Content-Type") == codec.MEDIA_TYPE:
                document, tensors = codec.decode(body)
            elif body:
                document = json.loads(body)
            status, answer, answered = server.handle(
                self.command, self.path, document, tensors, body, made
            )
            if status == 204:
                return 204, "text/plain", b""
            if answered is not None and self.headers["Accept"] == codec.MEDIA_TYPE:
                return 200, codec.MEDIA_TYPE, codec.encode(answer, answered)
            return status, "application/json", json.dumps(answer).encode()

        do_GET = do_POST = do_DELETE = _serve  # noqa: N815 - http.server's names

    return Handler
