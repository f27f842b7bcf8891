"""What the operator sets: environment variables `CRAFT_...`, files, or the command line's options.

What should not be in the environment may be in a file: `craft_database_password` in the folder
`CRAFT_SECRETS_DIR`, /run/secrets by default, is what `CRAFT_DATABASE_PASSWORD` would be, and so for
every setting. What is no secret may be in a file of TOML: `craft-server.toml` in the present
folder, or the one that `CRAFT_CONFIG` names. Options come first, then the environment, then the
folder, then the file.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import httpx
import sqlalchemy as sa
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from craft_server.root_path import RootPath
from craft_server.webhooks import secret_bytes
from craft_shared.image_formats import MOST_BYTES, MOST_PIXELS
from craft_shared.text_files import NotTextError, read_text
from craft_shared.wire import Limits
from craft_shared.wire.messages import NewName

MEBIBYTE = 2**20
SECRETS_VARIABLE = "CRAFT_SECRETS_DIR"
CONFIG_VARIABLE = "CRAFT_CONFIG"
CONFIG_FILE = Path("craft-server.toml")

_PASSWORD = re.compile(r"(://[^/:@]*:).*(@)|(password=)[^&]*")
_MASK = "********"
_NEW_WHSEC = '"whsec_$(openssl rand -base64 32)"'
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.ASCII)


def _split(value: object) -> object:
    return (
        [part for part in re.split(r"[,\s]+", value) if part] if isinstance(value, str) else value
    )


def _origin(text: str) -> str:
    """An origin as browsers name it; ValueError where it is none."""
    origin = text.lower().removesuffix("/")
    if _ORIGIN.fullmatch(origin) is None:
        raise ValueError("write an origin such as https://app.example: no path, and no '*'")
    default = {"http": ":80", "https": ":443"}[origin.partition(":")[0]]
    return origin.removesuffix(default)


def _webhook_secret(secret: SecretStr) -> SecretStr:
    try:
        secret_bytes(secret.get_secret_value())
    except ValueError as error:
        raise ValueError(f"write whsec_ and 24 to 64 bytes in Base64: echo {_NEW_WHSEC}") from error
    return secret


def _parsed(url: str) -> str:
    try:
        httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError("write an address such as https://ops.example/hook") from error
    return url


Origin = Annotated[str, AfterValidator(_origin)]
NoticeUrl = Annotated[str, Field(pattern=r"^https?://[^/?#@\s]+(/\S*)?$"), AfterValidator(_parsed)]
Percent = Annotated[int, Field(ge=1, le=100)]

DEFAULT_LIMITS = Limits(
    body_bytes=64 * MEBIBYTE,
    json_bytes=16 * MEBIBYTE,
    json_values=2**18,
    images_per_call=256,
    image_bytes=MOST_BYTES,
    image_pixels=MOST_PIXELS,
    images_per_set=200_000,
    prompts_per_call=256,
    classes=2000,
    dim=4096,
    answer_bytes=256 * MEBIBYTE,
)


class SettingsFileError(Exception):
    """The file of settings cannot be used; the message is one line that names it."""


class NoNoticeSecret(Exception):  # noqa: N818 - reads as what it is where it is caught
    """Notices cannot be signed; the message is one line that names both settings."""


class Settings(BaseSettings):
    """The server's settings.

    Attributes:
        data_dir: folder of the SQLite database; made if it does not exist.
        database_url: `postgresql://...` or `sqlite:///...`; None means SQLite in `data_dir`.
        database_password: goes into `database_url`, which need not hold one then.
        model: the model's name, `pocket` or one of open_clip's.
        pretrained: which weights of an open_clip model, or a checkpoint's path.
        device: where the model runs; `auto` takes a GPU where there is one.
        precision: of the model's arithmetic; `auto` takes half precision where the device is faster
            in it and it agrees with float32, `fastest` wherever it is faster.
        host: address to listen on.
        port: TCP port to listen on; 0 takes a free one.
        root_path: the path below which a proxy offers the server, such as `/craft`; without one,
            the path that a proxy which `FORWARDED_ALLOW_IPS` names sends in `X-Forwarded-Prefix`.
        workers: processes that speak HTTP; with 2 or more, the model has a process of its own.
        cors_origins: of pages that may call the API from a browser, such as
            `https://app.example`, with commas between them; none by default.
        connections: of each process that speaks HTTP, at a time; never more than it may open files.
            Where there are so many, the one that waits for its client the longest gives way.
        connections_per_address: of these, from one address (of IPv6 from one /64) that
            `FORWARDED_ALLOW_IPS` does not name.
        head_seconds: that the head of a request may take.
        body_seconds: that a body may take, and one more for each 16 KiB of it that have come.
        keep_alive_seconds: that a connection may rest between two calls.
        limits: what one call may hold; one of them is set by, say, `CRAFT_LIMITS__BODY_BYTES`.
        bodies_bytes: of all bodies that a process is receiving or working on; a key may take half
            of what others leave; None means four times `limits.body_bytes`.
        users_per_key: end users with budgets of their own that a key may name.
        texts_per_adapter: prompts x classes that a published adapter may hold.
        features_cache_bytes: memory for image sets' features between calls.
        adapters_cache_bytes: memory for parsed adapters between calls.
        texts_cache_bytes: memory for the text features of prompts that may be asked again.
        drain_seconds: how long after SIGTERM the server goes on accepting calls, no longer ready,
            so that load balancers stop sending them; 0 stops at once.
        lease_seconds: how long after a server's death what it had reserved is given back.
        answers_bytes: of predictions that can be given again under their idempotency keys; past it
            the oldest ones' bytes go.
        answers_hours: how long an idempotency key is remembered.
        rate_limits_url: `redis://...` where several servers share keys' rate limits.
        receipt_key_file: PEM file of the key that signs receipts, the same for all servers on one
            database; None makes `receipt-key.pem` in `data_dir`.
        profile: of the provider to simulate: a shipped one's name, or a TOML file; None simulates
            none.
        receipt_issuer: what receipts call the provider, such as the server's public address; None
            means the signing key's thumbprint.
        log_level: of the least important lines of the log on stderr; `info` has one a call.
        notice_urls: where a webhook is sent when a share of a key's or a team's budget is spent,
            with commas between them.
        notice_percents: which shares, in percent.
        notice_secret: that webhooks are signed with: `whsec_` and 24 to 64 bytes in Base64.
        console_session_hours: how long a person stays signed in to the console.
        sign_ins_per_minute: to the console from one address, tried.
    """

    model_config = SettingsConfigDict(
        env_prefix="CRAFT_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
        extra="ignore",
        hide_input_in_errors=True,  # it may be a secret
    )

    data_dir: Path = Path("craft-data")
    database_url: str | None = None
    database_password: SecretStr | None = None
    model: str = "pocket"
    pretrained: str | None = None
    device: str = "auto"
    precision: Literal["auto", "fastest", "float32", "float16", "bfloat16"] = "auto"
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    root_path: RootPath = ""
    cors_origins: Annotated[tuple[Origin, ...], NoDecode, BeforeValidator(_split)] = ()
    workers: int = Field(default=1, ge=1, le=64)
    connections: int = Field(default=2048, ge=1)
    connections_per_address: int = Field(default=512, ge=1)
    head_seconds: float = Field(default=10, gt=0, le=3600)
    body_seconds: float = Field(default=15, gt=0, le=3600)
    keep_alive_seconds: int = Field(default=5, ge=1, le=3600)
    limits: Limits = DEFAULT_LIMITS
    bodies_bytes: int | None = Field(default=None, ge=1)
    users_per_key: int = Field(default=100_000, ge=1)
    texts_per_adapter: int = Field(default=2**17, ge=1)
    features_cache_bytes: int = Field(default=1024 * MEBIBYTE, ge=0)
    adapters_cache_bytes: int = Field(default=1024 * MEBIBYTE, ge=0)
    texts_cache_bytes: int = Field(default=256 * MEBIBYTE, ge=0)
    drain_seconds: float = Field(default=2, ge=0, le=3600)
    lease_seconds: float = Field(default=30, ge=0.1, le=3600)
    answers_bytes: int = Field(default=1024 * MEBIBYTE, ge=0)
    answers_hours: int = Field(default=24, ge=24)
    rate_limits_url: str | None = Field(default=None, pattern=r"^rediss?://")
    receipt_key_file: Path | None = None
    profile: str | None = None
    receipt_issuer: NewName | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    notice_urls: Annotated[tuple[NoticeUrl, ...], NoDecode, BeforeValidator(_split)] = ()
    notice_percents: Annotated[tuple[Percent, ...], NoDecode, BeforeValidator(_split)] = (
        *(50, 80, 100),
    )
    notice_secret: Annotated[SecretStr, AfterValidator(_webhook_secret)] | None = None
    console_session_hours: float = Field(default=12, gt=0, le=720)
    sign_ins_per_minute: int = Field(default=20, ge=1)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """See pydantic-settings; the environment names folder and file.

        Raises:
            SettingsFileError: the file cannot be used.
        """
        return (init_settings, env_settings, *_secrets(settings_cls), _toml(settings_cls))

    @property
    def most_bodies_bytes(self) -> int:
        """`bodies_bytes`, but enough for the largest body of a key while there is no other."""
        largest = self.limits.body_bytes
        return max(2 * largest, 4 * largest if self.bodies_bytes is None else self.bodies_bytes)

    @property
    def notify_at(self) -> tuple[int, ...]:
        """Shares of budgets, in percent, of which notices are written; none where none is sent."""
        return self.notice_percents if self.notice_urls else ()

    @property
    def notice_key(self) -> bytes:
        """What notices are signed with; empty where none is sent.

        Raises:
            NoNoticeSecret: they are to be sent, and no secret is set.
        """
        if not self.notice_urls:
            return b""
        if self.notice_secret is None:
            raise NoNoticeSecret(
                "notice_urls: notices are signed, and there is no notice_secret; remedy: "
                f"CRAFT_NOTICE_SECRET={_NEW_WHSEC}"
            )
        return secret_bytes(self.notice_secret.get_secret_value())

    @model_validator(mode="after")
    def _put_password_into_url(self) -> Self:
        if self.database_password is not None and self.database_url is not None:
            password = self.database_password.get_secret_value()
            try:
                url = sa.make_url(self.database_url).set(password=password)
            except sa.exc.ArgumentError as error:
                raise ValueError("database_url is not the address of a database") from error
            self.database_url = url.render_as_string(hide_password=False)
        return self


def settings_file() -> Path:
    """Where the file of settings is, or would be."""
    return Path(os.environ.get(CONFIG_VARIABLE) or CONFIG_FILE)


def sources(options: Mapping[str, Any]) -> dict[str, str]:
    """Where each setting comes from that has a value somewhere, nested ones as `limits.classes`.

    Raises:
        SettingsFileError: the file cannot be used.
    """
    places: list[tuple[str, Mapping[str, Any]]] = [
        ("option", options),
        ("environment", EnvSettingsSource(Settings)()),
        *((str(_secrets_folder()), source()) for source in _secrets(Settings)),
        (str(settings_file()), _toml(Settings)()),
    ]
    found: dict[str, str] = {}
    for place, values in places:
        for name, _ in _leaves(values):
            found.setdefault(name, place)
    return found


def shown(settings: Settings) -> dict[str, Any]:
    """Every setting's value as it may be shown, nested ones as `limits.classes`; no password."""
    values = settings.model_dump(mode="json")
    # A secret may stand anywhere behind the host.
    values["notice_urls"] = [_host_only(url) for url in values["notice_urls"]]
    return {name: _masked(value) for name, value in _leaves(values)}


def _host_only(url: str) -> str:
    address = httpx.URL(url)
    return f"{address.scheme}://{address.host}"


def readable_by_others() -> Path | None:
    """The file of settings, if it holds a password and everybody on this machine may read it."""
    file = settings_file()
    if os.name != "posix" or not file.is_file() or not file.stat().st_mode & stat.S_IROTH:
        return None
    values = dict(_leaves(_toml(Settings)()))
    secret = not values.keys().isdisjoint(("database_password", "notice_secret")) or any(
        _masked(v) != v for v in values.values()
    )
    return file if secret else None


def _masked(value: Any) -> Any:
    """A value without the password of an address in it."""
    if not isinstance(value, str):
        return value
    return _PASSWORD.sub(rf"\g<1>\g<3>{_MASK}\g<2>", value)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _secrets_folder() -> Path:
    return Path(os.environ.get(SECRETS_VARIABLE, "/run/secrets"))


def _secrets(settings_cls: type[BaseSettings]) -> list[PydanticBaseSettingsSource]:
    folder = _secrets_folder()
    return [_SecretFiles(settings_cls, folder)] if folder.is_dir() else []


class _SecretFiles(SecretsSettingsSource):
    """Files of secrets, which may begin with a byte order mark."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        value, *rest = super().get_field_value(field, field_name)
        marked = isinstance(value, str)
        return (value.removeprefix("\ufeff") if marked else value, *rest)


def _toml(settings_cls: type[BaseSettings]) -> InitSettingsSource:
    """The file of settings as a source; an empty one where there is no such file."""
    file = settings_file()
    if os.environ.get(CONFIG_VARIABLE) and not file.is_file():
        raise SettingsFileError(f"{CONFIG_VARIABLE}: there is no file '{file}'")
    try:
        values = tomllib.loads(read_text(file)) if file.is_file() else {}
    except (OSError, NotTextError, tomllib.TOMLDecodeError) as error:
        raise SettingsFileError(f"'{file}' cannot be read: {error}") from error
    limits = {f"limits.{name}" for name in Limits.model_fields}
    known = {*Settings.model_fields, *limits} - {"limits"}
    for name, _ in _leaves(values):
        if name not in known:
            near = get_close_matches(name, known, 1)
            meant = f"; did you mean '{near[0]}'?" if near else ""
            raise SettingsFileError(f"'{file}': there is no setting '{name}'{meant}")
    return InitSettingsSource(settings_cls, values)
