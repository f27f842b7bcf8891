"""What schemathesis cannot read in the API's description: safetensors bodies, rules of many fields.

It knows the wire format and the server's words for what a JSON schema cannot say; it does not know
how calls are generated, sent or checked. Loaded by schemathesis (schemathesis.toml).
"""

from __future__ import annotations

import base64
import io
import os
import re
import uuid
from typing import Any

import numpy as np
import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis.core.failures import Failure
from schemathesis.core.transport import Response

from craft_server.api.idempotency import EXAMPLE_KEY, KEY
from craft_shared import codec
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import LinearHead, Unrefined
from craft_shared.problems import MEDIA_TYPE as PROBLEM_TYPE
from craft_shared.wire import EVERYTHING, Context, Output, Provenance

REVISION = os.environ["CONTRACT_REVISION"]
OWN_PREFIX = os.environ["CRAFT_API_KEY"].split("_")[1]

# Refusals of what the schema allows, since it cannot say why not.
IN_WORDS_ALONE = {
    "invalid-image": "",
    "invalid-request": "|".join(
        (
            # Several fields together.
            r"'since'$|no charge is that old|in UTC this time is not within the years 1 to 9999",
            r"level '\w+' (shows|needs|is of)",
            r"^templates: there is no prompt|codes are points in a context, and there is none",
            r"^codes: (their shape is|the rows differ in length)",
            r"^top_k: \d+; there are \d+ classes",
            r": the call (has no image|names (an|no) image set)|rows without an image set",
            # What the tokenizer makes of texts.
            r"it has \d+ places '\{\}' for the class name",
            r"is also the name of classes|: the name is blank|: it holds no word",
            r"the tokenizer reads '.*' as the same text as '",
            # What a pattern cannot say of all characters.
            r": the name (holds U\+[0-9A-F]{4,6}|begins with)",
            r"which the tokenizer reserves$|has \d+ tokens",
            # What there is, and what was done before.
            r"there is no budget on|spent or reserved already|would be more than \d+$",
            r"the key is revoked",
            r"^first_row: the image set holds|the image set (is empty|has the rows)",
            r"^aliases\.[\w.-]+: version \d+ is not published|'latest' is always the newest",
        )
    ),
}

# DELETE takes an adapter out of service until it is restored: what is told of it, and its owner's
# decisions, stay. It is to be gone for those who would look at it or use it.
OF_RETIRED = {
    "change_adapter",
    "get_adapter_settings",
    "get_adapter_usage",
    "list_adapter_versions",
    "restore_adapter",
}

keys_sent = {EXAMPLE_KEY}
in_service: set[str] = set()

# What comes with any HTTP answer, of this server's kind or another's.
_OF_HTTP = {"connection", "content-length", "content-type", "date", "server", "transfer-encoding"}
_OF_HTTP |= {"allow"}


def _picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PICTURE = base64.b64encode(_picture(0)).decode()
_documents = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["pocket", "another"]),
        "classes": st.lists(st.sampled_from(["zero", "one", "two", ""]), max_size=3),
        "templates": st.just(["a photo of a {}."]),
        "first_row": st.integers(-1, 2),
        "context": st.fixed_dictionaries({"dim": st.integers(0, 4), "seed": st.integers(0, 2)}),
        "top_k": st.integers(0, 3),
        "dtype": st.sampled_from(["float16", "float32", "float8"]),
    },
)
_tensors = st.fixed_dictionaries(
    {},
    optional={
        "codes": st.builds(
            lambda rows, columns: np.ones((rows, columns), np.float32),
            st.integers(0, 3),
            st.integers(0, 4),
        ),
        "pictures": st.lists(st.integers(0, 9), max_size=3),
    },
)


def _file(document: dict[str, Any], tensors: dict[str, Any]) -> bytes:
    if "pictures" in tensors:
        pictures = [_picture(seed) for seed in tensors.pop("pictures")]
        tensors = {**tensors, **codec.pack_files(pictures)}
    return codec.encode(document, tensors)


def _adapter(
    codes: int, ridge: bool, largest: float, output: Output, provenance: Provenance
) -> bytes:
    config = AdapterConfig(
        model="pocket",
        revision=REVISION,
        classes=["zero", "one"],
        templates=["a photo of a {}."],
        context=Context(dim=3),
        codes=codes,
        head="ridge" if ridge else "none",
        output=output,
        provenance=provenance,
    )
    weight = np.full((2 * config.prompts, 2), largest, np.float32)
    head = LinearHead(weight, np.zeros(2, np.float32), 1.0, 1.0) if ridge else Unrefined()
    return Adapter(config, np.ones((codes, 3), np.float32), head).to_bytes()


_adapters = st.builds(
    _adapter,
    st.integers(0, 2),
    st.booleans(),
    st.sampled_from([1.0, 1e6, 3e38]),
    st.sampled_from([EVERYTHING, Output(level="label"), Output(level="top_k", k=1)]),
    st.builds(
        Provenance,
        recipe=st.none() | st.text(max_size=64),
        shots=st.none() | st.integers(),
        accuracy_after=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    ),
)

schemathesis.openapi.media_type(
    codec.MEDIA_TYPE,
    st.one_of(st.builds(_file, _documents, _tensors), _adapters, st.binary(max_size=200)),
)


@schemathesis.serializer(codec.MEDIA_TYPE)
def as_it_is(_context: Any, value: Any) -> Any:
    """A safetensors file needs no packing."""
    return value if isinstance(value, bytes) else str(value).encode()


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Keeps the run's own key alive, lets calls have pictures and find adapters, and keys new."""
    if case.path.startswith("/v1/adapters"):
        # A name of one character stands for one that calls agree on, so that they find an adapter.
        for named in (case.path_parameters or {}, case.query or {}):
            if re.fullmatch(r"\w", str(named.get("name", ""))):
                named["name"] = "digits"
    # A text of a character or two among pictures stands for a picture.
    if isinstance(case.body, dict) and isinstance(case.body.get("images"), list):
        case.body["images"] = [
            PICTURE if isinstance(image, str) and len(image) < 3 else image
            for image in case.body["images"]
        ]
    if OWN_PREFIX in (case.path_parameters or {}).values():
        case.path_parameters["prefix"] = "k3v9x2ma"
    # The description's example stands for a key that is new. One that comes again by chance would
    # be answered with what its first call has made, which may be deleted by then.
    key = str(case.headers.get("Idempotency-Key", ""))
    if KEY.fullmatch(key):
        if key in keys_sent:
            case.headers["Idempotency-Key"] = str(uuid.uuid4())
        keys_sent.add(key)


@schemathesis.hook
def after_call(_context: Any, case: Any, response: Response) -> None:
    """Notes which adapters are in service, of those that were retired."""
    operation = case.operation.definition.raw["operationId"]
    name = _name_of(case)
    if operation == "publish_adapter" and response.status_code in (200, 201):
        in_service.add(response.json()["adapter"]["name"])
    elif operation == "restore_adapter" and response.status_code == 204:
        in_service.add(name)
    elif operation == "retire_adapter" and response.status_code == 204:
        in_service.discard(name)


def _name_of(case: Any) -> str:
    """An adapter's name in an address, without owner and version."""
    return str((case.path_parameters or {}).get("name", "")).rpartition("/")[2].partition("@")[0]


@schemathesis.hook
def filter_failure(_context: Any, failure: Failure, case: Any, response: Response) -> bool:
    """Drops refusals of what the schema allows where the description says the rest in words."""
    if case.media_type == codec.MEDIA_TYPE and failure.code in ("ST201", "ST202"):
        return False  # what is generated for such a file is good or bad by chance
    if failure.code == "ST301" and case.path.startswith("/v1/adapters/"):
        operation = case.operation.definition.raw["operationId"]
        return operation not in OF_RETIRED and _name_of(case) not in in_service
    if failure.code != "ST202" or PROBLEM_TYPE not in response.headers.get("content-type", [""])[0]:
        return True
    problem = response.json()
    rule = IN_WORDS_ALONE.get(problem["type"].rpartition(":")[2])
    if rule is None:
        return True
    told = [f"{error['field']}: {error['message']}" for error in problem["errors"]]
    return not all(re.search(rule, each) for each in told)


@schemathesis.check
def no_undocumented_headers(_context: Any, response: Response, case: Any) -> None:
    """Whatever header an answer has stands in the description."""
    described = case.operation.schema.raw_schema["paths"][case.operation.path]
    operation = described.get(case.method.lower())
    if operation is None or str(response.status_code) not in operation["responses"]:
        return
    headers = operation["responses"][str(response.status_code)].get("headers", {})
    surplus = {name.lower() for name in response.headers} - {name.lower() for name in headers}
    assert surplus <= _OF_HTTP, f"undocumented headers: {sorted(surplus - _OF_HTTP)}"
