"""This process's lease on its reservations, renewed by a thread of its own.

The thread also gives back what dead processes held, and what this process could not give back
before; and it keeps stored answers within their bounds. It goes on whatever fails, and says so if
the lease is not renewed. While it runs, no other process gives back what this one holds.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable

import structlog
from prometheus_client import Counter

from craft_server.clock import ms_in, now_ms
from craft_server.database import Database, Unavailable
from craft_server.ledger import calls, leases
from craft_server.telemetry import REGISTRY

_RENEWALS_A_LEASE = 3
# Between two tries while something is amiss, and between two steps of a long piece of work.
_RETRY_SECONDS = 1.0
_PAUSE_SECONDS = 0.005
_HOUR = 3600

_EXPIRED = Counter(
    "craft_leases_expired_total",
    "Processes found dead: leases that ran out without having been ended.",
    registry=REGISTRY,
)
_RELEASED = Counter(
    "craft_reservations_released_total",
    "Reservations given back by the lease's thread: of dead processes, or after a failed refund.",
    registry=REGISTRY,
)

_log = structlog.get_logger()


class Lease:
    """A lease that is renewed until it is closed.

    Its renewal is also what shows whether the ledger can be written. `holder` names this process in
    the ledger.

    Raises:
        Unavailable: the ledger cannot be written.
    """

    def __init__(
        self, database: Database, *, seconds: float, answers_bytes: int, answers_hours: int
    ) -> None:
        self.holder = uuid.uuid4().hex
        self._database = database
        self._seconds = seconds
        self._every = seconds / _RENEWALS_A_LEASE
        self._answers_bytes = answers_bytes
        self._answers_hours = answers_hours
        self._closing = threading.Event()
        self._woken = threading.Event()
        self._owed: set[int] = set()
        self._renewed_at = time.monotonic()
        self._writable = True
        self._recount_at = self._renewed_at
        self._renew()
        self._release_expired()
        self._thread = threading.Thread(target=self._keep, name="craft-lease", daemon=True)
        self._thread.start()

    @property
    def ailment(self) -> str | None:
        """Why the ledger cannot be relied on now, in words for everybody; None where it can."""
        if not self._thread.is_alive():
            return "the server does not renew its lease any more"
        if not self._writable:
            return "the ledger cannot be written"
        if time.monotonic() - self._renewed_at > 2 * self._every:
            return "the server has not renewed its lease in time"
        return None

    def doubt(self) -> None:
        """The database has failed at something: the lease is renewed now, to see if it can be."""
        if self._writable:
            self._woken.set()

    def give_back_later(self, charge_id: int) -> None:
        """A reservation of this process, which the database would not take back now."""
        self._owed.add(charge_id)
        self._woken.set()

    def owes(self, charge_id: int | None) -> bool:
        """Whether a reservation is to be given back: nobody works for it any more."""
        return charge_id in self._owed

    def close(self) -> None:
        """Ends the lease; what is still held is given back at once."""
        self._closing.set()
        self._woken.set()
        self._thread.join()
        try:
            with self._database.writing() as connection:
                leases.end(connection, self.holder, now_ms())
        except Unavailable as error:
            # Nothing is lost: the lease runs out by itself.
            _log.warning("lease not ended", error=str(error))

    def _keep(self) -> None:
        self._done("stored answers not looked through", self._tidy)
        while True:
            healthy = self._writable and not self._owed
            self._woken.wait(self._every if healthy else min(self._every, _RETRY_SECONDS))
            self._woken.clear()
            if self._closing.is_set():
                return
            self._writable = self._done("lease not renewed", self._renew)
            if not self._writable:
                continue
            # A transaction each: nobody's renewal must wait for what is given back.
            self._done("reservations not given back", self._give_back_owed)
            self._done("dead processes not looked for", self._release_expired)
            self._done("stored answers not looked through", self._tidy)

    def _done(self, failure: str, work: Callable[[], None]) -> bool:
        """Whether some work could be done. Whatever goes wrong, the thread goes on."""
        try:
            work()
        except Unavailable as error:
            _log.error(failure, error=str(error))
        except Exception as error:
            _log.exception(failure, error=type(error).__name__)
        else:
            return True
        return False

    def _renew(self) -> None:
        with self._database.writing() as connection:
            leases.renew(connection, self.holder, now_ms() + ms_in(self._seconds))
        self._renewed_at = time.monotonic()

    def _give_back_owed(self) -> None:
        owed = set(self._owed)
        if not owed:
            return
        with self._database.writing() as connection:
            released = leases.give_back(connection, owed, now_ms())
        self._owed -= owed
        _RELEASED.inc(released)
        _log.warning("reservations given back late", reservations=released)

    def _release_expired(self) -> None:
        with self._database.writing() as connection:
            released = leases.release_expired(connection, now_ms())
        _EXPIRED.inc(released.leases)
        _RELEASED.inc(released.reservations)
        if released.reservations:
            _log.warning(
                "reservations of a dead process given back", reservations=released.reservations
            )

    def _tidy(self) -> None:
        """Keeps stored answers within their bounds, for as long as the lease lets it."""
        now = time.monotonic()
        if now >= self._recount_at:
            self._recount_at = now + _HOUR
            with self._database.reading() as connection:
                missing = calls.missing_bytes(connection)
            if missing:
                with self._database.writing() as connection:
                    calls.correct_sums(connection, missing)
        until, due = time.monotonic() + self._every / 2, True
        while due and time.monotonic() < until:
            began = time.monotonic()
            with self._database.writing() as connection:
                due = calls.evict(
                    connection,
                    most_bytes=self._answers_bytes,
                    before=now_ms() - ms_in(self._answers_hours * _HOUR),
                )
            # Calls that wait to write get as much time as this step took.
            if due and self._closing.wait(max(_PAUSE_SECONDS, time.monotonic() - began)):
                return
