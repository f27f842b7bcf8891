"""A server that answers as API v1 does, and says what it likes wherever it may say anything.

Its answers are made of the wire models alone: each text in them is `ESCAPES`, each number is one
that the client goes on with. So a field that is new tomorrow is hostile tomorrow.
"""

from __future__ import annotations

import json
import re
import threading
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from urllib.parse import urlsplit

import numpy as np
from joserfc import jws
from joserfc.jwk import KeySet, OKPKey
from pydantic import BaseModel
from pydantic.types import StringConstraints

from craft_shared import codec, problems
from craft_shared.problems import Problem
from craft_shared.receipt import (
    ALGORITHM,
    CURVE,
    JWS_RULES,
    KEYS_MEDIA_TYPE,
    MEDIA_TYPE,
    TYPE,
    Receipt,
)
from craft_shared.wire import (
    AdapterCard,
    AdapterList,
    AdapterPredictionAnswer,
    AdapterPublishAnswer,
    AdapterSettings,
    AdapterUsage,
    BudgetList,
    ImageSet,
    ImageUploadAnswer,
    ModelList,
    PredictionAnswer,
    Usage,
)

ESCAPES = "\x1b]0;T\x07\x1b[2J\x1b[31mX\x9b1m\r\nFake: 0\u202e\u200b\u2028\u2066\x00[red]"
MARKS = ("\x1b]", "\x1b[2J", "\x07", "\x9b", "\r", "\u202e", "\u200b", "\u2028", "\u2066", "\x00")
# What the client goes on with; other numbers are 1.
NUMBERS = {
    "body_bytes": 2**20, "images_per_call": 64, "image_bytes": 2**20, "image_pixels": 2**20,
    "images_per_set": 10_000, "prompts_per_call": 64, "classes": 100, "dim": 1024,
    "answer_bytes": 2**20, "image_size": 32, "remaining": 10**9, "limit": 10**9,
    "prompts_per_image_set": None, "next_after": None, "abstain_below": 0.5,
}  # fmt: skip
CLASSES = 2

Route = tuple[str, str, "type[BaseModel] | None"]
ROUTES: tuple[Route, ...] = (
    ("GET", "models", ModelList),
    ("POST", "image-sets", ImageSet),
    ("GET", "image-sets/[^/]+", ImageSet),
    ("DELETE", "image-sets/[^/]+", None),
    ("POST", "image-sets/[^/]+/images", ImageUploadAnswer),
    ("POST", "predictions", PredictionAnswer),
    ("DELETE", "answers/.+", None),
    ("GET", "usage", Usage),
    ("GET", "budget", BudgetList),
    ("PUT", "runs/[^/]+(/points)?", None),
    ("POST", "adapters", AdapterPublishAnswer),
    ("GET", "adapters", AdapterList),
    ("GET", "adapters/[^/]+/versions", AdapterList),
    ("GET", "adapters/[^/]+/settings", AdapterSettings),
    ("GET", "adapters/[^/]+/usage", AdapterUsage),
    ("PUT", "adapters/[^/]+/restore", None),
    ("POST", "adapters/[^/]+/predictions", AdapterPredictionAnswer),
    ("GET", "adapters/[^/]+", AdapterCard),
    ("PATCH", "adapters/[^/]+", AdapterSettings),
    ("DELETE", "adapters/[^/]+", None),
)


def document(model: type[BaseModel], **numbers: Any) -> dict[str, Any]:
    """An answer whose every text is hostile, and every optional part there."""
    known = {**NUMBERS, **numbers}
    made: dict[str, Any] = {}
    for name, found in model.model_fields.items():
        annotation: Any = found.annotation
        for more in found.metadata:
            annotation = Annotated[annotation, more]
        value = _value(name, annotation, known)
        if value is not None or found.is_required():
            made[name] = value
    return model.model_validate(made).model_dump(mode="json", exclude_unset=True)


def _value(name: str, annotation: Any, known: Mapping[str, Any]) -> Any:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        rules = [rule for rule in inner[1:] if isinstance(rule, StringConstraints)]
        longest = min((rule.max_length or 10**6 for rule in rules), default=10**6)
        value = _value(name, inner[0], known)
        return value[:longest] if isinstance(value, str) else value
    if origin in (Union, types.UnionType):
        kinds = [one for one in inner if one is not type(None)]
        numeric = all(one in (int, float) for one in kinds)
        if numeric and type(None) in inner and name not in known:
            return None
        return _value(name, kinds[0], known)
    if origin is Literal:
        return "log_probs" if name == "level" else inner[0]
    if origin is list:
        if name in ("log_probs", "probs", "top_classes", "abstained"):
            return None  # they travel as tensors
        if inner[0] is str:
            return [f"{ESCAPES}{number}" for number in range(CLASSES)]
        return [_value("", inner[0], known)]
    if origin is dict:
        return {ESCAPES: _value("", inner[1], known)}
    if annotation is str:
        return ESCAPES
    if annotation in (int, float):
        return known.get(name, 1)
    if annotation is bool:
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if set(annotation.model_fields) >= {"level", "k", "decimals", "noise"}:
            return {}
        return document(annotation, **known)
    raise TypeError(f"{name}: {annotation}")


class HostileServer:
    """`mode` is "answers", "problems", or what every call is answered: status, headers, body."""

    def __init__(self) -> None:
        self.mode: str | tuple[int, dict[str, str], bytes] = "answers"
        self.url = ""
        self.served: set[type[BaseModel]] = set()
        self.asked: list[tuple[str, str | None]] = []
        self.count = 0
        self._key = OKPKey.generate_key(CURVE)

    @contextmanager
    def listening(self) -> Iterator[HostileServer]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if not isinstance(self.mode, str):
            return self.mode
        if self.mode == "problems":
            self.served.add(Problem)
            told = document(Problem, status=422) | {"type": problems.INVALID_REQUEST.uri}
            return 422, {"Content-Type": problems.MEDIA_TYPE}, json.dumps(told).encode()
        path = urlsplit(target).path.removeprefix("/v1/")
        if path == "receipts":
            self.served.add(Receipt)
            said = Receipt.model_validate(document(Receipt)).model_dump_json()
            header = {"alg": ALGORITHM, "typ": TYPE, "kid": self._key.thumbprint()}
            text = jws.serialize_compact(header, said, self._key, registry=JWS_RULES)
            return 200, {"Content-Type": MEDIA_TYPE}, text.encode()
        if path == "receipts/keys":
            keys = KeySet([self._key]).as_dict(private=False, use="sig", alg=ALGORITHM)
            return 200, {"Content-Type": KEYS_MEDIA_TYPE}, json.dumps(keys).encode()
        kind = next(
            kind
            for wanted, pattern, kind in ROUTES
            if wanted == method and re.fullmatch(pattern, path)
        )
        if kind is None:
            return 204, {}, b""
        self.served.add(kind)
        if kind in (PredictionAnswer, AdapterPredictionAnswer):
            asked, tensors = codec.decode(body)
            count = len(tensors["file_sizes"]) if "file_sizes" in tensors else self.count
            count = len(asked["rows"]) if asked.get("rows") else count
            shape: tuple[int, ...] = (count, CLASSES)
            if kind is PredictionAnswer:
                prompts = len(asked["templates"]) + len(tensors.get("codes", ()))
                shape = (prompts, count, len(asked["classes"]))
            numbers = np.random.default_rng(1).normal(size=shape)
            numbers -= np.log(np.exp(numbers).sum(-1, keepdims=True))
            found = {"log_probs": numbers.astype(asked.get("dtype", "float32"))}
            told = document(kind)
            if "top_k" in asked:
                k = asked["top_k"]
                order = np.argsort(-numbers, axis=-1)[..., :k]
                found["log_probs"] = np.take_along_axis(found["log_probs"], order, -1)
                found["top_classes"] = order.astype(np.int32)
                told["output"] = {"level": "top_k", "k": k}
            return 200, {"Content-Type": codec.MEDIA_TYPE}, codec.encode(told, found)
        if method == "POST" and path == "image-sets":
            self.count = 0
        if kind is ImageUploadAnswer:
            self.count += len(codec.decode(body)[1]["file_sizes"])
        told = document(kind, count=self.count)
        return 200, {"Content-Type": "application/json"}, json.dumps(told).encode()


def _handler(server: HostileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words: object) -> None:
            pass

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.asked.append((self.path, self.headers.get("Authorization")))
            status, headers, content = server.answer(self.command, self.path, body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if not {"Content-Length", "Transfer-Encoding"} & headers.keys() and status != 204:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            if "Content-Length" in headers:
                self.close_connection = True

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _any  # noqa: N815

    return Handler
