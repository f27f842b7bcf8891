"""The plan: a workload and constants in; time, memory, traffic, storage and cost out.

It adds up what a run asks (`workload`) at what things take (`constants`); it measures nothing.
Tenants run the same workload, each on pictures of its own, on one server; clients have machines of
their own, like the one that the constants were measured on.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from craft_server.engine.engine import MOST_THREADS
from craft_server.plan import text_work
from craft_server.plan.architecture import Architecture
from craft_server.plan.constants import ClientCost, Constants, ModelCost, Precision, ServiceCost
from craft_server.plan.workload import SINGLE_PRECISION_BYTES, Workload
from craft_server.settings import Settings
from craft_shared.units import UNITS, Unit, Units

# The paper's head.
HIDDEN_UNITS = 256
# craftbox's closed form: what one fit tries, of how many held-out images at most, and how often it
# is fitted anew to measure accuracy.
REGULARISATIONS = 12
MEASURED = 2000
FOLDS = 5
ENOUGH_IMAGES = 1000
DOUBLE_PRECISION_BYTES = 8


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Seconds(_Part):
    """Where the time of one run goes.

    Attributes:
        texts: the text tower.
        images: decoding and the vision tower.
        scores: pictures against texts.
        http: calls, the ledger, and moving answers and pictures.
        client: its own work.
    """

    texts: float
    images: float
    scores: float
    http: float
    client: float

    @property
    def server(self) -> float:
        """All but the client's."""
        return self.texts + self.images + self.scores + self.http

    @property
    def total(self) -> float:
        """All."""
        return self.server + self.client


class Load(_Part):
    """What one run takes, or all of them.

    Attributes:
        seconds: from the first run's start to the last one's end.
        units: charged.
        bytes_up: from clients.
        bytes_down: to clients.
        server_memory_bytes: the most that the server takes.
        database_bytes: features, and what the ledger keeps of calls.
        answers_bytes: of the database for answers that no client has acknowledged yet.
        charged_micros: by the price list; None without one.
        machine_cost: of the server's hours, in the currency of the hour's price; None without one.
    """

    seconds: float
    units: Units
    bytes_up: int
    bytes_down: int
    server_memory_bytes: int
    database_bytes: int
    answers_bytes: int
    charged_micros: int | None
    machine_cost: float | None


class Plan(_Part):
    """What was planned.

    Attributes:
        model: its name.
        precision: of its arithmetic.
        machine: where the constants were measured.
        cores: that the server has.
        tenants: that run the workload.
        at_once: of them at the same time.
        seconds_of_run: where one run's time goes.
        client_memory_bytes: the most that a client takes.
        run_directory_bytes: of a client.
        run: one of them, alone on the server.
        all: all of them.
        notes: what is not measured but taken to be so.
    """

    model: str
    precision: Precision
    machine: str
    cores: int
    tenants: int
    at_once: int
    seconds_of_run: Seconds
    client_memory_bytes: int
    run_directory_bytes: int
    run: Load
    all: Load
    notes: tuple[str, ...]


def plan_run(
    constants: Constants,
    architecture: Architecture,
    workload: Workload,
    settings: Settings,
    *,
    precision: Precision = "float32",
    cores: int | None = None,
    tenants: int = 1,
    at_once: int | None = None,
    prices: Mapping[Unit, int] | None = None,
    hour_price: float | None = None,
) -> Plan:
    """Plans tenants who each run the workload once.

    Args:
        constants: of a machine.
        architecture: of the model.
        workload: one run.
        settings: of the server, for the bounds of its caches.
        precision: of the model's arithmetic.
        cores: that the server has; as many as the constants' machine by default.
        tenants: how many.
        at_once: of them at the same time; all by default.
        prices: in micros, by unit.
        hour_price: of the server's machine.

    Raises:
        ConstantsError: nothing is known of that precision.
    """
    scaled = constants.cost_of(architecture, precision)
    cores = cores or constants.machine.cores
    at_once = min(at_once or tenants, tenants)
    service, client = constants.service, constants.client
    seconds = _seconds(architecture, scaled.cost, service, client, workload, cores)
    notes = list(scaled.notes)
    if cores != constants.machine.cores:
        notes.append(
            f"{cores} cores are taken to be like the {constants.machine.cores} that were measured, "
            f"each as fast; a model uses at most {MOST_THREADS}"
        )

    def load(runs: int, together: int, elapsed: float) -> Load:
        units = Units(**{unit: runs * workload.units[unit] for unit in UNITS})
        return Load(
            seconds=elapsed,
            units=units,
            bytes_up=runs * workload.bytes_up,
            bytes_down=runs * workload.bytes_down,
            server_memory_bytes=_server_memory(
                architecture, scaled.cost, service, workload, settings, runs, together
            ),
            database_bytes=runs * _database(architecture, service, workload),
            answers_bytes=min(settings.answers_bytes, together * _largest_answer(workload)),
            charged_micros=None
            if prices is None
            else sum(units[unit] * price for unit, price in prices.items()),
            machine_cost=None if hour_price is None else hour_price * elapsed / 3600,
        )

    # The server is the bottleneck of many; each client's own work goes on beside the others'.
    together = max(seconds.total, tenants * seconds.server + seconds.client)
    return Plan(
        model=architecture.name,
        precision=precision,
        machine=constants.machine.name,
        cores=cores,
        tenants=tenants,
        at_once=at_once,
        seconds_of_run=seconds,
        client_memory_bytes=_client_memory(client, workload),
        run_directory_bytes=_run_directory(workload),
        run=load(1, 1, seconds.total),
        all=load(tenants, at_once, together),
        notes=tuple(notes),
    )


def _seconds(
    architecture: Architecture,
    model: ModelCost,
    service: ServiceCost,
    client: ClientCost,
    workload: Workload,
    cores: int,
) -> Seconds:
    working = min(cores, MOST_THREADS)
    decoding = model.decode_core_seconds + workload.image_pixels * model.decode_pixel_core_seconds
    pairs = workload.prompts * workload.images
    answers = workload.prompts * workload.answer_bytes_of_prompt
    calls = workload.score_calls + workload.upload_calls
    return Seconds(
        texts=_text_seconds(architecture, model, workload, cores),
        images=workload.images * (model.image_core_seconds + decoding) / working,
        scores=pairs * (model.score_row_seconds + workload.texts.scored * model.score_seconds),
        http=calls * service.request_seconds
        + answers * service.answer_byte_seconds
        + workload.images * service.picture_seconds,
        client=_client_seconds(client, workload),
    )


def _text_seconds(
    architecture: Architecture, model: ModelCost, workload: Workload, cores: int
) -> float:
    def of(prompts: int) -> float:
        return text_work.seconds(architecture, model.texts, workload.texts, prompts, cores)

    total = 0.0
    for question in workload.questions:
        if not question.times:
            continue
        whole, rest = divmod(question.codes, workload.prompts_per_call)
        one = whole * of(workload.prompts_per_call) if whole else 0.0
        one += (of(rest) if rest else 0.0) + question.templates * of(1)
        total += question.times * one
    return total


def _client_seconds(client: ClientCost, workload: Workload) -> float:
    numbers = workload.images * workload.texts.scored
    own = client.start_seconds + workload.images * client.picture_seconds
    own += workload.prompts * numbers * client.score_seconds
    if workload.recipe == "craftbox":
        return own + _closed_form_seconds(client, workload)
    own += workload.generations * client.paper_generation_seconds
    # Refining each of a population, and one epoch of training, there and back.
    passes = 2 * workload.population + 6
    work = workload.generations * passes * numbers * HIDDEN_UNITS
    return own + work * client.paper_multiply_add_seconds


def fit_work(images: int, inputs: int, classes: int) -> tuple[int, int, int]:
    """Multiplications of matrix products, those of a factorisation, and numbers to calibrate."""
    smaller = min(images, inputs)  # of the two forms that it has
    products = images * inputs * smaller * (1 if smaller == images else 2)
    # With one image a class nothing is held out.
    measured = min(images, MEASURED) if images > classes else 0
    if measured:
        products += 3 * REGULARISATIONS * measured * smaller * classes
    return products, smaller**3, measured * classes


def _closed_form_seconds(client: ClientCost, workload: Workload) -> float:
    """Of choosing texts or prompts after each answer, and of all fits on what was chosen."""
    images, classes = workload.images, workload.texts.classes
    inputs = workload.prompts * workload.texts.scored
    products, cube, calibrations = fit_work(images, inputs, classes)
    fits = 1 + (min(FOLDS, -(-FOLDS * ENOUGH_IMAGES // images)) if calibrations else 0)
    algebra = products * client.ridge_product_seconds + cube * client.ridge_cube_seconds
    choices = len(workload.questions)  # each about as much algebra as a fit
    return (fits + choices) * algebra + fits * calibrations * client.ridge_calibration_seconds


def _largest_answer(workload: Workload) -> int:
    """Bytes of the largest answer to one call."""
    largest = max(question.prompts for question in workload.questions if question.times)
    prompts = min(largest, workload.prompts_per_call)
    return min(workload.limits.answer_bytes, prompts * workload.answer_bytes_of_prompt)


def _server_memory(
    architecture: Architecture,
    model: ModelCost,
    service: ServiceCost,
    workload: Workload,
    settings: Settings,
    tenants: int,
    at_once: int,
) -> int:
    feature_bytes = SINGLE_PRECISION_BYTES * architecture.features
    tensor = SINGLE_PRECISION_BYTES * 3 * architecture.image_size**2
    picture = tensor + workload.image_bytes + service.upload_bytes
    upload = at_once * workload.images_per_call * picture
    answers = at_once * service.answer_copies * _largest_answer(workload)
    features = tenants * workload.images * feature_bytes
    texts = tenants * workload.prompts * workload.texts.scored * feature_bytes
    caches = min(features, settings.features_cache_bytes) + min(texts, settings.texts_cache_bytes)
    return int(service.base_bytes + model.peak_bytes + max(upload, answers) + caches)


def _client_memory(client: ClientCost, workload: Workload) -> int:
    images, scored = workload.images, workload.texts.scored
    fit = 0.0
    if workload.recipe == "craftbox":
        inputs = workload.prompts * scored
        fit += SINGLE_PRECISION_BYTES * images * inputs * client.fit_copies
        fit += DOUBLE_PRECISION_BYTES * images * min(images, inputs) * client.gram_copies
        fit += DOUBLE_PRECISION_BYTES * images * workload.texts.classes * client.target_copies
    # A question's answers are put together in single precision, whatever the calls.
    prompts = max(question.prompts for question in workload.questions if question.times)
    whole = SINGLE_PRECISION_BYTES * prompts * images * scored
    answer = whole + client.answer_copies * _largest_answer(workload)
    return int(client.base_bytes + max(fit, answer))


def _database(architecture: Architecture, service: ServiceCost, workload: Workload) -> int:
    of_picture = SINGLE_PRECISION_BYTES * architecture.features + service.picture_row_bytes
    calls = workload.units.requests * service.call_row_bytes
    return int(workload.images * of_picture + calls)


def _run_directory(workload: Workload) -> int:
    """Codes, and what the closed form reads and comes to; the paper's keeps a bounded few."""
    codes = workload.prompts * (workload.dim + 1) * SINGLE_PRECISION_BYTES
    if workload.recipe == "paper":
        return codes + 2 * workload.answer_bytes_of_prompt
    inputs = workload.prompts * workload.texts.scored
    head = inputs * workload.texts.classes * SINGLE_PRECISION_BYTES
    return codes + workload.prompts * workload.answer_bytes_of_prompt + head
