"""`craft tune`: few-shot images in, a run directory with an adapter out.

What can be checked for free is checked before anything is paid for.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from craft_client.cli.options import (
    DATA,
    PLAIN_TEMPLATE,
    AsJson,
    Budget,
    Key,
    Model,
    ShotsStrict,
    Strict,
    Template,
    Url,
    budget_of,
    flag,
    option,
    options_of,
    recipes,
    run_folders,
)
from craft_client.cli.root import command
from craft_client.cli.session import check_files, connect, reporting_client, upload
from craft_client.cli.show import document, percent, say, size, table, watch
from craft_client.recipes import OWN, described, is_file, label, resolved
from craft_client.run_folder import RUN_FILE
from craft_shared.amounts import SPARE_UNITS, UNITS, counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from craft_client.api import Client
    from craft_client.begin import Forecast
    from craft_client.data import Dataset, Sample, Split
    from craft_client.journal import Journal
    from craft_client.run_report import RunReporter
    from craft_client.tune import TuneResult, TuneSettings
    from craft_shared.units import Units
    from craft_shared.wire import ImageSet, Level, Limits, ModelCard


_RUN = "The run"
_TUNING = "Tuning"
_TEXTS = "craftbox's questions"
_PARTS = "Switch parts of the paper's recipe off, to measure what each is worth"
_LIKE_PAPER = ", ".join(name for name, recipe in OWN.items() if recipe.like_paper)

# Measured on photographs: docs/output-levels.md.
_EXPECT: dict[Level, str] = {
    "label": "Expect four to seven tenths of what tuning gains from whole answers, for more cost.",
    "top_k": "Expect six to nine tenths of what tuning gains from whole answers, by k.",
    "probs": "Expect eight tenths of what tuning gains from whole answers, or more, by decimals.",
    "log_probs": "Expect about what tuning gains from whole answers; less, the more noise.",
}
_TRAFFIC = ("answer_bytes", "picture_bytes")


def _scale(text: str | None) -> str | None:
    from craft_shared.wire import AbsoluteScale

    if text is not None and text not in get_args(AbsoluteScale):
        try:
            float(text)
        except ValueError as error:
            names = ", ".join(get_args(AbsoluteScale))
            raise typer.BadParameter(f"'{text}' is neither a number nor one of {names}.") from error
    return text


@command(
    "Tune and measure",
    "craft tune --data digits --shots 16 --seed 1",
    "craft tune --data digits --recipe paper --run runs/long --report",
    "craft tune --resume runs/long",
    first=("data", "shots", "recipe", "budget", "run"),
)
def tune(
    context: typer.Context,
    data: Annotated[Path | None, DATA] = None,
    shots: Annotated[int, option("Training pictures a class.", True, min=1)] = 16,
    shots_strict: ShotsStrict = False,
    recipe: Annotated[
        str,
        option(
            f"The method: {', '.join(OWN)}; a plug-in's; or your own, FILE.py:NAME."
            f"\n\n{described()}.",
            True,
            autocompletion=recipes,
        ),
    ] = "craftbox",
    budget: Budget = None,
    seed: Annotated[
        int,
        option(
            "Draws the training pictures and the codes. The same seed repeats a run exactly; "
            "use several seeds to measure the spread.",
            True,
            min=0,
        ),
    ] = 1,
    run: Annotated[
        Path | None,
        option("A new or empty run directory.", "runs/NAME-SHOTSshots-seedSEED", panel=_RUN),
    ] = None,
    resume: Annotated[
        Path | None,
        option(
            "Continue the interrupted run in this directory. Answers that are paid for are not "
            "charged again. A run of your own method also needs --recipe FILE.py:NAME, because "
            "craft runs no code that only a run directory names.",
            panel=_RUN,
            autocompletion=run_folders,
        ),
    ] = None,
    report: Annotated[
        bool,
        flag(
            "--report",
            "Show the run's curve in the server's console while it runs. Free.",
            panel=_RUN,
        ),
    ] = False,
    model: Model = None,
    template: Template = PLAIN_TEMPLATE,
    population: Annotated[
        int | None, option("Codes in each generation of a search.", "40", panel=_TUNING)
    ] = None,
    dim: Annotated[int | None, option("Length of a code.", "512", panel=_TUNING)] = None,
    random_codes: Annotated[
        int | None,
        option(
            "In strict access: the most random codes that craftbox asks. It stops earlier when "
            "more would add nothing. Give fewer to save queries or to keep the adapter small.",
            "127; 255 if answers are labels or top_k",
            panel=_TUNING,
        ),
    ] = None,
    scale: Annotated[
        str | None,
        option(
            "How far codes move the prompt, in standard deviations of the model's token "
            "embeddings; or a scale of the released code by name: paper, paper-wide, "
            "paper-imagenet.",
            f"3.0; {_LIKE_PAPER}: the paper's, by data set",
            panel=_TUNING,
            callback=_scale,
        ),
    ] = None,
    sigma: Annotated[
        float | None,
        option(
            "The search's first standard deviation.",
            f"1.0; {_LIKE_PAPER}: the paper's, by data set",
            panel=_TUNING,
        ),
    ] = None,
    consistency_weight: Annotated[
        float | None,
        option(
            "Weight of the paper's consistency loss.",
            "0.1; paper: its own, by data set",
            panel=_TUNING,
        ),
    ] = None,
    own: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A setting of the recipe, such as batch=32; repeatable (docs/methods.md).",
            show_default=False,
            metavar="NAME=VALUE",
            rich_help_panel=_TUNING,
        ),
    ] = None,
    strategy: Annotated[
        Literal["cma-es", "random", "spsa"],
        option("How the paper's recipe searches.", True, panel=_TUNING),
    ] = "cma-es",
    strict: Strict = False,
    texts: Annotated[
        Path | None,
        option(
            "A vocabulary to score beside the class names: a file with one text a line.",
            "about a thousand common nouns",
            panel=_TEXTS,
        ),
    ] = None,
    keep_texts: Annotated[
        int | None,
        option(
            "The most texts of the vocabulary that the head reads. Give fewer for a small adapter.",
            "as many as are needed",
            panel=_TEXTS,
        ),
    ] = None,
    no_search: Annotated[
        bool, flag("--no-search", "Do not search; keep the plain prompt.", panel=_PARTS)
    ] = False,
    no_refinement: Annotated[
        bool,
        flag(
            "--no-refinement",
            "Train no head; deploy the searched prompt alone.",
            panel=_PARTS,
        ),
    ] = False,
    no_consistency: Annotated[
        bool, flag("--no-consistency", "Leave out the consistency loss.", panel=_PARTS)
    ] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Tune the model on a few pictures a class, within a budget."""
    from craft_client.journal import Journal
    from craft_client.layouts import load_dataset
    from craft_client.presets import read_vocabulary

    started = time.monotonic()
    if resume is not None:
        _refuse_other_options(context)
        task, folder = task_of(resume, recipe if _is_given(context, "recipe") else None), resume
    else:
        if data is None:
            raise typer.BadParameter("Name the pictures' folder.", param_hint="--data")
        if strict and texts is not None:
            raise typer.BadParameter("strict access has no vocabulary.", param_hint="--texts")
        dataset = load_dataset(data)
        for note in dataset.notes:
            say(note)
        amount, unit = budget_of(budget)
        task = new_task(
            dataset,
            recipe,
            shots,
            seed,
            shots_strict=shots_strict,
            vocabulary=None if texts is None else read_vocabulary(texts),
            strict=strict,
            budget=amount,
            budget_unit=unit,
            options=options_of(own or ()),
            population=population,
            dim=dim,
            random_codes=random_codes,
            scale=scale if scale is None or scale.startswith("paper") else float(scale),
            sigma=sigma,
            strategy=strategy,
            search=not no_search,
            refinement=not no_refinement,
            consistency=not no_consistency,
            consistency_weight=consistency_weight,
            template=template,
            keep_texts=keep_texts,
        )
        folder = run or Path("runs") / f"{dataset.name}-{shots}shots-seed{seed}"
    with Journal.claimed(folder, new=resume is None) as journal, _saying_how_to_continue(journal):
        tuned = tune_task(task, journal, model, url, key, report=report)
    _report(journal, *tuned, time.monotonic() - started, as_json=as_json)


def _refuse_other_options(context: typer.Context) -> None:
    with_resume = {"resume", "recipe", "report", "url", "key", "as_json"}
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name is not None
        and parameter.name not in with_resume
        and _is_given(context, parameter.name)
    ]
    if given:
        raise typer.BadParameter(
            f"leave {', '.join(given)} out: a resumed run continues as it began.",
            param_hint="--resume",
        )


def _is_given(context: typer.Context, parameter: str) -> bool:
    return getattr(context.get_parameter_source(parameter), "name", "") == "COMMANDLINE"


@contextmanager
def _saying_how_to_continue(journal: Journal) -> Iterator[None]:
    """Says how to continue a run that ends early."""
    try:
        yield
    except BaseException:
        if journal.document:
            say(f"The run ended early. Continue it: {_continuing(journal)}")
        raise


def _continuing(journal: Journal) -> str:
    """The command that continues a run."""
    recipe: str = journal.document["settings"]["recipe"]
    again = ["--recipe", recipe] if is_file(recipe) else []
    return shlex.join(["craft", "tune", "--resume", str(journal.folder), *again])


def _report(
    journal: Journal,
    result: TuneResult,
    image_set: ImageSet,
    uploaded: Units,
    seconds: float,
    *,
    as_json: bool,
) -> None:
    from craft_shared.units import Units

    folder, begun = journal.folder, journal.document
    charged = uploaded + result.units
    unseen = charged + Units(images=image_set.count - uploaded.images)
    if as_json:
        document(
            {
                "run": str(folder),
                "model": image_set.model,
                "revision": image_set.revision,
                "profile": begun.get("profile"),
                "image_set": image_set.id,
                "pictures": image_set.count,
                "accuracy_before": result.accuracy_before,
                "accuracy_after": result.accuracy_after,
                "prompts": result.adapter.config.prompts,
                "texts": result.adapter.config.texts,
                "seconds": seconds,
                "output": result.adapter.config.output.model_dump(mode="json"),
                "stopped_by": result.stopped_by,
                "charged": charged.model_dump(),
                "charged_of_unseen": unseen.model_dump(),
                # A run that an earlier version began has no word of its traffic.
                **{name: begun[name] for name in _TRAFFIC if name in begun},
                "history": result.history,
            }
        )
        return
    table(
        [f"{image_set.count:,} training pictures", "accuracy"],
        [
            ["before: the plain prompt", percent(result.accuracy_before)],
            ["after: the adapter, each picture held out", percent(result.accuracy_after)],
        ],
    )
    table(
        ["charged", *UNITS],
        [
            [name, *(units[unit] for unit in UNITS)]
            for name, units in (
                ("upload", uploaded),
                ("tuning", result.units),
                ("total", charged),
                ("total if all were new", unseen),
            )
        ],
        spare=SPARE_UNITS,
    )
    if result.stopped_by:
        say(f"Stopped before the run's own budget was used up: {result.stopped_by}.")
    say(f"Tuned in {seconds:,.0f} s. The run is in '{folder}'.")
    say(f"Next: craft publish {folder} --name NAME")


@dataclass(frozen=True)
class Task:
    """Class names, and images of the folder `data`; what it has beside is in `others`.

    `settings_of` makes the settings for what a key may see, by the model's `card`.
    """

    classes: Sequence[str]
    data: Path
    samples: Sequence[Sample]
    settings_of: Callable[..., TuneSettings]
    others: Sequence[tuple[Split | None, Sample]] = ()


def new_task(
    dataset: Dataset,
    recipe: str,
    shots: int,
    seed: int,
    *,
    shots_strict: bool,
    **options: Any,
) -> Task:
    """The task of a few shots of a data set; `options` are those of `recipe_settings`.

    Raises:
        DataError: images are missing.
        SettingsError: an option's value is impossible.
    """
    from craft_client.data import few_shot, fewer_note
    from craft_client.presets import recipe_settings

    settings_of = partial(
        recipe_settings,
        recipe,
        dataset.name,
        shots,
        classes=dataset.classes,
        seed=seed,
        **options,
    )
    samples = few_shot(dataset.split("train"), shots, seed, dataset.classes, strict=shots_strict)
    if note := fewer_note(samples, shots, dataset.classes):
        say(note)
    settings_of()  # what is impossible whatever the key is refused at once
    others = dataset.beside(samples)
    return Task(dataset.classes, dataset.root, samples, settings_of, others)


def task_of(folder: Path, recipe: str | None = None) -> Task:
    """The task of a run that was begun.

    Raises:
        JournalError: its document cannot be used, or a method of a file began it, which is not
            named as `recipe`: a directory from elsewhere may name any file.
        DataError: it came to its end.
    """
    from craft_client.begin import check_recipe
    from craft_client.data import Sample
    from craft_client.exceptions import DataError
    from craft_client.journal import Journal, JournalError
    from craft_client.runs import about_of
    from craft_client.tune import run_settings

    journal = Journal.open(folder)
    if journal.whole:
        raise DataError(
            f"The run in '{folder}' came to its end.", remedy=f"See it: craft report {folder}"
        )
    about = about_of(journal)
    known = len(about.pictures) == len(about.labels) == len(about.digests)
    if not (known and about.data and about.run and about.image_set and about.settings.recipe):
        raise JournalError(
            f"'{folder / RUN_FILE}' does not say all that a run of 'craft tune' does.",
            remedy="Continue the run with what began it, or tune anew.",
        )
    if recipe is not None:
        check_recipe(recipe, journal)
    elif is_file(begun := journal.document["settings"]["recipe"]):
        # Before the settings are read, for which a recipe with settings of its own is loaded.
        raise JournalError(
            f"The run in '{folder}' was begun by '{begun}', which is run only where you name it.",
            remedy=f"If that file is yours: {_continuing(journal)}",
        )
    settings = run_settings(journal, None if recipe is None else resolved(recipe))
    samples = [
        Sample(about.data / picture, label)
        for picture, label in zip(about.pictures, about.labels, strict=True)
    ]
    return Task(about.classes, about.data, samples, lambda card: settings)


def _same_files(digests: Sequence[str], files: Sequence[Path], limits: Limits) -> Sequence[str]:
    """The digests, if the files that are there have them; some that were sent may be gone.

    A run directory from elsewhere may name any file: one that it does not know is never sent.
    """
    from craft_client.data import first_errors
    from craft_client.exceptions import DataError
    from craft_shared.problems import FieldError

    there = {file: digest for file, digest in zip(files, digests, strict=True) if file.exists()}
    found = zip(there.items(), check_files(list(there), limits), strict=True)
    changed = [file for (file, digest), now in found if now != digest]
    if changed:
        raise DataError(
            f"{len(changed):,} of {len(files):,} pictures are not those that the run began with. "
            "Nothing was sent.",
            errors=first_errors(
                FieldError(field=f"'{file}'", message="is another file.") for file in changed
            ),
            remedy="Bring the run's own pictures back, or tune anew.",
        )
    return digests


def tune_task(
    task: Task,
    journal: Journal,
    model: str | None,
    url: str | None,
    key: str | None,
    *,
    report: bool = False,
) -> tuple[TuneResult, ImageSet, Units]:
    """Checks everything that can be checked for free, then uploads, then tunes.

    `journal` is claimed; a run that it has is continued, otherwise one is begun. With `report`
    the run reports itself to the server's console; the run continues where that fails.

    Returns:
        What it came to, its images on the server, and what uploading them cost.
    """
    from craft_client.begin import begun, bytes_of, run_name
    from craft_client.data import labels_of
    from craft_client.run_report import reported
    from craft_client.tune import tune

    labels, paths = labels_of(task.samples), [sample.path for sample in task.samples]
    folder, before = journal.folder, journal.document
    run: str = before["run"] if before else run_name(folder.resolve().name)
    with (
        connect(url, key, run=run) as client,
        begun(
            client,
            journal,
            paths,
            labels,
            task.classes,
            task.settings_of,
            model=model,
            run=run,
            check=partial(_same_files, before["digests"]) if before else check_files,
            upload=upload,
            on_forecast=lambda forecast, digests: _say(task, forecast, digests, bytes_of(paths)),
            data=str(task.data.resolve()),
            pictures=[Path(os.path.relpath(path, task.data)).as_posix() for path in paths],
        ) as started,
        watch() as show,
        _reporter(
            task, folder, started.settings, started.black_box.model, run, url, key, wanted=report
        ) as reporter,
        reported(reporter, show, journal) as on_progress,
    ):
        box = started.black_box
        uploaded = _charged_for_uploads(client, run) if before else started.uploaded
        result = tune(
            box,
            labels,
            started.settings,
            journal,
            lambda now: on_progress(replace(now, units=uploaded + now.units)),
            paths,
        )
    return result, box.image_set, uploaded


def _charged_for_uploads(client: Client, run: str) -> Units:
    """What the ledger says, since a run that was killed may not know of an upload that arrived."""
    from craft_shared.units import Units

    lines = (line for line in client.usage().charges if (line.run, line.call) == (run, "images"))
    return sum((line.units for line in lines), Units())


@contextmanager
def _reporter(
    task: Task,
    folder: Path,
    settings: TuneSettings,
    model: str,
    run: str,
    url: str | None,
    key: str | None,
    *,
    wanted: bool,
) -> Iterator[RunReporter | None]:
    """What reports the run, if it is to be; it says where the run is shown."""
    from craft_client.calls import message
    from craft_client.run_report import RunReporter
    from craft_shared.names import made_sound
    from craft_shared.run_reports import RunReport

    if not wanted:
        yield None
        return
    report = message(
        RunReport,
        title=made_sound(folder.resolve().name)[:200],
        model=made_sound(model)[:200],
        dataset=made_sound(task.data.resolve().name)[:200],
        recipe=made_sound(label(settings.recipe))[:200],
        budget=settings.budget if settings.budget_unit == "queries" else None,
    )
    # Beside the run's own calls, and never in their way.
    with reporting_client(url, key) as client:
        say(f"Watch it: {client.base_url}/console/runs/{run}")
        yield RunReporter(
            client, run, report, lambda why: say(f"The run continues unreported: {why}")
        )


def _say(task: Task, forecast: Forecast, digests: Sequence[str], picture_bytes: int) -> None:
    """Says what a run will take, and which of its pictures are copies."""
    from craft_client.blackbox import shown
    from craft_client.data import notes, twins_of

    settings = forecast.settings
    for note in notes(task.samples, digests, twins_of(task.samples, task.others)):
        say(note)
    _say_level(forecast.card)
    budget = f"{shown(settings.budget_unit, settings.budget):,} {settings.budget_unit}"
    most, received = (
        counted(forecast.need.queries, "queries"),
        f"receives at most {size(forecast.answer_bytes)} of answers, ",
    )
    if not settings.is_planned or settings.budget_unit == "cost_micros":
        most, received = budget.removesuffix("_micros"), ""
    say(f"This run takes at most {most}, {received}and uploads {size(picture_bytes)} of pictures.")


def _say_level(card: ModelCard) -> None:
    """Says what the key's answers show, if that is not everything."""
    from craft_shared.model_card import level_words
    from craft_shared.wire import EVERYTHING

    if card.output != EVERYTHING:
        expect = _EXPECT[card.output.level]
        say(f"The key sees {level_words(card.output)}. {expect} (docs/output-levels.md)")
    if card.prompts_per_image_set is not None:
        say(f"It may ask {card.prompts_per_image_set:,} different prompts about an image set.")
