"""`craft tune`: few-shot images in, a run directory with an adapter out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from craft_client.cli.completion import recipes, run_folders
from craft_client.cli.options import (
    DATA,
    PLAIN_TEMPLATE,
    AsJson,
    Key,
    Model,
    ShotsStrict,
    Strict,
    Template,
    Url,
)
from craft_client.cli.root import command
from craft_client.cli.show import document, percent, say, table
from craft_client.cli.task import Tuned, new_task, task_of, tune_task
from craft_client.recipes import OWN, described
from craft_shared.amounts import UNITS

if TYPE_CHECKING:
    from craft_client.journal import Journal

_RUN = "The run"
_TUNING = "Tuning"
_TEXTS = "craftbox's questions"
_PARTS = "Parts of the method, to do without"
_LIKE_PAPER = ", ".join(name for name, recipe in OWN.items() if recipe.like_paper)


def _scale(text: str | None) -> str | None:
    from craft_shared.wire import AbsoluteScale

    if text is not None and text not in get_args(AbsoluteScale):
        try:
            float(text)
        except ValueError as error:
            names = ", ".join(get_args(AbsoluteScale))
            raise typer.BadParameter(f"'{text}' is neither a number nor one of {names}.") from error
    return text


def _tuning(help_text: str, default: str | bool = True, **more: Any) -> Any:
    return typer.Option(help=help_text, show_default=default, rich_help_panel=_TUNING, **more)


def _part(option: str, part: str) -> Any:
    return typer.Option(option, help=f"Do without {part}.", rich_help_panel=_PARTS)


@command(
    "Tune and measure",
    "craft tune --data digits --shots 16 --seed 1",
    "craft tune --data digits --recipe paper --run runs/long --report",
    "craft tune --resume runs/long",
)
def tune(
    context: typer.Context,
    data: Annotated[Path | None, DATA] = None,
    shots: Annotated[int, typer.Option(min=1, help="Training pictures a class.")] = 16,
    shots_strict: ShotsStrict = False,
    recipe: Annotated[
        str,
        typer.Option(
            autocompletion=recipes,
            help=f"{described()}; or a plug-in's.",
        ),
    ] = "craftbox",
    budget: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=f"128, of ranks 256; {_LIKE_PAPER}: the paper's, by shots",
            help="Queries that the run may spend. craftbox takes one; in strict access, as many as "
            "it needs.",
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
            help="Continues a run that was interrupted; nothing is paid for twice.",
            autocompletion=run_folders,
            rich_help_panel=_RUN,
        ),
    ] = None,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Post the run's curve to the server's console while it lasts. Free.",
            rich_help_panel=_RUN,
        ),
    ] = False,
    model: Model = None,
    template: Template = PLAIN_TEMPLATE,
    population: Annotated[int | None, _tuning("Codes a generation of the search.", "40")] = None,
    dim: Annotated[int | None, _tuning("Length of a code.", "512")] = None,
    random_codes: Annotated[
        int | None,
        _tuning("Of craftbox in strict access: random codes at most.", "127, of ranks 255"),
    ] = None,
    scale: Annotated[
        str | None,
        _tuning(
            "How far codes move the prompt, in standard deviations of the model's token "
            "embeddings; or by name the released code's: paper, paper-wide, paper-imagenet.",
            f"3.0; {_LIKE_PAPER}: the paper's, by data set",
            callback=_scale,
        ),
    ] = None,
    sigma: Annotated[
        float | None,
        _tuning(
            "The search's first standard deviation.",
            f"1.0; {_LIKE_PAPER}: the paper's, by data set",
        ),
    ] = None,
    consistency_weight: Annotated[
        float | None,
        _tuning("Of the consistency loss.", "0.1; paper: its own, by data set"),
    ] = None,
    strategy: Annotated[
        Literal["cma-es", "random", "spsa"], _tuning("Of the paper's search.")
    ] = "cma-es",
    strict: Strict = False,
    texts: Annotated[
        Path | None,
        typer.Option(
            show_default="about a thousand common nouns",
            help="The vocabulary that is scored beside the class names: a file, one text a line.",
            rich_help_panel=_TEXTS,
        ),
    ] = None,
    keep_texts: Annotated[
        int | None,
        typer.Option(
            show_default="as many as are needed",
            help="Texts of it that the head reads at most.",
            rich_help_panel=_TEXTS,
        ),
    ] = None,
    no_search: Annotated[bool, _part("--no-search", "the search")] = False,
    no_refinement: Annotated[
        bool, _part("--no-refinement", "the head that refines predictions")
    ] = False,
    no_consistency: Annotated[bool, _part("--no-consistency", "the consistency loss")] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Tune the model on a few pictures a class, within a budget of queries."""
    from craft_client.journal import Journal
    from craft_client.layouts import load_dataset
    from craft_client.open_text import read_vocabulary

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
        task = new_task(
            dataset,
            data,
            recipe,
            shots,
            seed,
            shots_strict=shots_strict,
            vocabulary=None if texts is None else read_vocabulary(texts),
            strict=strict,
            budget=budget,
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
    with Journal.claimed(folder, new=resume is None) as journal, _early_end_told(journal):
        tuned = tune_task(task, journal, model, url, key, report=report)
    _report(tuned, folder, time.monotonic() - started, as_json=as_json)


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
def _early_end_told(journal: Journal) -> Iterator[None]:
    """Says how to go on with a run that ends early."""
    try:
        yield
    except BaseException:
        if journal.document:
            say(f"The run ended early. Continue it: craft tune --resume {journal.folder}")
        raise


def _report(tuned: Tuned, folder: Path, seconds: float, *, as_json: bool) -> None:
    from craft_shared.units import Units

    result, image_set, uploaded = tuned.result, tuned.image_set, tuned.uploaded
    charged = uploaded + result.units
    unseen = charged + Units(images=image_set.count - uploaded.images)
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
                "charged_of_unseen": unseen.model_dump(),
                **tuned.traffic,
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
