"""Adapters made to do harm: each is refused with its own message, and leaves nothing behind."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import zstandard

from craft_shared import codec
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import LinearHead

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def server(start_server: Any) -> Any:
    return start_server("--model", "pocket")


@pytest.fixture(scope="module")
def client(server: Any) -> Any:
    headers = {"Authorization": f"Bearer {server.key(owner='mallory')}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False) as made:
        yield made


@pytest.fixture(scope="module")
def adapter(client: httpx.Client) -> Adapter:
    (model,) = client.get("/v1/models").json()["models"]
    config = AdapterConfig(
        model=model["name"],
        revision=model["revision"],
        classes=["cat", "dog"],
        templates=["a photo of a {}."],
        head="ridge",
    )
    head = LinearHead(np.eye(2, dtype=np.float32), np.zeros(2, np.float32), 1.0, 1.0)
    return Adapter(config, np.zeros((0, 0), np.float32), head)


def publish(client: httpx.Client, body: bytes, name: str = "bad", **headers: str) -> httpx.Response:
    headers = {"Content-Type": codec.MEDIA_TYPE, **headers}
    return client.post("/v1/adapters", params={"name": name}, content=body, headers=headers)


def packed(adapter: Adapter, config: dict[str, Any] | None = None, **tensors: Any) -> bytes:
    document = {**adapter.config.model_dump(mode="json"), **(config or {})}
    all_tensors = {**adapter.head.tensors(), **tensors}
    return codec.encode(document, {k: v for k, v in all_tensors.items() if v is not None})


def with_header(header: bytes, length: int | None = None, payload: bytes = b"") -> bytes:
    claimed = len(header) if length is None else length
    return claimed.to_bytes(8, "little") + header + payload


class Opens:
    """What unpickles as a call."""

    def __reduce__(self) -> Any:
        return (open, ("pickled-was-here", "w"))


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("adapter.safetensors", b"\0" * (64 * MEBIBYTE))
    return file.getvalue()


def bodies(adapter: Adapter) -> dict[str, tuple[bytes, dict[str, str], str]]:
    """Each with further headers and words of the message that it must get."""
    weight, bias = np.eye(2, dtype=np.float32), np.zeros(2, np.float32)
    nan = bias.copy()
    nan[1] = np.nan
    document = json.dumps(adapter.config.model_dump(mode="json"))
    metadata = json.dumps({"craftbox": document})
    twice = f'{{"__metadata__":{metadata},"x":{{}},"x":{{}}}}'.encode()
    huge = {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 0]}
    overlapping = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    entries = {"__metadata__": {"craftbox": document}}
    plain: dict[str, str] = {}
    return {
        "wrong shape": (packed(adapter, **{"head.bias": np.zeros(3, np.float32)}), plain, "shape"),
        "no matrix": (packed(adapter, **{"head.weight": weight[0]}), plain, "shape"),
        "missing": (packed(adapter, **{"head.bias": None}), plain, "missing"),
        "NaN": (packed(adapter, **{"head.bias": nan}), plain, "NaN"),
        "integers": (packed(adapter, **{"head.bias": np.zeros(2, np.int64)}), plain, "dtype"),
        "negative scale": (
            packed(adapter, **{"head.scales": np.array([-1, 1], np.float32)}),
            plain,
            "negative",
        ),
        "10 GB header": (with_header(b"{}", 10 * 2**30), plain, "header claims"),
        "header past the end": (with_header(b"{}", 1000), plain, "longer than the body"),
        "duplicate keys": (with_header(twice), plain, "duplicate key"),
        "huge tensor": (
            with_header(json.dumps({**entries, "head.weight": huge}).encode()),
            plain,
            "does not fit",
        ),
        "overlapping tensors": (
            with_header(
                json.dumps({**entries, "a": overlapping, "b": overlapping}).encode(), None, b"8" * 8
            ),
            plain,
            "do not fill",
        ),
        "pickled": (pickle.dumps(Opens()), plain, "header claims"),
        "path names": (packed(adapter, **{"../../../tmp/craftbox": bias}), plain, "not one that"),
        "deeply nested": (with_header(b'{"a":' * 100_000), plain, "not valid JSON"),
        "zip bomb": (zipped(), plain, "header claims"),
        "gzip bomb": (gzip.compress(b"\0" * (256 * MEBIBYTE)), plain, "header claims"),
        "declared gzip bomb": (
            gzip.compress(b"\0" * (256 * MEBIBYTE)),
            {"Content-Encoding": "gzip"},
            "encoding",
        ),
        "declared zstd bomb": (
            zstandard.compress(b"\0" * (1024 * MEBIBYTE)),
            {"Content-Encoding": "zstd"},
            "encoding",
        ),
        "other model": (packed(adapter, {"model": "RN50"}), plain, "RN50"),
        "other revision": (packed(adapter, {"revision": "r0"}), plain, "revision r0"),
        "other schema": (packed(adapter, {"schema_version": 2}), plain, "schema_version"),
        "unknown field": (packed(adapter, {"command": "rm -rf"}), plain, "command"),
        "same class twice": (packed(adapter, {"classes": ["a", "a"]}), plain, "same name"),
        "a million codes": (
            packed(adapter, {"codes": 10**6, "context": {"dim": 4096}}),
            plain,
            "codes",
        ),
    }


@pytest.fixture(scope="module")
def hostile(adapter: Adapter) -> dict[str, tuple[bytes, dict[str, str], str]]:
    return bodies(adapter)


def resident_bytes(server: Any) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (kibibytes,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(kibibytes) * 1024


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_hostile_adapters_are_refused_and_leave_nothing(
    server: Any, client: httpx.Client, adapter: Adapter, hostile: Any
) -> None:
    assert publish(client, adapter.to_bytes(), "good").status_code == 201
    before_files = files_of(server.folder)
    messages = {}
    memory = 0
    for _ in range(2):
        for what, (body, headers, said) in hostile.items():
            answer = publish(client, body, **headers)
            assert 400 <= answer.status_code < 500, f"{what}: {answer.text}"
            problem = answer.json()
            assert said in problem["detail"], f"{what}: {problem['detail']}"
            messages[what] = problem["detail"]
        memory = memory or resident_bytes(server)
    causes = {said for _, _, said in hostile.values()}
    assert len(set(messages.values())) >= len(causes), messages
    assert resident_bytes(server) - memory < 32 * MEBIBYTE
    assert files_of(server.folder) == before_files
    assert not Path("pickled-was-here").exists()
    assert publish(client, adapter.to_bytes(), "somebody/bad").status_code == 422
    (card,) = client.get("/v1/adapters").json()["adapters"]
    assert (card["name"], card["version"]) == ("good", 1)
    assert client.get("/v1/usage").json()["total"]["requests"] == 1


def test_the_refused_cost_nothing_even_while_their_budget_is_small(
    client: httpx.Client, hostile: Any
) -> None:
    before = client.get("/v1/usage").json()["total"]
    for body, headers, _ in list(hostile.values())[:6]:
        publish(client, body, **headers)
    assert client.get("/v1/usage").json()["total"] == before
