"""The arena: what a tuning method is written against, and `run_method`, which runs one.

A method is a function of one `Run` that returns an `Outcome`; its keyword arguments, with defaults,
are settings of its own. Written so it is charged exactly, keeps within budgets of any unit, is
resumed where it was killed, and stands in the same tables as all others. docs/own-tuner.md has a
whole one; the names here are public (docs/public-api.md).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from craft_client import recipes
from craft_client.api import Client
from craft_client.blackbox import Question
from craft_client.data import digest_of
from craft_client.exceptions import CraftError, DataError
from craft_client.journal import Journal
from craft_client.losses import accuracy, accuracy_on_unseen, cross_entropy
from craft_client.pictures import Picture, files
from craft_client.presets import recipe_settings
from craft_client.recipes import Option
from craft_client.recipes import Run as Method
from craft_client.remote import RemoteBlackBox, filled
from craft_client.settings import TuneSettings
from craft_client.tune import TuneProgress, TuneResult, run_document, run_settings, tune
from craft_client.tuning_run import Candidate, Outcome, Reading
from craft_client.tuning_run import TuningRun as Run
from craft_shared.head import LinearHead, Unrefined, centred, centred_inputs, log_softmax
from craft_shared.units import Units
from craft_shared.wire import ImageSet, ModelCard

__all__ = [
    "Candidate",
    "LinearHead",
    "Method",
    "Outcome",
    "Question",
    "Reading",
    "Run",
    "TuneProgress",
    "TuneResult",
    "Unrefined",
    "accuracy",
    "accuracy_on_unseen",
    "centred",
    "centred_inputs",
    "cross_entropy",
    "log_softmax",
    "run_method",
    "tuned",
]


def run_method(
    method: Method | str,
    images: Iterable[Picture],
    labels: Sequence[int] | Sequence[str] | NDArray[np.int64],
    classes: Sequence[str],
    *,
    client: Client | None = None,
    model: str | None = None,
    run_dir: str | Path | None = None,
    on_progress: Callable[[TuneProgress], None] = lambda progress: None,
    options: Mapping[str, Option] | None = None,
    **settings: Any,
) -> TuneResult:
    """Runs a method on images of yours: uploads them, tunes, and gives the adapter.

    Args:
        method: a function, the name of a recipe, or `FILE.py:NAME`.
        images: N images; see `craft_client.pictures`.
        labels: their classes: names, or row numbers of `classes`.
        classes: the class names.
        client: the connection; None for one made from CRAFT_URL and CRAFT_API_KEY.
        model: the server's name of the model; None for its first.
        run_dir: of the run; one that was begun is continued, with the same images and method. None
            for a temporary one.
        on_progress: called after each request that is reported.
        options: settings of the method's own.
        settings: of `craft_client.settings.TuneSettings`, such as `budget=1_000_000,
            budget_unit="predictions"` and `seed=1`.

    Raises:
        CraftError: see `craft_client.tune.tune`.
    """
    name = method if isinstance(method, str) else recipes.add(method)
    numbers = {name: number for number, name in enumerate(classes)}
    # What is no class is refused with all else that is wrong with the task.
    rows = [numbers.get(one, -1) if isinstance(one, str) else int(one) for one in labels]
    found = np.array(rows, np.int64)
    encoded = list(files(images))
    settings_of = partial(
        recipe_settings, name, "", None, classes=classes, options=options, **settings
    )
    with ExitStack() as stack:
        temporary = run_dir is None
        if run_dir is None:
            run_dir = Path(stack.enter_context(TemporaryDirectory())) / "run"
        journal = stack.enter_context(Journal.claimed(Path(run_dir)))
        run = journal.document.get("run") or f"{recipes.label(name)}-{uuid.uuid4().hex}"[-200:]
        client = client or stack.enter_context(Client(run=run))
        if journal.document:
            image_set = client.image_set(journal.document["image_set"])
            card = client.model(image_set.model)
        else:
            card = client.model(model)
            image_set = client.create_image_set(card.name)
        if temporary:
            stack.enter_context(suppress(CraftError))
            stack.callback(client.delete_image_set, image_set.id)
        return tuned(
            client, image_set, card, encoded, found, classes, settings_of, journal, run, on_progress
        )[0]


def tuned(
    client: Client,
    image_set: ImageSet,
    card: ModelCard,
    encoded: Sequence[bytes],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    settings_of: Callable[..., TuneSettings],
    journal: Journal,
    run: str | None = None,
    on_progress: Callable[[TuneProgress], None] = lambda progress: None,
) -> tuple[TuneResult, Units]:
    """Fills the image set and tunes; gives the result and what uploading was charged.

    `settings_of` makes the settings of the model's card. A journal that has a run is continued;
    otherwise the run is checked, and begun, before anything is charged.

    Raises:
        DataError: the run in the journal is of other images.
        CraftError: see `craft_client.tune.tune`.
    """
    digests = [digest_of(file) for file in encoded]
    box = RemoteBlackBox(client, image_set, classes, run=run, card=card)
    if journal.document:
        settings = run_settings(journal)
        begun = journal.document
        if (begun["digests"], begun["labels"]) != (digests, labels.tolist()):
            raise DataError(
                f"The run in '{journal.folder}' is of other images or labels.",
                remedy="Give the same ones in the same order, or name another run directory.",
            )
    else:
        settings = settings_of(card=card)
        # Checked as it will be, because uploading is charged.
        expected = box.with_count(len(encoded))
        about = run_document(
            expected,
            labels,
            settings,
            profile=card.profile,
            run=run,
            image_set=image_set.id,
            digests=digests,
        )
        journal.begin(about)
    image_set, uploaded = filled(
        client,
        image_set,
        encoded[image_set.count :],
        card.limits,
        idempotency_key=run and f"{run}/upload",
    )
    box = RemoteBlackBox(client, image_set, classes, run=run, card=card)
    return tune(box, labels, settings, journal, on_progress, pictures=encoded), uploaded
