"""`craft-server config` and `deploy`: what a server is configured with, and files for Ray Serve."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from craft_server.cli import options
from craft_server.cli.options import complete_models, settings_of
from craft_server.cli.output import fail, misuse, note, print_json, print_lines, print_table
from craft_shared.commands import Typer, examples

config = Typer(
    help="What the server is configured with.",
    no_args_is_help=True,
    epilog=examples("craft-server config show"),
)


@config.callback()
def _config() -> None:
    """Makes `show` a command of its own, although it is the only one."""


@config.command(
    epilog=examples(
        "craft-server config show",
        "craft-server config show --model RN50 --json",
    )
)
def show(
    json_output: options.AsJson = False,
    model: options.Model = None,
    pretrained: options.Pretrained = None,
    device: options.Device = None,
    precision: options.Precision = None,
    profile: options.Profile = None,
    host: options.Host = None,
    port: options.Port = None,
    root_path: options.RootPath = None,
    workers: options.Workers = None,
    log_level: options.LogLevel = None,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Show each setting and where it comes from; passwords are masked.

    An option comes before the environment, that before files of secrets, those before the file of
    settings: craft-server.toml in the present folder, or the one that CRAFT_CONFIG names.
    """
    given = {name: value for name, value in locals().items() if name != "json_output"}
    from craft_server.settings import settings_file, shown, sources

    values = shown(settings_of(**given))
    places = sources({name: value for name, value in given.items() if value is not None})
    if json_output:
        print_json(
            {
                "settings": {
                    name: {"value": value, "source": places.get(name, "default")}
                    for name, value in values.items()
                },
                "file": str(settings_file()),
            }
        )
        return
    print_table(
        ["setting", "value", "from"],
        [
            [name, "" if value is None else str(value), places.get(name, "default")]
            for name, value in values.items()
        ],
        spare=["from"],
    )


deploy = Typer(
    help="Write what other systems need to run the server.",
    no_args_is_help=True,
    epilog=examples("craft-server deploy ray --database-url postgresql://craft@db/craft"),
)

_RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?", re.ASCII)


@deploy.command(
    "ray",
    epilog=examples(
        "craft-server deploy ray --database-url postgresql://craft@db/craft --out serve.yaml",
        "craft-server deploy ray --database-url postgresql://craft@db/craft --models 1-8",
    ),
)
def ray(
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, show_default="standard output", help="The file.")
    ] = None,
    ingress: Annotated[
        str, typer.Option(help="Replicas that speak HTTP: a number, or a range such as 2-8.")
    ] = "2",
    models: Annotated[
        str, typer.Option(help="Replicas that hold the model: a number, or a range such as 1-4.")
    ] = "1-4",
    ingress_cpus: Annotated[float, typer.Option(min=0.01, help="Cores of an ingress replica.")] = 1,
    model_cpus: Annotated[float, typer.Option(min=0.01, help="Cores of a model replica.")] = 2,
    model_gpus: Annotated[
        float, typer.Option(min=0, help="GPUs of a model replica; 0.5 lets two share one.")
    ] = 0,
    model: Annotated[
        str | None,
        typer.Option(
            show_default="pocket",
            help="pocket, or one of open_clip's.",
            autocompletion=complete_models,
        ),
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="open_clip's name of the weights, or a checkpoint's path.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address of the proxies.")] = "0.0.0.0",  # noqa: S104 - a cluster's, said in the help
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the proxies.")] = 8000,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Write a configuration for Ray Serve.

    'serve run FILE' tries it on one machine, 'serve deploy FILE' puts it on a cluster. The replicas
    share a PostgreSQL, whose password they read from a file (docs/deployment.md). Keys' limits a
    minute need a Redis: CRAFT_RATE_LIMITS_URL.
    """
    import yaml
    from sqlalchemy.engine import URL, make_url

    settings = settings_of(model=model, pretrained=pretrained, database_url=database_url)
    url = settings.database_url
    if url is None or not url.startswith("postgres"):
        fail(
            "--database-url: replicas share one ledger; name a PostgreSQL, postgresql://user@host/name"
        )
    address = make_url(url)
    if address.password is not None:
        print_lines(
            [
                "The database's password is left out: the replicas read it from the file "
                "/run/secrets/craft_database_password, or from the variable "
                "CRAFT_DATABASE_PASSWORD."
            ],
            err=True,
        )
    driver, user, _, server, port_of_it, name, query = address
    without_password = URL.create(driver, user, None, server, port_of_it, name, query)
    environment = {
        "CRAFT_DATABASE_URL": without_password.render_as_string(),
        "CRAFT_MODEL": settings.model,
        "CRAFT_PRETRAINED": settings.pretrained,
        "CRAFT_RATE_LIMITS_URL": settings.rate_limits_url,
        "CRAFT_ROOT_PATH": settings.root_path or None,
        "CRAFT_CORS_ORIGINS": ",".join(settings.cors_origins) or None,
    }
    config = {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "applications": [
            {
                "name": "craftbox",
                "route_prefix": "/",
                "import_path": "craft_server.ray_serve.deployments:application",
                "runtime_env": {
                    "env_vars": {
                        name: value for name, value in environment.items() if value is not None
                    }
                },
                "deployments": [
                    {
                        "name": "Ingress",
                        "autoscaling_config": _scale(ingress, "--ingress", calls_at_once=32),
                        "ray_actor_options": {"num_cpus": ingress_cpus, "num_gpus": 0.0},
                    },
                    {
                        "name": "Model",
                        "autoscaling_config": _scale(models, "--models", calls_at_once=8),
                        "ray_actor_options": {"num_cpus": model_cpus, "num_gpus": model_gpus},
                    },
                ],
            }
        ],
    }
    text = yaml.safe_dump(config, sort_keys=False)
    if out is None:
        print_lines(text.rstrip().split("\n"))
    else:
        out.write_text(text)
        note(f"Wrote '{out}'. Try it here: serve run {out}")


def _scale(replicas: str, option: str, *, calls_at_once: int) -> dict[str, int]:
    """A deployment that grows while more calls wait for a replica than it should have at once."""
    form = _RANGE.fullmatch(replicas)
    least, most = (int(form[1]), int(form[2] or form[1])) if form else (0, 0)
    if not 1 <= least <= most:
        misuse(f"{option}: write a number from 1, or a range such as 2-8")
    return {
        "min_replicas": least,
        "max_replicas": most,
        "target_ongoing_requests": calls_at_once,
    }
