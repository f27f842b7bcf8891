"""`craft-server keys`: make, list, change, rotate and revoke API keys."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from craft_server.cli import options
from craft_server.cli.ledger import reading, writing
from craft_server.cli.options import amounts_of, checked, complete_models, duration_ms
from craft_server.cli.output import fail, misuse, note, print_json, print_lines, print_table
from craft_shared.amounts import MAX_AMOUNT, MAX_DECIMALS
from craft_shared.commands import Typer, examples

if TYPE_CHECKING:
    from craft_shared.wire import Budget, KeyCard, KeyPolicy

app = Typer(
    help="Make, list, change, rotate and revoke API keys.",
    no_args_is_help=True,
    epilog=examples("craft-server keys create --owner me --queries 8000"),
)

_rates = partial(typer.Option, rich_help_panel="Rates")
_shown = partial(typer.Option, rich_help_panel="What answers show")


def _rate(what: str, *, least: int = 1, also: str = "") -> Any:
    return _rates(min=least, max=MAX_AMOUNT, show_default=False, help=f"{what}{also}.")


_PER_MINUTE = "Charged calls in any minute"
_PREDICTIONS = "Predictions in any minute"
_CONCURRENCY = "Charged calls at the same time"
PerMinute = Annotated[int | None, _rate(_PER_MINUTE)]
PredictionsPerMinute = Annotated[int | None, _rate(_PREDICTIONS)]
Concurrency = Annotated[int | None, _rate(_CONCURRENCY)]
_new_rate = partial(_rate, least=0, also="; 0 lifts the bound")
NewPerMinute = Annotated[int | None, _new_rate(_PER_MINUTE)]
NewPredictionsPerMinute = Annotated[int | None, _new_rate(_PREDICTIONS)]
NewConcurrency = Annotated[int | None, _new_rate(_CONCURRENCY)]
Level = Annotated[
    Literal["label", "top_k", "probs", "log_probs"] | None,
    _shown(show_default="log_probs", help="The most that answers show."),
]
K = Annotated[int | None, _shown(min=1, help="With top_k or probs: how many classes.")]
Decimals = Annotated[
    int | None, _shown(min=1, max=MAX_DECIMALS, help="Decimals to which numbers are rounded.")
]
Noise = Annotated[
    float | None,
    _shown(min=0, max=100, help="Standard deviation of noise on log-probabilities, in nats."),
]
PromptLimit = Annotated[
    int | None, _shown(min=1, max=MAX_AMOUNT, help="Different prompts about one image set at most.")
]

RequireUser = Annotated[
    bool | None,
    typer.Option(
        "--require-user/--no-require-user",
        show_default=False,
        help="Whether calls have to name the end user for whom they are made (Craft-User).",
    ),
]


@app.command(
    epilog=examples(
        "craft-server keys create --owner me --queries 8000",
        "craft-server keys create --owner alice --team vision --expires-in 30d --json",
        "craft-server keys create --owner bob --level top_k --k 5 --key-file bob.key",
    ),
    first=("owner", "team", "queries", "expires_in", "level"),
)
def create(
    owner: Annotated[
        str, typer.Option(help="The owner, whose image sets and adapters the key sees.")
    ],
    name: Annotated[str, typer.Option(show_default=False, help="What the key is for.")] = "",
    team: Annotated[
        str | None, typer.Option(help="Team whose budgets bound the key too; made if need be.")
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            show_default="predict, publish",
            help="predict, publish or admin; repeatable.",
            autocompletion=lambda: ["predict", "publish", "admin"],
        ),
    ] = None,
    expires_in: Annotated[
        str | None,
        typer.Option(show_default="never", help="After how long the key expires, such as 30d."),
    ] = None,
    requests_per_minute: PerMinute = None,
    predictions_per_minute: PredictionsPerMinute = None,
    concurrency: Concurrency = None,
    require_user: RequireUser = None,
    queries: options.Queries = None,
    predictions: options.Predictions = None,
    images: options.Images = None,
    texts: options.Texts = None,
    requests: options.Requests = None,
    cost_micros: options.CostMicros = None,
    window: options.BudgetWindow = "lifetime",
    level: Level = None,
    k: K = None,
    decimals: Decimals = None,
    noise: Noise = None,
    prompts_per_image_set: PromptLimit = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="Write the key here, for its owner and group to read, instead of printing it; "
            "where the file is already, no key is made.",
        ),
    ] = None,
    json_output: options.AsJson = False,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Make a key and print it, this once. Units without a budget are not bounded."""
    from craft_server.clock import now_ms
    from craft_server.ledger import administration
    from craft_server.ledger.provisioning import write_secret
    from craft_shared.wire import KeyCreate

    if key_file is not None and key_file.exists():
        if json_output:
            print_json({"key_file": str(key_file), "made": False})
        else:
            note(f"'{key_file}' holds a key already; none was made.")
        return
    limits = amounts_of(queries, predictions, images, texts, requests, cost_micros)
    at = now_ms()
    if not owner.strip():
        misuse("--owner: write a name")
    wanted = checked(
        KeyCreate,
        owner=owner,
        name=name,
        team=team,
        **({"scopes": scope} if scope else {}),
        expires_at=None if expires_in is None else _end(expires_in, at),
        requests_per_minute=requests_per_minute,
        predictions_per_minute=predictions_per_minute,
        concurrency=concurrency,
        budgets=[
            {"unit": unit, "window": window, "limit": limit} for unit, limit in limits.items()
        ],
        policies=_policies(level, k, decimals, noise, prompts_per_image_set),
        require_user=bool(require_user),
    )
    with writing(data_dir, database_url) as connection:
        made = administration.create(connection, wanted, at)
        if key_file is not None:
            try:
                write_secret(key_file, str(made.key))
            except OSError as error:
                fail(
                    f"--key-file: '{key_file}' cannot be written: {error.strerror}; no key was made"
                )
    card = {**made.card.model_dump(), "budgets": limits}
    if key_file is not None:
        if json_output:
            print_json({"key_file": str(key_file), "made": True, **card})
        else:
            note(f"Key {made.prefix} of {made.card.owner} is in '{key_file}'.")
        return
    if json_output:
        print_json({"key": made.key, **card})
        return
    bounds = ", ".join(f"{amount:,} {unit}" for unit, amount in limits.items()) or "no budget"
    note(f"Key {made.prefix} of {made.card.owner} ({bounds}). It is shown only now:")
    print_lines([str(made.key)])


@app.command(
    epilog=examples(
        "craft-server keys policy abcd1234",
        "craft-server keys policy abcd1234 --level probs --decimals 2",
    ),
    first=("level", "k", "decimals", "noise", "model"),
)
def policy(
    prefix: options.Prefix,
    model: Annotated[
        str | None,
        typer.Option(
            show_default="every model's",
            help="The model whose answers the policy bounds.",
            autocompletion=complete_models,
        ),
    ] = None,
    level: Level = None,
    k: K = None,
    decimals: Decimals = None,
    noise: Noise = None,
    prompts_per_image_set: PromptLimit = None,
    json_output: options.AsJson = False,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Set what a key's answers may show, from its next call on; without options, show it."""
    from craft_server.ledger import administration
    from craft_shared.model_card import level_words
    from craft_shared.wire import KeyPolicy

    wanted = _policies(level, k, decimals, noise, prompts_per_image_set, model)
    with writing(data_dir, database_url) as connection:
        for one in wanted:
            administration.set_policy(connection, prefix, one)
        now = administration.show_policies(connection, prefix)
    if json_output:
        print_json(now.model_dump())
        return
    for one in now.policies or [KeyPolicy()]:
        limit = one.prompts_per_image_set
        bound = "" if limit is None else f"; {limit} prompts an image set"
        print_lines([f"{one.model or 'every model'}: {level_words(one.output)}{bound}"])


def _policies(
    level: str | None,
    k: int | None,
    decimals: int | None,
    noise: float | None,
    prompts_per_image_set: int | None,
    model: str | None = None,
) -> list[KeyPolicy]:
    """The policy that options name; none where they name nothing."""
    from craft_shared.wire import KeyPolicy, Output

    given = (level, k, decimals, noise, prompts_per_image_set, model)
    if all(option is None for option in given):
        return []
    output = checked(Output, level=level or "log_probs", k=k, decimals=decimals, noise=noise or 0.0)
    limit = prompts_per_image_set
    return [checked(KeyPolicy, model=model, output=output, prompts_per_image_set=limit)]


@app.command(
    "set",
    epilog=examples(
        "craft-server keys set abcd1234 --requests-per-minute 60 --expires-in 90d",
        "craft-server keys set abcd1234 --team vision --name phones --level top_k --k 5",
        "craft-server keys set abcd1234 --concurrency 0 --expires-in never",
    ),
    first=("team", "expires_in", "requests_per_minute", "concurrency", "level"),
)
def set_(
    prefix: options.Prefix,
    name: Annotated[
        str | None, typer.Option(show_default=False, help="What the key is for.")
    ] = None,
    team: Annotated[
        str | None,
        typer.Option(help="Team whose budgets bound the key too; '' takes it out of its team."),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="predict, publish or admin; repeatable.",
            autocompletion=lambda: ["predict", "publish", "admin"],
        ),
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option(help="After how long the key expires, such as 30d; or never.")
    ] = None,
    requests_per_minute: NewPerMinute = None,
    predictions_per_minute: NewPredictionsPerMinute = None,
    concurrency: NewConcurrency = None,
    require_user: RequireUser = None,
    level: Level = None,
    k: K = None,
    decimals: Decimals = None,
    noise: Noise = None,
    prompts_per_image_set: PromptLimit = None,
    json_output: options.AsJson = False,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Change a key from its next call on; what no option names stays as it is."""
    from craft_server.clock import now_ms
    from craft_server.ledger import administration, keys
    from craft_server.policy import policies, with_policy
    from craft_shared.wire import KeyCreate

    at = now_ms()
    rates = {
        "requests_per_minute": requests_per_minute,
        "predictions_per_minute": predictions_per_minute,
        "concurrency": concurrency,
    }
    given: dict[str, Any] = {rate: most or None for rate, most in rates.items() if most is not None}
    if require_user is not None:
        given["require_user"] = require_user
    if name is not None:
        given["name"] = name
    if team is not None:
        given["team"] = team or None
    if scope is not None:
        given["scopes"] = scope
    if expires_in is not None:
        given["expires_at"] = None if expires_in == "never" else _end(expires_in, at)
    shown = _policies(level, k, decimals, noise, prompts_per_image_set)
    if not (given or shown):
        misuse("name what is to change, such as --requests-per-minute 60")
    with writing(data_dir, database_url) as connection:
        entry = keys.find_key(connection, prefix)
        given["policies"] = policies(with_policy(entry.policies, shown))
        now = administration.as_wanted(connection, entry, at)
        valid = checked(KeyCreate, owner="any", **given)
        wanted = now.model_copy(update={field: getattr(valid, field) for field in given})
        administration.change(connection, prefix, wanted, at)
        card = keys.as_card(keys.find_key(connection, prefix))
    if json_output:
        print_json(card.model_dump())
    else:
        note(f"Key {prefix} of {card.owner} is changed.")


def _end(duration: str, at: int) -> datetime:
    return datetime.fromtimestamp((at + duration_ms(duration, "--expires-in")) / 1000, UTC)


@app.command("list", epilog=examples("craft-server keys list", "craft-server keys list --json"))
def list_(
    json_output: options.AsJson = False,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """List all keys, with their rates and own budgets, without their secrets."""
    from craft_server.clock import now_ms
    from craft_server.ledger import keys
    from craft_server.ledger.budgets import budgets_of_keys

    with reading(data_dir, database_url) as connection:
        cards = [keys.as_card(entry) for entry in keys.list_keys(connection)]
        of_keys = budgets_of_keys(connection, now_ms())
    if json_output:
        print_json(
            [
                {**card.model_dump(), "budgets": [b.model_dump() for b in of_keys.get(card.id, [])]}
                for card in cards
            ]
        )
        return
    print_table(
        ["prefixes", "owner", "name", "team", "budgets", "rates", "scopes", "created", "ends"],
        [
            [
                *(card.prefixes, card.owner, card.name, card.team),
                [_budget_words(budget) for budget in of_keys.get(card.id, [])],
                _rate_words(card),
                " ".join(card.scopes),
                card.created_at[:10],
                f"revoked {card.revoked_at[:10]}"
                if card.revoked_at
                else (card.expires_at or "")[:10],
            ]
            for card in cards
        ],
        spare=["scopes", "created", "name", "rates", "team"],
    )


def _budget_words(budget: Budget) -> str:
    window = "" if budget.window == "lifetime" else f" a {budget.window}"
    return f"{budget.spent:,} of {budget.limit:,} {budget.unit}{window}"


def _rate_words(card: KeyCard) -> list[str]:
    rates = (
        (card.requests_per_minute, "requests a minute"),
        (card.predictions_per_minute, "predictions a minute"),
        (card.concurrency, "at a time"),
    )
    return [f"{most:,} {words}" for most, words in rates if most is not None]


@app.command(
    epilog=examples(
        "craft-server keys rotate abcd1234", "craft-server keys rotate abcd1234 --overlap 1h"
    )
)
def rotate(
    prefix: options.Prefix,
    overlap: Annotated[str, typer.Option(help="How long the old secret still works.")] = "24h",
    json_output: options.AsJson = False,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Give a key a new secret and print it, this once; the old ones end after the overlap."""
    from craft_server.clock import now_ms, rfc3339
    from craft_server.ledger import administration

    at, overlap_ms = now_ms(), duration_ms(overlap, "--overlap")
    with writing(data_dir, database_url) as connection:
        made = administration.rotate(connection, prefix, overlap_ms=overlap_ms, at=at)
    end = rfc3339(at + overlap_ms)
    if json_output:
        print_json({"key": made.key, **made.card.model_dump(), "old_secrets_end_at": end})
        return
    note(
        f"Key {prefix} of {made.card.owner} is {made.prefix} from now on; its old secrets work "
        f"until {end}. The new one is shown only now:"
    )
    print_lines([str(made.key)])


@app.command(
    epilog=examples("craft-server keys revoke abcd1234", "craft-server keys revoke abcd1234 --json")
)
def revoke(
    prefix: options.Prefix,
    json_output: options.AsJson = False,
    data_dir: options.DataDir = None,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Make a key and all its secrets invalid at once."""
    from craft_server.clock import now_ms
    from craft_server.ledger import keys

    with writing(data_dir, database_url) as connection:
        card = keys.as_card(keys.revoke_key(connection, prefix, now_ms()))
    if json_output:
        print_json(card.model_dump())
    else:
        note(f"Key {prefix} of {card.owner} is revoked since {card.revoked_at}.")
