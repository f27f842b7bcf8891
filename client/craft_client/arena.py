"""The arena: what a tuning method is written against, and `run_method`, which runs one.

A method is a function of one `Run` that returns an `Outcome`; its keyword arguments, with defaults,
are settings of its own. Written so it is charged exactly, keeps within budgets of any unit, is
resumed where it was killed, and stands in the same tables as all others. docs/own-tuner.md has a
whole one; the names here are public (docs/reference/public-api.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from craft_client import recipes
from craft_client.api import Client
from craft_client.begin import begun, check_recipe, run_name
from craft_client.blackbox import Question
from craft_client.exceptions import DataError
from craft_client.journal import Journal
from craft_client.losses import accuracy, accuracy_on_unseen, cross_entropy
from craft_client.pictures import Picture, files
from craft_client.presets import recipe_settings
from craft_client.recipes import Run as Method
from craft_client.settings import TuneSettings
from craft_client.tune import TuneProgress, TuneResult, run_settings, tune
from craft_client.tuning_run import Candidate, Outcome, Reading
from craft_client.tuning_run import TuningRun as Run
from craft_shared.head import LinearHead, Unrefined, centred, centred_inputs, log_softmax

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
        settings: of `craft_client.settings.TuneSettings`, such as `budget=1_000_000,
            budget_unit="predictions"` and `seed=1`; `options` are the method's own.

    Raises:
        CraftError: see `craft_client.tune.tune`.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    # What is no class is refused with all else that is wrong with the task.
    rows = [numbers.get(one, -1) if isinstance(one, str) else int(one) for one in labels]
    found = np.array(rows, np.int64)
    encoded = list(files(images))
    with ExitStack() as stack:
        name = method if isinstance(method, str) else stack.enter_context(recipes.added(method))
        settings_of = partial(recipe_settings, name, "", None, classes=classes, **settings)
        if temporary := run_dir is None:
            run_dir = Path(stack.enter_context(TemporaryDirectory())) / "run"
        journal = stack.enter_context(Journal.claimed(Path(run_dir)))
        if journal.document:
            _check_same(journal, settings_of(), settings)
        run = journal.document.get("run") or run_name(recipes.label(name))
        client = client or stack.enter_context(Client(run=run))
        started = stack.enter_context(
            begun(
                client,
                journal,
                encoded,
                found,
                classes,
                settings_of,
                model=model,
                run=run,
                temporary=temporary,
            )
        )
        box = started.black_box
        return tune(box, found, started.settings, journal, on_progress, pictures=encoded)


def _check_same(journal: Journal, wanted: TuneSettings, given: Mapping[str, Any]) -> None:
    """Raises DataError where a run that is continued began with other settings than are given."""
    check_recipe(wanted.recipe, journal)
    began = run_settings(journal, wanted.recipe)
    for name in given:
        if getattr(began, name, None) != getattr(wanted, name, None):
            raise DataError(
                f"The run in '{journal.folder}' began with {name}={getattr(began, name)!r}.",
                remedy="Give the same settings, or name another run directory.",
            )
