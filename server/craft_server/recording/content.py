"""What a call asks, without who asks it and when: what makes two calls the same.

Method, path, query and the body's content, and whether tensors are wanted as such. JSON that is
laid out otherwise is the same content. Of tensors and long strings, pictures among them, a digest
is kept: enough to tell them apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers
from starlette.types import Scope

from craft_server.api.middleware import accepts
from craft_shared import codec
from craft_shared.strict_json import JsonError, parse_object

_LONGEST_TEXT = 300  # characters: a template's most
_JSON_TYPE = "application/json"


@dataclass(frozen=True)
class CallContent:
    """A call's content."""

    method: str  # of HTTP
    path: str  # decoded
    query: str  # its parameters in order of their names
    tensors: bool  # whether the answer's tensors are wanted as safetensors
    content: Any  # JSON-able; null without a body

    @classmethod
    def of(cls, scope: Scope, body: bytes) -> Self:
        """What a request asks."""
        headers = Headers(scope=scope)
        parameters = sorted(parse_qsl(scope["query_string"].decode("latin-1"), True))
        return cls(
            method=scope["method"],
            path=scope["path"],
            query=urlencode(parameters),
            tensors=accepts(headers.get("accept", ""), codec.MEDIA_TYPE),
            content=_content(headers.get("content-type", ""), body),
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `json` wrote."""
        return cls(**json.loads(text))

    @property
    def json(self) -> str:
        """The same question, the same text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """Names the question."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    def differences(self, recorded: Self) -> list[tuple[str, str]]:
        """Where it differs from another one, and how, in words."""
        mine, theirs = dict(self._leaves()), dict(recorded._leaves())
        return [
            (field, _difference(mine.get(field, _ABSENT), theirs.get(field, _ABSENT)))
            for field in dict.fromkeys((*mine, *theirs))
            if mine.get(field, _ABSENT) != theirs.get(field, _ABSENT)
        ]

    def _leaves(self) -> Iterator[tuple[str, object]]:
        yield "query", self.query
        yield "Accept", codec.MEDIA_TYPE if self.tensors else _JSON_TYPE
        yield from _leaves("", self.content)


class _Absent:
    """What is not there; unlike null."""


_ABSENT = _Absent()


def _content(content_type: str, body: bytes) -> Any:
    if not body:
        return None
    media_type = content_type.partition(";")[0].strip().lower()
    try:
        if media_type == codec.MEDIA_TYPE:
            document, tensors = codec.decode(body)
            digests = {
                name: f"{tensor.dtype} {list(tensor.shape)} {_digest(tensor.tobytes())}"
                for name, tensor in tensors.items()
            }
            return _shortened(document) | digests
        return _shortened(parse_object(body))
    except (codec.CodecError, JsonError):
        return {"body": _digest(body)}


def _shortened(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        return _digest(value.encode(errors="surrogatepass"))
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    if isinstance(value, dict):
        return {name: _shortened(item) for name, item in value.items()}
    return value


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _leaves(path: str, value: Any) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(f"{path}.{name}".lstrip("."), item)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _leaves(f"{path}[{number}]", item)
    elif value is not None:
        yield path or "body", value


def _difference(asked: object, recorded: object) -> str:
    if recorded is _ABSENT:
        return f"{_words(asked)} was sent, and nothing was recorded"
    if asked is _ABSENT:
        return f"{_words(recorded)} was recorded, and nothing was sent"
    return f"{_words(asked)} was sent, and {_words(recorded)} was recorded"


def _words(value: object) -> str:
    return f"'{value}'"[:120] if isinstance(value, str) else json.dumps(value)[:120]
