"""The console's styles, scripts and icon: a fixed list of files, named by their content.

Those of Swagger UI, which shows the API's description, are an installed package's: nothing is
loaded from another site.

No part of an address is ever used as a path. A file's address changes with its content, so that
browsers may keep it for good.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response

from craft_server.problems import ProblemError
from craft_shared.problems import NOT_FOUND

router = APIRouter(include_in_schema=False)

_MEDIA_TYPES = {
    "console.css": "text/css",
    "console.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "docs.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
}


@dataclass(frozen=True)
class Asset:
    """A file as it is served; `address` holds a part of its content's SHA-256."""

    content: bytes
    media_type: str
    address: str


def _load(name: str, media_type: str) -> Asset:
    package = "fastapi_offline" if name.startswith("swagger-ui") else "craft_server.console"
    content = (files(package) / "static" / name).read_bytes()
    version = hashlib.sha256(content).hexdigest()[:16]
    return Asset(content, media_type, f"/console/static/{name}?v={version}")


ASSETS = {name: _load(name, media_type) for name, media_type in _MEDIA_TYPES.items()}


@router.get("/console/static/{name}")
async def get_asset(name: str) -> Response:
    """One of the files."""
    asset = ASSETS.get(name)
    if asset is None:
        raise ProblemError(NOT_FOUND, "there is no such file")
    return Response(
        asset.content,
        media_type=asset.media_type,
        headers={"Cache-Control": "public, max-age=31536000, immutable"},
    )
