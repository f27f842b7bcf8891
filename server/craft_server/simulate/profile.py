"""Provider profiles: what a simulated provider is like, as a TOML file states it."""

from __future__ import annotations

import hashlib
import json
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from craft_shared.amounts import MAX_AMOUNT, MAX_PRICE_MICROS, Measure, Unit
from craft_shared.problems import first_error
from craft_shared.text_files import NotTextError, read_text
from craft_shared.wire import EVERYTHING, Output, Window
from craft_shared.wire.messages import Name

FaultKind = Literal["429", "500", "502", "503", "529", "reset", "slow-body"]
Place = Literal["before-reservation", "after-reservation", "after-work", "during-answer"]

STATUSES = tuple(kind for kind in get_args(FaultKind) if kind.isdecimal())

_SUFFIX = ".toml"
_SHIPPED = files("craft_server.simulate") / "profiles"

Seconds = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)]
BytesPerSecond = Annotated[int, Field(ge=1)]
PerMinute = Annotated[int, Field(ge=1, le=MAX_AMOUNT)]


class ProfileError(ValueError):
    """There is no such profile, or it cannot be used; the message says why."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Latency(_Part):
    """How long a call takes beyond its work: a log-normal part, and one for what it asks for."""

    # Of the log-normal part.
    median_ms: float = Field(default=0, ge=0, le=600_000, allow_inf_nan=False)
    # Standard deviation of its logarithm; 0.5 makes one call in twenty 2.3 times as slow.
    sigma: float = Field(default=0, ge=0, le=3, allow_inf_nan=False)
    # For each prediction and each image of a charged call.
    per_item_ms: float = Field(default=0, ge=0, le=10_000, allow_inf_nan=False)
    # What each other call that runs adds to the log-normal part, as a fraction of it.
    load: float = Field(default=0, ge=0, le=100, allow_inf_nan=False)


class Bandwidth(_Part):
    """Bytes a second of one connection; None is not bounded."""

    up: BytesPerSecond | None = None  # of requests' bodies
    down: BytesPerSecond | None = None  # of answers' bodies


class RateTerms(_Part):
    """What any key may do at most, beside its own limits; None is not bounded."""

    requests_per_minute: PerMinute | None = None
    predictions_per_minute: PerMinute | None = None
    concurrency: PerMinute | None = None


class Quota(_Part):
    """A budget that each key has for every calendar window, unless its operator set another."""

    unit: Measure
    window: Window
    limit: int = Field(ge=0, le=MAX_AMOUNT)


class Fault(_Part):
    """Something that befalls calls at random."""

    kind: FaultKind  # an HTTP status, the connection's reset, or a body that trickles
    # How far the call has come by then. Only charged calls come to `after-reservation` and
    # `after-work`: there the reservation is given back, here the answer is charged and waits for
    # the client.
    at: Place
    rate: float = Field(gt=0, le=1)  # the share of calls that it befalls
    burst: int = Field(default=1, ge=1, le=1000)  # how many calls in a row it befalls at a time
    # Seconds that the answer names; none where it names no time.
    retry_after: Annotated[int, Field(ge=0, le=3600)] | None = None
    seconds: Seconds | None = None  # over which a slow body trickles

    @model_validator(mode="after")
    def _fits(self) -> Self:
        slow = self.kind == "slow-body"
        if slow != (self.seconds is not None):
            raise ValueError("a slow-body, and nothing else, takes 'seconds'")
        if slow and self.at != "during-answer":
            raise ValueError("a slow-body is at during-answer")
        if self.kind in STATUSES and self.at == "during-answer":
            raise ValueError("during the answer it is too late for another status")
        if self.retry_after is not None and self.kind not in STATUSES:
            raise ValueError("only a status comes with 'retry_after'")
        return self


class RevisionChange(_Part):
    """After so many charged calls were answered, the model silently has another revision."""

    after_calls: int = Field(ge=0)


class Clock(_Part):
    """How many times as fast as the real time the server's runs: 86400 makes a day a second."""

    speed: float = Field(default=1, ge=1, le=1_000_000, allow_inf_nan=False)


class Profile(_Part):
    """A provider."""

    name: Name  # what it is called
    version: int = Field(ge=1)  # counts its changes
    # For people; not part of the digest.
    description: Annotated[str, StringConstraints(min_length=1, max_length=4000)]
    seed: int = Field(default=0, ge=0, lt=2**63)  # of all draws
    output: Output = EVERYTHING  # what answers show to keys that have no policy of their own
    latency: Latency = Latency()  # of each call
    bandwidth: Bandwidth = Bandwidth()  # of each connection
    limits: RateTerms = RateTerms()  # of each key
    quotas: tuple[Quota, ...] = ()  # of each key
    prices: dict[Unit, Annotated[int, Field(ge=0, le=MAX_PRICE_MICROS)]] = {}  # micros a unit
    faults: tuple[Fault, ...] = ()  # the first that befalls a call wins
    revision_change: RevisionChange | None = None  # None keeps the revision
    clock: Clock = Clock()  # of quotas' windows and the ledger

    @model_validator(mode="after")
    def _quotas_differ(self) -> Self:
        kinds = [(quota.unit, quota.window) for quota in self.quotas]
        if len(kinds) != len(set(kinds)):
            raise ValueError("two quotas bound the same unit in the same window")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of all that has an effect: however the file is laid out, and whatever it says.

        What is left at its default is not part of it, so that profiles keep their digest when
        later versions of craftbox can simulate more.
        """
        content = self.model_dump(mode="json", exclude_defaults=True, exclude={"description"})
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def shipped_profiles() -> list[str]:
    """Names of the profiles that come with craftbox."""
    names = (entry.name for entry in _SHIPPED.iterdir())
    return sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))


def load_profile(name_or_file: str) -> Profile:
    """The shipped profile of that name, or the one in a file whose name ends in `.toml`.

    Raises:
        ProfileError: there is none, or it cannot be used.
    """
    if name_or_file.endswith(_SUFFIX):
        source, where = Path(name_or_file), f"profile '{name_or_file}'"
    elif name_or_file in shipped_profiles():
        source, where = Path(str(_SHIPPED / f"{name_or_file}{_SUFFIX}")), f"profile {name_or_file}"
    else:
        raise ProfileError(
            f"there is no profile '{name_or_file}': name one of {', '.join(shipped_profiles())}, "
            f"or a file that ends in {_SUFFIX}"
        )
    try:
        return Profile.model_validate(tomllib.loads(read_text(source)))
    except OSError as error:
        raise ProfileError(f"{where} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, NotTextError) as error:
        raise ProfileError(f"{where} is not valid TOML: {error}") from error
    except ValidationError as error:
        raise ProfileError(f"{where}, {first_error(error, 'as a whole')}") from error
