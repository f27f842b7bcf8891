"""The options of all commands that host a model, written once: what they mean is a setting each."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from craft_server.cli import completion
from craft_server.cli.options import DatabaseUrl, DataDir, Host, Port, settings_of

if TYPE_CHECKING:
    from craft_server.settings import Settings

_MODEL = "Model"
_PROCESS = "Process"


def serving_settings(
    model: Annotated[
        str | None,
        typer.Option(
            show_default="pocket",
            help="pocket, or one of open_clip's.",
            autocompletion=completion.models,
            rich_help_panel=_MODEL,
        ),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            show_default=False,
            help="open_clip's name of the weights, or a checkpoint's path.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            show_default="auto",
            help="auto (a GPU where there is one), cpu, cuda, cuda:1, ...",
            autocompletion=lambda: ["auto", "cpu", "cuda"],
            rich_help_panel=_MODEL,
        ),
    ] = None,
    precision: Annotated[
        Literal["auto", "fastest", "float32", "float16", "bfloat16"] | None,
        typer.Option(
            show_default="auto",
            help="Of the model's arithmetic; fastest measures it at the start.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            show_default=False,
            help="Behave like this provider: a shipped profile's name, or a TOML file "
            "(docs/profiles.md).",
            autocompletion=completion.profiles,
        ),
    ] = None,
    host: Host = None,
    port: Port = None,
    workers: Annotated[
        int | None,
        typer.Option(
            show_default="1",
            help="Processes that speak HTTP; with 2 or more, the model has one of its own.",
            rich_help_panel=_PROCESS,
        ),
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        typer.Option(
            show_default="info",
            help="The least important lines of the log on stderr; info has one a call.",
            rich_help_panel=_PROCESS,
        ),
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> Settings:
    """The settings of a process that hosts a model."""
    return settings_of(**locals())


def with_serving_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of `serving_settings` in the place of its parameter `settings`.

    It also gets them as they were given, if it has a parameter `options`.
    """
    given, own = _parameters(serving_settings), _parameters(command)

    @wraps(command)
    def with_settings(**values: Any) -> None:
        options = {name: values.pop(name) for name in given}
        if "options" in own:
            values["options"] = options
        command(settings=serving_settings(**options), **values)

    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in (*own.values(), *given.values())
        if parameter.name not in ("settings", "options")
    ]
    signature = inspect.Signature(parameters)
    with_settings.__signature__ = signature  # type: ignore[attr-defined] # read by inspect
    with_settings.__annotations__ = {each.name: each.annotation for each in parameters}
    return with_settings


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """A function's parameters with their types.

    Not that of settings: their class takes a while to import, which help should not wait for.
    """
    annotations = function.__annotations__
    late = ("settings", "return")
    function.__annotations__ = {name: a for name, a in annotations.items() if name not in late}
    parameters = dict(inspect.signature(function, eval_str=True).parameters)
    function.__annotations__ = annotations
    return parameters
