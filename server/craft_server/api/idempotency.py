"""`Idempotency-Key`: a call that was made before is answered as it was then, and not charged again.

The same key with another body is refused with 422, while the first call runs with 409. An answer
that is given again says so in the header `Idempotency-Replayed: true`. One whose bytes are gone, or
show more than the key's policy does by now, is computed again, free of charge, on what the call was
resolved to then, and says `Idempotency-Recomputed: true`.

Source: draft-ietf-httpapi-idempotency-key-header-07.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from craft_server.api.auth import IDEMPOTENCY_KEY_HEADER, WithAdmission, caller_with, policy_for
from craft_server.api.body import REFUSALS, read_bytes
from craft_server.api.openapi import refuses
from craft_server.api.services import Services, WithServices
from craft_server.clock import now_ms
from craft_server.image_sets import WrongFirstRow
from craft_server.ledger import calls
from craft_server.ledger.calls import AnswerGone, Attempt, Made, StillRunning
from craft_server.ledger.charges import BudgetExhausted, TooManyRunning, check_covered
from craft_server.ledger.keys import Caller
from craft_server.ledger.users import EndUser, admit, look_up
from craft_server.policy import Policy, within
from craft_server.problems import invalid_field
from craft_shared.problems import (
    CALL_IN_PROGRESS,
    IDEMPOTENCY_KEY_REUSED,
    USER_LIMIT_REACHED,
)
from craft_shared.units import Units
from craft_shared.wire import Output, Scope

RUN_HEADER = "Craft-Run"
USER_HEADER = "Craft-User"
REPLAYED_HEADER = "Idempotency-Replayed"
RECOMPUTED_HEADER = "Idempotency-Recomputed"

_REFUSAL_SECONDS = 0.05
_SHORT = 1 << 18  # bytes that are hashed in less time than a thread is called

EXAMPLE_KEY = "0b7f9c1e-6d0a-4c55-9c0e-3f1f6f0a7a52"
KEY = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)
# A first character that no spreadsheet takes for a formula: runs are exported as CSV.
_RUN = re.compile(r"[A-Za-z0-9_.][\x20-\x7e]{0,254}", re.ASCII)
USER = re.compile(r"[A-Za-z0-9_.][\x21-\x7e]{0,127}", re.ASCII)
_FORM = "ASCII characters, a letter or digit first"

# For the API's description. Values are checked below, with messages of the API's own.
_IdempotencyKey = Annotated[
    str | None,
    Header(
        alias=IDEMPOTENCY_KEY_HEADER,
        description="Names the call, so that it can be sent again without being done or charged "
        "again; a UUID, for example. The same key with another call is refused.",
        json_schema_extra={"minLength": 1, "maxLength": 255, "pattern": f"^{KEY.pattern}$"},
        examples=[EXAMPLE_KEY],
    ),
]
_Run = Annotated[
    str | None,
    Header(
        alias=RUN_HEADER,
        description="What the client calls the run that the call is part of: usage lists it, and "
        "receipts can be had for it.",
        json_schema_extra={"minLength": 1, "maxLength": 255, "pattern": f"^{_RUN.pattern}$"},
        examples=["digits-16-shots"],
    ),
]
_User = Annotated[
    str | None,
    Header(
        alias=USER_HEADER,
        description="For which of its own users the key's owner makes the call, in the owner's "
        "words; an id rather than a name. The provider may bound what each of them uses.",
        json_schema_extra={"minLength": 1, "maxLength": 128, "pattern": f"^{USER.pattern}$"},
        examples=["user-4711"],
    ),
]


class Resolution(BaseModel):
    """What a charged call was resolved to: all that its answer depends on beside its own bytes.

    Names, aliases and image sets mean other things as time goes by, and keys' policies change. A
    call that was charged and must be computed again is computed on what it was charged for, and
    shows no more than the key's policy does by then.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    revision: str
    units: Units  # that the answer takes, whoever pays for them
    output: Output
    prompts_per_image_set: int | None
    rows: int | None = None  # of the image set
    adapter: int | None = None  # id of the published version
    abstain_below: float | None = None

    def shown_by(self, policy: Policy) -> bool:
        """Whether the policy shows an answer to the call as it was answered."""
        return Policy(self.output, self.prompts_per_image_set).within(policy)

    def check_again(self, again: Resolution) -> None:
        """Raises AnswerGone if the call is resolved to other things now, or would show more."""
        before, now = self._work(), again._work()
        if changed := [name for name in before if before[name] != now[name]]:
            raise AnswerGone(f"it was computed with another {changed[0]} than there is now")
        if not within(again.output, self.output):
            raise _other_policy()

    def _work(self) -> Mapping[str, Any]:
        return self.model_dump(exclude={"output", "prompts_per_image_set"})


def output_again(first: Resolution | None, now: Output) -> Output:
    """The level at which a call is answered: that of its `first` answer, if it had one.

    Unless the key's policy shows less of it `now`.

    Raises:
        AnswerGone: it shows other things now, neither less nor more.
    """
    if first is None or within(now, first.output):
        return now
    if within(first.output, now):
        return first.output
    raise _other_policy()


def _other_policy() -> AnswerGone:
    return AnswerGone("the key's policy shows other things by now than it did show")


@dataclass(frozen=True)
class Call:
    """A call that does something once, and may be charged."""

    request: Request
    services: Services
    caller: Caller
    attempt: Attempt | None = None  # under an idempotency key, if the call has one
    made: Made | None = None  # the call was made before, and cannot be answered as it was then
    run: str | None = None  # what the client calls the run that the call is part of
    user: EndUser | None = None  # for whom the key's owner makes it

    @cached_property
    def first(self) -> Resolution | None:
        """What a call that was made before was resolved to, on which it is computed again.

        Raises:
            AnswerGone: nobody knows.
        """
        return None if self.made is None else _resolution(self.made)


class Replayed(Exception):  # noqa: N818 - reads as what it is where it is caught
    """The call was made before; `answer` is what was answered."""

    def __init__(self, answer: calls.StoredAnswer) -> None:
        super().__init__()
        self.answer = answer


def call_of(
    scope: Scope, *, repeatable: bool, least: Units | None = None
) -> Callable[..., AsyncIterator[Call]]:
    """A dependency on a call by a key that has the scope.

    The body is not read of a key whose budgets do not even cover the least.

    Args:
        scope: that the key must have.
        repeatable: whether the call could be done twice without harm, so that its answer's bytes
            need not be kept for good.
        least: what any such call is charged, whatever its body says; None where that may be
            nothing, or another key's to pay.
    """
    with_scope = Depends(caller_with(scope))

    @refuses(*REFUSALS, CALL_IN_PROGRESS, IDEMPOTENCY_KEY_REUSED, USER_LIMIT_REACHED)
    async def read(
        request: Request,
        services: WithServices,
        admission: WithAdmission,
        caller: Caller = with_scope,
        _key: _IdempotencyKey = None,
        _run: _Run = None,
        _user: _User = None,
    ) -> AsyncIterator[Call]:
        run = _checked(request, RUN_HEADER, _RUN, f"1 to 255 printable {_FORM}")
        key = _checked(request, IDEMPOTENCY_KEY_HEADER, KEY, "1 to 255 visible ASCII characters")
        name = _checked(request, USER_HEADER, USER, f"1 to 128 visible {_FORM}")

        async def check(user: EndUser | None) -> None:
            if least is None or admission.record is not None:
                return
            try:
                await services.database.query(_check_budgets, caller, user, key, least, now_ms())
            except BudgetExhausted:
                # Who calls on and on waits for that, rather than others for him.
                await asyncio.sleep(_REFUSAL_SECONDS)
                raise

        if caller.used_up:  # before anything is written for an end user
            await check(None)
        user = await _end_user(name, services, caller) if scope != "admin" else None
        if user is not None and user.used_up:
            await check(user)
        if key is None:
            yield Call(request, services, caller, run=run, user=user)
            return
        attempt = Attempt(key, await _fingerprint(request), repeatable)
        made = None
        if admission.record is not None:
            made = await services.database.read(calls.recall, admission.record, attempt.fingerprint)
            await _replay_if_kept(services, caller, attempt, made)
        try:
            yield Call(request, services, caller, attempt, made, run, user)
        except (BudgetExhausted, StillRunning, TooManyRunning, WrongFirstRow):
            # Perhaps it is this very call, sent twice, that has taken what is now missing.
            if made is None:
                by_other = await services.database.read(
                    calls.look_up, caller.key_id, attempt.key, attempt.fingerprint
                )
                if by_other is not None:
                    await _replay_if_kept(services, caller, attempt, by_other)
            raise

    return read


async def _end_user(name: str | None, services: Services, caller: Caller) -> EndUser | None:
    """For whom the call is made; what bounds that user is there from now on."""
    if name is None:
        if caller.require_user:
            raise invalid_field(
                USER_HEADER,
                "the key's provider asks for whom each call is made",
                "Send an id of the end user.",
            )
        return None
    known = await services.database.query(look_up, caller.key_id, name, now_ms())
    if known is not None:
        return known
    most = services.settings.users_per_key
    return await services.database.write(admit, caller.key_id, name, now_ms(), most=most)


def _check_budgets(
    connection: Connection,
    caller: Caller,
    user: EndUser | None,
    key: str | None,
    least: Units,
    at: int,
) -> None:
    try:
        check_covered(connection, caller, user, least, at)
    except BudgetExhausted:
        # Perhaps it is this very call, sent before, that has taken what is missing.
        if key is None or calls.find_record(connection, caller.key_id, key) is None:
            raise


async def _replay_if_kept(services: Services, caller: Caller, attempt: Attempt, made: Made) -> None:
    """Raises Replayed if the call's answer is stored, and the key may still see it as it was."""
    if made.answer is None:
        return
    # Answers of calls that cannot be repeated have nothing of the model's.
    if attempt.repeatable:
        policy = policy_for(services, caller)
        if made.record.resolution is None:
            # Of what level the answer is, nobody knows.
            shown = Policy().within(policy)
        else:
            shown = _resolution(made).shown_by(policy)
        if not shown:
            return
    # Its first call may still wait for the disk, whoever answers first.
    await services.database.on_disk()
    raise Replayed(made.answer)


def _resolution(made: Made) -> Resolution:
    if made.record.resolution is None:
        raise AnswerGone("it was answered before the server kept what is needed for that")
    return Resolution.model_validate_json(made.record.resolution)


def _checked(request: Request, header: str, form: re.Pattern[str], words: str) -> str | None:
    value = request.headers.get(header)
    if value is not None and form.fullmatch(value) is None:
        raise invalid_field(header, "it cannot be used", f"Send {words}, such as a UUID.")
    return value


async def _fingerprint(request: Request) -> str:
    """SHA-256 of what makes two calls the same: method, address, what is sent, for whom, wanted."""
    url, headers = request.url, request.headers
    sent, wanted = headers.get("content-type", ""), headers.get("accept", "")
    # Only where there is one, so that calls of earlier versions are known again.
    user = [value] if (value := headers.get(USER_HEADER)) else []
    digest = hashlib.sha256(
        "\n".join((request.method, url.path, url.query, sent, wanted, *user, "")).encode()
    )
    body = await read_bytes(request)
    if len(body) < _SHORT:
        digest.update(body)
    else:  # it takes as long as a whole call
        await asyncio.to_thread(digest.update, body)
    return digest.hexdigest()
