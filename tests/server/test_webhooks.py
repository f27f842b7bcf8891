"""Signatures of webhooks are those of Standard Webhooks."""

from __future__ import annotations

import pytest

from craft_server.settings import Settings
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


def test_an_address_without_a_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="needs notice_secret"):
        Settings(notice_urls="https://ops.example/hook")


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
