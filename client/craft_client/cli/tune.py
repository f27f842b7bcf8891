"""`craft tune`: few-shot pictures in, a run directory with an adapter out."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from craft_client.cli.options import PLAIN_TEMPLATE, AsJson, Data, Key, Model, Template, Url
from craft_client.cli.progress import watch
from craft_client.cli.session import check_budgets, check_files, connect, upload
from craft_client.cli.show import document, percent, say, table
from craft_client.exceptions import DataError
from craft_shared.units import UNITS, Units

if TYPE_CHECKING:
    from collections.abc import Sequence

    from craft_client.data import Sample
    from craft_client.remote import RemoteBlackBox
    from craft_client.tune import TuneResult, TuneSettings
    from craft_shared.wire import ImageSet, Limits

_TUNING = "Tuning"
_PARTS = "Parts of the method"


def _scale(text: str) -> str:
    if text != "paper":
        try:
            float(text)
        except ValueError as error:
            raise typer.BadParameter(f"'{text}' is neither a number nor 'paper'.") from error
    return text


def tune(
    data: Data,
    shots: Annotated[int, typer.Option(min=1, help="Training pictures a class.")] = 16,
    budget: Annotated[int, typer.Option(min=1, help="Queries that the run may spend.")] = 8000,
    seed: Annotated[int, typer.Option(min=0, help="Of the few-shot draw and of the search.")] = 1,
    run: Annotated[
        Path | None,
        typer.Option(
            show_default="runs/NAME-SHOTSshots-seedSEED", help="A new or empty run directory."
        ),
    ] = None,
    model: Model = None,
    template: Template = PLAIN_TEMPLATE,
    population: Annotated[
        int, typer.Option(help="Codes a generation of the search.", rich_help_panel=_TUNING)
    ] = 40,
    dim: Annotated[int, typer.Option(help="Length of a code.", rich_help_panel=_TUNING)] = 512,
    random_codes: Annotated[
        int, typer.Option(help="Codes scored before the search.", rich_help_panel=_TUNING)
    ] = 16,
    scale: Annotated[
        str,
        typer.Option(
            callback=_scale,
            help="How far codes move the prompt, in standard deviations of the model's token "
            "embeddings; or 'paper'.",
            rich_help_panel=_TUNING,
        ),
    ] = "3.0",
    sigma: Annotated[
        float,
        typer.Option(help="The search's first standard deviation.", rich_help_panel=_TUNING),
    ] = 1.0,
    head: Annotated[
        str, typer.Option(help="ridge (closed form) or mlp (paper).", rich_help_panel=_TUNING)
    ] = "ridge",
    consistency_weight: Annotated[
        float, typer.Option(help="Of the consistency loss.", rich_help_panel=_TUNING)
    ] = 0.1,
    no_search: Annotated[
        bool, typer.Option("--no-search", help="Only random codes.", rich_help_panel=_PARTS)
    ] = False,
    no_refinement: Annotated[
        bool, typer.Option("--no-refinement", help="No head.", rich_help_panel=_PARTS)
    ] = False,
    no_consistency: Annotated[
        bool, typer.Option("--no-consistency", help="Cross-entropy only.", rich_help_panel=_PARTS)
    ] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Tune the model on a few pictures a class, within a budget of queries."""
    from craft_client.data import few_shot, load_dataset
    from craft_client.settings import TuneSettings

    started = time.monotonic()
    settings = TuneSettings(
        budget=budget,
        seed=seed,
        population=population,
        dim=dim,
        random_codes=random_codes,
        scale="paper" if scale == "paper" else float(scale),
        sigma=sigma,
        head=cast(Literal["ridge", "mlp"], head),
        search=not no_search,
        refinement=not no_refinement,
        consistency=not no_consistency,
        consistency_weight=consistency_weight,
        template=template,
        shots=shots,
    )
    dataset = load_dataset(data)
    folder = run or Path("runs") / f"{dataset.name}-{shots}shots-seed{seed}"
    samples = few_shot(dataset.split("train"), shots, seed, dataset.classes)
    with _run_folder(folder):
        result, image_set, uploaded = _tune(
            settings, dataset.classes, samples, data, folder, model, url, key
        )
    _report(result, image_set, uploaded, folder, time.monotonic() - started, as_json=as_json)


def _tune(
    settings: TuneSettings,
    classes: Sequence[str],
    samples: Sequence[Sample],
    data: Path,
    folder: Path,
    model: str | None,
    url: str | None,
    key: str | None,
) -> tuple[TuneResult, ImageSet, Units]:
    """Checks everything that can be checked for free, then uploads, then tunes."""
    import numpy as np

    from craft_client.journal import Journal
    from craft_client.remote import RemoteBlackBox, check_prompts
    from craft_client.tune import run_document, tune
    from craft_shared.wire import Context

    labels = np.array([sample.label for sample in samples], np.int64)
    run = _run_name(folder)
    with connect(url, key, run=run) as client:
        card = client.model(model)
        check_files(samples, card.limits)
        image_set = client.create_image_set(card.name)
        expected = RemoteBlackBox(
            client, image_set.model_copy(update={"count": len(samples)}), classes
        )
        about = run_document(
            expected,
            labels,
            settings,
            run=run,
            data=str(data.resolve()),
            pictures=[sample.path.relative_to(data).as_posix() for sample in samples],
            image_set=image_set.id,
        )
        check_budgets(
            client,
            _need(settings, expected, card.limits),
            remedy="Use a smaller --budget, or ask the provider for a top-up.",
        )
        context = Context(dim=settings.dim, seed=settings.seed, scale=settings.scale)
        check_prompts(client, image_set, classes, templates=[settings.template], context=context)
        image_set, uploaded = upload(client, image_set, samples)
        black_box = RemoteBlackBox(client, image_set, classes)
        journal = Journal.create(folder, about)
        with watch() as on_progress:
            result = tune(black_box, labels, settings, journal, on_progress)
    return result, image_set, uploaded


def _run_name(folder: Path) -> str:
    """What the server's ledger calls the run: after its directory, and like no other."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", folder.resolve().name).lstrip("-")[:100]
    return f"{readable}-{uuid.uuid4().hex}"


@contextmanager
def _run_folder(folder: Path) -> Iterator[None]:
    """Makes the run directory before anything is sent, so that what was paid can be written.

    When the run ends early, it says where the journal is, or removes the directory if it is empty.

    Raises:
        DataError: the directory is not empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise DataError(
            f"'{folder}' already holds a run or other files.",
            remedy="Name another run directory with --run, or remove this one.",
        )
    try:
        yield
    except BaseException:
        if any(folder.iterdir()):
            say(f"The run ended early. What it paid for is in '{folder}'.")
        else:
            folder.rmdir()
        raise


def _need(settings: TuneSettings, black_box: RemoteBlackBox, limits: Limits) -> Units:
    """What the run charges if no picture has to be encoded anew."""
    opening, generation = (
        black_box.units(prompts) for prompts in (settings.opening, settings.population)
    )
    generations = settings.generations(black_box.units)
    uploads = -(-black_box.image_set.count // limits.images_per_call)
    scores = Units(**{unit: opening[unit] + generations * generation[unit] for unit in UNITS})
    return scores + Units(requests=uploads)


def _report(
    result: TuneResult,
    image_set: ImageSet,
    uploaded: Units,
    folder: Path,
    seconds: float,
    *,
    as_json: bool,
) -> None:
    charged = uploaded + result.units
    if as_json:
        document(
            {
                "run": str(folder),
                "model": image_set.model,
                "revision": image_set.revision,
                "image_set": image_set.id,
                "pictures": image_set.count,
                "accuracy_before": result.accuracy_before,
                "accuracy_after": result.accuracy_after,
                "prompts": result.adapter.config.prompts,
                "seconds": seconds,
                "stopped_by": result.stopped_by,
                "charged": charged.model_dump(),
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
    app.command()(tune)
