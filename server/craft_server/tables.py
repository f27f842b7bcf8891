"""All tables in one place, for what must see the schema whole: migrations and their test."""

from __future__ import annotations

from craft_server.adapters.tables import (
    ADAPTER_ALIASES,
    ADAPTER_GRANTS,
    ADAPTER_SETTINGS,
    ADAPTER_TOTALS,
    ADAPTERS,
)
from craft_server.asked_prompts import ASKED_PROMPTS
from craft_server.console.sessions import CONSOLE_SESSIONS
from craft_server.database import METADATA
from craft_server.image_sets import IMAGE_FEATURES, IMAGE_SET_ROWS, IMAGE_SETS
from craft_server.ledger.tables import (
    API_KEYS,
    BUDGETS,
    CALLS,
    CHARGES,
    HOLDERS,
    KEY_SECRETS,
    PRICES,
    STORED_BYTES,
    TEAMS,
    TOTALS,
)
from craft_server.noise import NOISE_SECRETS
from craft_server.run_reports import RUN_POINTS, RUN_REPORTS

__all__ = [
    "ADAPTERS",
    "ADAPTER_ALIASES",
    "ADAPTER_GRANTS",
    "ADAPTER_SETTINGS",
    "ADAPTER_TOTALS",
    "API_KEYS",
    "ASKED_PROMPTS",
    "BUDGETS",
    "CALLS",
    "CHARGES",
    "CONSOLE_SESSIONS",
    "HOLDERS",
    "IMAGE_FEATURES",
    "IMAGE_SETS",
    "IMAGE_SET_ROWS",
    "KEY_SECRETS",
    "METADATA",
    "NOISE_SECRETS",
    "PRICES",
    "RUN_POINTS",
    "RUN_REPORTS",
    "STORED_BYTES",
    "TEAMS",
    "TOTALS",
]
