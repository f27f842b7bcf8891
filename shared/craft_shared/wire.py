"""The wire models of API v1: what travels as JSON, or as the document of a safetensors body.

A field marked as a tensor travels as nested lists in JSON and as the safetensors tensor of the same
name otherwise; pictures travel as base64 strings in JSON and as the tensors `files` and
`file_sizes` otherwise (`craft_shared.codec.pack_files`).

This module knows shapes and bounds that hold on every server. It does not know a server's own
limits (`GET /v1/models` states those), nor how anything is computed.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from craft_shared.amounts import (
    MAX_AMOUNT,
    MAX_DECIMALS,
    MAX_INTEGER,
    MAX_PRICE_MICROS,
    UNITS,
    Measure,
    Unit,
)
from craft_shared.display import Displayed, View, names
from craft_shared.units import Units

LONGEST_CLASS_NAME = 200  # characters


_RFC_3339 = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)


def _read_time(value: object) -> object:
    if isinstance(value, str) and _RFC_3339.fullmatch(value):
        moment = datetime.fromisoformat(value.upper())
        try:
            return moment.astimezone(UTC)
        except OverflowError as error:
            raise ValueError("in UTC this time is not within the years 1 to 9999") from error
    if isinstance(value, datetime):
        return value
    raise ValueError("this is no RFC 3339 time such as 2026-01-31T12:00:00Z")


# Pydantic alone would take a number too, for seconds since 1970.
Time = Annotated[AwareDatetime, BeforeValidator(_read_time)]
Name = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", min_length=1, max_length=64)
]
ClassName = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_CLASS_NAME)]
# That the place is there is checked where prompts are, in the words of that check.
Template = Annotated[
    str,
    StringConstraints(min_length=2, max_length=300),
    Field(json_schema_extra={"pattern": r"\{\}"}),
]
Label = Annotated[
    str,
    StringConstraints(strip_whitespace=True, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$"),
]
# With something that is not white space, of which a NEXT LINE is one to Unicode and not to JSON
# Schema's patterns.
NonEmptyLabel = Annotated[
    Label,
    StringConstraints(
        min_length=1, pattern=r"^[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f\x85][^\x00-\x1f\x7f]*$"
    ),
]
# Far outside what a search visits; far inside what half precision can hold.
MAX_CODE = 1000.0
Row = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
Rows = Annotated[list[Row], Field(min_length=1)]
TopK = Annotated[int, Field(ge=1, le=MAX_INTEGER)]


# Pillow's names of the picture formats that a server decodes.
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
# Pictures are resized by their shorter side, which would make a sliver enormous.
PICTURE_MAX_ASPECT = 100


class Message(BaseModel):
    """A JSON object on the wire. Unknown fields are errors, so that a typing slip is told."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(Message):
    """What a server says. Unknown fields are ignored, so that a newer server may say more."""

    model_config = ConfigDict(extra="ignore")


# --- output levels ----------------------------------------------------------------------------


Level = Literal["label", "top_k", "probs", "log_probs"]

Decimals = Annotated[int, Field(ge=1, le=MAX_DECIMALS)]
Noise = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class Output(Message):
    """What an answer shows of each distribution over the classes.

    Attributes:
        level: `label`: the most probable class, no number. `top_k`: the log-probabilities of the k
            most probable classes. `probs`: probabilities. `log_probs`: log-probabilities; without
            `decimals` they are all that the model says.
        k: how many classes are named, the most probable ones; all when null. `top_k` has one,
            `probs` may.
        decimals: to which numbers are rounded; not at all when null. `probs` has some.
        noise: standard deviation, in nats, of what was added to each log-probability before
            anything else. The same question has the same noise each time.
    """

    level: Level = "log_probs"
    k: TopK | None = None
    decimals: Decimals | None = None
    noise: Noise = 0.0

    @model_validator(mode="after")
    def _possible(self) -> Output:
        if self.level == "label" and (self.k or self.decimals):
            raise ValueError("level 'label' shows no numbers: it has neither k nor decimals")
        if self.level == "top_k" and self.k is None:
            raise ValueError("level 'top_k' needs k")
        if self.level == "log_probs" and self.k is not None:
            raise ValueError("level 'log_probs' is of all classes: it has no k")
        if self.level == "probs" and self.decimals is None:
            raise ValueError("level 'probs' needs decimals")
        return self

    def same_level(self, other: Output) -> bool:
        """Whether both show the same, whatever noise comes before it."""
        return self == other.model_copy(update={"noise": self.noise})

    @property
    def whole(self) -> bool:
        """Whether nothing is left out of the log-probabilities, noisy or not."""
        return self.level == "log_probs" and self.decimals is None


EVERYTHING = Output()


# --- models -----------------------------------------------------------------------------------


class Limits(Answer):
    """What one call may hold at most.

    Attributes:
        body_bytes: of a request's body.
        images_per_call: pictures in one body.
        image_bytes: of one encoded picture.
        image_pixels: of one picture, all of them counted.
        images_per_set: pictures that an image set may have.
        prompts_per_call: templates and codes together.
        classes: class names and further texts together.
        dim: length of a code.
        answer_bytes: of an answer's numbers.
    """

    body_bytes: int
    images_per_call: int
    image_bytes: int
    image_pixels: int
    images_per_set: int
    prompts_per_call: int
    classes: int
    dim: int
    answer_bytes: int


class ProviderProfile(Answer):
    """The simulated provider that a model is served by.

    Attributes:
        name: of the profile.
        version: counts its changes.
        digest: SHA-256 of all in it that has an effect.
    """

    name: str
    version: int
    digest: str


class ModelCard(Displayed, Answer):
    """What a client may know of a model.

    Attributes:
        name: what calls name it by.
        revision: opaque; adapters and image sets are bound to it.
        image_size: side in pixels that pictures are resized to.
        limits: what one call may hold.
        outputs: the output levels this key may receive.
        output: what this key's answers show.
        prompts_per_image_set: how many different prompts this key may ask about one image set;
            null is not bounded.
        profile: of the provider that is simulated; null where none is.
    """

    name: str
    revision: str
    image_size: int
    limits: Limits
    outputs: list[Level]
    output: Output = EVERYTHING
    prompts_per_image_set: int | None = None
    profile: ProviderProfile | None = None

    def _view(self) -> View:
        return View(
            self.name,
            {
                "revision": self.revision,
                "image size, pixels": self.image_size,
                "level": self.output.level,
                "prompts per image set": self.prompts_per_image_set,
                "pictures a call": self.limits.images_per_call,
                "prompts a call": self.limits.prompts_per_call,
                "profile": self.profile and self.profile.name,
            },
        )


class ModelList(Answer):
    """Answer of `GET /v1/models`."""

    models: list[ModelCard]


# --- prompts ----------------------------------------------------------------------------------


# Standard deviations of the released code's projections, by name; see `Context`.
AbsoluteScale = Literal["paper", "paper-wide", "paper-imagenet"]
Scale = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] | AbsoluteScale


class Context(Message):
    """A search space for prompts, p = p0 + A z (CraFT, section 3.1; the server holds p0 and A).

    Attributes:
        init: words whose token embeddings are p0; `dim` times their tokens is at most 65,536.
        dim: intrinsic dimension, the length of a code z.
        seed: names the Gaussian projection A.
        scale: a standard normal code moves each coordinate of p0 by `scale` times the standard
            deviation of the model's token embeddings. By name, A's entries have an absolute
            standard deviation of the released code instead: 0.2 for `"paper"`, its setting of most
            data sets, 1 for `"paper-wide"` (DTD, EuroSAT), and 0.0255 for `"paper-imagenet"`.
    """

    init: Annotated[str, StringConstraints(min_length=1, max_length=200)] = "a photo of a"
    dim: int = Field(default=512, ge=1, le=4096)
    seed: int = Field(default=1, ge=0, lt=2**63)
    scale: Scale = 1.0


# --- budgets and usage --------------------------------------------------------------------------


Window = Literal["lifetime", "month", "week", "day", "hour"]


class Budget(Displayed, Answer):
    """One bound on a key, its own or its team's; all of them must cover a call.

    Attributes:
        unit: what it bounds.
        window: the calendar window (UTC) after which it begins anew; `lifetime` never does.
        of: whether all keys of a team share it.
        limit: of the unit, in one window.
        spent: charged in this window.
        reserved: set aside for calls that run now.
        remaining: limit - spent - reserved.
        resets_at: when the next window begins, RFC 3339; null for lifetime.
    """

    unit: Measure
    window: Window = "lifetime"
    of: Literal["key", "team"] = "key"
    limit: int
    spent: int
    reserved: int
    remaining: int
    resets_at: str | None = None

    def _view(self) -> View:
        facts = {name: value for name, value in self if name not in ("unit", "window", "of")}
        return View(f"{self.unit} of the {self.of}, {self.window}", facts)


class BudgetList(Answer):
    """Answer of `GET /v1/budget`. No budget on a unit means that it is not bounded."""

    budgets: list[Budget]


class Cost(Answer):
    """What a call cost and what is left, in every charged answer.

    Attributes:
        charged: units of the call.
        cost_micros: their price, in millionths of the provider's currency.
        budgets: after the call.
    """

    charged: Units
    cost_micros: int = 0
    budgets: list[Budget]


class Charge(Answer):
    """One line of the ledger.

    `id` is its number among the key's lines, from 1; refunded reservations leave gaps.
    `at` is an RFC 3339 time in UTC, of the reservation. `state` is `settled`, or `reserved` while
    the call runs. Refunded reservations charge nothing and are not listed. `run` is what the client
    called the run that the call was part of.
    """

    id: int
    at: str
    call: str
    run: str | None = None
    model: str
    revision: str = ""
    state: Literal["reserved", "settled"]
    units: Units
    cost_micros: int = 0


class Usage(Displayed, Answer):
    """Answer of `GET /v1/usage?after=ID&limit=N`: totals of what is settled, and a page of lines.

    `next_after` continues the listing; null at its end.
    """

    total: Units
    cost_micros: int = 0
    charges: list[Charge]
    next_after: int | None

    def _view(self) -> View:
        kinds: dict[str, list[Charge]] = {}
        for charge in self.charges:
            kinds.setdefault(charge.call, []).append(charge)
        rows = []
        for call, charges in kinds.items():
            units = sum((charge.units for charge in charges), Units())
            cost = sum(charge.cost_micros for charge in charges)
            rows.append([call, len(charges), *(units[unit] for unit in UNITS), cost])
        return View(
            f"of {len(self.charges):,} charges",
            {**self.total.model_dump(), "cost_micros": self.cost_micros},
            ["call", "charges", *UNITS, "cost_micros"],
            rows,
        )


# --- image sets -----------------------------------------------------------------------------------


class ImageSetCreate(Message):
    """Body of `POST /v1/image-sets`."""

    model: str


class ImageSet(Answer):
    """An image set: a handle on pictures that the server has seen. `count` is its rows."""

    id: str
    model: str
    revision: str
    count: int


class ImageUpload(Message):
    """Body of `POST /v1/image-sets/{id}/images`.

    Attributes:
        first_row: the row that the first picture gets; must equal the set's present count, so that
            a chunk is never added twice.
        images: pictures as base64 strings (JSON only).
    """

    first_row: Row
    images: list[str] | None = None


class ImageUploadAnswer(Answer):
    """What an upload did. Pictures that the owner has had encoded before are not charged again."""

    image_set: ImageSet
    cost: Cost


# --- predictions ------------------------------------------------------------------------------


class PredictionRequest(Message):
    """Body of `POST /v1/predictions`: prompts x images x classes.

    The prompts are the templates, in order, and after them the codes: at least one. Either
    `image_set` (with optional `rows`) or pictures must be given. No text holds the tokenizer's
    words for a text's start and end, and every prompt is short enough for the model with every
    class name.

    Attributes:
        model: the model's name.
        classes: C class names, no two alike and none blank.
        templates: plain prompts with one `{}` for the class name.
        context: the codes' search space; required with codes.
        codes: tensor, float32 [prompts, dim].
        image_set: an image set's id.
        rows: rows of the image set to score; all when null.
        images: pictures as base64 strings (JSON only).
        dtype: precision of the answer's log-probabilities.
        top_k: of each prompt and picture only the so many most probable classes are answered, at
            most C; as many as the key may see when null, and never more. The charge is the same.
    """

    model: str
    classes: list[ClassName] = Field(min_length=1, json_schema_extra={"uniqueItems": True})
    templates: list[Template] = Field(default_factory=list)
    context: Context | None = None
    codes: list[list[Annotated[float, Field(ge=-MAX_CODE, le=MAX_CODE)]]] | None = None
    image_set: str | None = None
    rows: Rows | None = None
    images: list[str] | None = None
    dtype: Literal["float32", "float16"] = "float32"
    top_k: TopK | None = None


class PredictionAnswer(Answer):
    """Answer of `POST /v1/predictions`.

    Attributes:
        output: what the tensors show.
        log_probs: tensor [prompts, images, classes] of natural-log probabilities over the classes.
            With k, [prompts, images, k]: the largest of these same numbers, in descending order.
            Not with the levels `label` and `probs`.
        probs: tensor like `log_probs`, with level `probs` alone: probabilities.
        top_classes: tensor, int32 of the same shape, only with k and, [prompts, images, 1], with
            level `label`: which of the request's classes each number belongs to, from 0. Of equal
            numbers the lower index comes first.
    """

    model: str
    revision: str
    cost: Cost
    output: Output = EVERYTHING
    log_probs: list[list[list[float]]] | None = None
    probs: list[list[list[float]]] | None = None
    top_classes: list[list[list[int]]] | None = None


# --- adapters -----------------------------------------------------------------------------------


LATEST = "latest"

Alias = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9._-]*$", min_length=1, max_length=32)
]
Version = Annotated[int, Field(ge=1, lt=10**9)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
KeyPrefix = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]{8}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Payer = Literal["caller", "publisher"]


class Provenance(Message):
    """How an adapter came to be, for its card; nothing is computed from it.

    Attributes:
        recipe: by which it was tuned.
        data: what the tuner calls the data set.
        shots: training pictures a class.
        seed: of the run.
        accuracy_before: of the plain prompt on the training pictures, percent.
        accuracy_after: of the adapter, percent, each picture by a head fitted without it.
        units: charged by the run.
    """

    recipe: Annotated[str, StringConstraints(max_length=64)] | None = None
    data: Annotated[str, StringConstraints(max_length=200)] | None = None
    shots: int | None = None
    seed: int | None = None
    accuracy_before: Finite | None = None
    accuracy_after: Finite | None = None
    units: Units = Units()


class AdapterCard(Displayed, Answer):
    """One version of a published adapter, as those see it who may use it.

    Calls refer to it as `name`, `name@version` or `name@alias`; to another owner's as `owner/name`
    with the same endings.

    Attributes:
        owner: whose it is.
        name: under its owner.
        version: counts from 1; what it means never changes.
        aliases: that mean this version now; `latest` is the newest.
        digest: SHA-256 of its content.
        model: that it was tuned on, and by which alone it is served.
        revision: of the model.
        access_mode: `strict`, or `open-text` where the head reads texts beside the class names.
        classes: C names.
        prompts: P; a prediction is charged as that many queries.
        published_at: RFC 3339.
        retired_at: from when on it is not served, RFC 3339; null while it is.
        pays: who is charged for predictions.
        abstain_below: where a caller names no threshold of its own; null is never.
        provenance: how it came to be.
    """

    owner: str = ""
    name: str
    version: int
    aliases: list[str] = []
    digest: str
    model: str
    revision: str
    access_mode: Literal["strict", "open-text"]
    classes: list[str]
    prompts: int
    published_at: str
    retired_at: str | None = None
    pays: Payer = "caller"
    abstain_below: float | None = None
    provenance: Provenance = Provenance()

    def _view(self) -> View:
        owner = f"{self.owner}/" if self.owner else ""
        return View(
            f"{owner}{self.name}@{self.version}",
            {
                "aliases": names(self.aliases),
                "model": self.model,
                "access": self.access_mode,
                "classes": names(self.classes),
                "queries a prediction": self.prompts,
                "paid by": self.pays,
                "published at": self.published_at,
                "retired at": self.retired_at,
                "recipe": self.provenance.recipe,
                "data": self.provenance.data,
                "shots": self.provenance.shots,
                "accuracy after, %": self.provenance.accuracy_after,
            },
        )


class AdapterList(Answer):
    """Answer of `GET /v1/adapters`."""

    adapters: list[AdapterCard]


class AdapterPublishAnswer(Answer):
    """Answer of `POST /v1/adapters?name=NAME`; its body is an adapter."""

    adapter: AdapterCard
    cost: Cost


class AdapterSettings(Answer):
    """What the owner of an adapter's name has decided, for all its versions.

    Attributes:
        owner: of the name.
        name: the adapter's.
        public: whether every key may use it.
        keys: prefixes of other owners' keys that may use it.
        teams: whose keys may use it.
        pays: who is charged for predictions: the caller, or the key that said `publisher`.
        abstain_below: the classifier says nothing where its best class is less probable.
        aliases: of which version each is the name.
    """

    owner: str
    name: str
    public: bool
    keys: list[str]
    teams: list[str]
    pays: Payer
    abstain_below: float | None
    aliases: dict[str, int]


class AdapterChange(Message):
    """Body of `PATCH /v1/adapters/{name}`: a JSON merge patch (RFC 7396) of `AdapterSettings`.

    What it does not name stays as it is; the lists are replaced as wholes; an alias of null is
    removed, and so is an `abstain_below` of null. An alias means a version that is not retired, and
    `latest` is always the newest. All of it happens at once or, if one part is refused, nothing.
    """

    public: bool = False
    keys: list[KeyPrefix] = Field(default=[], max_length=1000)
    teams: list[NonEmptyLabel] = Field(default=[], max_length=1000)
    pays: Payer = "caller"
    abstain_below: Probability | None = None
    aliases: dict[Alias, Version | None] = Field(
        default={}, max_length=100, json_schema_extra={"additionalProperties": False}
    )


class AdapterUse(Answer):
    """What was classified with one version, by everybody.

    Attributes:
        version: which.
        calls: that were charged.
        units: that they took.
    """

    version: int
    calls: int
    units: Units


class AdapterUsage(Answer):
    """Answer of `GET /v1/adapters/{name}/usage`."""

    owner: str
    name: str
    versions: list[AdapterUse]


class AdapterPredictionRequest(Message):
    """Body of `POST /v1/adapters/{name}/predictions`; pictures or an image set, as above.

    Attributes:
        image_set: an image set's id.
        rows: rows of the image set to classify; all when null.
        images: pictures as base64 strings (JSON only).
        top_k: of each picture only the so many most probable classes are answered, at most as many
            as the adapter has; as many as the key may see when null, and never more. The charge is
            the same.
        abstain_below: say of each picture whether its most probable class is less probable than
            this; null means the adapter's own threshold.
    """

    image_set: str | None = None
    rows: Rows | None = None
    images: list[str] | None = None
    top_k: TopK | None = None
    abstain_below: Probability | None = None


class AdapterPredictionAnswer(Answer):
    """Refined predictions.

    Attributes:
        adapter: its name.
        version: that was asked, the same for all pictures.
        classes: C names.
        cost: of the call; nothing where the adapter's publisher pays.
        output: what the tensors show.
        log_probs: tensor, float32 [images, classes]. With k, [images, k]: the largest of these same
            numbers, in descending order. Not with the levels `label` and `probs`.
        probs: tensor like `log_probs`, with level `probs` alone: probabilities.
        top_classes: tensor, int32 of the same shape, only with k and, [images, 1], with level
            `label`: which of `classes` each number belongs to, from 0. Of equal numbers the lower
            index comes first.
        abstained: tensor, uint8 [images], only with a threshold: 1 where the most probable class,
            by the numbers of this answer, is less probable than that. Not with level `label`.
    """

    adapter: str
    version: int
    classes: list[str]
    cost: Cost
    output: Output = EVERYTHING
    log_probs: list[list[float]] | None = None
    probs: list[list[float]] | None = None
    top_classes: list[list[int]] | None = None
    abstained: list[int] | None = None


# --- administration -----------------------------------------------------------------------------

Scope = Literal["predict", "publish", "admin"]

MAX_OVERLAP_SECONDS = 90 * 86_400

Amount = Annotated[int, Field(ge=0, le=MAX_AMOUNT)]
PriceMicros = Annotated[int, Field(ge=0, le=MAX_PRICE_MICROS)]
PerMinute = Annotated[int, Field(ge=1, le=MAX_AMOUNT)]


class BudgetLimit(Message):
    """What one budget is to be: at most `limit` of `unit` in each `window`."""

    unit: Measure
    window: Window = "lifetime"
    limit: Amount


class BudgetLimits(Message):
    """Body of `PUT /v1/admin/keys/{prefix}/budgets` and `PUT /v1/admin/teams/{name}/budgets`.

    Budgets that it does not name stay as they are.
    """

    budgets: list[BudgetLimit] = Field(min_length=1, max_length=100)


class BudgetTopUp(Message):
    """By how much the limit of one budget is to grow."""

    unit: Measure
    window: Window = "lifetime"
    amount: Amount


class BudgetTopUps(Message):
    """Body of `POST /v1/admin/keys/{prefix}/budgets/top-up`, and of the same of a team."""

    budgets: list[BudgetTopUp] = Field(min_length=1, max_length=100)


class KeyPolicy(Message):
    """What a key's answers may show: body of `PUT /v1/admin/keys/{prefix}/policy`.

    Attributes:
        model: whose answers; null means every model without a policy of its own.
        output: the most that an answer shows.
        prompts_per_image_set: how many different prompts the key's owner may ask about one image
            set, or one picture that is sent along; null is not bounded.
    """

    model: NonEmptyLabel | None = None
    output: Output = EVERYTHING
    prompts_per_image_set: Annotated[int, Field(ge=1, le=MAX_AMOUNT)] | None = None


class KeyPolicies(Answer):
    """A key's policies; the one without a model comes first. None means: everything is shown."""

    policies: list[KeyPolicy]


class KeyCreate(Message):
    """Body of `POST /v1/admin/keys`.

    Attributes:
        owner: whose image sets and adapters the key sees.
        name: what the key is for.
        team: whose budgets bound it too; made if there is none of that name.
        scopes: what it may do.
        expires_at: from when on it is useless, RFC 3339; null is never.
        requests_per_minute: HTTP calls; null is not bounded.
        predictions_per_minute: prompts scored against one image; null is not bounded.
        concurrency: charged calls at a time; null is not bounded.
        budgets: the key's own; what has none is not bounded.
        policies: what its answers may show; everything when there is none.
    """

    owner: NonEmptyLabel
    name: Label = ""
    team: NonEmptyLabel | None = None
    scopes: list[Scope] = Field(default=["predict", "publish"], min_length=1)
    expires_at: Time | None = None
    requests_per_minute: PerMinute | None = None
    predictions_per_minute: PerMinute | None = None
    concurrency: PerMinute | None = None
    budgets: list[BudgetLimit] = Field(default_factory=list, max_length=100)
    policies: list[KeyPolicy] = Field(default_factory=list, max_length=100)


class KeyRotate(Message):
    """Body of `POST /v1/admin/keys/{prefix}/rotate`: for how long the old secrets still work."""

    overlap_seconds: int = Field(default=86_400, ge=0, le=MAX_OVERLAP_SECONDS)


class KeyCard(Answer):
    """A key, without its secrets. Times are RFC 3339.

    Attributes:
        id: names the key in exported usage, whatever becomes of its secrets.
        prefix: of the newest secret; names the key in calls and commands.
        prefixes: of all its secrets, the newest first.
    """

    id: int
    prefix: str
    prefixes: list[str]
    owner: str
    name: str
    team: str | None
    scopes: list[Scope]
    requests_per_minute: int | None
    predictions_per_minute: int | None
    concurrency: int | None
    created_at: str
    expires_at: str | None
    revoked_at: str | None


class KeyList(Answer):
    """Answer of `GET /v1/admin/keys`."""

    keys: list[KeyCard]


class KeySecret(Answer):
    """A new secret of a key.

    Attributes:
        key: the secret. It is shown once: null where the answer is given again.
        prefix: of the secret.
        card: the key.
    """

    key: str | None
    prefix: str
    card: KeyCard


class PriceList(Message):
    """Body of `PUT /v1/admin/prices/{model}`, and its answer: micros a unit.

    A unit that it does not name stays as it is.
    """

    micros: dict[Unit, PriceMicros]


class PriceLists(Answer):
    """Answer of `GET /v1/admin/prices`: every model's prices; a unit without one is free."""

    models: dict[str, dict[Unit, int]]


class UsageLine(Answer):
    """One line of exported usage: what `GET /v1/usage` lists, and whose it is.

    `id` counts the lines of all keys; `line` is the id under which the key itself sees it.
    `closed_at` is when the call was settled, RFC 3339; null while it runs.
    """

    id: int
    line: int
    at: str
    closed_at: str | None
    key_id: int
    key: str
    owner: str
    team: str | None
    call: str
    run: str | None
    model: str
    revision: str
    state: Literal["reserved", "settled"]
    queries: int
    predictions: int
    images: int
    texts: int
    requests: int
    cost_micros: int
