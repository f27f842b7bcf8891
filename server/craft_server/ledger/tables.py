"""The ledger's tables. Times are integers, milliseconds since the Unix epoch.

A charge's state moves once, from `reserved` to `settled` or `refunded`; its line is never deleted.
"""

from __future__ import annotations

import sqlalchemy as sa

from craft_server.clock import WINDOWS
from craft_server.database import METADATA, Id
from craft_shared.units import MEASURES, UNITS


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f'"{column}" IN ({", ".join(repr(value) for value in values)})'


def _natural(columns: tuple[str, ...]) -> str:
    return " AND ".join(f'"{column}" >= 0' for column in columns)


# Conditions of indexes, which are used only where a statement says the very same.
RESERVED = sa.text("state = 'reserved'")
RUNNING = sa.text("NOT done")
STORED = sa.text("body_bytes > 0 AND repeatable")
_OF_RUN = sa.text("run IS NOT NULL")
_OF_USER = sa.text("end_user IS NOT NULL")
_OF_KEY = sa.text("user_of IS NOT NULL")

# Who shares budgets: keys of a team, or calls that one key makes for one of its end users.
TEAMS = sa.Table(
    "teams",
    METADATA,
    sa.Column("id", Id, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    # The key whose end user it is, and which its name then names, too; null is a team.
    sa.Column("user_of", sa.BigInteger),
    sa.Index(
        "ix_teams_user_of",
        "user_of",
        sqlite_where=_OF_KEY,
        postgresql_where=_OF_KEY,
    ),
)

API_KEYS = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("id", Id, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("team_id", Id, sa.ForeignKey("teams.id")),
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("requests_per_minute", sa.BigInteger),
    sa.Column("predictions_per_minute", sa.BigInteger),
    sa.Column("concurrency", sa.BigInteger),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
    sa.Column("revoked_at", sa.BigInteger),
    # What its answers may reveal, as `craft_server.policy` writes it; null is everything.
    sa.Column("policies", sa.Text),
    # Whether each of its calls has to say for which end user it is made.
    sa.Column("require_user", sa.Boolean, nullable=False, server_default=sa.false()),
)

# A key has several secrets while it is rotated. A secret's prefix names it, and the key, in public.
KEY_SECRETS = sa.Table(
    "key_secrets",
    METADATA,
    sa.Column("prefix", sa.Text, primary_key=True),
    sa.Column("key_id", Id, sa.ForeignKey("api_keys.id"), nullable=False, index=True),
    sa.Column("secret_hash", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
)

BUDGETS = sa.Table(
    "budgets",
    METADATA,
    sa.Column("id", Id, primary_key=True),
    sa.Column("key_id", Id, sa.ForeignKey("api_keys.id")),
    sa.Column("team_id", Id, sa.ForeignKey("teams.id")),
    sa.Column("unit", sa.Text, nullable=False),
    sa.Column("window", sa.Text, nullable=False),
    sa.Column("window_start", sa.BigInteger, nullable=False),
    sa.Column("limit", sa.BigInteger, nullable=False),
    sa.Column("spent", sa.BigInteger, nullable=False),
    sa.Column("reserved", sa.BigInteger, nullable=False),
    # Whether its holder is an end user.
    sa.Column("per_user", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.CheckConstraint(_one_of("unit", MEASURES), "known_unit"),
    sa.CheckConstraint(_one_of("window", WINDOWS), "known_window"),
    sa.CheckConstraint("(key_id IS NULL) <> (team_id IS NULL)", "one_holder"),
    sa.CheckConstraint(_natural(("limit", "spent", "reserved")), "natural_numbers"),
    sa.CheckConstraint('spent + reserved <= "limit"', "within_limit"),
    sa.UniqueConstraint("key_id", "unit", "window"),
    sa.UniqueConstraint("team_id", "unit", "window"),
)

# What each end user of a key may use; a user's budgets are made when it is first named.
USER_LIMITS = sa.Table(
    "user_limits",
    METADATA,
    sa.Column("key_id", Id, sa.ForeignKey("api_keys.id"), primary_key=True),
    sa.Column("unit", sa.Text, primary_key=True),
    sa.Column("window", sa.Text, primary_key=True),
    sa.Column("limit", sa.BigInteger, nullable=False),
    sa.CheckConstraint(_one_of("unit", MEASURES), "known_unit"),
    sa.CheckConstraint(_one_of("window", WINDOWS), "known_window"),
    sa.CheckConstraint(_natural(("limit",)), "natural_numbers"),
)

CHARGES = sa.Table(
    "charges",
    METADATA,
    sa.Column("id", Id, primary_key=True),
    # Who pays.
    sa.Column("key_id", Id, sa.ForeignKey("api_keys.id"), nullable=False),
    # Who calls; null on lines that were closed before this was kept.
    sa.Column("caller_key_id", sa.BigInteger),
    # What the key sees in place of the id, which would count other keys' calls: 1, 2, ...
    sa.Column("line", sa.BigInteger, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("closed_at", sa.BigInteger),
    sa.Column("call", sa.Text, nullable=False),
    sa.Column("run", sa.Text),
    # For whom the key that pays made the call, in its owner's words.
    sa.Column("end_user", sa.Text),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("revision", sa.Text, nullable=False),
    # The version of an adapter that predicted, OWNER/NAME@VERSION; null for other calls, and on
    # lines that were written before this was kept.
    sa.Column("adapter", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("holder", sa.Text, nullable=False),
    # What it holds of which budgets: JSON [{"budget": id, "start": window, "amount": n}, ...].
    sa.Column("holds", sa.Text, nullable=False),
    *(sa.Column(measure, sa.BigInteger, nullable=False) for measure in MEASURES),
    sa.CheckConstraint(_one_of("state", ("reserved", "settled", "refunded")), "known_state"),
    sa.CheckConstraint(_natural(MEASURES), "natural_numbers"),
    sa.Index("ix_charges_key_id_line", "key_id", "line", unique=True),
    sa.Index(
        "ix_charges_of_run",
        "key_id",
        "run",
        sqlite_where=_OF_RUN,
        postgresql_where=_OF_RUN,
    ),
    sa.Index(
        "ix_charges_of_user",
        "key_id",
        "end_user",
        sqlite_where=_OF_USER,
        postgresql_where=_OF_USER,
    ),
    sa.Index("ix_charges_key_id_at", "key_id", "at"),
    sa.Index("ix_charges_at", "at"),
    sa.Index(
        "ix_charges_reserved",
        "caller_key_id",
        "holder",
        sqlite_where=RESERVED,
        postgresql_where=RESERVED,
    ),
    sqlite_autoincrement=True,
)

# What each key was charged in all, so that telling it does not take longer as lines are added; the
# number of its newest line; and how many end users have budgets of their own.
TOTALS = sa.Table(
    "totals",
    METADATA,
    sa.Column("key_id", Id, sa.ForeignKey("api_keys.id"), primary_key=True),
    sa.Column("lines", sa.BigInteger, nullable=False),
    sa.Column("users", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    *(sa.Column(measure, sa.BigInteger, nullable=False) for measure in MEASURES),
)

# Shares of budgets that were spent, of which somebody is to be told: as budgets were then.
NOTICES = sa.Table(
    "notices",
    METADATA,
    sa.Column("id", Id, primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("budget_id", sa.BigInteger, nullable=False),
    sa.Column("key_id", sa.BigInteger),
    sa.Column("team_id", sa.BigInteger),
    sa.Column("unit", sa.Text, nullable=False),
    sa.Column("window", sa.Text, nullable=False),
    sa.Column("window_start", sa.BigInteger, nullable=False),
    sa.Column("limit", sa.BigInteger, nullable=False),
    sa.Column("spent", sa.BigInteger, nullable=False),
    sa.Column("percent", sa.BigInteger, nullable=False),
    # JSON: which addresses were told already, by their digests.
    sa.Column("told", sa.Text, nullable=False, server_default=sa.text("'[]'")),
    sa.Column("attempts", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    # When it is to be sent; while somebody sends it, when that is taken to have failed.
    sa.Column("next_at", sa.BigInteger, nullable=False),
    sa.Column("closed_at", sa.BigInteger),
    sa.Index("ix_notices_closed_at_next_at", "closed_at", "next_at"),
    sqlite_autoincrement=True,
)

# Server processes. A process that stops renewing its lease holds nothing any more.
HOLDERS = sa.Table(
    "holders",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("lease_until", sa.BigInteger, nullable=False),
)

# One row an idempotency key; `body` is null while the call runs and once the bytes are gone.
CALLS = sa.Table(
    "calls",
    METADATA,
    sa.Column("id", Id, primary_key=True),
    sa.Column("key_id", Id, sa.ForeignKey("api_keys.id"), nullable=False),
    sa.Column("idempotency_key", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("charge_id", Id, sa.ForeignKey("charges.id")),
    sa.Column("done", sa.Boolean, nullable=False),
    sa.Column("repeatable", sa.Boolean, nullable=False),
    sa.Column("status", sa.Integer),
    sa.Column("media_type", sa.Text),
    sa.Column("body_bytes", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary),
    # What the call was resolved to, as who answers it writes it; null where nothing else may be
    # answered than was.
    sa.Column("resolution", sa.Text),
    sa.Column("recomputed", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.UniqueConstraint("key_id", "idempotency_key"),
    sa.Index(
        "ix_calls_stored",
        "id",
        "body_bytes",
        sqlite_where=STORED,
        postgresql_where=STORED,
    ),
    sa.Index(
        "ix_calls_running",
        "holder",
        sqlite_where=RUNNING,
        postgresql_where=RUNNING,
    ),
    sa.Index("ix_calls_at", "at"),
    sqlite_autoincrement=True,
)

# The bytes of all repeatable calls' stored answers: the sum of the shards, each of which may be
# below zero. A call counts in the shard of its id, so that calls do not wait for each other there.
STORED_BYTES = sa.Table(
    "stored_bytes",
    METADATA,
    sa.Column("shard", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
)

PRICES = sa.Table(
    "prices",
    METADATA,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("unit", sa.Text, primary_key=True),
    sa.Column("micros", sa.BigInteger, nullable=False),
    sa.CheckConstraint(_one_of("unit", UNITS), "known_unit"),
    sa.CheckConstraint("micros >= 0", "natural_numbers"),
)
