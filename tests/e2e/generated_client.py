"""A client that knows the API's description alone: generated code and the standard library.

Run by test_generated_client.py in a process of its own, with the generated package on its path.
"""

import base64
import json
import struct
import sys
from io import BytesIO
from pathlib import Path

from craftbox_client import AuthenticatedClient
from craftbox_client.api.account import get_budget, get_usage
from craftbox_client.api.adapters import create_adapter_prediction, get_adapter
from craftbox_client.api.image_sets import create_image_set, delete_image_set, upload_images
from craftbox_client.api.models import list_models
from craftbox_client.api.predictions import create_prediction
from craftbox_client.models import (
    AdapterPredictionRequest,
    ImageSetCreate,
    ImageUpload,
    PredictionRequest,
    Problem,
)
from craftbox_client.types import File

TEMPLATE = "a photo of the number {}."
CLASSES = ["zero", "one", "two"]


def safetensors_body(document: dict[str, object], picture: bytes) -> File:
    """A request and its picture as the description says that safetensors files are made."""
    size = len(picture)
    header = json.dumps(
        {
            "__metadata__": {"craftbox": json.dumps(document)},
            "files": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]},
            "file_sizes": {"dtype": "I64", "shape": [1], "data_offsets": [size, size + 8]},
        }
    ).encode()
    tensors = picture + struct.pack("<q", size)
    return File(payload=BytesIO(struct.pack("<Q", len(header)) + header + tensors))


def main(url: str, key: str, adapter: str, path: str) -> None:
    """Makes every kind of call once and prints what came of it."""
    picture = Path(path).read_bytes()
    text = base64.b64encode(picture).decode()
    client = AuthenticatedClient(base_url=url, token=key)

    (model,) = list_models.sync(client=client).models
    made = create_image_set.sync(client=client, body=ImageSetCreate(model=model.name))
    upload = ImageUpload(first_row=0, images=[text])
    uploads = [
        upload_images.sync(made.id, client=client, body=upload, idempotency_key="upload-1")
        for _ in range(2)
    ]
    request = PredictionRequest(
        model=model.name, classes=CLASSES, templates=[TEMPLATE], image_set=made.id
    )
    scored = create_prediction.sync(client=client, body=request, craft_run="generated")
    document = {"model": model.name, "classes": CLASSES, "templates": [TEMPLATE]}
    binary = create_prediction.sync(client=client, body=safetensors_body(document, picture))
    classified = create_adapter_prediction.sync(
        adapter, client=client, body=AdapterPredictionRequest(images=[text], top_k=1)
    )
    usage = get_usage.sync(client=client)
    budget = get_budget.sync(client=client)

    bad = PredictionRequest(model="nowhere", classes=CLASSES, templates=[TEMPLATE])
    stranger = AuthenticatedClient(base_url=url, token="craft_nobody")
    problems = [
        create_prediction.sync_detailed(client=client, body=bad),
        get_adapter.sync_detailed("nowhere", client=client),
        list_models.sync_detailed(client=stranger),
    ]
    print(
        json.dumps(
            {
                "model": model.name,
                "uploaded": [answer.image_set.count for answer in uploads],
                "log_probs": scored.log_probs,
                "binary_log_probs": binary.log_probs,
                "class": classified.classes[classified.top_classes[0][0]],
                "adapter": [classified.adapter, classified.version],
                "spent": scored.cost.charged.to_dict(),
                "total": usage.total.to_dict(),
                "runs": [charge.run for charge in usage.charges],
                "remaining": budget.budgets[0].remaining,
                "problems": [
                    [answer.status_code, answer.parsed.type_]
                    for answer in problems
                    if isinstance(answer.parsed, Problem)
                ],
                "deleted": delete_image_set.sync_detailed(made.id, client=client).status_code,
                "craftbox": [name for name in sys.modules if name.startswith("craft_")],
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
