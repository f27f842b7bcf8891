"""The plan: what tuning runs ask, at what things take (`costs`).

Owners run the same workload, each on images of its own, on one server; clients have machines of
their own, like the one that the constants were measured on.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from craft_server.engine.engine import LEAST_WIDTH_TO_SHARE, MOST_THREADS, TOKENS_PER_TASK
from craft_server.engine.hosted import tokenizer_of
from craft_server.engine.text import Pack, packs
from craft_server.engine.tokens import Ids, Tokenizer, shared_length
from craft_server.plan.costs import Architecture, ClientCost, Constants, Precision, TextRates
from craft_server.settings import Settings
from craft_shared.counting import calls, units_of_calls
from craft_shared.units import UNITS, Unit, Units
from craft_shared.wire import Limits

Recipe = Literal["craftbox", "paper"]

PLAIN = "a photo of a"
PLAIN_SHARED_TOKENS = 5  # of the plain prompt and its start token
HALF, SINGLE, DOUBLE = 2, 4, 8  # bytes of a number
# Header lines, the document and the cost of a call, one way each; class names come on top.
CALL_UP_BYTES = 700
CALL_DOWN_BYTES = 1200
NAME_BYTES = 12  # of a class name with its quotes and comma
# Own tokens of a vocabulary's texts, in turn: common nouns have 3.35 on the average.
VOCABULARY_TOKENS = (3, 3, 4)
FIRST_PROMPTS = 4  # of strict access, which then doubles them
# Models, budgets, the image set and its first check; then an acknowledgement each round.
FREE_CALLS = 7
HIDDEN_UNITS = 256  # of the paper's head
# craftbox's closed form: what one fit tries, of how many held-out images at most, and how often it
# is fitted anew to measure accuracy.
REGULARISATIONS = 9
MEASURED = 2000
FOLDS = 5
ENOUGH_IMAGES = 1000


@dataclass(frozen=True)
class Texts:
    """The texts of one prompt: one a class, then a vocabulary's."""

    sequences: tuple[Ids, ...]  # token ids, or stand-ins of the same length
    name_bytes: int  # of class names and vocabulary in a request's document
    vocabulary: int = 0  # how many are not of classes

    @classmethod
    def of_length(cls, classes: int, own_tokens: int) -> Texts:
        """Texts of the plain prompt with so many own tokens, full stop and end included."""
        prefix = (0,) * PLAIN_SHARED_TOKENS
        texts = tuple(prefix + (index + 1,) * own_tokens for index in range(classes))
        return cls(texts, classes * NAME_BYTES)

    @classmethod
    def of_names(cls, model: str, classes: Sequence[str]) -> Texts:
        """The texts of class names under the plain prompt, as a model's tokenizer reads them."""
        tokenize = tokenizer_of(model)
        tokens = Tokenizer(tokenize, tokenize.context_length).of()
        sequences = tuple(tokens.context(PLAIN, name) for name in classes)
        return cls(sequences, len(json.dumps(list(classes)).encode()))

    def beside(self, vocabulary: int) -> Texts:
        """These classes' texts and so many stand-ins for common nouns."""
        prefix = self.sequences[0][:PLAIN_SHARED_TOKENS]
        lengths = islice(cycle(VOCABULARY_TOKENS), vocabulary)
        texts = tuple(prefix + (index + 1,) * own for index, own in enumerate(lengths))
        name_bytes = self.name_bytes + vocabulary * NAME_BYTES
        return Texts(self.sequences + texts, name_bytes, vocabulary)

    @property
    def scored(self) -> int:
        """How many there are."""
        return len(self.sequences)

    @property
    def classes(self) -> int:
        """How many are of classes."""
        return self.scored - self.vocabulary

    @cached_property
    def tokens(self) -> int:
        """That are read for one prompt: the shared ones once, and all own ones."""
        shared = shared_length(self.sequences)
        return shared + sum(len(sequence) - shared for sequence in self.sequences)


class Round(NamedTuple):
    """Plain prompts and then codes that one request asks, before the limits cut it into calls."""

    templates: int
    codes: int
    times: int  # the run asks so

    @property
    def prompts(self) -> int:
        """Both together."""
        return self.templates + self.codes


@dataclass(frozen=True)
class Workload:
    """What one tuning run asks.

    craftbox's recipe is in strict access where `texts` has no vocabulary.
    """

    texts: Texts
    images: int
    image_bytes: int  # of one image's file
    image_pixels: int
    budget: int  # queries that the run may spend
    recipe: Recipe
    population: int  # codes a generation of the paper's search
    random_codes: int  # of strict access, at most
    dim: int  # of a code
    limits: Limits  # of the server

    @cached_property
    def generations(self) -> int:
        """Whole ones of the paper's search that the budget covers."""
        if self.recipe == "craftbox":
            return 0
        plain, codes = self._units(1).queries, self._units(self.population).queries
        # The codes, and then their mean.
        return max(0, self.budget - plain) // (codes + plain)

    @cached_property
    def rounds(self) -> Sequence[Round]:
        """All that the run asks at most, before the limits cut it into calls."""
        if self.recipe == "paper":
            population = Round(0, self.population, self.generations)
            return [Round(1, 0, 1), population, Round(0, 1, self.generations)]
        if self.texts.vocabulary:
            return [Round(1, 0, 1)]
        prompts = min(FIRST_PROMPTS, 1 + self.random_codes, self.budget)
        rounds = [Round(1, prompts - 1, 1)]
        while (further := min(prompts, 1 + self.random_codes - prompts)) > 0:
            prompts += further
            if self._units(prompts).queries > self.budget:
                break
            rounds.append(Round(0, further, 1))
        return rounds

    @property
    def prompts(self) -> int:
        """Different ones, all rounds together."""
        return sum(asked.prompts * asked.times for asked in self.rounds)

    @property
    def largest_round(self) -> int:
        """Prompts of the largest one."""
        return max(asked.prompts for asked in self.rounds if asked.times)

    def cut(self, prompts: int) -> Iterator[tuple[range, range]]:
        """The prompts and images of each call that the limits make of one request."""
        return calls(prompts, self.images, self._row_bytes, self.limits)

    @property
    def answer_bytes_of_prompt(self) -> int:
        """Of one prompt's log-probabilities, in half precision."""
        return self._row_bytes * self.images

    @cached_property
    def largest_answer(self) -> int:
        """Bytes of the largest answer to one call."""
        each = self.cut(self.largest_round)
        return max(len(prompts) * len(rows) for prompts, rows in each) * self._row_bytes

    @property
    def images_per_call(self) -> int:
        """Of an upload."""
        by_size = self.limits.body_bytes // max(1, self.image_bytes)
        return max(1, min(self.limits.images_per_call, by_size, self.images))

    @property
    def upload_calls(self) -> int:
        """Calls that bring all images."""
        return -(-self.images // self.images_per_call)

    @cached_property
    def units(self) -> Units:
        """What the run is charged, where the server has seen none of its images."""
        total = Units(images=self.images, requests=self.upload_calls)
        for asked in self.rounds:
            total += _times(asked.times, self._units(asked.prompts))
        return total

    @property
    def bytes_up(self) -> int:
        """From the client: images, codes, texts and what every call has."""
        score_calls = self.units.requests - self.upload_calls
        codes = sum(asked.codes * asked.times for asked in self.rounds) * self.dim
        sent = codes * SINGLE * self._units(1).queries
        names = (score_calls + 1) * self.texts.name_bytes
        headers = (self.units.requests + score_calls + FREE_CALLS) * CALL_UP_BYTES
        return self.images * (self.image_bytes + 8) + sent + names + headers

    @property
    def bytes_down(self) -> int:
        """To the client: log-probabilities, uncompressed, and what every call has."""
        messages = 2 * self.units.requests - self.upload_calls + FREE_CALLS
        return self.prompts * self.answer_bytes_of_prompt + messages * CALL_DOWN_BYTES

    @property
    def _row_bytes(self) -> int:
        return HALF * self.texts.scored

    def _units(self, prompts: int) -> Units:
        return units_of_calls(prompts, self.images, self.texts.scored, self._row_bytes, self.limits)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Seconds(_Part):
    """Where the time of one run goes."""

    texts: float  # the text tower
    images: float  # decoding and the vision tower
    scores: float  # images against texts
    http: float  # calls, the ledger, and moving answers and images
    client: float  # its own work

    @property
    def server(self) -> float:
        """All but the client's."""
        return self.texts + self.images + self.scores + self.http

    @property
    def total(self) -> float:
        """All."""
        return self.server + self.client


class Load(_Part):
    """What one run takes, or all of them."""

    seconds: float  # from the first run's start to the last one's end
    units: Units
    bytes_up: int
    bytes_down: int
    server_memory_bytes: int  # the most that the server takes
    database_bytes: int  # features, and what the ledger keeps of calls
    answers_bytes: int  # of the database for answers that no client has acknowledged yet
    charged_micros: int | None  # None without a price list
    machine_cost: float | None  # in the currency of the hour's price; None without one


class Plan(_Part):
    """What was planned."""

    model: str
    precision: Precision
    machine: str  # where the constants were measured
    cores: int  # that the server has
    owners: int  # that run the workload
    at_once: int  # of them at the same time
    seconds_of_run: Seconds
    client_memory_bytes: int  # the most that a client takes
    run_directory_bytes: int  # of a client
    run: Load  # one of them, alone on the server
    all: Load
    notes: tuple[str, ...]  # what is not measured but taken to be so


def plan_run(
    constants: Constants,
    architecture: Architecture,
    workload: Workload,
    settings: Settings,
    *,
    precision: Precision = "float32",
    cores: int | None = None,
    owners: int = 1,
    at_once: int | None = None,
    prices: Mapping[Unit, int] | None = None,
    hour_price: float | None = None,
) -> Plan:
    """Plans owners who each run the workload once.

    `cores` are the constants' machine's by default, and `at_once` all owners. `prices` are in
    micros, by unit; `hour_price` is the server's machine's.

    Raises:
        ConstantsError: nothing is known of that precision.
    """
    model, scaled = constants.cost_of(architecture, precision)
    cores = cores or constants.machine.cores
    at_once = min(at_once or owners, owners)
    service, client = constants.service, constants.client
    images, prompts, scored = workload.images, workload.prompts, workload.texts.scored
    answers = prompts * workload.answer_bytes_of_prompt
    working = min(cores, MOST_THREADS)
    decoding = model.decode_core_seconds + workload.image_pixels * model.decode_pixel_core_seconds
    seconds = Seconds(
        texts=_text_seconds(architecture, model.texts, workload, cores),
        images=images * (model.image_core_seconds + decoding) / working,
        scores=prompts * images * (model.score_row_seconds + scored * model.score_seconds),
        http=workload.units.requests * service.request_seconds
        + answers * service.answer_byte_seconds
        + images * service.picture_seconds,
        client=_client_seconds(client, workload),
    )
    notes = list(scaled)
    if cores != constants.machine.cores:
        notes.append(
            f"{cores} cores are taken to be like the {constants.machine.cores} that were measured, "
            f"each as fast; a model uses at most {MOST_THREADS}"
        )
    feature_bytes = SINGLE * architecture.features
    tensor = SINGLE * 3 * architecture.image_size**2
    upload = workload.images_per_call * (tensor + workload.image_bytes + service.upload_bytes)
    call = max(upload, service.answer_copies * workload.largest_answer)
    database = images * (feature_bytes + service.picture_row_bytes)
    database += workload.units.requests * service.call_row_bytes

    def load(runs: int, together: int, elapsed: float) -> Load:
        units = _times(runs, workload.units)
        features = min(runs * images * feature_bytes, settings.features_cache_bytes)
        texts = min(runs * prompts * scored * feature_bytes, settings.texts_cache_bytes)
        memory = service.base_bytes + model.peak_bytes + together * call + features + texts
        return Load(
            seconds=elapsed,
            units=units,
            bytes_up=runs * workload.bytes_up,
            bytes_down=runs * workload.bytes_down,
            server_memory_bytes=int(memory),
            database_bytes=runs * int(database),
            answers_bytes=min(settings.answers_bytes, together * workload.largest_answer),
            charged_micros=None
            if prices is None
            else sum(units[unit] * price for unit, price in prices.items()),
            machine_cost=None if hour_price is None else hour_price * elapsed / 3600,
        )

    # The server is the bottleneck of many; each client's own work goes on beside the others'.
    of_all = max(seconds.total, owners * seconds.server + seconds.client)
    return Plan(
        model=architecture.name,
        precision=precision,
        machine=constants.machine.name,
        cores=cores,
        owners=owners,
        at_once=at_once,
        seconds_of_run=seconds,
        client_memory_bytes=_client_memory(client, workload),
        run_directory_bytes=_run_directory(workload),
        run=load(1, 1, seconds.total),
        all=load(owners, at_once, of_all),
        notes=tuple(notes),
    )


def _times(number: int, units: Units) -> Units:
    return Units(**{unit: number * units[unit] for unit in UNITS})


def _text_seconds(
    architecture: Architecture, rates: TextRates, workload: Workload, cores: int
) -> float:
    total = 0.0
    for asked in workload.rounds:
        # The images of further calls come on top, whose texts are remembered.
        sizes = [len(some) for some, rows in workload.cut(asked.codes) if rows.start == 0]
        each = Counter(sizes + [1] * asked.templates)
        total += asked.times * sum(
            count * text_seconds(architecture, rates, workload.texts, size, cores)
            for size, count in each.items()
        )
    return total


def text_seconds(
    architecture: Architecture, rates: TextRates, texts: Texts, prompts: int, cores: int
) -> float:
    """Of one call's prompts, codes or a plain one, in the text engine.

    Packs run side by side, each on one core, while a single wide one is shared.
    """
    cores = min(cores, MOST_THREADS)
    cut = list(packs(texts.sequences, prompts=prompts, max_tokens=TOKENS_PER_TASK["cpu"]))
    if len(cut) == 1 and cores > 1 and architecture.text_width >= LEAST_WIDTH_TO_SHARE:
        return multiply_adds(architecture, cut[0]) / (rates.shared_per_core * cores)
    ends = [0.0] * cores
    for pack in cut:
        earliest = heapq.heappop(ends)
        heapq.heappush(ends, earliest + multiply_adds(architecture, pack) / rates.packed_per_core)
    return max(ends)


def multiply_adds(architecture: Architecture, pack: Pack) -> float:
    """Of a pack whose class list the first layer remembers (see `craft_server.engine.text`).

    Every token goes through all layers, but of the last one only end tokens need more than keys and
    values; attention is what the causal mask lets be seen.
    """
    width, layers = architecture.text_width, architecture.text_layers
    prompts, shared = len(pack.prompts), len(pack.prefix)
    lengths = [len(suffix) for suffix in pack.suffixes]
    own, texts = sum(lengths), len(lengths)
    tokens = prompts * (shared + own)
    square = width**2
    joint, rest = 3 * square, 9 * square
    linear = (
        prompts * shared * joint
        + (layers - 2) * tokens * joint
        + tokens * 2 * square
        + prompts * texts * square
        + (layers - 1) * tokens * rest
        + prompts * texts * (rest + width * architecture.features)
    )
    seen = shared * (shared + 1) / 2 + sum(s * shared + s * (s + 1) / 2 for s in lengths)
    seen_by_ends = sum(shared + s for s in lengths)
    attention = prompts * ((layers - 1) * seen + seen_by_ends) * 2 * width
    return linear + attention


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
    choices = len(workload.rounds)  # each about as much algebra as a fit
    return (fits + choices) * algebra + fits * calibrations * client.ridge_calibration_seconds


def _client_memory(client: ClientCost, workload: Workload) -> int:
    images, scored = workload.images, workload.texts.scored
    fit = 0.0
    if workload.recipe == "craftbox":
        inputs = workload.prompts * scored
        fit += SINGLE * images * inputs * client.fit_copies
        fit += DOUBLE * images * min(images, inputs) * client.gram_copies
        fit += DOUBLE * images * workload.texts.classes * client.target_copies
    # A round's answers are put together in single precision, whatever the calls.
    whole = SINGLE * workload.largest_round * images * scored
    return int(client.base_bytes + max(fit, whole + client.answer_copies * workload.largest_answer))


def _run_directory(workload: Workload) -> int:
    """Codes, and what the closed form reads and comes to; the paper's keeps a bounded few."""
    codes = workload.prompts * (workload.dim + 1) * SINGLE
    if workload.recipe == "paper":
        return codes + 2 * workload.answer_bytes_of_prompt
    inputs = workload.prompts * workload.texts.scored
    head = inputs * workload.texts.classes * SINGLE
    return codes + workload.prompts * workload.answer_bytes_of_prompt + head
