"""`craft models`, `usage`, `budget`, `image-sets`, `config` and `plugins`: all free of charge."""

from __future__ import annotations

from typing import Annotated

import typer

from craft_client.cli.options import AsJson, Key, Url, argument
from craft_client.cli.root import app, command
from craft_client.cli.session import connect
from craft_client.cli.show import document, free_document, report_done, say, table
from craft_shared.amounts import SPARE_UNITS, UNITS
from craft_shared.commands import Typer, examples


def _image_set_id(text: str) -> str:
    if "/" in text:
        raise typer.BadParameter(f"'{text}' is no image set's id; tune and evaluate show it.")
    return text


ImageSetId = Annotated[
    str, argument("ID", "The id, as craft tune and craft evaluate show it.", callback=_image_set_id)
]


@command("Server and account", "craft models", "craft models --json")
def models(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """List the models that the server hosts, and their limits."""
    with connect(url, key) as client:
        cards = client.models()
    if as_json:
        free_document({"models": [card.model_dump() for card in cards]})
        return
    table(
        ["model", "revision", "image size", "pictures a call", "pictures a set", "prompts a call"],
        [
            [
                card.name,
                card.revision,
                card.image_size,
                card.limits.images_per_call,
                card.limits.images_per_set,
                card.limits.prompts_per_call,
            ]
            for card in cards
        ],
        spare=[
            *("prompts a call", "pictures a set", "pictures a call"),
            *("image size", "revision"),
        ],
    )


@command("Server and account", "craft usage", "craft usage --json")
def usage(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Show what the key was charged, by kind of call; --json lists every charge.

    Costs, where there are any, are in the provider's currency.
    """
    from craft_client.blackbox import currency
    from craft_shared.units import Units

    with connect(url, key) as client:
        found = client.usage()
    if as_json:
        free_document(
            {
                "total": found.total.model_dump(),
                "cost_micros": found.cost_micros,
                "charges": [charge.model_dump() for charge in found.charges],
            }
        )
        return
    sums = []
    for call in sorted({charge.call for charge in found.charges}):
        lines = [charge for charge in found.charges if charge.call == call]
        units = sum((line.units for line in lines), Units())
        sums.append((call, units, sum(line.cost_micros for line in lines)))
    sums.append(("total", found.total, found.cost_micros))
    priced = any(micros for _, _, micros in sums)
    table(
        ["call", *UNITS, *(["cost"] if priced else [])],
        [
            [call, *(units[unit] for unit in UNITS), *([currency(micros)] if priced else [])]
            for call, units, micros in sums
        ],
        spare=SPARE_UNITS,
    )


@command("Server and account", "craft budget", "craft budget --json")
def budget(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Show what is left of the key's budgets and its team's; costs in the provider's currency."""
    from craft_client.blackbox import shown

    with connect(url, key) as client:
        budgets = client.budgets()
    if as_json:
        free_document({"budgets": [bound.model_dump() for bound in budgets]})
        return
    table(
        ["unit", "window", "whose", "limit", "spent", "reserved", "remaining", "resets at"],
        [
            [
                "cost" if bound.unit == "cost_micros" else bound.unit,
                bound.window,
                bound.of,
                *(
                    shown(bound.unit, amount)
                    for amount in (bound.limit, bound.spent, bound.reserved, bound.remaining)
                ),
                bound.resets_at or "never",
            ]
            for bound in budgets
        ],
        spare=["reserved", "spent", "resets at"],
    )
    bounded = {bound.unit for bound in budgets}
    free = [unit for unit in UNITS if unit not in bounded]
    if free:
        say(f"Not bounded: {', '.join(free)}.")


_image_sets = Typer(
    no_args_is_help=True,
    help="Show or delete an image set.",
    epilog=examples("craft image-sets show ID"),
)
app.add_typer(_image_sets, name="image-sets", rich_help_panel="Server and account")


@_image_sets.command(
    "show", epilog=examples("craft image-sets show ID", "craft image-sets show ID --json")
)
def show_image_set(
    image_set: ImageSetId, url: Url = None, key: Key = None, as_json: AsJson = False
) -> None:
    """Show an image set."""
    with connect(url, key) as client:
        found = client.image_set(image_set)
    if as_json:
        free_document({"image_set": found.model_dump()})
        return
    table(
        ["image set", "model", "revision", "pictures"],
        [[found.id, found.model, found.revision, found.count]],
        spare=["revision"],
    )


@_image_sets.command("delete", epilog=examples("craft image-sets delete ID"))
def delete_image_set(
    image_set: ImageSetId, url: Url = None, key: Key = None, as_json: AsJson = False
) -> None:
    """Delete an image set; pictures that no other set holds are charged again when they return."""
    with connect(url, key) as client:
        client.delete_image_set(image_set)
    report_done({"deleted": image_set}, f"Deleted image set {image_set}.", as_json)


_config = Typer(
    no_args_is_help=True,
    help="What the commands are configured with.",
    epilog=examples("craft config show"),
)
app.add_typer(_config, name="config", rich_help_panel="Settings")


@_config.callback()
def config() -> None:
    """Makes `show` a command of its own, although it is the only one."""


@_config.command(epilog=examples("craft config show", "craft config show --json"))
def show(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Show each setting and where it comes from; the API key is masked.

    An option comes before the environment, that before your own file.
    Nothing is taken from ./craft.toml.
    """
    from craft_client.cli import configuration

    settings = configuration.load(url, key)
    files = {
        "project": str(configuration.PROJECT_FILE.resolve()),
        "user": str(configuration.user_file()),
    }
    if as_json:
        document(
            {
                "settings": {
                    name: {"value": found.shown, "source": found.source}
                    for name, found in settings.items()
                },
                "files": files,
            }
        )
        return
    table(
        ["setting", "value", "from"],
        [[n, settings[n].shown, settings[n].source] for n in configuration.NAMES if n in settings],
        spare=["from"],
    )
    say(f"Your own file, where it exists: '{files['user']}'.")
    for warning in configuration.warnings(settings):
        say(warning)


@command("Settings", "craft plugins", "craft plugins --json")
def plugins(as_json: AsJson = False) -> None:
    """List the recipes that other packages add. Each is loaded to try it."""
    from craft_client.recipes import RECIPES
    from craft_shared.plugins import listed

    found = listed(RECIPES)
    if as_json:
        document({"plugins": found})
    elif found:
        table(list(found[0]), [list(row.values()) for row in found])
    else:
        say("No plug-ins are installed (docs/own-tuner.md#plug-ins).")
