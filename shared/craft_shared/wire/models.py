"""`/v1/models`: what a client may know of a model, and what its answers show."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from craft_shared.amounts import MAX_DECIMALS
from craft_shared.display import Displayed, View
from craft_shared.wire.messages import (
    Answer,
    Count,
    Many,
    Message,
    ModelName,
    Positive,
    Revision,
    TopK,
)

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


class Limits(Answer):
    """What one call may hold at most.

    Attributes:
        body_bytes: of a request's body.
        json_bytes: of one that is JSON; safetensors bodies may be larger.
        json_values: that a body's JSON may hold, in all its lists and objects.
        images_per_call: images in one body.
        image_bytes: of one encoded image.
        image_pixels: of one image, all of them counted.
        images_per_set: images that an image set may have.
        prompts_per_call: templates and codes together.
        classes: class names and further texts together.
        dim: length of a code.
        answer_bytes: of an answer's numbers.
    """

    body_bytes: Positive = Field(examples=[64 * 2**20])
    json_bytes: Positive = 16 * 2**20
    json_values: Positive = 2**18
    images_per_call: Positive = Field(examples=[256])
    image_bytes: Positive = Field(examples=[16 * 2**20])
    image_pixels: Positive = Field(examples=[50_000_000])
    images_per_set: Positive = Field(examples=[100_000])
    prompts_per_call: Positive = Field(examples=[256])
    classes: Positive = Field(examples=[2000])
    dim: Positive = Field(examples=[4096])
    answer_bytes: Positive = Field(examples=[256 * 2**20])


class ProviderProfile(Answer):
    """The simulated provider's profile, whose digest is the SHA-256 of all that has an effect."""

    name: str
    version: int
    digest: str


ResizeMode = Literal["shortest", "longest", "squash"]


class ModelCard(Displayed, Answer):
    """What a client may know of a model.

    Attributes:
        revision: opaque; adapters and image sets are bound to it.
        image_size: side in pixels that images are resized to.
        resize_mode: how: the shortest side fits and the rest is cropped, or the longest fits and
            the rest is padded, or both fit (squash).
        interpolation: by which they are resized.
        outputs: the output levels this key may receive.
        output: what this key's answers show.
        prompts_per_image_set: how many different prompts this key may ask about one image set;
            null is not bounded.
        profile: of the provider that is simulated; null where none is.
    """

    name: ModelName
    revision: Revision
    image_size: Positive = Field(examples=[224])
    resize_mode: ResizeMode = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    limits: Limits
    outputs: Many[Level] = Field(examples=[["log_probs"]])
    output: Output = EVERYTHING
    prompts_per_image_set: Count | None = None
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

    models: Many[ModelCard]
