"""`craft-server`: serve, record, replay, plan, and manage the ledger on the server's own database.

Commands on the ledger, and replay, import neither the model nor torch. Every expected failure is
one line on stderr and exit code 1.
"""

from __future__ import annotations

import typer

from craft_server.cli import (
    backups,
    budgets,
    deploy,
    keys,
    plan,
    plugins,
    prices,
    replay,
    serve,
    usage,
)

app = typer.Typer(
    help="The craftbox server: a metered prediction API before a vision-language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("serve")(serve.serve)
app.command("record")(serve.record)
app.command("replay")(replay.replay)
app.command("plan")(plan.plan)
app.command("plugins")(plugins.plugins)
app.add_typer(deploy.app, name="deploy")
app.add_typer(keys.app, name="keys")
app.add_typer(budgets.app, name="budgets")
app.add_typer(prices.app, name="prices")
app.add_typer(usage.app, name="usage")
app.add_typer(backups.app, name="ledger")

__all__ = ["app"]
