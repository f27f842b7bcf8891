"""Lines of the ledger as a file, streamed page by page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from fastapi.responses import StreamingResponse

from craft_server.api.services import Services
from craft_server.ledger import exports
from craft_server.ledger.exports import COLUMNS, Format, Page
from craft_server.ledger.selection import Selection

MEDIA_TYPES: dict[Format, str] = {"csv": "text/csv", "jsonl": "application/jsonl"}


async def download(
    services: Services,
    key_id: int,
    selection: Selection,
    form: Format,
    columns: Sequence[str] = COLUMNS,
) -> StreamingResponse:
    """All lines of a selection, for the key that asks.

    Raises:
        UnknownKey: no key has the prefix.
        UnknownTeam: no team has the name.
    """
    first = await services.database.read_long(key_id, exports.page, selection)
    text = _text_of(services, key_id, selection, form, columns, first)
    return StreamingResponse(text, media_type=MEDIA_TYPES[form])


async def _text_of(
    services: Services,
    key_id: int,
    selection: Selection,
    form: Format,
    columns: Sequence[str],
    page: Page,
) -> AsyncIterator[str]:
    yield exports.header(form, columns)
    while True:
        if page.lines:
            yield await asyncio.to_thread(_lines, page, form, columns)
        if page.next_after is None:
            return
        # Each page is a transaction of its own, so that a slow reader holds none open.
        page = await services.database.read_long(
            key_id, exports.page, selection, after=page.next_after
        )


def _lines(page: Page, form: Format, columns: Sequence[str]) -> str:
    return "".join(exports.text(line, form, columns) for line in page.lines)
