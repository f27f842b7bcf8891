"""What the operator sets: environment variables `CRAFT_...`, files, or the command line's options.

What should not be in the environment may be in a file: `craft_database_password` in the folder
`CRAFT_SECRETS_DIR`, /run/secrets by default, is what `CRAFT_DATABASE_PASSWORD` would be, and so for
every setting. Options come first, then the environment, then files.

It knows names, defaults and bounds of settings; it does not act on any of them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

import sqlalchemy as sa
from pydantic import Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from craft_shared.wire import Limits

MEBIBYTE = 2**20
SECRETS_VARIABLE = "CRAFT_SECRETS_DIR"

DEFAULT_LIMITS = Limits(
    body_bytes=64 * MEBIBYTE,
    images_per_call=256,
    image_bytes=20 * MEBIBYTE,
    image_pixels=50_000_000,
    images_per_set=200_000,
    prompts_per_call=256,
    classes=2000,
    dim=4096,
    answer_bytes=256 * MEBIBYTE,
)


class Settings(BaseSettings):
    """The server's settings.

    Attributes:
        data_dir: folder of the SQLite database; made if it does not exist.
        database_url: `postgresql://...` or `sqlite:///...`; None means SQLite in `data_dir`.
        database_password: goes into `database_url`, which need not hold one then.
        model: the model's name, `pocket` or one of open_clip's.
        pretrained: which weights of an open_clip model, or a checkpoint's path.
        device: where the model runs; `auto` takes a GPU where there is one.
        precision: of the model's arithmetic; `auto` is exact on a CPU, `fastest` measures what the
            device is fastest at.
        host: address to listen on.
        port: TCP port to listen on; 0 takes a free one.
        workers: processes that speak HTTP; with 2 or more, the model has a process of its own.
        limits: what one call may hold; one of them is set by, say, `CRAFT_LIMITS__BODY_BYTES`.
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
        output_policy: a plug-in's, which narrows what keys see; None adds nothing to their own
            policies.
        profile: of the provider to simulate: a shipped one's name, or a TOML file; None simulates
            none.
        receipt_issuer: what receipts call the provider, such as the server's public address; None
            means the signing key's thumbprint.
        console_session_hours: how long a person stays signed in to the console.
        sign_ins_per_minute: to the console from one address, tried.
    """

    model_config = SettingsConfigDict(
        env_prefix="CRAFT_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
        extra="ignore",
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
    workers: int = Field(default=1, ge=1, le=64)
    limits: Limits = DEFAULT_LIMITS
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
    output_policy: str | None = None
    profile: str | None = None
    receipt_issuer: str | None = Field(default=None, min_length=1, max_length=200)
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
        """See pydantic-settings; the folder is told by the environment."""
        folder = Path(os.environ.get(SECRETS_VARIABLE, "/run/secrets"))
        files = [SecretsSettingsSource(settings_cls, folder)] if folder.is_dir() else []
        return (init_settings, env_settings, *files)

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
