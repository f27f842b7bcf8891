"""`craft models`, `craft usage`, `craft budget` and `craft image-sets`: all free of charge."""

from __future__ import annotations

from typing import Annotated

import typer

from craft_client.cli.options import AsJson, Key, Url
from craft_client.cli.session import connect
from craft_client.cli.show import document, say, table
from craft_shared.units import UNITS, Units

ImageSetId = Annotated[str, typer.Argument(metavar="ID", show_default=False)]


def models(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """List the models that the server hosts, and their limits."""
    with connect(url, key) as client:
        cards = client.models()
    if as_json:
        document({"models": [card.model_dump() for card in cards], "charged": Units().model_dump()})
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
    )


def usage(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Show what the key was charged, by kind of call; --json lists every charge."""
    with connect(url, key) as client:
        found = client.usage()
    if as_json:
        document(
            {
                "total": found.total.model_dump(),
                "charges": [charge.model_dump() for charge in found.charges],
                "charged": Units().model_dump(),
            }
        )
        return
    by_call: dict[str, Units] = {}
    for charge in found.charges:
        by_call[charge.call] = by_call.get(charge.call, Units()) + charge.units
    rows = [[call, *(units[unit] for unit in UNITS)] for call, units in sorted(by_call.items())]
    table(["call", *UNITS], [*rows, ["total", *(found.total[unit] for unit in UNITS)]])


def budget(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Show what is left of the key's budgets."""
    with connect(url, key) as client:
        budgets = client.budgets()
    if as_json:
        document(
            {
                "budgets": [bound.model_dump() for bound in budgets],
                "charged": Units().model_dump(),
            }
        )
        return
    table(
        ["unit", "limit", "spent", "reserved", "remaining"],
        [[b.unit, b.limit, b.spent, b.reserved, b.remaining] for b in budgets],
    )
    bounded = {bound.unit for bound in budgets}
    free = [unit for unit in UNITS if unit not in bounded]
    if free:
        say(f"Not bounded: {', '.join(free)}.")


def show_image_set(
    image_set: ImageSetId, url: Url = None, key: Key = None, as_json: AsJson = False
) -> None:
    """Show an image set."""
    with connect(url, key) as client:
        found = client.image_set(image_set)
    if as_json:
        document({"image_set": found.model_dump(), "charged": Units().model_dump()})
        return
    table(
        ["image set", "model", "revision", "pictures"],
        [[found.id, found.model, found.revision, found.count]],
    )


def delete_image_set(
    image_set: ImageSetId, url: Url = None, key: Key = None, as_json: AsJson = False
) -> None:
    """Delete an image set; pictures that no other set holds are charged again when they return."""
    with connect(url, key) as client:
        client.delete_image_set(image_set)
    if as_json:
        document({"deleted": image_set, "charged": Units().model_dump()})
    else:
        say(f"Deleted image set {image_set}.")


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command()(models)
    app.command()(usage)
    app.command()(budget)
    image_sets = typer.Typer(no_args_is_help=True, help="Show or delete an image set.")
    image_sets.command("show")(show_image_set)
    image_sets.command("delete")(delete_image_set)
    app.add_typer(image_sets, name="image-sets")
