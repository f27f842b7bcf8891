"""Pages of one picture and tables, and files that commands write whole or not at all."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Section:
    """A table of a page, without a head where `columns` is empty; `marked` rows stand out."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    marked: Collection[int] = ()


def page(
    title: str,
    notes: Sequence[str],
    sections: Sequence[Section],
    *,
    alt: str,
    light: bytes,
    dark: bytes,
    files: Sequence[str] = (),
) -> bytes:
    """The page, which needs nothing but itself; `files` beside it are linked to."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from craft_shared.display import harmless

    environment = Environment(
        loader=PackageLoader("craft_client", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=harmless,
    )
    text = environment.get_template("report.html.jinja").render(
        title=title,
        notes=notes,
        tables=sections,
        files=files,
        alt=alt,
        light=b64encode(light).decode(),
        dark=b64encode(dark).decode(),
    )
    return text.encode()


def write(contents: Mapping[Path, bytes]) -> None:
    """Writes files, each whole or not at all.

    Raises:
        CraftError: one cannot be written.
    """
    from craft_client.exceptions import CraftError
    from craft_shared.files import write_whole

    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
    except OSError as error:
        names = ", ".join(f"'{path}'" for path in contents)
        raise CraftError(
            f"Cannot write {names}: {error.strerror or error}.",
            remedy="Name another place with --out.",
        ) from error
