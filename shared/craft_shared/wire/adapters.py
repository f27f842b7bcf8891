"""`/v1/adapters`: published adapters, who may use them, and what they say of images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from craft_shared.display import Displayed, View, names
from craft_shared.units import Units
from craft_shared.wire.account import Cost
from craft_shared.wire.messages import (
    Answer,
    Format,
    Images,
    LabelScore,
    Many,
    Message,
    ModelName,
    Moment,
    NonEmptyLabel,
    Owner,
    Revision,
    Rows,
    TopK,
)
from craft_shared.wire.models import EVERYTHING, Output

LATEST = "latest"

Alias = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9._-]*$", min_length=1, max_length=32)
]
AdapterName = Annotated[str, Field(examples=["digits"])]
VersionNumber = Annotated[int, Field(examples=[1])]
ClassNames = Annotated[Many[str], Field(examples=[["one", "two", "zero"]])]
Version = Annotated[int, Field(ge=1, lt=10**9)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
KeyPrefix = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]{8}$")]
Payer = Literal["caller", "publisher"]


class Provenance(Message):
    """How an adapter came to be, for its card; nothing is computed from it.

    Attributes:
        data: what the tuner calls the data set.
        shots: training images a class.
        accuracy_before: of the plain prompt on the training images, percent.
        accuracy_after: of the adapter, percent, each image by a head fitted without it.
        units: charged by the run.
    """

    recipe: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        default=None, examples=["craftbox"]
    )
    data: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        default=None, examples=["digits"]
    )
    shots: int | None = Field(default=None, examples=[4])
    seed: int | None = Field(default=None, examples=[1])
    accuracy_before: Finite | None = Field(default=None, examples=[12.5])
    accuracy_after: Finite | None = Field(default=None, examples=[85.0])
    units: Units = Units()


class AdapterCard(Displayed, Answer):
    """One version of a published adapter, as those see it who may use it.

    Calls refer to it as `name`, `name@version` or `name@alias`; to another owner's as `owner/name`
    with the same endings.

    Attributes:
        version: counts from 1; what it means never changes.
        aliases: that mean this version now; `latest` is the newest.
        digest: SHA-256 of its content.
        model: that it was tuned on, and by which alone it is served.
        access_mode: `strict`, or `open-text` where the head reads texts beside the class names.
        prompts: P; a prediction is charged as that many queries.
        visual: whether it adds a visual prompt to pixels: it takes images in a call's body, and no
            image set.
        image_units: what a call with one image in its body is charged, to whoever `pays`.
        image_cost_micros: their price now, in millionths of the provider's currency.
        published_at: RFC 3339.
        retired_at: from when on it is not served, RFC 3339; null while it is.
        pays: who is charged for predictions.
        abstain_below: where a caller names no threshold of its own; null is never.
    """

    owner: Owner = ""
    name: AdapterName
    version: VersionNumber
    aliases: Many[str] = Field(default=[], examples=[["latest", "stable"]])
    digest: str = Field(
        examples=["946d571deec378b1e262a568d789e37508e6a92cf4d3730307317f3d3ad08fea"]
    )
    model: ModelName
    revision: Revision
    access_mode: Literal["strict", "open-text"]
    classes: ClassNames
    prompts: int = Field(examples=[32])
    visual: bool = False
    image_units: Units = Units()
    image_cost_micros: int = 0
    published_at: Moment
    retired_at: str | None = None
    pays: Payer = "caller"
    abstain_below: float | None = None
    provenance: Provenance = Provenance()

    @property
    def reference(self) -> str:
        """What names exactly this version."""
        owner = f"{self.owner}/" if self.owner else ""
        return f"{owner}{self.name}@{self.version}"

    def _view(self) -> View:
        return View(
            self.reference,
            {
                "aliases": names(self.aliases),
                "model": self.model,
                "access": self.access_mode,
                "classes": names(self.classes),
                "queries a prediction": self.prompts,
                "one image, cost_micros": self.image_cost_micros or None,
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
    """Answer of `GET /v1/adapters/{name}/versions`."""

    adapters: Many[AdapterCard]


class AdapterPage(AdapterList):
    """Answer of `GET /v1/adapters?after=OWNER/NAME&limit=N`: a page of adapters, or all.

    `next_after` continues the listing; null at its end.
    """

    next_after: str | None = Field(default=None, examples=["lab/pets"])


class AdapterPublishAnswer(Answer):
    """Answer of `POST /v1/adapters?name=NAME`; its body is an adapter."""

    adapter: AdapterCard
    cost: Cost


class AdapterSettings(Answer):
    """What the owner of an adapter's name has decided, for all its versions.

    Attributes:
        public: whether every key may use it.
        keys: prefixes of other owners' keys that may use it.
        teams: whose keys may use it.
        pays: who is charged for predictions: the caller, or the key that said `publisher`.
        abstain_below: the classifier says nothing where its best class is less probable.
        aliases: of which version each is the name.
    """

    owner: Owner
    name: AdapterName
    public: bool = Field(examples=[False])
    keys: Many[str] = Field(examples=[["k3v9x2ma"]])
    teams: Many[str] = Field(examples=[["research"]])
    pays: Payer
    abstain_below: float | None = Field(examples=[0.5])
    aliases: dict[str, int] = Field(examples=[{"stable": 1}])


class AdapterChange(Message):
    """Body of `PATCH /v1/adapters/{name}`: a JSON merge patch (RFC 7396) of `AdapterSettings`.

    What it does not name stays as it is; the lists are replaced as wholes; an alias of null is
    removed, and so is an `abstain_below` of null. An alias means a version that is not retired, and
    `latest` is always the newest. All of it happens at once or, if one part is refused, nothing.
    """

    public: bool = False
    keys: list[KeyPrefix] = Field(default=[], max_length=1000)
    teams: list[NonEmptyLabel] = Field(default=[], max_length=1000, examples=[["research"]])
    pays: Payer = "caller"
    abstain_below: Probability | None = Field(default=None, examples=[0.5])
    aliases: dict[Alias, Version | None] = Field(
        default={},
        max_length=100,
        json_schema_extra={"additionalProperties": False},
        examples=[{"stable": 1}],
    )


class AdapterUse(Answer):
    """What was classified with one version, by everybody: charged calls, and their units."""

    version: VersionNumber
    calls: int = Field(examples=[40])
    units: Units


class AdapterUsage(Answer):
    """Answer of `GET /v1/adapters/{name}/usage`."""

    owner: Owner
    name: AdapterName
    versions: Many[AdapterUse]


class AdapterPredictionRequest(Message):
    """Body of `POST /v1/adapters/{name}/predictions`; images or an image set, as above.

    Attributes:
        rows: rows of the image set to classify; all when null.
        images: images as base64 strings (JSON only).
        top_k: of each image only the so many most probable classes are answered, at most as many
            as the adapter has; as many as the key may see when null, and never more. The charge is
            the same.
        abstain_below: say of each image whether its most probable class is less probable than
            this; null means the adapter's own threshold.
        format: `labels` answers class names with their probabilities, as JSON, in place of tensors.
    """

    image_set: str | None = None
    rows: Rows | None = None
    images: Images = None
    top_k: TopK | None = Field(default=None, examples=[2])
    abstain_below: Probability | None = None
    format: Format = None


class AdapterPredictionAnswer(Answer):
    """Refined predictions.

    Attributes:
        version: that was asked, the same for all images.
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
        labels: with the format `labels` in the place of the tensors but `abstained`: of each image
            the classes that the answer shows, the most probable one first.
    """

    adapter: AdapterName
    version: VersionNumber
    classes: ClassNames
    cost: Cost
    output: Output = Field(default=EVERYTHING, examples=[{"level": "top_k", "k": 2}])
    log_probs: Many[Many[float]] | None = Field(default=None, examples=[[[-0.0671, -3.9855]]])
    probs: Many[Many[float]] | None = None
    top_classes: Many[Many[int]] | None = Field(default=None, examples=[[[2, 0]]])
    abstained: Many[int] | None = None
    labels: Many[Many[LabelScore]] | None = None
