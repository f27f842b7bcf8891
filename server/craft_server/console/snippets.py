"""How programs use an adapter: curl, Python and JavaScript, to be copied.

The address is the server's as the browser knows it. The key is none of the page's: each snippet
reads it from the environment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

from fastapi import Request

from craft_server.root_path import root_path

# Of the `Host` header, which a client may write as it likes.
_HOST = re.compile(r"[A-Za-z0-9._~\[\]:-]{1,300}", re.ASCII)

# In ADDRESS, which is quoted, nothing means anything to a shell, Python or JavaScript.
_CURL = r"""export CRAFT_API_KEY=craft_...
printf '{"images": ["%s"], "format": "labels"}' "$(base64 < picture.jpg | tr -d '\n')" |
  curl --fail-with-body --data-binary @- \
    --header "Authorization: Bearer $CRAFT_API_KEY" \
    --header 'Content-Type: application/json' \
    'ADDRESS'
"""
_PYTHON = """# pip install "craftbox[client]"; the environment's CRAFT_API_KEY is the key
from pathlib import Path

from craft_client import Client

with Client("SERVER") as client:
    found = client.adapter_predict(REFERENCE, images=[Path("picture.jpg")])
for name, probability in found.best(3)[0]:
    print(name, probability)
"""
_JAVASCRIPT = """// Node.js; the environment's CRAFT_API_KEY is the key, on no web page
import { readFile } from "node:fs/promises";

const picture = (await readFile("picture.jpg")).toString("base64");
const answer = await fetch("ADDRESS", {
  method: "POST",
  headers: {
    Authorization: `Bearer ${process.env.CRAFT_API_KEY}`,
    "Content-Type": "application/json",
  },
  body: JSON.stringify({ images: [picture], format: "labels" }),
});
const found = await answer.json();
if (!answer.ok) throw new Error(`${found.detail}. ${found.remedy}`);
console.log(found.labels[0]);
"""


@dataclass(frozen=True)
class Snippet:
    """A program, and what it is written in."""

    language: str
    text: str


def snippets(request: Request, reference: str) -> list[Snippet]:
    """Programs that classify `picture.jpg` with the adapter that the caller calls `reference`."""
    server = server_address(request)
    address = f"{server}/v1/adapters/{quote(reference, safe='/@')}/predictions"
    return [
        Snippet("curl", _CURL.replace("ADDRESS", address)),
        Snippet("Python", _PYTHON.replace("SERVER", server).replace("REFERENCE", repr(reference))),
        Snippet("JavaScript", _JAVASCRIPT.replace("ADDRESS", address)),
    ]


def server_address(request: Request) -> str:
    """The server's address as the browser knows it; a placeholder where that is none."""
    host = request.url.netloc
    if _HOST.fullmatch(host) is None:
        return "https://SERVER"
    return f"{request.url.scheme}://{host}{root_path(request)}"
