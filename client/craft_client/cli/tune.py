"""`craft tune`: few-shot pictures in, a run directory with an adapter out."""

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

from craft_client.cli.completion import run_folders
from craft_client.cli.options import (
    PLAIN_TEMPLATE,
    AsJson,
    Key,
    Model,
    Template,
    Url,
    examples,
)
from craft_client.cli.session import check_budgets, check_files, client_of, connect, upload
from craft_client.cli.show import document, percent, say, size, table
from craft_shared.amounts import UNITS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from craft_client.api import Client
    from craft_client.data import Sample
    from craft_client.journal import Journal
    from craft_client.remote import RemoteBlackBox
    from craft_client.run_report import RunReporter
    from craft_client.tune import TuneResult, TuneSettings
    from craft_shared.units import Units
    from craft_shared.wire import ImageSet, Level, Limits, ModelCard

_RUN = "The run"
_TUNING = "Tuning"
_TEXTS = "Open-text mode"
_PARTS = "Parts of the method, to do without"
# Measured on photographs: docs/output-levels.md.
_EXPECT: dict[Level, str] = {
    "label": "Expect four to seven tenths of what tuning gains from whole answers, for more cost.",
    "top_k": "Expect six to nine tenths of what tuning gains from whole answers, by k.",
    "probs": "Expect eight tenths of what tuning gains from whole answers, or more, by decimals.",
    "log_probs": "Expect about what tuning gains from whole answers; less, the more noise.",
}
_TRAFFIC = ("answer_bytes", "picture_bytes")
_REPORT_TIMEOUT = 5.0  # seconds


def _scale(text: str | None) -> str | None:
    from craft_shared.wire import AbsoluteScale

    if text is not None and text not in get_args(AbsoluteScale):
        try:
            float(text)
        except ValueError as error:
            names = ", ".join(get_args(AbsoluteScale))
            raise typer.BadParameter(f"'{text}' is neither a number nor one of {names}.") from error
    return text


def tune(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            show_default=False,
            help="Pictures: train/CLASS/*, test/CLASS/*; or CLASS/*; or a CoOp set.",
        ),
    ] = None,
    shots: Annotated[int, typer.Option(min=1, help="Training pictures a class.")] = 16,
    recipe: Annotated[
        str,
        typer.Option(
            autocompletion=lambda: ["craftbox", "paper"],
            help="craftbox (random prompts, closed form, search) or paper (CraFT as published, "
            "with its settings for the data set), or a plug-in's.",
        ),
    ] = "craftbox",
    budget: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default="for the random codes alone; paper: its own, by shots",
            help="Queries that the run may spend; what is left after the random codes, the search "
            "spends.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the few-shot draw and of the search.")] = 1,
    run: Annotated[
        Path | None,
        typer.Option(
            show_default="runs/NAME-SHOTSshots-seedSEED",
            help="A new or empty run directory.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            show_default=False,
            help="Goes on with a run that was interrupted; nothing is paid for twice.",
            autocompletion=run_folders,
            rich_help_panel=_RUN,
        ),
    ] = None,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Post the run's curve to the server's console as it goes on. Free.",
            rich_help_panel=_RUN,
        ),
    ] = False,
    model: Model = None,
    template: Template = PLAIN_TEMPLATE,
    population: Annotated[
        int | None,
        typer.Option(
            show_default="40", help="Codes a generation of the search.", rich_help_panel=_TUNING
        ),
    ] = None,
    dim: Annotated[
        int | None,
        typer.Option(show_default="512", help="Length of a code.", rich_help_panel=_TUNING),
    ] = None,
    random_codes: Annotated[
        int | None,
        typer.Option(
            show_default="31; of coarse answers more; paper: 0",
            help="Codes scored before the search.",
            rich_help_panel=_TUNING,
        ),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            callback=_scale,
            show_default="3.0; paper: its own, by data set",
            help="How far codes move the prompt, in standard deviations of the model's token "
            "embeddings; or by name the released code's: paper, paper-wide, paper-imagenet.",
            rich_help_panel=_TUNING,
        ),
    ] = None,
    sigma: Annotated[
        float | None,
        typer.Option(
            show_default="1.0; paper: its own, by data set",
            help="The search's first standard deviation.",
            rich_help_panel=_TUNING,
        ),
    ] = None,
    consistency_weight: Annotated[
        float | None,
        typer.Option(
            show_default="0.1; paper: its own, by data set",
            help="Of the consistency loss.",
            rich_help_panel=_TUNING,
        ),
    ] = None,
    strategy: Annotated[
        Literal["cma-es", "random", "spsa"],
        typer.Option(help="Of the search.", rich_help_panel=_TUNING),
    ] = "cma-es",
    open_text: Annotated[
        bool,
        typer.Option(
            "--open-text",
            help="Score about a thousand common nouns beside the class names, and keep a few.",
            rich_help_panel=_TEXTS,
        ),
    ] = False,
    texts: Annotated[
        Path | None,
        typer.Option(
            show_default="none, or with --open-text common nouns",
            help="Open-text mode with your own vocabulary: a file, one text a line.",
            rich_help_panel=_TEXTS,
        ),
    ] = None,
    keep_texts: Annotated[
        int | None,
        typer.Option(show_default="64", help="Texts that the head reads.", rich_help_panel=_TEXTS),
    ] = None,
    refiner: Annotated[
        str,
        typer.Option(
            help="Of craftbox's recipe: ridge (closed form), or a plug-in's.",
            rich_help_panel=_TUNING,
        ),
    ] = "ridge",
    no_search: Annotated[
        bool, typer.Option("--no-search", help="Do without the search.", rich_help_panel=_PARTS)
    ] = False,
    no_refinement: Annotated[
        bool,
        typer.Option(
            "--no-refinement",
            help="Do without the head that refines predictions.",
            rich_help_panel=_PARTS,
        ),
    ] = False,
    no_consistency: Annotated[
        bool,
        typer.Option(
            "--no-consistency", help="Do without the consistency loss.", rich_help_panel=_PARTS
        ),
    ] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Tune the model on a few pictures a class, within a budget of queries."""
    from craft_client.data import few_shot
    from craft_client.layouts import load_dataset
    from craft_client.paper_presets import recipe_settings

    started = time.monotonic()
    if resume is not None:
        _refuse_other_options(context)
        task, folder = task_of(resume), resume
    else:
        if data is None:
            raise typer.BadParameter("Name the pictures' folder.", param_hint="--data")
        dataset = load_dataset(data)
        settings_of = partial(
            recipe_settings,
            recipe,
            dataset.name,
            shots,
            budget=budget,
            seed=seed,
            population=population,
            dim=dim,
            random_codes=random_codes,
            scale=scale if scale is None or scale.startswith("paper") else float(scale),
            sigma=sigma,
            strategy=strategy,
            refiner=refiner,
            search=not no_search,
            refinement=not no_refinement,
            consistency=not no_consistency,
            consistency_weight=consistency_weight,
            template=template,
            texts=_vocabulary(dataset.classes, texts, open_text=open_text),
            keep_texts=keep_texts,
        )
        samples = few_shot(dataset.split("train"), shots, seed, dataset.classes)
        task = Task(settings_of(), dataset.classes, data, samples, settings_of)
        folder = run or Path("runs") / f"{dataset.name}-{shots}shots-seed{seed}"
    with _run_folder(folder, resumed=resume is not None):
        tuned = tune_task(task, folder, model, url, key, report=report)
    _report(tuned, folder, time.monotonic() - started, as_json=as_json)


def _vocabulary(
    classes: Sequence[str], file: Path | None, *, open_text: bool
) -> tuple[str, ...] | None:
    from craft_client.open_text import beside, common_nouns, read_vocabulary

    if file is not None:
        return beside(classes, read_vocabulary(file))
    return beside(classes, common_nouns()) if open_text else None


@dataclass(frozen=True)
class Task:
    """Settings, class names, and pictures of the folder `data`.

    `settings_of` makes the settings anew for what a key may see (`output`, `prompt_limit`), while
    the run has not begun.
    """

    settings: TuneSettings
    classes: Sequence[str]
    data: Path
    samples: Sequence[Sample]
    settings_of: Callable[..., TuneSettings] | None = None

    def of_key(self, card: ModelCard) -> Task:
        """The task as it is for a key that the model's card is for."""
        if self.settings_of is None:
            return self
        settings = self.settings_of(output=card.output, prompt_limit=card.prompts_per_image_set)
        return replace(self, settings=settings)


@dataclass(frozen=True)
class Tuned:
    """What a run came to.

    Attributes:
        result: of tuning.
        image_set: its pictures on the server.
        uploaded: what they were charged.
        traffic: what was told of the whole run when it began, see `_traffic`.
        profile: of the provider that was simulated when it began; None where none was.
    """

    result: TuneResult
    image_set: ImageSet
    uploaded: Units
    traffic: dict[str, int]
    profile: dict[str, Any] | None


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
            f"leave {', '.join(given)} out: a resumed run goes on as it was begun.",
            param_hint="--resume",
        )


def task_of(folder: Path) -> Task:
    """The task of a run that was begun."""
    from craft_client.data import Sample
    from craft_client.exceptions import DataError
    from craft_client.journal import Journal
    from craft_client.tune import run_settings

    journal = Journal.open(folder)
    if journal.finished:
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
    folder: Path,
    model: str | None,
    url: str | None,
    key: str | None,
    *,
    report: bool = False,
) -> Tuned:
    """Checks everything that can be checked for free, then uploads, then tunes.

    With `report` the run reports itself to the server's console, as well as that goes.
    """
    import numpy as np

    from craft_client.cli.progress import watch
    from craft_client.journal import Journal
    from craft_client.remote import RemoteBlackBox
    from craft_client.run_files import RUN_FILE
    from craft_client.run_report import reported
    from craft_client.tune import tune

    labels = np.array([sample.label for sample in task.samples], np.int64)
    begun = Journal.open(folder) if (folder / RUN_FILE).exists() else None
    run: str = _run_name(folder) if begun is None else begun.document["run"]
    with connect(url, key, run=run) as client:
        if begun is None:
            task = task.of_key(client.model(model))
            journal, image_set = _begin(task, folder, labels, client, run, model)
        else:
            journal, image_set = begun, client.image_set(begun.document["image_set"])
        image_set, uploaded = upload(client, image_set, task.samples[image_set.count :])
        black_box = RemoteBlackBox(client, image_set, task.classes, run=run)
        with (
            watch() as show,
            _reporter(task, folder, image_set.model, run, url, key, wanted=report) as reporter,
            reported(reporter, show) as on_progress,
        ):
            result = tune(black_box, labels, task.settings, journal, on_progress)
    # A run that an earlier version began has no word of it.
    traffic = {name: journal.document[name] for name in _TRAFFIC if name in journal.document}
    return Tuned(result, image_set, uploaded, traffic, journal.document.get("profile"))


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
    from craft_client.run_report import RunReporter
    from craft_shared.run_reports import RunReport

    if not wanted:
        yield None
        return
    report = RunReport(
        title=_label(folder.resolve().name),
        model=_label(model),
        dataset=_label(task.data.resolve().name),
        recipe=task.settings.recipe,
        budget=task.settings.budget,
    )
    # Beside the run's own calls, and never in their way.
    with client_of(url, key, timeout=_REPORT_TIMEOUT) as client:
        say(f"Watch it: {client.base_url}/console/runs/{run}")
        yield RunReporter(
            client, run, report, lambda why: say(f"The run goes on unreported: {why}")
        )


def _label(text: str) -> str:
    """A name as a report may hold it."""
    return "".join(sign for sign in text if sign.isprintable())[:200]


def _begin(
    task: Task,
    folder: Path,
    labels: NDArray[np.int64],
    client: Client,
    run: str,
    model: str | None,
) -> tuple[Journal, ImageSet]:
    """Checks what can be checked for free, and begins the run's journal."""
    from craft_client.journal import Journal
    from craft_client.remote import RemoteBlackBox, check_prompts
    from craft_client.tune import run_document
    from craft_shared.wire import Context

    settings, samples = task.settings, task.samples
    card = client.model(model)
    check_files(samples, card.limits)
    image_set = client.create_image_set(card.name)
    expected = RemoteBlackBox(
        client, image_set.model_copy(update={"count": len(samples)}), task.classes
    )
    traffic = _traffic(task, expected)
    about = run_document(
        expected,
        labels,
        settings,
        profile=card.profile,
        run=run,
        data=str(task.data.resolve()),
        pictures=[sample.path.relative_to(task.data).as_posix() for sample in samples],
        image_set=image_set.id,
        **traffic,
    )
    need = _need(settings, expected, card.limits)
    check_budgets(client, need, remedy="Use a smaller --budget, or ask the provider for a top-up.")
    context = Context(dim=settings.dim, seed=settings.seed, scale=settings.scale)
    scored = [*task.classes, *settings.texts]
    check_prompts(client, image_set, scored, templates=[settings.template], context=context)
    _say_level(card)
    answers, pictures = (size(traffic[name]) for name in _TRAFFIC)
    say(
        f"This run takes at most {need.queries:,} queries, receives at most {answers} of answers, "
        f"and uploads {pictures} of pictures."
    )
    return Journal.create(folder, about), image_set


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


@contextmanager
def _run_folder(folder: Path, *, resumed: bool) -> Iterator[None]:
    """Makes the run directory before anything is sent, so that what was paid can be written.

    When the run ends early, it says where the journal is, or removes the directory if it is empty.

    Raises:
        DataError: the directory is not empty.
    """
    from craft_client.exceptions import DataError

    folder.mkdir(parents=True, exist_ok=True)
    if not resumed and any(folder.iterdir()):
        raise DataError(
            f"'{folder}' already holds a run or other files.",
            remedy="Name another run directory with --run, or remove this one.",
        )
    try:
        yield
    except BaseException:
        if any(folder.iterdir()):
            say(f"The run ended early. Go on with it: craft tune --resume {folder}")
        else:
            folder.rmdir()
        raise


def _need(settings: TuneSettings, black_box: RemoteBlackBox, limits: Limits) -> Units:
    """What the run charges if no picture has to be encoded anew."""
    from craft_shared.units import Units

    opening = settings.opening_units(black_box.units)
    generation = settings.generation_units(black_box.units)
    generations = settings.generations(black_box.units)
    uploads = -(-black_box.image_set.count // limits.images_per_call)
    scores = Units(**{unit: opening[unit] + generations * generation[unit] for unit in UNITS})
    return scores + Units(requests=uploads)


def _traffic(task: Task, black_box: RemoteBlackBox) -> dict[str, int]:
    """Bytes of log-probabilities that the run receives at most, and of pictures that it uploads.

    Pictures that the server knows already are uploaded too.
    """
    from craft_client.data import picture_bytes

    questions = task.settings.questions(black_box.units)
    answers = sum(times * black_box.answer_bytes(*question) for question, times in questions)
    return dict(zip(_TRAFFIC, (answers, picture_bytes(task.samples)), strict=True))


def _report(tuned: Tuned, folder: Path, seconds: float, *, as_json: bool) -> None:

    result, image_set, uploaded = tuned.result, tuned.image_set, tuned.uploaded
    charged = uploaded + result.units
    if as_json:
        document(
            {
                "run": str(folder),
                "model": image_set.model,
                "revision": image_set.revision,
                "profile": tuned.profile,
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
                **tuned.traffic,
                "history": result.history,
            }
        )
        return
    after = result.accuracy_after
    table(
        [f"{image_set.count:,} training pictures", "accuracy"],
        [
            ["before: the plain prompt", percent(result.accuracy_before)],
            [
                "after: the adapter, each picture held out",
                "not measurable" if after is None else percent(after),
            ],
        ],
    )
    table(
        ["charged", *UNITS],
        [
            [name, *(units[unit] for unit in UNITS)]
            for name, units in (("upload", uploaded), ("tuning", result.units), ("total", charged))
        ],
    )
    if result.stopped_by:
        say(f"Stopped before the run's own budget was used up: {result.stopped_by}.")
    say(f"Tuned in {seconds:,.0f} s. The run is in '{folder}'.")
    say(f"Next: craft publish {folder} --name NAME")


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        epilog=examples(
            "craft tune --data digits --shots 16 --seed 1",
            "craft tune --data digits --shots 16 --budget 8000 --run runs/long --report",
            "craft tune --resume runs/long",
        ),
        rich_help_panel="Tune and measure",
    )(tune)
