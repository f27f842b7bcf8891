"""This process's lease on its reservations, renewed by a thread of its own.

The thread also gives back what dead processes held, and what this process could not give back
before; and it keeps stored answers within their bounds. It does not know calls. While it runs, no
other process gives back what this one holds.
"""

from __future__ import annotations

import queue
import threading
import uuid

import structlog
from prometheus_client import Counter
from sqlalchemy.exc import SQLAlchemyError

from craft_server.clock import ms_in, now_ms
from craft_server.database import Database
from craft_server.ledger import calls, leases
from craft_server.measurements import REGISTRY

_RENEWALS_A_LEASE = 3
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

    Attributes:
        holder: names this process in the ledger.
    """

    def __init__(
        self, database: Database, *, seconds: float, answers_bytes: int, answers_hours: int
    ) -> None:
        self.holder = uuid.uuid4().hex
        self._database = database
        self._seconds = seconds
        self._answers_bytes = answers_bytes
        self._answers_hours = answers_hours
        self._closing = threading.Event()
        self._owed: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._renew()
        self._thread = threading.Thread(target=self._keep, name="craft-lease", daemon=True)
        self._thread.start()

    def give_back_later(self, charge_id: int) -> None:
        """A reservation of this process, which the database would not take back now."""
        self._owed.put(charge_id)

    def close(self) -> None:
        """Ends the lease; what is still held is given back at once."""
        self._closing.set()
        self._thread.join()
        try:
            with self._database.writing() as connection:
                leases.end(connection, self.holder, now_ms())
        except SQLAlchemyError as error:
            # Nothing is lost: the lease runs out by itself.
            _log.warning("lease not ended", error=str(error))

    def _keep(self) -> None:
        while not self._closing.wait(self._seconds / _RENEWALS_A_LEASE):
            try:
                self._renew()
                self._give_back_owed()
            except SQLAlchemyError as error:
                _log.error("lease not renewed", error=str(error))

    def _give_back_owed(self) -> None:
        owed = {self._owed.get() for _ in range(self._owed.qsize())}
        if not owed:
            return
        try:
            with self._database.writing() as connection:
                released = leases.give_back(connection, owed, now_ms())
        except SQLAlchemyError:
            for charge_id in owed:
                self._owed.put(charge_id)
            raise
        _RELEASED.inc(released)
        _log.warning("reservations given back late", reservations=released)

    def _renew(self) -> None:
        at = now_ms()
        # A transaction each: nobody's renewal must wait for what is given back.
        with self._database.writing() as connection:
            leases.renew(connection, self.holder, at + ms_in(self._seconds))
        with self._database.writing() as connection:
            released = leases.release_expired(connection, at)
        with self._database.writing() as connection:
            calls.evict(
                connection,
                most_bytes=self._answers_bytes,
                before=at - ms_in(self._answers_hours * _HOUR),
            )
        _EXPIRED.inc(released.leases)
        _RELEASED.inc(released.reservations)
        if released.reservations:
            _log.warning(
                "reservations of a dead process given back", reservations=released.reservations
            )
