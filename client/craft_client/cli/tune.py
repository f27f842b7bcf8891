"""`craft tune`: few-shot images in, a run directory with an adapter out.

What can be checked for free is checked before anything is paid for.
"""

from __future__ import annotations

import re
import time
import uuid
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
from craft_client.cli.session import check_budgets, check_files, connect, reporting_client, upload
from craft_client.cli.show import document, percent, say, size, table, watch
from craft_client.recipes import OWN, described, label
from craft_shared.amounts import UNITS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from craft_client.api import Client
    from craft_client.data import Dataset, Sample, Split
    from craft_client.journal import Journal
    from craft_client.remote import RemoteBlackBox
    from craft_client.run_report import RunReporter
    from craft_client.tune import TuneResult, TuneSettings
    from craft_shared.units import Units
    from craft_shared.wire import Budget as KeyBudget
    from craft_shared.wire import ImageSet, Level, ModelCard


_RUN = "The run"
_TUNING = "Tuning"
_TEXTS = "craftbox's questions"
_PARTS = "Parts of the method, to do without"
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
)
def tune(
    context: typer.Context,
    data: Annotated[Path | None, DATA] = None,
    shots: Annotated[int, option("Training pictures a class.", True, min=1)] = 16,
    shots_strict: ShotsStrict = False,
    recipe: Annotated[
        str,
        option(
            f"{described()}; a plug-in's; or your own, FILE.py:NAME.", True, autocompletion=recipes
        ),
    ] = "craftbox",
    budget: Budget = None,
    seed: Annotated[int, option("Of the few-shot draw and of the search.", True, min=0)] = 1,
    run: Annotated[
        Path | None,
        option("A new or empty run directory.", "runs/NAME-SHOTSshots-seedSEED", panel=_RUN),
    ] = None,
    resume: Annotated[
        Path | None,
        option(
            "Continues a run that was interrupted; nothing is paid for twice.",
            panel=_RUN,
            autocompletion=run_folders,
        ),
    ] = None,
    report: Annotated[
        bool,
        flag(
            "--report",
            "Post the run's curve to the server's console while it lasts. Free.",
            panel=_RUN,
        ),
    ] = False,
    model: Model = None,
    template: Template = PLAIN_TEMPLATE,
    population: Annotated[
        int | None, option("Codes a generation of the search.", "40", panel=_TUNING)
    ] = None,
    dim: Annotated[int | None, option("Length of a code.", "512", panel=_TUNING)] = None,
    random_codes: Annotated[
        int | None,
        option(
            "Of craftbox in strict access: random codes at most.",
            "127, of ranks 255",
            panel=_TUNING,
        ),
    ] = None,
    scale: Annotated[
        str | None,
        option(
            "How far codes move the prompt, in standard deviations of the model's token "
            "embeddings; or by name the released code's: paper, paper-wide, paper-imagenet.",
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
        option("Of the consistency loss.", "0.1; paper: its own, by data set", panel=_TUNING),
    ] = None,
    own: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A setting of the recipe's own, such as batch=32; repeatable (docs/methods.md).",
            show_default=False,
            metavar="NAME=VALUE",
            rich_help_panel=_TUNING,
        ),
    ] = None,
    strategy: Annotated[
        Literal["cma-es", "random", "spsa"], option("Of the paper's search.", True, panel=_TUNING)
    ] = "cma-es",
    strict: Strict = False,
    texts: Annotated[
        Path | None,
        option(
            "The vocabulary that is scored beside the class names: a file, one text a line.",
            "about a thousand common nouns",
            panel=_TEXTS,
        ),
    ] = None,
    keep_texts: Annotated[
        int | None,
        option("Texts of it that the head reads at most.", "as many as are needed", panel=_TEXTS),
    ] = None,
    no_search: Annotated[bool, flag("--no-search", "Do without the search.", panel=_PARTS)] = False,
    no_refinement: Annotated[
        bool,
        flag(
            "--no-refinement",
            "Do without the head that refines predictions.",
            panel=_PARTS,
        ),
    ] = False,
    no_consistency: Annotated[
        bool, flag("--no-consistency", "Do without the consistency loss.", panel=_PARTS)
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
        task, folder = task_of(resume), resume
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
    with_resume = {"resume", "report", "url", "key", "as_json"}
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name is not None
        and parameter.name not in with_resume
        and getattr(context.get_parameter_source(parameter.name), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise typer.BadParameter(
            f"leave {', '.join(given)} out: a resumed run continues as it began.",
            param_hint="--resume",
        )


@contextmanager
def _saying_how_to_continue(journal: Journal) -> Iterator[None]:
    """Says how to continue a run that ends early."""
    try:
        yield
    except BaseException:
        if journal.document:
            say(f"The run ended early. Continue it: craft tune --resume {journal.folder}")
        raise


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
                ("total, of pictures that the server has not seen", unseen),
            )
        ],
    )
    if result.stopped_by:
        say(f"Stopped before the run's own budget was used up: {result.stopped_by}.")
    say(f"Tuned in {seconds:,.0f} s. The run is in '{folder}'.")
    say(f"Next: craft publish {folder} --name NAME")


@dataclass(frozen=True)
class Task:
    """Settings, class names, and images of the folder `data`; what it has beside is in `others`.

    `settings_of` makes the settings anew for what a key may see, while the run has not begun.
    """

    settings: TuneSettings
    classes: Sequence[str]
    data: Path
    samples: Sequence[Sample]
    settings_of: Callable[..., TuneSettings] | None = None
    others: Sequence[tuple[Split | None, Sample]] = ()

    def of_key(self, card: ModelCard) -> Task:
        """The task as it is for a key that the model's card is for."""
        if self.settings_of is None:
            return self
        return replace(self, settings=self.settings_of(card=card))


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
    others = dataset.beside(samples)
    return Task(settings_of(), dataset.classes, dataset.root, samples, settings_of, others)


def task_of(folder: Path) -> Task:
    """The task of a run that was begun."""
    from craft_client.data import Sample
    from craft_client.exceptions import DataError
    from craft_client.journal import Journal
    from craft_client.tune import run_settings

    journal = Journal.open(folder)
    if journal.whole:
        raise DataError(
            f"The run in '{folder}' came to its end.", remedy=f"See it: craft report {folder}"
        )
    settings = run_settings(journal)
    document = journal.document
    data = Path(document["data"])
    samples = [
        Sample(data / picture, label)
        for picture, label in zip(document["pictures"], document["labels"], strict=True)
    ]
    return Task(settings, document["classes"], data, samples)


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
    from craft_client.data import labels_of
    from craft_client.remote import RemoteBlackBox
    from craft_client.run_report import reported
    from craft_client.tune import tune

    labels = labels_of(task.samples)
    folder, begun = journal.folder, journal.document
    run: str = begun["run"] if begun else _run_name(folder)
    with connect(url, key, run=run) as client:
        if begun:
            image_set = client.image_set(begun["image_set"])
            card = client.model(image_set.model)
        else:
            card = client.model(model)
            task = task.of_key(card)
            image_set = _begin(task, journal, labels, client, run, card)
        image_set, uploaded = upload(
            client, image_set, task.samples[image_set.count :], card.limits, name=f"{run}/upload"
        )
        black_box = RemoteBlackBox(client, image_set, task.classes, run=run, card=card)
        with (
            watch() as show,
            _reporter(task, folder, image_set.model, run, url, key, wanted=report) as reporter,
            reported(reporter, show) as on_progress,
        ):
            pictures = [sample.path for sample in task.samples]
            result = tune(black_box, labels, task.settings, journal, on_progress, pictures)
    return result, image_set, uploaded


@contextmanager
def _reporter(
    task: Task,
    folder: Path,
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
        recipe=made_sound(label(task.settings.recipe))[:200],
        budget=task.settings.budget if task.settings.budget_unit == "queries" else None,
    )
    # Beside the run's own calls, and never in their way.
    with reporting_client(url, key) as client:
        say(f"Watch it: {client.base_url}/console/runs/{run}")
        yield RunReporter(
            client, run, report, lambda why: say(f"The run continues unreported: {why}")
        )


def _begin(
    task: Task,
    journal: Journal,
    labels: NDArray[np.int64],
    client: Client,
    run: str,
    card: ModelCard,
) -> ImageSet:
    """Checks what can be checked for free, and begins the run's journal."""
    from craft_client.blackbox import shown
    from craft_client.data import notes, twins_of
    from craft_client.tune import run_document

    settings, samples = task.settings, task.samples
    digests = check_files([sample.path for sample in samples], card.limits)
    for note in notes(samples, digests, twins_of(samples, task.others)):
        say(note)
    image_set = client.create_image_set(card.name)
    expected, budgets, need = check_task(task, client, image_set, card)
    questions = settings.questions(expected.units)  # at least: a recipe may look as it goes
    answer_bytes = sum(expected.answer_bytes(*question) for question in questions)
    # Images that the server knows already are uploaded too.
    picture_bytes = sum(sample.path.stat().st_size for sample in samples)
    about = run_document(
        expected,
        labels,
        settings,
        budgets=budgets,
        profile=card.profile,
        run=run,
        data=str(task.data.resolve()),
        pictures=[sample.path.relative_to(task.data).as_posix() for sample in samples],
        digests=digests,
        image_set=image_set.id,
        answer_bytes=answer_bytes,
        picture_bytes=picture_bytes,
    )
    _say_level(card)
    budget = f"{shown(settings.budget_unit, settings.budget):,} {settings.budget_unit}"
    most, received = (
        f"{need.queries:,} queries",
        f"receives at most {size(answer_bytes)} of answers, ",
    )
    if not settings.is_planned or settings.budget_unit == "cost_micros":
        most, received = budget.removesuffix("_micros"), ""
    say(f"This run takes at most {most}, {received}and uploads {size(picture_bytes)} of pictures.")
    journal.begin(about)
    return image_set


def check_task(
    task: Task, client: Client, image_set: ImageSet, card: ModelCard
) -> tuple[RemoteBlackBox, Sequence[KeyBudget], Units]:
    """Checks a task against what the key may ask, for free, with an image set that may be empty.

    Returns:
        The black box as it will be, all that bounds the key, and what the run takes at most, or,
        of a recipe that looks as it goes, at least.

    Raises:
        SettingsError: the settings, the labels or a budget do not do.
        UnusablePlugin: there is no such recipe.
        BudgetTooSmall: a budget does not cover the run.
        InvalidRequest: the server cannot use a class name or the template.
    """
    from craft_client.data import labels_of
    from craft_client.recipes import plugin_of
    from craft_client.remote import RemoteBlackBox, check_prompts
    from craft_shared.units import Units
    from craft_shared.wire import Context

    settings, count = task.settings, len(task.samples)
    expected = RemoteBlackBox(client, image_set, task.classes, card=card).with_count(count)
    budgets = client.budgets()
    settings.check_task(labels_of(task.samples), task.classes, budgets, expected.units)
    plugin_of(settings.recipe)
    uploads = -(-count // card.limits.images_per_call)
    asked = (expected.units(*question) for question in settings.questions(expected.units))
    need = sum(asked, Units(requests=uploads))
    check_budgets(budgets, need, remedy="Use a smaller --budget, or ask the provider for a top-up.")
    context = Context(dim=settings.dim, seed=settings.seed, scale=settings.scale)
    scored = [*task.classes, *settings.texts]
    check_prompts(client, image_set, scored, templates=[settings.template], context=context)
    return expected, budgets, need


def _say_level(card: ModelCard) -> None:
    """Says what the key's answers show, if that is not everything."""
    from craft_shared.model_card import level_words
    from craft_shared.wire import EVERYTHING

    if card.output != EVERYTHING:
        expect = _EXPECT[card.output.level]
        say(f"The key sees {level_words(card.output)}. {expect} (docs/output-levels.md)")
    if card.prompts_per_image_set is not None:
        say(f"It may ask {card.prompts_per_image_set:,} different prompts about an image set.")


def _run_name(folder: Path) -> str:
    """What the server's ledger calls the run: after its directory, and like no other."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", folder.resolve().name).lstrip("-")[:100]
    return f"{readable}-{uuid.uuid4().hex}"
