"""What commands do with a server: connect, check what is left, upload pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from craft_client.budgets import name, shortfall
from craft_client.cli.show import say, stderr
from craft_client.exceptions import CraftError, DataError, InvalidImage, picture_position
from craft_shared.units import Units

if TYPE_CHECKING:
    from stamina.instrumentation import RetryDetails

    from craft_client.api import Client
    from craft_client.data import Sample
    from craft_shared.wire import ImageSet, ImageUploadAnswer, Limits


# Seconds; shorter waits are not worth a line.
_LONG_WAIT = 1.0


@contextmanager
def connect(url: str | None, key: str | None, *, run: str | None = None) -> Iterator[Client]:
    """A client that says on stderr when it waits for the server; `run` is as in `Client`."""
    from stamina.instrumentation import get_on_retry_hooks, set_on_retry_hooks

    from craft_client.api import Client

    def waiting(details: RetryDetails) -> None:
        if details.wait_for >= _LONG_WAIT:
            first_line = str(details.caused_by).partition("\n")[0]
            say(f"{first_line} Trying again in {details.wait_for:.0f} s.")

    hooks = get_on_retry_hooks()
    set_on_retry_hooks([waiting])
    try:
        with Client(url, key, run=run) as client:
            yield client
    finally:
        set_on_retry_hooks(hooks)


def check_budgets(client: Client, need: Units, *, remedy: str) -> None:
    """Raises CraftError when a budget of the key or its team does not cover the need. Free.

    Pictures that the server has seen cost nothing, so that `need` should not count them.
    """
    short = shortfall(client.budgets(), need)
    if short:
        raise CraftError(
            f"This needs {short.needed:,} {short.budget.unit}; {name(short.budget)} has "
            f"{short.budget.remaining:,} left. Nothing was charged.",
            remedy=remedy,
        )


def check_files(samples: Sequence[Sample], limits: Limits) -> None:
    """Opens all pictures, with a progress bar."""
    from craft_client.data import check_pictures

    with progress_bar() as progress:
        task = progress.add_task("Checking pictures", total=len(samples))
        check_pictures(
            samples, limits, on_checked=lambda count: progress.update(task, completed=count)
        )


def upload(
    client: Client, image_set: ImageSet, samples: Sequence[Sample]
) -> tuple[ImageSet, Units]:
    """Uploads the samples' pictures in order, with a progress bar.

    Returns:
        The image set with its new count, and what the upload cost.
    """
    charged = Units()
    with progress_bar() as progress:
        task = progress.add_task("Uploading pictures", total=len(samples))

        def on_chunk(answer: ImageUploadAnswer) -> None:
            nonlocal charged
            charged += answer.cost.charged
            progress.update(task, completed=answer.image_set.count)

        with naming_files([sample.path for sample in samples]):
            image_set = client.upload_images(
                image_set, (sample.path.read_bytes() for sample in samples), on_chunk=on_chunk
            )
    say(
        f"Image set {image_set.id}: {image_set.count:,} pictures, {charged.images:,} of them newly "
        "encoded."
    )
    return image_set, charged


@contextmanager
def naming_files(paths: Sequence[Path]) -> Iterator[None]:
    """Turns the server's complaint about `images[i]` into one about the i-th file."""
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
    index = picture_position(field)
    return field if index is None or index >= len(paths) else f"'{paths[index]}'"


def progress_bar() -> Progress:
    """A bar for something that is counted; on a terminal alone."""
    console = stderr()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
