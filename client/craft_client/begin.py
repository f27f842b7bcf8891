"""How a run on a server begins: what can be checked for free is, then its images are uploaded.

The one sequence of `craft tune`, `craft bench`, `run_method` and the estimator, before
`craft_client.tune.tune`. Nothing is charged before all is checked.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from craft_client import recipes
from craft_client.api import Client
from craft_client.blackbox import check_budgets
from craft_client.data import check_images
from craft_client.exceptions import CraftError, DataError
from craft_client.journal import Journal, JournalError
from craft_client.remote import RemoteBlackBox, check_prompts, filled
from craft_client.settings import TuneSettings
from craft_client.tune import run_document, run_settings
from craft_shared.units import Units
from craft_shared.wire import Budget, Context, ImageSet, Limits, ModelCard


@dataclass(frozen=True)
class Forecast:
    """What a run that may begin will ask and take."""

    card: ModelCard  # the model's
    settings: TuneSettings
    document: Mapping[str, Any]  # see `craft_client.tune.run_document`
    budgets: Sequence[Budget]  # all that bound the key
    need: Units  # at most; of a recipe that looks as it goes, at least
    answer_bytes: int  # likewise


@dataclass(frozen=True)
class Begun:
    """A run whose images are on the server."""

    black_box: RemoteBlackBox
    settings: TuneSettings
    uploaded: Units  # what that was charged


@contextmanager
def begun(
    client: Client,
    journal: Journal,
    images: Sequence[Path | bytes],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    settings_of: Callable[..., TuneSettings],
    *,
    model: str | None = None,
    run: str | None = None,
    temporary: bool = False,
    check: Callable[[Sequence[Any], Limits], Sequence[str]] = check_images,
    upload: Callable[..., tuple[ImageSet, Units]] = filled,
    on_forecast: Callable[[Forecast, Sequence[str]], None] = lambda forecast, digests: None,
    **more: Any,
) -> Iterator[Begun]:
    """Begins a run, or continues the one that a claimed journal has.

    Args:
        client: the connection.
        journal: claimed; what it has is continued.
        images: N encoded files or their paths.
        labels: their classes, int64 [N].
        classes: the C class names.
        settings_of: makes the settings of the model's card, by its argument `card`.
        model: the server's name of it; None for its first.
        run: what the server's ledger calls the run, by which calls are sent again for free; None
            for calls without a name.
        temporary: whether the image set goes when the block ends.
        check: opens the images; gives their files' digests.
        upload: as `craft_client.remote.filled`.
        on_forecast: is called with what the run will take, and the digests, before it begins.
        more: is kept in the journal's document too.

    Raises:
        DataError: an image cannot be used, there are not as many labels, or the run in
            the journal is of others.
        JournalError: it was begun by another recipe.
        SettingsError: the settings, the labels or a budget do not do.
        UnusablePlugin: the recipe cannot be loaded.
        BudgetTooSmall: a budget does not cover the run.
        InvalidRequest: the server cannot use a class name or the template.
        CraftError: see `craft_client.tune.tune`.
    """
    if len(images) != len(labels):
        raise DataError(
            f"There are {len(images):,} images and {len(labels):,} labels.",
            remedy="Give each image one label.",
        )
    before = journal.document
    with ExitStack() as undo:
        if before:
            image_set = client.image_set(before["image_set"])
            card = client.model(image_set.model)
        else:
            card = client.model(model)
        digests = check(images, card.limits)
        if before:
            recipe = settings_of(card=card).recipe
            check_recipe(recipe, journal)
            settings = run_settings(journal, recipe)
            as_before = before.get("digests", digests), before["labels"], before["classes"]
            if as_before != (digests, labels.tolist(), list(classes)):
                raise DataError(
                    f"The run in '{journal.folder}' is of other images, labels or classes.",
                    remedy="Give the same ones in the same order, or name another run directory.",
                )
        else:
            settings = settings_of(card=card)
            image_set = client.create_image_set(card.name)
            undo.callback(_delete, client, image_set)
            forecast = check_run(client, image_set, card, labels, classes, settings)
            on_forecast(forecast, digests)
            journal.begin(
                {
                    **forecast.document,
                    **more,
                    "run": run,
                    "image_set": image_set.id,
                    "digests": digests,
                    "answer_bytes": forecast.answer_bytes,
                    "picture_bytes": bytes_of(images),
                }
            )
            if not temporary:
                undo.pop_all()
        image_set, uploaded = upload(
            client,
            image_set,
            images[image_set.count :],
            card.limits,
            idempotency_key=run and f"{run}/upload",
        )
        black_box = RemoteBlackBox(client, image_set, classes, run=run, card=card)
        yield Begun(black_box, settings, uploaded)


def check_recipe(recipe: str, journal: Journal) -> None:
    """Raises JournalError where another recipe began the journal's run."""
    if not recipes.began(recipe, journal.document):
        raise JournalError(
            f"The run in '{journal.folder}' was begun by "
            f"'{journal.document['settings']['recipe']}', not by '{recipe}'. Nothing was charged.",
            remedy="Continue it with the recipe that began it, or name another folder.",
        )


def check_run(
    client: Client,
    image_set: ImageSet,
    card: ModelCard,
    labels: NDArray[np.int64],
    classes: Sequence[str],
    settings: TuneSettings,
) -> Forecast:
    """Checks a run against what the key may ask, for free, with an image set that is empty.

    Raises:
        CraftError: it cannot be made; see `begun`.
    """
    count = len(labels)
    expected = RemoteBlackBox(client, image_set, classes, card=card).with_count(count)
    budgets = client.budgets()
    document = run_document(expected, labels, settings, budgets=budgets, profile=card.profile)
    questions = settings.questions(expected.units)
    uploads = Units(requests=-(-count // card.limits.images_per_call))
    need = sum((expected.units(question) for question in questions), uploads)
    check_budgets(budgets, need, remedy="Use a smaller --budget, or ask the provider for a top-up.")
    context = Context(dim=settings.dim, seed=settings.seed, scale=settings.scale)
    scored = [*classes, *settings.texts]
    check_prompts(client, image_set, scored, templates=[settings.template], context=context)
    answer_bytes = sum(expected.answer_bytes(question) for question in questions)
    return Forecast(card, settings, document, budgets, need, answer_bytes)


def bytes_of(images: Sequence[Path | bytes]) -> int:
    """Of all files together."""
    return sum(len(one) if isinstance(one, bytes) else one.stat().st_size for one in images)


def run_name(readable: str) -> str:
    """A name for the server's ledger, like no other."""
    sound = re.sub(r"[^A-Za-z0-9._-]+", "_", readable).lstrip("-")[:100]
    return f"{sound}-{uuid.uuid4().hex}"


@contextmanager
def empty_image_set(client: Client, model: str) -> Iterator[ImageSet]:
    """An image set, without images yet, for as long as it is needed."""
    image_set = client.create_image_set(model)
    try:
        yield image_set
    finally:
        _delete(client, image_set)


def _delete(client: Client, image_set: ImageSet) -> None:
    # One that is left behind costs nothing; it must not hide why its use failed.
    with suppress(CraftError):
        client.delete_image_set(image_set.id)
