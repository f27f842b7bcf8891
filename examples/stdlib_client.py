"""Classifies a picture through a published adapter, with Python's standard library alone.

CRAFT_URL=http://127.0.0.1:8000 CRAFT_API_KEY=craft_... python stdlib_client.py ADAPTER PICTURE
"""

import base64
import json
import math
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any


def classify(url: str, key: str, adapter: str, picture: bytes) -> Any:
    """The answer for one picture, or SystemExit with what the server says is wrong."""
    body = {"images": [base64.b64encode(picture).decode()], "top_k": 1}
    headers = {
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
        "Idempotency-Key": str(uuid.uuid4()),  # sent again under it, the call is not charged again
    }
    address = f"{url}/v1/adapters/{urllib.parse.quote(adapter)}/predictions"
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        problem = json.load(error)
        raise SystemExit(f"{problem['title']}: {problem['detail']}. {problem['remedy']}") from None


def main(adapter: str, picture: str) -> None:
    """Prints the most probable class, its probability, and what the call cost."""
    url = os.environ.get("CRAFT_URL", "http://127.0.0.1:8000")
    answer = classify(url, os.environ["CRAFT_API_KEY"], adapter, Path(picture).read_bytes())
    name = answer["classes"][answer["top_classes"][0][0]]
    shown = answer.get("log_probs")  # there is none where the key sees labels alone
    print(f"{name} {math.exp(shown[0][0]):.1%}" if shown else name)
    charged = answer["cost"]["charged"].items()
    print("cost:", ", ".join(f"{amount} {unit}" for unit, amount in charged if amount))


if __name__ == "__main__":
    main(*sys.argv[1:])
