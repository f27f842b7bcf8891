"""Receipts: a key's settled charges, summed up and signed.

The private key is a PEM file that is made on first use, in the data folder unless the operator
names another. After the private key the file may hold earlier keys' public halves: they stay in the
published set, so that what they have signed can still be verified.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
import structlog
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, OKPKey

from craft_server.clock import now_ms, rfc3339
from craft_server.database import Database
from craft_server.ledger.account import SUMS, as_charge, units_of
from craft_server.ledger.keys import Caller
from craft_server.ledger.tables import CHARGES, RESERVED
from craft_server.settings import Settings
from craft_shared.files import keep_private, make_private_folder
from craft_shared.receipt import (
    ALGORITHM,
    CURVE,
    JWS_RULES,
    TYPE,
    Receipt,
    ReceiptItem,
    ledger_line,
)
from craft_shared.units import Units

FILE_NAME = "receipt-key.pem"
_PEM = re.compile(rb"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----", re.DOTALL)
_LINES_A_FETCH = 1000

_log = structlog.get_logger()


def key_file(settings: Settings) -> Path:
    """Where the key is that signs."""
    return settings.receipt_key_file or settings.data_dir / FILE_NAME


class ReceiptKeyError(Exception):
    """The signing key cannot be used; the message is one line for the operator."""


class NothingCharged(Exception):  # noqa: N818 - reads as what it is where it is caught
    """The key has no charge that the receipt would cover."""


class StillReserved(Exception):  # noqa: N818 - reads as what it is where it is caught
    """Calls that the receipt would cover have not been settled or given back yet."""

    def __init__(self, calls: int) -> None:
        super().__init__(calls)
        self.calls = calls


class Signer:
    """The private key that signs, and the public keys that are published.

    `thumbprint_uri` names the private key (RFC 9278); `public_keys` is the JWK set, that key first.
    """

    def __init__(self, private: OKPKey, earlier: list[OKPKey]) -> None:
        self._private = private
        self.thumbprint_uri = private.thumbprint_uri()
        distinct = {key.thumbprint(): key for key in reversed([private, *earlier])}
        in_order = reversed(distinct.values())
        self.public_keys = KeySet(list(in_order)).as_dict(private=False, use="sig", alg=ALGORITHM)

    @classmethod
    def open(cls, path: Path, *, make: bool) -> Self:
        """Reads the key file.

        With `make` a missing file is made with a new key.

        Raises:
            ReceiptKeyError: it cannot be read or made, or holds something else.
        """
        try:
            if make and not path.exists():
                write_key(path, OKPKey.generate_key(CURVE).as_pem(private=True))
                _log.info("receipt key made", path=str(path))
            if make and keep_private([path]):
                _log.warning("others could read the receipt key; they cannot any more")
            return cls(*_parse(path.read_bytes()))
        except OSError as error:
            raise ReceiptKeyError(
                f"cannot use the receipt key file '{path}': {error.strerror or error}"
            ) from error
        except ValueError as error:
            raise ReceiptKeyError(
                f"the receipt key file '{path}' cannot be used: {error}"
            ) from error

    def sign(self, receipt: Receipt) -> str:
        """The receipt as a compact JWS."""
        header = {"alg": ALGORITHM, "typ": TYPE, "kid": self._private.thumbprint()}
        return jws.serialize_compact(
            header, receipt.model_dump_json(), self._private, registry=JWS_RULES
        )


@dataclass(frozen=True)
class Selection:
    """Which charges a receipt covers."""

    # Those that the client made under this name; None means all of the key's.
    run: str | None = None
    since: int | None = None  # those made at or after this time; None sets no bound
    until: int | None = None  # those made before it


class Receipts:
    """Issues receipts."""

    def __init__(self, database: Database, signer: Signer, *, issuer: str | None = None) -> None:
        self.signer = signer
        self._database = database
        self._issuer = issuer or signer.thumbprint_uri

    async def issue(self, caller: Caller, selection: Selection) -> str:
        """A signed receipt over the caller's settled charges.

        Raises:
            NothingCharged: there is none.
            StillReserved: some calls have yet to be settled or given back.
        """
        receipt = await self._database.read_long(
            caller.key_id, sum_up, caller, selection, issuer=self._issuer, at=now_ms()
        )
        return self.signer.sign(receipt)


def sum_up(
    connection: sa.Connection, caller: Caller, selection: Selection, *, issuer: str, at: int
) -> Receipt:
    """The receipt's content.

    The transaction must not have read anything yet.

    Raises:
        NothingCharged: there is none.
        StillReserved: some calls have yet to be settled or given back.
    """
    if connection.dialect.name == "postgresql":
        # All statements must see the same lines, as they do on SQLite.
        connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
    wanted = _wanted(caller, selection)
    reserved: int = connection.execute(
        sa.select(sa.func.count()).where(wanted, RESERVED)
    ).scalar_one()
    if reserved:
        raise StillReserved(reserved)
    settled = sa.and_(wanted, CHARGES.c.state == "settled")
    groups = connection.execute(_grouped(settled)).all()
    if not groups:
        raise NothingCharged(selection)
    items = [_item(group) for group in groups]
    return Receipt(
        issuer=issuer,
        issued_at=rfc3339(at),
        key=caller.prefix,
        owner=caller.owner,
        run=selection.run,
        since=None if selection.since is None else rfc3339(selection.since),
        until=None if selection.until is None else rfc3339(selection.until),
        first_at=rfc3339(min(group.first_at for group in groups)),
        last_at=rfc3339(max(group.last_at for group in groups)),
        items=items,
        calls=sum(item.calls for item in items),
        total=sum((item.units for item in items), Units()),
        cost_micros=sum(item.cost_micros for item in items),
        first_line=min(group.first_line for group in groups),
        last_line=max(group.last_line for group in groups),
        lines_sha256=_digest(connection, settled),
    )


def _wanted(caller: Caller, selection: Selection) -> sa.ColumnElement[bool]:
    conditions = [CHARGES.c.key_id == caller.key_id]
    if selection.run is not None:
        conditions.append(CHARGES.c.run == selection.run)
    if selection.since is not None:
        conditions.append(CHARGES.c.at >= selection.since)
    if selection.until is not None:
        conditions.append(CHARGES.c.at < selection.until)
    return sa.and_(*conditions)


def _grouped(settled: sa.ColumnElement[bool]) -> sa.Select[Any]:
    kind = (CHARGES.c.call, CHARGES.c.model, CHARGES.c.revision)
    return (
        sa.select(
            *kind,
            sa.func.count().label("calls"),
            *SUMS,
            sa.func.min(CHARGES.c.at).label("first_at"),
            sa.func.max(CHARGES.c.at).label("last_at"),
            sa.func.min(CHARGES.c.line).label("first_line"),
            sa.func.max(CHARGES.c.line).label("last_line"),
        )
        .where(settled)
        .group_by(*kind)
        .order_by(*kind)
    )


def _item(group: sa.Row[tuple[object, ...]]) -> ReceiptItem:
    return ReceiptItem(
        call=group.call,
        model=group.model,
        revision=group.revision,
        calls=group.calls,
        units=units_of(group),
        cost_micros=group.cost_micros,
    )


def _digest(connection: sa.Connection, settled: sa.ColumnElement[bool]) -> str:
    digest = hashlib.sha256()
    lines = connection.execution_options(yield_per=_LINES_A_FETCH).execute(
        sa.select(CHARGES).where(settled).order_by(CHARGES.c.line)
    )
    for line in lines:
        digest.update(ledger_line(as_charge(line)))
    return digest.hexdigest()


def _parse(pem: bytes) -> tuple[OKPKey, list[OKPKey]]:
    """The private key and the earlier public ones.

    Raises:
        ValueError: there is not exactly one private key, or a key of another kind.
    """
    private: list[OKPKey] = []
    public: list[OKPKey] = []
    for number, block in enumerate(_PEM.finditer(pem), 1):
        try:
            key = OKPKey.import_key(block.group())
        except (JoseError, ValueError, TypeError) as error:
            raise ValueError(f"its key {number} is not an unencrypted {CURVE} key") from error
        if key.curve_name != CURVE:
            raise ValueError(f"its key {number} is not an unencrypted {CURVE} key")
        (private if key.is_private else public).append(key)
    if len(private) != 1:
        raise ValueError(f"it holds {len(private)} private keys; write the one that is to sign")
    return private[0], public


def write_key(path: Path, pem: bytes) -> None:
    """Makes the file, whole or not at all; one that is there by then stays.

    Raises:
        OSError: it cannot be made.
    """
    make_private_folder(path.parent)
    # mkstemp's files are for their owner alone (0600).
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        # Unlike a renaming, a link never replaces a file that another process made meanwhile.
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        Path(draft).unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
