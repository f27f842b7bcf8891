"""The command `craft`: one module a group of commands.

    tune            craft tune
    bench           craft bench
    data            craft data check
    evaluate        craft zero-shot, craft evaluate
    adapters        craft publish, adapters, share, retire, restore
    predict         craft predict
    account         craft models, usage, budget, image-sets, config show, plugins
    receipts        craft receipt, verify-receipt
    runs            craft runs, report, compare
    leaderboard     craft leaderboard build, leaderboard check

Whatever is slow to import is imported by the command that needs it, so that `craft --help` is
quick.
"""

from __future__ import annotations

from craft_client.cli.root import app

# In the order of the help.
from craft_client.cli import tune, bench, evaluate, data, adapters, predict  # isort: skip
from craft_client.cli import account, receipts, runs, leaderboard  # isort: skip

__all__ = [
    "account",
    "adapters",
    "app",
    "bench",
    "data",
    "evaluate",
    "leaderboard",
    "predict",
    "receipts",
    "runs",
    "tune",
]
