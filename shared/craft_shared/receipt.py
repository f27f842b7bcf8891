"""Receipts: what a key was charged, signed by the server, checked by whoever reads the paper.

A receipt is a JWS in compact serialisation (RFC 7515) whose payload is a `Receipt` as JSON, signed
with Ed25519 under the algorithm name `EdDSA` (RFC 8037). Keys travel as a JWK set (RFC 7517); a
key's id is its thumbprint (RFC 7638), computed here and never taken on trust. The receipt also
holds a digest of the ledger's lines that it sums up, so that the provider can be held to them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwa import EdDSAAlgorithm
from joserfc.jwk import Key, KeySet, OKPKey
from pydantic import FailFast, NonNegativeInt, PositiveInt, ValidationError, model_validator

from craft_shared.problems import first_error
from craft_shared.units import Units
from craft_shared.wire import Answer, Charge

MEDIA_TYPE = "application/jose"
KEYS_MEDIA_TYPE = "application/jwk-set+json"

ALGORITHM = "EdDSA"
CURVE: Literal["Ed25519"] = "Ed25519"
# The header's `typ`, so that nothing else that the key ever signs can pass for a receipt (RFC 8725,
# section 3.11).
TYPE = "craftbox-receipt"
_UPLOAD = "images"  # the call, in a receipt's items


# What reading a stranger's JSON, base64 and keys may raise.
_UNREADABLE = (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError)


class ReceiptError(Exception):
    """What was given is not a valid receipt, or not a usable key set; the message is one line."""


class ReceiptItem(Answer):
    """What was asked how often, and what it was charged: one kind of call on one model revision."""

    call: str
    model: str
    revision: str
    calls: PositiveInt
    units: Units
    cost_micros: NonNegativeInt


class Receipt(Answer):
    """What a server says about a key's settled charges.

    Attributes:
        version: of this format.
        issuer: who runs the server: the name that the provider gave it, or else its key's
            thumbprint as a URI (RFC 9278).
        issued_at: RFC 3339, as all times here.
        key: the public prefix of the API key, never its secret.
        owner: whose key it is, in the provider's words.
        run: what the client called the run; null when the receipt covers all of the key's calls.
        since: charges before this time were not asked for; null where no bound was set.
        until: charges at and after this time were not asked for.
        first_at: when the first charge was made.
        last_at: when the last charge was made.
        items: every kind of call.
        calls: of all items.
        total: of all items.
        cost_micros: of all items.
        first_line: the id of the first charge, as `GET /v1/usage` gives it: the key's own count.
        last_line: the id of the last charge.
        lines_sha256: SHA-256 over all the charges, in the order of their ids, each as
            `ledger_line` writes it.
    """

    version: Literal[1] = 1
    issuer: str
    issued_at: str
    key: str
    owner: str
    run: str | None
    since: str | None
    until: str | None
    first_at: str
    last_at: str
    items: Annotated[list[ReceiptItem], FailFast()]
    calls: PositiveInt
    total: Units
    cost_micros: NonNegativeInt
    first_line: PositiveInt
    last_line: PositiveInt
    lines_sha256: str

    def but_uploads(self) -> tuple[Units, int]:
        """Units and price of all calls but those that bring images into image sets."""
        items = [item for item in self.items if item.call != _UPLOAD]
        units = sum((item.units for item in items), Units())
        return units, sum(item.cost_micros for item in items)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        found = (
            sum(item.calls for item in self.items),
            sum((item.units for item in self.items), Units()),
            sum(item.cost_micros for item in self.items),
        )
        if found != (self.calls, self.total, self.cost_micros):
            raise ValueError("its items do not add up to its totals")
        return self


def ledger_line(charge: Charge) -> bytes:
    """A settled charge in canonical form: RFC 8785's JSON of a line of `GET /v1/usage`.

    `state` is left out, and so is whatever later versions add to a line.
    """
    line = {
        "at": charge.at,
        "call": charge.call,
        "cost_micros": charge.cost_micros,
        "id": charge.id,
        "model": charge.model,
        "revision": charge.revision,
        "run": charge.run,
        "units": charge.units.model_dump(),
    }
    text = json.dumps(line, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode() + b"\n"


class _Ed25519Only(EdDSAAlgorithm):
    """`EdDSA` on one curve.

    RFC 9864 deprecates the name because it leaves the curve open; here it does not. Its successor
    `Ed25519` is not yet known to most libraries that a third party would verify a receipt with.
    """

    security_warning = ""

    def check_key(self, key: Any) -> None:
        super().check_key(key)
        if key.curve_name != CURVE:
            raise ReceiptError(f"its key is not on the curve {CURVE}")


def _jws_rules() -> jws.JWSRegistry:
    rules = jws.JWSRegistry(algorithms=[ALGORITHM])
    rules.algorithms = {ALGORITHM: _Ed25519Only()}
    rules.max_payload_length = 2**22
    return rules


# The one algorithm that signs receipts, and how long one may be.
JWS_RULES = _jws_rules()


def read_keys(document: str | bytes) -> KeySet:
    """The public keys of a JWK set that can sign receipts; other keys in it are left out.

    Raises:
        ReceiptError: it is not a JWK set, or holds no such key.
    """
    try:
        listed = json.loads(document)["keys"]
        keys: list[Key] = [_public_key(jwk) for jwk in listed if _can_sign(jwk)]
    except _UNREADABLE as error:
        raise ReceiptError("the keys are not a JWK set (RFC 7517) as a server gives it") from error
    if not keys:
        raise ReceiptError(f"the JWK set holds no {CURVE} key, which alone signs receipts")
    return KeySet(keys)


def verify(text: str, keys: KeySet) -> Receipt:
    """The content of a receipt that one of the keys has signed.

    Args:
        text: the compact JWS.
        keys: of the server, from `read_keys`.

    Raises:
        ReceiptError: form, algorithm, key, signature or content is wrong; nothing of it may be
            believed.
    """
    try:
        signed = jws.extract_compact(text.strip().encode("ascii"), registry=JWS_RULES)
        header = signed.headers()
        found = {name: header.get(name) for name in ("alg", "typ", "kid")}
    except _UNREADABLE as error:
        raise ReceiptError("it is not a receipt: it cannot be read as a compact JWS") from error
    if found["alg"] != ALGORITHM:
        raise ReceiptError(
            f"its algorithm is {found['alg']!r}; receipts are signed with {ALGORITHM} "
            f"({CURVE}) alone"
        )
    if found["typ"] != TYPE:
        raise ReceiptError(f"it is not a receipt: its type is {found['typ']!r}, not '{TYPE}'")
    key = next((key for key in keys if key.kid == found["kid"]), None)
    if key is None:
        raise ReceiptError(f"no key of the server has its key id {found['kid']!r}")
    try:
        valid = jws.validate_compact(signed, key, registry=JWS_RULES)
    except _UNREADABLE as error:
        raise ReceiptError("its header or signature cannot be read") from error
    if not valid:
        raise ReceiptError("its signature is wrong: it was changed after it was issued")
    try:
        return Receipt.model_validate_json(signed.payload or b"", strict=True)
    except ValidationError as error:
        wrong = first_error(error, "receipt")
        raise ReceiptError(f"its content is not of this version: {wrong}") from error


def _can_sign(jwk: Mapping[str, Any]) -> bool:
    return jwk.get("kty") == "OKP" and jwk.get("crv") == CURVE and jwk.get("use", "sig") == "sig"


def _public_key(jwk: Mapping[str, Any]) -> Key:
    # Without a `kid` the library computes the thumbprint; without `d` no private key gets in here.
    return OKPKey.import_key({"kty": "OKP", "crv": CURVE, "x": jwk["x"]})
