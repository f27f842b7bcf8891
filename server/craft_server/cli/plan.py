"""`craft-server plan`: what tuning runs will take of this server, before anybody starts one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from craft_server.cli import options
from craft_server.cli.ledger import reading
from craft_server.cli.options import complete_models, settings_of
from craft_server.cli.output import fail, misuse, note, print_json, print_lines, print_table
from craft_shared.amounts import UNITS, Unit
from craft_shared.commands import Typer, examples
from craft_shared.text_files import NotTextError, lines_of, read_text

if TYPE_CHECKING:
    from craft_server.plan.costs import Architecture, Constants, Precision
    from craft_server.plan.runs import Load, Plan, Texts

_asked = partial(typer.Option, rich_help_panel="What is asked")
_server = partial(typer.Option, rich_help_panel="The server")
_constants = partial(typer.Option, rich_help_panel="What things take")

_PAPER_BUDGET = 8201  # of sixteen shots

app = Typer()


@app.command(
    epilog=examples(
        "craft-server plan --classes 100 --images 1600",
        "craft-server plan --model RN50 --classes 1000 --recipe paper --json",
        "craft-server plan --classes 100 --owners 50 --price queries=100 --hour-price 0.4",
    ),
    rich_help_panel="Settings and deployment",
    first=("model", "classes", "images", "budget", "recipe"),
)
def plan(
    model: Annotated[
        str, _server(help="pocket, or one of open_clip's.", autocompletion=complete_models)
    ] = "pocket",
    classes: Annotated[int | None, _asked(min=2, help="How many classes there are.")] = None,
    class_names: Annotated[
        Path | None,
        _asked(help="A file with the names, one a line: how many and how long they are."),
    ] = None,
    tokens: Annotated[
        int,
        _asked(
            min=1,
            max=60,
            help="Tokens of a class name, its full stop and end; ignored with --class-names.",
        ),
    ] = 4,
    images: Annotated[int, _asked(min=1, help="Training pictures of a run.")] = 1600,
    image_kb: Annotated[float, _asked(min=0.1, help="Size of a picture in kilobytes.")] = 100,
    image_side: Annotated[int, _asked(min=1, help="Its side in pixels.")] = 500,
    budget: Annotated[
        int | None, _asked(min=1, show_default="128; paper: 8,201", help="Queries of a run.")
    ] = None,
    recipe: Annotated[
        Literal["craftbox", "paper"], _asked(help="The recipe that the runs use.")
    ] = "craftbox",
    vocabulary: Annotated[
        int, _asked(min=1, help="Texts that craftbox scores beside class names.")
    ] = 1000,
    strict: Annotated[
        bool,
        _asked("--strict", help="Strict access with all random codes; a run may need fewer."),
    ] = False,
    random_codes: Annotated[
        int, _asked(min=0, help="Random codes in strict access, at most.")
    ] = 127,
    population: Annotated[
        int, _asked(min=4, help="Codes in each generation of the paper's search.")
    ] = 40,
    dim: Annotated[int, _asked(min=2, max=4096, help="Length of a code.")] = 512,
    owners: Annotated[int, _asked(min=1, help="How many owners each make such a run.")] = 1,
    at_once: Annotated[
        int | None,
        _asked(
            min=1,
            show_default="all",
            help="How many of them at the same time; decides the server's memory.",
        ),
    ] = None,
    cores: Annotated[
        int | None, _server(min=1, show_default="as measured", help="Cores of the server.")
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"], _server(help="Precision of the model's arithmetic.")
    ] = "float32",
    measure: Annotated[
        bool, _constants("--measure", help="Measure the model on this machine first; a minute.")
    ] = False,
    pretrained: Annotated[
        str | None, _constants(help="With --measure: as of serve; speed does not depend on it.")
    ] = None,
    constants: Annotated[
        Path | None,
        _constants(
            dir_okay=False,
            show_default="those shipped",
            help="A file of constants that --save or benchmarks/plan_constants.py wrote.",
        ),
    ] = None,
    save: Annotated[
        Path | None, _constants(dir_okay=False, help="Write the constants used.")
    ] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(
            help="UNIT=MICROS, such as queries=100; repeatable. By default those of the ledger "
            "that --data-dir or --database-url names, if they do."
        ),
    ] = None,
    hour_price: Annotated[
        float | None,
        typer.Option(min=0, help="What the server's machine costs an hour, in your currency."),
    ] = None,
    json_output: options.AsJson = False,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Estimate what tuning runs take: time, memory, traffic, storage and money. Asks no server."""
    prices = _prices(price, model, data_dir, database_url)
    # The model's libraries take seconds to import, which only this command should wait for.
    from craft_server.plan.costs import (
        SHIPPED,
        Architecture,
        Constants,
        ConstantsError,
        UnknownArchitecture,
    )
    from craft_server.plan.runs import Workload, plan_run

    settings = settings_of()
    if budget is None:
        budget = _PAPER_BUDGET if recipe == "paper" else 1 + random_codes
    try:
        architecture = Architecture.of(model)
        texts = _texts(model, classes, class_names, tokens)
        workload = Workload(
            texts=texts if strict or recipe == "paper" else texts.beside(vocabulary),
            images=images,
            image_bytes=round(1000 * image_kb),
            image_pixels=image_side**2,
            budget=budget,
            recipe=recipe,
            population=population,
            random_codes=random_codes,
            dim=dim,
            limits=settings.limits,
        )
        if budget < workload.units.queries:
            needed = workload.units.queries
            misuse(f"--budget: {budget} is less than the {needed} queries that a run begins with")
        used = Constants.load(constants or SHIPPED)
        if measure:
            used = _measured(used, architecture, pretrained, precision)
        if save is not None:
            used.save(save)
        planned = plan_run(
            used,
            architecture,
            workload,
            settings,
            precision=precision,
            cores=cores,
            owners=owners,
            at_once=at_once,
            prices=prices,
            hour_price=hour_price,
        )
    except (ConstantsError, UnknownArchitecture) as error:
        fail(str(error))
    if json_output:
        print_json(planned.model_dump())
    else:
        _print(planned)


def _prices(
    given: list[str] | None, model: str, data_dir: Path | None, database_url: str | None
) -> dict[Unit, int] | None:
    from craft_server.ledger.prices import list_prices

    if given:
        return dict(_price(text) for text in given)
    if data_dir is None and database_url is None:
        return None
    with reading(data_dir, database_url) as connection:
        return list_prices(connection).get(model, {})


def _price(text: str) -> tuple[Unit, int]:
    name, _, micros = text.partition("=")
    unit = next((unit for unit in UNITS if unit == name), None)
    if unit is None or not micros.isdecimal():
        misuse(f"--price: '{text}' is not UNIT=MICROS; units are {', '.join(UNITS)}")
    return unit, int(micros)


def _texts(model: str, classes: int | None, file: Path | None, tokens: int) -> Texts:
    from craft_server.engine import ModelLoadError
    from craft_server.plan.runs import Texts

    if (classes is None) == (file is None):
        misuse("name either how many --classes there are, or a file of their names: --class-names")
    if file is None:
        return Texts.of_length(classes or 0, tokens)
    try:
        names = [line for _, line in lines_of(read_text(file))]
    except (OSError, NotTextError) as error:
        fail(f"--class-names: '{file}' cannot be read: {error}")
    if len(names) < 2:
        fail(f"--class-names: '{file}' names fewer than two classes")
    try:
        return Texts.of_names(model, names)
    except ModelLoadError as error:
        fail(str(error))


def _measured(
    constants: Constants, architecture: Architecture, pretrained: str | None, precision: Precision
) -> Constants:
    from craft_server.engine import ModelLoadError
    from craft_server.plan.measure import measure_machine, measure_model

    try:
        cost = measure_model(architecture.name, pretrained, precision)
    except ModelLoadError as error:
        fail(str(error))
    return constants.moved_to(measure_machine(), architecture.name, cost)


def _print(plan: Plan) -> None:
    many = plan.owners > 1
    columns = [f"{plan.model}, {plan.precision}, {plan.cores} cores", "one run"]
    if many:
        columns.append(f"{plan.owners:,} runs, {plan.at_once:,} at once")
    loads = [plan.run, plan.all] if many else [plan.run]
    rows = [[name, *(of(load) for load in loads)] for name, of in _ROWS]
    charged = [[f"{unit} charged", *(f"{load.units[unit]:,}" for load in loads)] for unit in UNITS]
    print_table(columns, [*rows, *charged])
    seconds = plan.seconds_of_run
    print_table(
        ["where a run's time goes", "seconds", "share"],
        [[name, f"{value:,.1f}", f"{value / seconds.total:.0%}"] for name, value in seconds],
    )
    print_lines(
        [
            f"A client takes {_size(plan.client_memory_bytes)} of memory and its run directory "
            f"{_size(plan.run_directory_bytes)}."
        ]
    )
    note(f"Constants of {plan.machine}.")
    for line in plan.notes:
        note(f"Note: {line}.")


def _duration(seconds: float) -> str:
    if seconds < 300:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


def _money(amount: float | None, otherwise: str) -> str:
    return otherwise if amount is None else f"{amount:,.2f}"


_ROWS: tuple[tuple[str, Callable[[Load], str]], ...] = (
    ("time", lambda load: _duration(load.seconds)),
    ("server's memory", lambda load: _size(load.server_memory_bytes)),
    ("bytes up", lambda load: _size(load.bytes_up)),
    ("bytes down", lambda load: _size(load.bytes_down)),
    ("database", lambda load: _size(load.database_bytes)),
    ("answers kept for a while", lambda load: _size(load.answers_bytes)),
    (
        "charged",
        lambda load: _money(load.charged_micros and load.charged_micros / 1e6, "no prices"),
    ),
    ("the server's hours", lambda load: _money(load.machine_cost, "no hour's price")),
)
