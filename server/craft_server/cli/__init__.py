"""`craft-server`: serve, record, replay, plan, and manage the ledger on the server's own database.

Commands on the ledger, and replay, import neither the model nor torch; whatever is slow to import
is imported by the command that needs it. Every expected failure is one line on stderr and an exit
code of `craft_server.cli.exit_codes`.
"""

from __future__ import annotations

from craft_server.cli import (
    backups,
    budgets,
    config,
    deploy,
    keys,
    plan,
    prices,
    replay,
    serve,
    usage,
)
from craft_server.cli.root import app

__all__ = ["app"]

_HOST = "Host a model"
_LEDGER = "Keys and the ledger"
_SETUP = "Settings and deployment"

serve.register(app, _HOST)
replay.register(app, _HOST)
plan.register(app, _SETUP)
app.add_typer(deploy.app, name="deploy", rich_help_panel=_SETUP)
app.add_typer(config.app, name="config", rich_help_panel=_SETUP)
app.add_typer(keys.app, name="keys", rich_help_panel=_LEDGER)
app.add_typer(budgets.app, name="budgets", rich_help_panel=_LEDGER)
app.add_typer(prices.app, name="prices", rich_help_panel=_LEDGER)
app.add_typer(usage.app, name="usage", rich_help_panel=_LEDGER)
app.add_typer(backups.app, name="ledger", rich_help_panel=_LEDGER)
