"""What commands do with a server: connect, wait, open images, upload them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from craft_client.cli.show import Verbosity, counting, say, verbosity

if TYPE_CHECKING:
    from stamina.instrumentation import RetryDetails

    from craft_client.api import Client
    from craft_client.cli.configuration import Setting
    from craft_shared.units import Units
    from craft_shared.wire import ImageSet, ImageUploadAnswer, Limits


# Seconds; shorter waits are worth a line with --verbose alone.
_LONG_WAIT = 1.0
_REPORT_SECONDS = 5.0


@contextmanager
def connect(url: str | None, key: str | None, *, run: str | None = None) -> Iterator[Client]:
    """A client that says on stderr when it waits for the server; `run` is as in `Client`."""
    from craft_client.cli import configuration

    settings = configuration.load(url, key)
    for warning in configuration.warnings(settings):
        say(warning)
    with _saying_waits(), _client_of(settings, run=run) as client:
        yield client


def reporting_client(url: str | None, key: str | None) -> Client:
    """A client beside the command's own, for reports: none is waited for long."""
    from craft_client.cli import configuration

    return _client_of(configuration.load(url, key), timeout=_REPORT_SECONDS)


def _client_of(settings: dict[str, Setting], **options: Any) -> Client:
    from craft_client.api import Client
    from craft_client.cli import configuration

    return Client(settings["url"].value, configuration.api_key(settings), **options)


def check_files(files: Sequence[Path], limits: Limits) -> list[str]:
    """Opens all images, with a progress bar; their files' digests."""
    from craft_client.data import check_images

    with counting("Checking pictures", len(files)) as on_checked:
        return check_images(files, limits, on_checked=on_checked)


def upload(
    client: Client,
    image_set: ImageSet,
    paths: Sequence[Path],
    limits: Limits,
    *,
    idempotency_key: str | None = None,
) -> tuple[ImageSet, Units]:
    """Uploads images in order; gives the filled image set, and what that cost.

    An upload that has a key, unlike any other, is continued under it wherever it was cut off.
    """
    from craft_client.remote import filled

    before = image_set.count
    with _uploading(paths) as on_uploaded, naming_files(paths):

        def on_chunk(answer: ImageUploadAnswer) -> None:
            on_uploaded(answer.image_set.count - before)

        image_set, charged = filled(client, image_set, paths, limits, on_chunk, idempotency_key)
    say(
        f"Image set {image_set.id}: {image_set.count:,} pictures, {charged.images:,} of them newly "
        "encoded."
    )
    return image_set, charged


@contextmanager
def _uploading(paths: Sequence[Path]) -> Iterator[Callable[[int], None]]:
    """Shows how many images are sent; gives the function to call with how many have arrived."""
    from craft_client.network import on_sent

    ends = [0, *accumulate(path.stat().st_size if path.exists() else 0 for path in paths)]
    there = sent = most = 0
    with counting("Uploading pictures", len(paths)) as show:

        def advance(pictures: int) -> None:
            nonlocal most
            most = max(most, pictures)  # what is sent again was shown already
            show(most)

        def count_sent(some: int) -> None:
            nonlocal sent
            sent += some
            advance(bisect_right(ends, ends[there] + sent) - 1)

        def count_there(pictures: int) -> None:
            nonlocal there, sent
            there, sent = pictures, 0
            advance(pictures)

        token = on_sent.set(count_sent)
        try:
            yield count_there
        finally:
            on_sent.reset(token)


@contextmanager
def naming_files(paths: Sequence[Path]) -> Iterator[None]:
    """Turns the server's complaint about `images[i]` into one about the i-th file."""
    from craft_client.exceptions import DataError, InvalidImage

    try:
        yield
    except InvalidImage as error:
        raise DataError(
            "The server cannot use a picture.",
            errors=[
                field.model_copy(update={"field": _file_of(field.field, paths)})
                for field in error.errors
            ],
            remedy=error.remedy,
        ) from error


def _file_of(field: str, paths: Sequence[Path]) -> str:
    from craft_client.exceptions import picture_position

    index = picture_position(field)
    return field if index is None or index >= len(paths) else f"'{paths[index]}'"


@contextmanager
def _saying_waits() -> Iterator[None]:
    """Says on stderr, while the block lasts, what stamina waits for."""
    from stamina.instrumentation import get_on_retry_hooks, set_on_retry_hooks

    hooks = get_on_retry_hooks()
    set_on_retry_hooks([_say_wait])
    try:
        yield
    finally:
        set_on_retry_hooks(hooks)


def _say_wait(details: RetryDetails) -> None:
    wait = details.wait_for
    if wait >= _LONG_WAIT or verbosity() is Verbosity.VERBOSE:
        shown = f"{wait:.0f}" if wait >= _LONG_WAIT else f"{wait:.1f}"
        say(f"Retrying in {shown} s: {reason(details.caused_by)}.")


def reason(error: Exception) -> str:
    """Why a call is sent again, as a clause."""
    from craft_client.exceptions import (
        AnswerLost,
        CallInProgress,
        ConnectionFailed,
        GatewayFailed,
        InternalError,
        Overloaded,
        RateLimited,
    )

    match error:
        case Overloaded():
            return "the server is overloaded"
        case RateLimited():
            return "the key's rate limit is reached"
        case CallInProgress():
            return "the server is still at work on the call"
        case InternalError():
            return "the server failed at the call"
        case GatewayFailed():
            return f"a gateway answered {error.status}"
        case AnswerLost():
            return "the connection broke"
        case ConnectionFailed():
            return "there is no connection to the server"
        case _:
            return str(getattr(error, "message", error)).partition("\n")[0].rstrip(".")
