"""`craft receipt` and `craft verify-receipt`: prove what a run was charged; both free of charge."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from craft_client.cli.options import AsJson, Key, Url, argument, option, run_folders
from craft_client.cli.root import command
from craft_client.cli.session import connect
from craft_client.cli.show import free_document, say, table
from craft_shared.amounts import SPARE_UNITS, UNITS

if TYPE_CHECKING:
    from joserfc.jwk import KeySet

    from craft_shared.receipt import Receipt

Keys = Annotated[
    Path | None,
    option("A JWK set that was saved from the server's /v1/receipts/keys.", "the server's"),
]

# Verifying needs no API key, and one that the environment holds is not for every server to see.
_NO_KEY = "none"


@command(
    "Runs and receipts",
    "craft receipt runs/digits-16shots-seed1 --out receipt.jws",
    "craft receipt --since 2026-11-01T00:00:00Z --out november.jws",
)
def receipt(
    out: Annotated[Path, option("Where to write the receipt.", True, dir_okay=False)],
    run: Annotated[
        str | None,
        argument(
            "[RUN]",
            "The run's directory or name; without it, all that the key was charged.",
            run_folders,
        ),
    ] = None,
    since: Annotated[
        str | None, option("Only calls at this time (RFC 3339) or later.", True, metavar="TIME")
    ] = None,
    until: Annotated[
        str | None, option("Only calls before this time (RFC 3339).", True, metavar="TIME")
    ] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Get a signed receipt of what a run was charged; it is verified before it is written."""
    text, content = fetch_receipt(run, url, key, since=since, until=until)
    out.write_text(f"{text}\n", encoding="ascii")
    _show(content, as_json)
    say(f"Wrote the receipt to '{out}'.")


def fetch_receipt(
    run: str | None,
    url: str | None,
    key: str | None,
    *,
    since: str | None = None,
    until: str | None = None,
) -> tuple[str, Receipt]:
    """A receipt over a run, given as its directory or by its name, or over all; and what it says.

    Raises:
        CraftError: the server's receipt is not valid, or there is none.
    """
    from craft_shared.receipt import read_keys, verify

    name = None if run is None else _run_name(run)
    with connect(url, key) as client, _reporting_invalid(f"The receipt of {client.base_url}"):
        text = client.receipt(name, since=since, until=until)
        return text, verify(text, read_keys(client.receipt_keys()))


@command(
    "Runs and receipts",
    "craft verify-receipt receipt.jws",
    "craft verify-receipt receipt.jws --keys keys.json --json",
    name="verify-receipt",
)
def verify_receipt(
    file: Annotated[Path, argument("FILE", "A receipt.")],
    keys: Keys = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Verify a receipt and show what it says; needs no API key."""
    from craft_shared.receipt import verify
    from craft_shared.text_files import read_text

    with _reporting_invalid(f"'{file}'"):
        text = read_text(file)
    known = known_keys(keys, url)
    with _reporting_invalid(f"'{file}'"):
        content = verify(text, known)
    _show(content, as_json)
    say("Valid: one of these keys has signed exactly this.")


def known_keys(file: Path | None, url: str | None) -> KeySet:
    """The public keys of a file, or else of the server, which sees no API key.

    Raises:
        CraftError: they are no key set.
    """
    from craft_shared.receipt import read_keys
    from craft_shared.text_files import read_text

    if file is not None:
        with _reporting_invalid(f"'{file}'"):
            return read_keys(read_text(file))
    with connect(url, _NO_KEY) as client, _reporting_invalid(f"{client.base_url}"):
        return read_keys(client.receipt_keys())


def _run_name(run: str) -> str:
    """What the server calls a run that is given as its directory or by its name."""
    from craft_client.exceptions import CraftError
    from craft_client.journal import Journal
    from craft_client.run_folder import RUN_FILE

    folder = Path(run)
    if not (folder / RUN_FILE).exists():
        return run
    name = Journal.open(folder).document.get("run")
    if not isinstance(name, str):
        raise CraftError(
            f"The run in '{folder}' was made without a name on the server.",
            remedy="Ask for a period instead, with --since and --until.",
        )
    return name


@contextmanager
def _reporting_invalid(what: str) -> Iterator[None]:
    """Says what is not valid, in one line."""
    from craft_client.exceptions import CraftError
    from craft_shared.receipt import ReceiptError
    from craft_shared.text_files import NotTextError

    try:
        yield
    except (ReceiptError, NotTextError) as error:
        raise CraftError(f"{what} is not valid: {error}.") from error


def _show(content: Receipt, as_json: bool) -> None:
    if as_json:
        free_document({"receipt": content.model_dump()})
        return
    bounds = [f"since {content.since}"] if content.since else []
    bounds += [f"until {content.until}"] if content.until else []
    table(
        ["receipt", "signed"],
        [
            ["issuer", content.issuer],
            ["issued at", content.issued_at],
            ["API key", f"{content.key} of {content.owner}"],
            ["run", " ".join([content.run or "all calls of the key", *bounds])],
            ["period", f"{content.first_at} to {content.last_at}"],
            ["ledger", f"lines {content.first_line} to {content.last_line}"],
            ["SHA-256", content.lines_sha256],
        ],
    )
    rows = [
        [
            *(item.call, item.model, item.revision, item.calls),
            *(item.units[unit] for unit in UNITS),
            item.cost_micros,
        ]
        for item in content.items
    ]
    total = [content.total[unit] for unit in UNITS]
    table(
        ["call", "model", "revision", "calls", *UNITS, "cost in micros"],
        [*rows, ["total", "", "", content.calls, *total, content.cost_micros]],
        spare=["revision", *SPARE_UNITS, "model"],
    )
