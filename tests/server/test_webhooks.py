"""Signatures of webhooks are those of Standard Webhooks."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from craft_server.app import create_app
from craft_server.cli import app
from craft_server.engine import Engine
from craft_server.settings import NoNoticeSecret, Settings
from craft_server.webhooks import secret_bytes, signed

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_a_signature_is_the_one_that_other_libraries_expect() -> None:
    # The example of the Standard Webhooks libraries' own tests.
    headers = signed(
        secret_bytes(SECRET),
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@pytest.mark.parametrize("secret", ["", "hunter2", SECRET[6:], "whsec_c2hvcnQ=", "whsec_%%%"])
def test_what_is_no_secret_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(ValueError, match="openssl rand") as refused:
        Settings(notice_secret=secret)
    assert not secret or secret not in str(refused.value)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_addresses_without_a_secret_keep_a_server_from_serving_and_no_other_command_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    monkeypatch.setenv("CRAFT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("CRAFT_NOTICE_URLS", "https://ops.example/hook")
    for command in (["keys", "list"], ["config", "show"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    served = CliRunner().invoke(app, ["serve", "--port", "0", "--workers", workers])
    assert served.exit_code == 2
    assert served.stderr.count("\n") == 1
    assert "notice_urls" in served.stderr
    assert "CRAFT_NOTICE_SECRET" in served.stderr


def test_no_application_sends_what_it_cannot_sign(tmp_path: Path, tiny_engine: Engine) -> None:
    settings = Settings(data_dir=tmp_path, notice_urls="https://ops.example/hook")
    with pytest.raises(NoNoticeSecret):
        create_app(settings, tiny_engine)


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://ops.example", "https://", "https://user:pw@ops.example/"),
        "https://ops.example:port/hook",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="notice_urls"):
        Settings(notice_urls=url, notice_secret=SECRET)


def test_addresses_and_shares_have_commas_between_them() -> None:
    urls = "https://a.example/hook?x=1, http://127.0.0.1:9"
    settings = Settings(notice_urls=urls, notice_percents="90,100", notice_secret=SECRET)
    assert settings.notice_urls == ("https://a.example/hook?x=1", "http://127.0.0.1:9")
    assert settings.notify_at == (90, 100)
    assert Settings().notify_at == ()
