"""Adapters on the server: publish, list, share, retire and restore them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from craft_client.cli.options import (
    AsJson,
    Key,
    RunFolder,
    Url,
    adapter_names,
    argument,
    option,
    remember,
)
from craft_client.cli.root import command
from craft_client.cli.session import connect
from craft_client.cli.show import (
    document,
    free_document,
    percent,
    report_done,
    say,
    table,
    units_line,
)
from craft_shared.amounts import SPARE_UNITS, UNITS, counted

if TYPE_CHECKING:
    from craft_shared.wire import AdapterCard, AdapterSettings

_WHO = "Who may use it"

OwnName = Annotated[str, argument("NAME", "One of your owner's adapters.", adapter_names)]
Versions = Annotated[
    str, argument("NAME", "NAME@VERSION, or NAME for all its versions.", adapter_names)
]


@command(
    "Adapters",
    "craft publish runs/digits-16shots-seed1 --name digits",
    "craft publish runs/digits-16shots-seed1 --name digits --alias stable",
)
def publish(
    run: RunFolder,
    name: Annotated[str, option("The adapter's name.")],
    alias: Annotated[
        list[str] | None, option("A name that means this version now; repeatable.")
    ] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Publish a run's adapter, so that the server classifies pictures with it.

    The run's receipt is put beside the adapter, in RUN/adapter.
    """
    from craft_client.journal import Journal
    from craft_client.run_folder import ADAPTER_FOLDER
    from craft_shared.model_card import RECEIPT_FILE

    journal = Journal.open(run)
    adapter = journal.adapter()
    with connect(url, key) as client:
        answer = client.publish(name, adapter, aliases=alias or [])
        card = answer.adapter
        remember(client.base_url, [card.name, f"{card.owner}/{card.name}"])
    _keep_receipt(run, run / ADAPTER_FOLDER / RECEIPT_FILE, url, key)
    charged = answer.cost.charged
    if as_json:
        document({"adapter": card.model_dump(), "charged": charged.model_dump()})
        return
    say(f"Published {card.name}, version {card.version}. Charged: {units_line(charged)}.")
    say(f"One picture costs {_image_cost(card)}.")
    say(f"Next: craft predict IMAGE... --adapter {card.name}")


@command("Adapters", "craft adapters", "craft adapters digits", "craft adapters --json")
def adapters(
    name: Annotated[
        str | None,
        argument(
            "[NAME]",
            "One of your owner's adapters: all its versions, who may use it, its usage.",
            adapter_names,
        ),
    ] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List the adapters that you may use, or show all about one of your own."""
    if name is not None:
        _show_own(name, url, key, as_json)
        return
    with connect(url, key) as client:
        cards = client.adapters()
        remember(client.base_url, (f"{card.owner}/{card.name}" for card in cards), all_of_them=True)
    if as_json:
        free_document({"adapters": [card.model_dump() for card in cards]})
        return
    table(
        ["owner", "adapter", "version", "aliases", "model", "classes", "one picture", "published"],
        [
            [
                card.owner,
                card.name,
                card.version,
                ", ".join(card.aliases),
                card.model,
                len(card.classes),
                _image_cost(card),
                card.published_at,
            ]
            for card in cards
        ],
        spare=["one picture", "classes", "published", "model", "aliases"],
    )


@command(
    "Adapters",
    "craft share digits --with-team vision --pays publisher",
    "craft share digits --public --abstain-below 0.5",
    "craft share digits --alias stable=2",
    first=("public", "with_key", "with_team", "pays", "alias"),
)
def share(
    name: OwnName,
    public: Annotated[
        bool | None,
        typer.Option(
            "--public/--private",
            show_default=False,
            help="Every key may use it, or those named alone.",
            rich_help_panel=_WHO,
        ),
    ] = None,
    with_key: Annotated[
        list[str] | None,
        option("This key may use it too; repeatable.", panel=_WHO, metavar="PREFIX"),
    ] = None,
    with_team: Annotated[
        list[str] | None,
        option("The team's keys may use it too; repeatable.", panel=_WHO, metavar="TEAM"),
    ] = None,
    without_key: Annotated[
        list[str] | None,
        option("This key may use it no more; repeatable.", panel=_WHO, metavar="PREFIX"),
    ] = None,
    without_team: Annotated[
        list[str] | None,
        option("The team's keys may use it no more; repeatable.", panel=_WHO, metavar="TEAM"),
    ] = None,
    pays: Annotated[
        str | None,
        option("Who is charged for predictions: caller, or publisher (the key that says so now)."),
    ] = None,
    abstain_below: Annotated[
        float | None, option("Least probability of an answer; 0 is none.", min=0, max=1)
    ] = None,
    alias: Annotated[
        list[str] | None,
        option("Moves an alias; ALIAS= removes it.", metavar="ALIAS=VERSION"),
    ] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Decide who may use one of your adapters, who pays, and what its aliases mean."""
    from craft_client.calls import message
    from craft_shared.wire import AdapterChange

    wanted: dict[str, object] = {}
    if public is not None:
        wanted["public"] = public
    if pays is not None:
        wanted["pays"] = pays
    if abstain_below is not None:
        wanted["abstain_below"] = abstain_below or None
    if alias:
        wanted["aliases"] = dict(map(_alias_and_version, alias))
    with connect(url, key) as client:
        if with_key or without_key or with_team or without_team:
            present = client.adapter_settings(name)
            wanted["keys"] = _changed(present.keys, with_key, without_key)
            wanted["teams"] = _changed(present.teams, with_team, without_team)
        settings = client.change_adapter(name, message(AdapterChange, **wanted))
    if as_json:
        free_document({"settings": settings.model_dump()})
    else:
        _show_settings(settings)


@command("Adapters", "craft retire digits@1", "craft retire digits")
def retire(name: Versions, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Take a published adapter out of service."""
    with connect(url, key) as client:
        client.retire(name)
    words = f"Retired {name}. craft restore {name} takes it into service again."
    report_done({"retired": name}, words, as_json)


@command("Adapters", "craft restore digits@1")
def restore(name: Versions, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Take a retired adapter into service again."""
    with connect(url, key) as client:
        client.restore(name)
    report_done({"restored": name}, f"Restored {name}.", as_json)


def _keep_receipt(run: Path, file: Path, url: str | None, key: str | None) -> None:
    """Puts the run's receipt beside its adapter; that there is none stops nobody."""
    from craft_client.cli.receipts import fetch_receipt
    from craft_client.exceptions import CraftError

    try:
        text, _ = fetch_receipt(str(run), url, key)
        file.write_text(f"{text}\n", encoding="ascii")
    except (CraftError, OSError) as error:
        first_line = str(error).partition("\n")[0]
        say(f"No receipt of the run was kept: {first_line}")


def _show_own(name: str, url: str | None, key: str | None, as_json: bool) -> None:
    with connect(url, key) as client:
        cards = client.adapter_versions(name)
        settings = client.adapter_settings(name)
        usage = client.adapter_usage(name)
    if as_json:
        free_document(
            {
                "adapters": [card.model_dump() for card in cards],
                "settings": settings.model_dump(),
                "usage": [use.model_dump() for use in usage.versions],
            }
        )
        return
    uses = {use.version: use for use in usage.versions}
    table(
        [
            *("version", "aliases", "classes", "before", "after", "one picture", "published"),
            *("state", "calls", *UNITS),
        ],
        [
            [
                card.version,
                ", ".join(card.aliases),
                len(card.classes),
                _accuracy(card.provenance.accuracy_before),
                _accuracy(card.provenance.accuracy_after),
                _image_cost(card),
                card.published_at,
                "retired" if card.retired_at else "served",
                uses[card.version].calls,
                *(uses[card.version].units[unit] for unit in UNITS),
            ]
            for card in cards
        ],
        spare=[*SPARE_UNITS, "queries", "classes", "published", "before", "aliases"],
    )
    _show_settings(settings)


def _show_settings(settings: AdapterSettings) -> None:
    threshold = settings.abstain_below
    table(
        ["setting", settings.name],
        [
            ["may use it", "every key" if settings.public else f"keys of {settings.owner}"],
            ["keys that may too", ", ".join(settings.keys)],
            ["teams that may too", ", ".join(settings.teams)],
            ["pays", settings.pays],
            ["abstains below", "never" if threshold is None else percent(100 * threshold)],
            ["aliases", ", ".join(f"{name}={is_}" for name, is_ in settings.aliases.items())],
        ],
    )


def _image_cost(card: AdapterCard) -> str:
    """What a call with one picture is charged: units that are not none, and their price if any."""
    from craft_client.blackbox import currency
    from craft_shared.counting import prediction_units

    charged = prediction_units(card.prompts, 1, sent=1)
    units = ", ".join(counted(charged[unit], unit) for unit in UNITS if charged[unit])
    micros = card.image_cost_micros
    return f"{units}; price {currency(micros):f}" if micros else units


def _accuracy(value: float | None) -> str:
    return "" if value is None else percent(value)


def _changed(
    present: Sequence[str], more: Sequence[str] | None, less: Sequence[str] | None
) -> list[str]:
    return [name for name in dict.fromkeys([*present, *(more or [])]) if name not in (less or [])]


def _alias_and_version(text: str) -> tuple[str, int | None]:
    alias, sign, version = text.partition("=")
    if not sign or (version and not (version.isdecimal() and len(version) < 10)):
        raise typer.BadParameter(f"'{text}' is not ALIAS=VERSION.", param_hint="--alias")
    return alias, int(version) if version else None
