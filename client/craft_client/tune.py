"""Tuning: a task and settings in, an adapter out, by the recipe that the settings name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from threadpoolctl import threadpool_limits

from craft_client import recipes
from craft_client.blackbox import BlackBox
from craft_client.exceptions import CraftError
from craft_client.journal import Journal, JournalError
from craft_client.pictures import Picture
from craft_client.run_folder import RUN_FILE
from craft_client.settings import SettingsError, TuneSettings, shows_texts
from craft_client.tuning_run import AnswerError, Outcome, TuneProgress, TuningRun
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.display import Displayed, View
from craft_shared.head import HEAD_KINDS
from craft_shared.names import made_sound
from craft_shared.plugins import PluginError
from craft_shared.problems import FieldError, first_error
from craft_shared.units import Units
from craft_shared.wire import Budget, Output, Provenance, ProviderProfile

__all__ = [
    "AnswerError",
    "SettingsError",
    "TuneProgress",
    "TuneResult",
    "TuneSettings",
    "run_document",
    "run_settings",
    "tune",
]

_log = logging.getLogger(__name__)

Labels = NDArray[np.int64]

RUN_SCHEMA = 4


@dataclass(frozen=True, repr=False)
class TuneResult(Displayed):
    """What a run came to."""

    adapter: Adapter
    accuracy_before: float  # of the plain prompt on the training images, percent
    accuracy_after: float | None  # held out, percent (`craft_client.losses`); None: nothing was
    units: Units
    stopped_by: str | None  # the budget that ended the search before the run's own, in words
    history: list[dict[str, Any]]  # as in `TuningRun`

    def _view(self) -> View:
        return View(
            f"of {self.adapter.digest[:12]}",
            {
                "accuracy before, %": self.accuracy_before,
                "accuracy after, %": self.accuracy_after,
                **self.units.model_dump(),
                "stopped by": self.stopped_by,
            },
        )


def run_document(
    black_box: BlackBox,
    labels: Labels,
    settings: TuneSettings,
    *,
    budgets: Sequence[Budget] | None = None,
    profile: ProviderProfile | None = None,
    **more: Any,
) -> dict[str, Any]:
    """What `Journal.create` is given for a run: all that it depends on.

    Args:
        black_box: answers for N images and C classes.
        labels: the images' classes, int64 [N].
        settings: what to do.
        budgets: that bound the key; the black box is asked for them when None.
        profile: of the provider that the model's server simulates, if it does.
        more: is stored too. Of it `digests` is read: of the N images' files, by which copies of one
            image are held out together.

    Raises:
        SettingsError: the run cannot be done; no directory need be made.
        UnusablePlugin: the recipe cannot be loaded.
    """
    if budgets is None:
        budgets = black_box.budgets()
    settings.check_task(labels, black_box.classes, budgets, black_box.units)
    recipe, plugin = recipes.recipe_of(settings.recipe), recipes.plugin_of(settings.recipe)
    # What cannot be run is refused before anything is paid for.
    recipe.load()
    if recipe.reads_texts and not shows_texts(black_box.output):
        error = FieldError(
            field="recipe",
            message=f"'{recipe.name}' scores texts in the place of class names; answers of level "
            f"'{black_box.output.level}' show too little of them.",
            remedy="Use a key that sees log-probabilities, or another recipe.",
        )
        raise SettingsError("The settings cannot be used.", errors=[error])
    return {
        "schema_version": RUN_SCHEMA,
        "craftbox": version("craftbox"),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": black_box.model,
        "revision": black_box.revision,
        "profile": None if profile is None else profile.model_dump(),
        "settings": asdict(settings),
        "plugin": None if plugin is None else str(plugin),
        "output": black_box.output.model_dump(mode="json"),
        "prompts_per_image_set": black_box.prompt_limit,
        "classes": list(black_box.classes),
        "labels": labels.tolist(),
        **more,
    }


def run_settings(journal: Journal, recipe: str | None = None) -> TuneSettings:
    """The settings of a run that `run_document` described, of a recipe that may have been moved.

    Raises:
        JournalError: another version of craftbox began it, or a setting is not one.
    """
    if journal.document.get("schema_version") != RUN_SCHEMA:
        raise JournalError(
            f"The run in '{journal.folder}' was begun by another version of craftbox.",
            remedy="Resume it with that version, or tune anew.",
        )
    settings = journal.document.get("settings")
    if recipe is not None and isinstance(settings, Mapping):
        settings = {**settings, "recipe": recipe}
    try:
        return TypeAdapter(TuneSettings).validate_python(settings)
    except ValidationError as error:
        raise JournalError(
            f"'{journal.folder / RUN_FILE}' has a setting that cannot be used: "
            f"{first_error(error, 'settings')}.",
            remedy="Put it right in that file, or tune anew.",
        ) from error


def tune(
    black_box: BlackBox,
    labels: Labels,
    settings: TuneSettings,
    journal: Journal,
    on_progress: Callable[[TuneProgress], None] = lambda progress: None,
    pictures: Sequence[Picture] | None = None,
) -> TuneResult:
    """Tunes prompts and a head for the black box's images.

    Equal arguments and answers give equal adapters, byte for byte. A journal that has answers
    already is continued: they are not asked for again. Memory holds one generation's answers and
    those that heads read. The search ends in good order before a generation that a budget does not
    cover.

    Args:
        black_box: answers for N images and C classes.
        labels: the images' classes, int64 [N].
        settings: what to do.
        journal: of this run; gets every paid answer before it is used, and the adapter.
        on_progress: called after each request and at the end.
        pictures: the images, for recipes that make others of them; read when they do.

    Raises:
        SettingsError: the run cannot be done; nothing was asked.
        InUse: another process is at the run; nothing was asked.
        AnswerError: an answer was not finite or had the wrong shape.
        JournalError: the journal cannot be written, belongs to another run, or the key sees other
            answers than when the run began.
        UnusablePlugin: the recipe is a plug-in's, and failed or ended in no head that
            servers know.
        CraftError: the black box refused or failed. The journal has what was paid until then.
    """
    _check_output(black_box, journal)
    budgets = black_box.budgets()
    with journal.alone():
        run = TuningRun(black_box, labels, settings, journal, budgets, on_progress, pictures)
        _say_if_changed(settings.recipe, journal)
        if not run.answers.replaying:
            settings.check_task(labels, black_box.classes, budgets, black_box.units)
        # The paper's head is too small for several cores, which would only wait for each other.
        like_paper = recipes.recipe_of(settings.recipe).like_paper
        with threadpool_limits(1 if like_paper else None, "blas"):
            result, outcome = _tuned(run, black_box, journal)
        journal.finish(result.adapter, _summary(result, outcome))
    last = run.history[-1]
    best_loss = last["best_loss"] if outcome.best_loss is None else outcome.best_loss
    run.report("deploy", last["loss"], best_loss, result.accuracy_after)
    return result


def _tuned(run: TuningRun, black_box: BlackBox, journal: Journal) -> tuple[TuneResult, Outcome]:
    settings = run.settings
    recipe, plugin = recipes.recipe_of(settings.recipe), recipes.plugin_of(settings.recipe)
    tunes = recipe.load()
    if plugin is None:
        outcome = tunes(run, **settings.options)
        return _result(outcome, run, black_box, journal), outcome
    with recipes.usable_plugins(), plugin.running(CraftError):
        outcome = tunes(run, **settings.options)
        if not isinstance(outcome, Outcome):
            raise PluginError(f"{plugin} returned a {type(outcome).__name__}, not an Outcome")
        if outcome.head.kind not in HEAD_KINDS:
            raise PluginError(
                f"{plugin} ended in a head of kind '{outcome.head.kind}'; servers know "
                f"{', '.join(HEAD_KINDS)}"
            )
        if not run.history:
            raise PluginError(f"{plugin} reported nothing, and begins with `run.plain()`")
        return _result(outcome, run, black_box, journal), outcome


def _say_if_changed(recipe: str, journal: Journal) -> None:
    """Says where what tunes is not what it was, as when it was mended. Its answers stay paid."""
    plugin, began = recipes.plugin_of(recipe), journal.document.get("plugin")
    if plugin is not None and str(plugin) != began:
        _log.warning("the run in '%s' goes on by %s; it began by %s", journal.folder, plugin, began)


def _check_output(black_box: BlackBox, journal: Journal) -> None:
    # Runs that earlier versions began saw everything.
    began = Output.model_validate(journal.document.get("output", {}))
    if began != black_box.output:
        raise JournalError(
            f"The key sees answers of level '{black_box.output.level}'; when the run in "
            f"'{journal.folder}' began, it saw others, of level '{began.level}'.",
            remedy="Resume it with a key of that level, or tune anew.",
        )


def _result(outcome: Outcome, run: TuningRun, black_box: BlackBox, journal: Journal) -> TuneResult:
    settings, data = run.settings, journal.document.get("data")
    codes = run.no_codes if outcome.codes is None else outcome.codes
    before = run.accuracy_before if outcome.accuracy_before is None else outcome.accuracy_before
    if before is None:
        raise CraftError(
            f"'{settings.recipe}' does not say how good the plain prompt is.",
            remedy="Begin with `run.plain()`, or give the Outcome `accuracy_before`.",
        )
    try:
        adapter = _adapter(outcome, run, black_box, codes, before, data)
    except ValueError as error:  # of the adapter, of its tensors, or of its document
        why = first_error(error) if isinstance(error, ValidationError) else str(error)
        if (plugin := recipes.plugin_of(settings.recipe)) is not None:
            raise PluginError(f"{plugin} ended in no adapter: {why}") from error
        raise CraftError(
            f"'{settings.recipe}' ended in no adapter: {why.removesuffix('.')}.",
            remedy="Report it. What was paid for is in the run's journal.",
        ) from error
    return TuneResult(
        adapter,
        before,
        outcome.accuracy_after,
        run.answers.units,
        run.stopped_by,
        run.history,
    )


def _adapter(
    outcome: Outcome,
    run: TuningRun,
    black_box: BlackBox,
    codes: NDArray[np.float32],
    before: float,
    data: object,
) -> Adapter:
    settings, visual = run.settings, outcome.visual
    if visual is not None:
        visual = np.asarray(visual, np.float32)
        _check_visual(visual, black_box.image_size)
    config = AdapterConfig(
        model=black_box.model,
        revision=black_box.revision,
        access_mode="open-text" if outcome.texts else "strict",
        classes=list(black_box.classes),
        texts=list(outcome.texts),
        templates=[settings.template, *outcome.templates],
        context=run.context if len(codes) else None,
        codes=len(codes),
        head=outcome.head.kind,
        visual=None if visual is None else len(visual),
        output=black_box.output,
        provenance=Provenance(
            recipe=made_sound(recipes.label(settings.recipe))[:64],
            # Of its path the name alone: who serves the adapter need not know the tuner's folders.
            data=made_sound(PurePath(data).name)[:200] if isinstance(data, str) else None,
            shots=settings.shots,
            seed=settings.seed,
            accuracy_before=before,
            accuracy_after=outcome.accuracy_after,
            units=run.answers.units,
        ),
    )
    # Read back from its bytes: what is deployed is data, whatever object a recipe made.
    return Adapter.from_bytes(Adapter(config, codes, outcome.head, visual).to_bytes())


def _check_visual(visual: NDArray[np.float32], side: int) -> None:
    if visual.shape != (side, side, 3):
        raise CraftError(
            f"The method ended in a visual prompt of shape {visual.shape}; the model reads "
            f"{(side, side, 3)}.",
            remedy="Make one of the shape that `run.images` have.",
        )


def _summary(result: TuneResult, outcome: Outcome) -> dict[str, Any]:
    return {
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "accuracy_before": result.accuracy_before,
        "accuracy_after": result.accuracy_after,
        "units": result.units.model_dump(),
        "stopped_by": result.stopped_by,
        "adapter": result.adapter.digest,
        "deployed": outcome.deployed,
        "candidates": [asdict(candidate) for candidate in outcome.candidates],
        "history": result.history,
    }
