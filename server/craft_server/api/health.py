"""What operators watch: `/livez`, `/readyz`, and `/metrics` in Prometheus' text format.

Metrics are what the process counts as it works (`craft_server.telemetry`) and what can be read
at the moment of the call; `docs/operations.md` lists them. They show nothing of one owner, but much
of all of them together, so that they take an admin key (in Prometheus: `authorization` in the
scrape configuration).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from pydantic import BaseModel

from craft_server.api.auth import caller_with
from craft_server.api.openapi import answer, refusals
from craft_server.api.services import Services, WithServices
from craft_server.engine import EngineState, WorkerDied
from craft_server.ledger.account import LedgerMeasures, measure
from craft_server.ledger.keys import Caller
from craft_server.problems import ProblemError
from craft_server.telemetry import counted
from craft_shared.problems import OVERLOADED
from craft_shared.units import UNITS

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


@router.get("/livez", summary="Whether the process lives")
async def get_liveness() -> Health:
    """Answers as long as the process does."""
    return Health()


@router.get("/readyz", summary="Whether the server can serve", responses=refusals(OVERLOADED))
async def get_readiness(services: WithServices) -> Health:
    """Answers 200 while the model runs and the ledger can be read and written, 503 otherwise.

    A server that is about to stop answers 503 while it still serves, so that new calls are sent to
    others.
    """
    if services.drain.begun:
        raise _not_ready("the server is about to stop")
    if not services.engine.alive:
        raise _not_ready("the model is not running")
    try:
        await services.engine.state()
    except WorkerDied as error:
        raise _not_ready("the model is not running") from error
    if not await services.database.answers():
        raise _not_ready("the database does not answer")
    # Its renewal is a write, so that no probe has to be one.
    if ailment := services.lease.ailment:
        raise _not_ready(ailment)
    return Health()


def _not_ready(detail: str) -> ProblemError:
    return ProblemError(OVERLOADED, detail, retry_after=10)


@router.get(
    "/metrics",
    summary="Measurements of this process",
    response_class=Response,
    responses=answer(
        "Prometheus' text format",
        {"text/plain": "# TYPE craft_engine_alive gauge\ncraft_engine_alive 1.0\n"},
    ),
)
async def get_metrics(
    services: WithServices, _caller: Annotated[Caller, Depends(caller_with("admin"))]
) -> Response:
    """What the server does now and has done since its start. Needs an admin key; free."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    try:
        state = await services.engine.state()
    except WorkerDied:
        state = None
    registry.register(_Read(_of_services(services, state)))
    registry.register(_Read(_of_ledger(await services.database.read(measure))))
    return Response(counted() + generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Read(Collector):
    """Metrics that were read at the moment of the call."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _of_ledger(measures: LedgerMeasures) -> Iterator[Metric]:
    """What the database holds, the same whichever process is asked."""
    yield GaugeMetricFamily(
        "craft_ledger_open_reservations",
        "Calls whose units are set aside, of all servers.",
        value=measures.open_reservations,
    )
    yield GaugeMetricFamily(
        "craft_ledger_overshoot",
        "Budgets of which more is spent and reserved than their limit; never anything but 0.",
        value=measures.overshoot,
    )
    yield GaugeMetricFamily(
        "craft_ledger_waiting_notices",
        "Notices of spent budgets that have not been sent to every address yet.",
        value=measures.waiting_notices,
    )
    units = CounterMetricFamily(
        "craft_ledger_settled_units", "Units that all keys were charged.", labels=["unit"]
    )
    for unit in UNITS:
        units.add_metric([unit], measures.settled[unit])
    yield units
    yield CounterMetricFamily(
        "craft_ledger_settled_cost",
        "What all keys were charged, in the currency of the prices.",
        value=measures.settled["cost_micros"] / 1e6,
    )


def _of_services(services: Services, state: EngineState | None) -> Iterator[Metric]:
    alive = state is not None and services.engine.alive
    yield GaugeMetricFamily("craft_engine_alive", "1 while the model runs.", value=float(alive))
    caches = {"image_features": services.features.use, "adapters": services.adapters.use}
    if state is not None:
        yield GaugeMetricFamily(
            "craft_engine_waiting_turns",
            "Work that waits for the model; a turn is about as much as it does at once.",
            value=state.waiting,
        )
        busy = CounterMetricFamily(
            "craft_engine_busy_seconds", "How long cores have been kept busy.", labels=["on"]
        )
        for what, seconds in state.busy_seconds.items():
            busy.add_metric([what], seconds)
        yield busy
        memory = GaugeMetricFamily(
            "craft_engine_device_memory_bytes",
            "Memory of the GPU that the model's process has: allocated, reserved, and the peak.",
            labels=["kind"],
        )
        for kind, nbytes in state.device_memory.items():
            memory.add_metric([kind], nbytes)
        yield memory
        caches["text_features"] = state.text_features
    faults = CounterMetricFamily(
        "craft_simulated_faults",
        "Faults of the simulated provider that have happened.",
        labels=["fault", "at"],
    )
    for (fault, place), count in services.provider.faults.items():
        faults.add_metric([fault, place], count)
    yield faults
    for family, name, words, value in _CACHES:
        metric = family(name, words, labels=["cache"])
        for cache, use in caches.items():
            metric.add_metric([cache], getattr(use, value))
        yield metric


_CACHES: tuple[tuple[Any, str, str, str], ...] = (
    (GaugeMetricFamily, "craft_cache_bytes", "Memory that a cache takes.", "nbytes"),
    (GaugeMetricFamily, "craft_cache_max_bytes", "Memory that a cache may take.", "max_bytes"),
    (CounterMetricFamily, "craft_cache_hits", "How often what was asked for was there.", "hits"),
    (CounterMetricFamily, "craft_cache_misses", "How often it had to be made.", "misses"),
)
