"""What things take on a machine: the file of measured constants, and what is scaled from it.

A model that was not measured is scaled by what its configuration says of its cost. The vision tower
is run once without weights or numbers (PyTorch's meta device), and PyTorch's own counter counts its
multiply-adds, so that every tower that open_clip can build is counted alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, ValidationError
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from craft_server.engine.models import POCKET
from craft_server.pocket import read_config
from craft_shared.problems import first_error
from craft_shared.text_files import NotTextError, read_text

SHIPPED = Path(__file__).parent / "constants.json"

VisionKind = Literal["resnet", "transformer", "timm"]
Precision = Literal["float32", "bfloat16"]  # of a CPU's arithmetic
BYTES_OF: dict[Precision, int] = {"float32": 4, "bfloat16": 2}

T = TypeVar("T", bound=BaseModel)


class UnknownArchitecture(Exception):  # noqa: N818 - reads as what it is where it is caught
    """There is no such model, or its texts are not read by a causal CLIP text transformer."""


class ConstantsError(ValueError):
    """The file of constants cannot be used; the message is one line that says why."""


@dataclass(frozen=True)
class Architecture:
    """What a model's configuration says of its cost."""

    name: str
    text_width: int
    text_layers: int
    features: int  # width of the embedding that both towers give
    image_size: int  # side in pixels
    vision_kind: VisionKind  # towers of one kind do about as many multiply-adds a second
    vision_multiply_adds: float  # of one image
    parameters: int  # of both towers

    @classmethod
    @cache
    def of(cls, name: str) -> Architecture:
        """The architecture of a model that the server can host.

        Raises:
            UnknownArchitecture: there is no such model, or it cannot be planned.
        """
        config = _config(name)
        text = config["text_cfg"]
        if "hf_model_name" in text or "multimodal_cfg" in config or text.get("no_causal_mask"):
            raise UnknownArchitecture(
                f"model '{name}' does not read texts by a causal CLIP transformer; plan for one "
                "that does, such as RN50 or ViT-B-32"
            )
        parts = {name: value for name, value in config.items() if name != "custom_text"}
        build: type[nn.Module] = CustomTextCLIP if config.get("custom_text") else CLIP
        with torch.device("meta"):
            module: Any = build(**parts).eval()
        size = module.visual.image_size
        side: int = size if isinstance(size, int) else size[0]
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            module.encode_image(torch.empty(1, 3, side, side, device="meta"))
        return cls(
            name=name,
            text_width=text["width"],
            text_layers=text["layers"],
            features=config["embed_dim"],
            image_size=side,
            vision_kind=_kind(config["vision_cfg"]),
            vision_multiply_adds=counter.get_total_flops() / 2,
            parameters=sum(parameter.numel() for parameter in module.parameters()),
        )


def _config(name: str) -> dict[str, Any]:
    if name == POCKET:
        pocket: dict[str, Any] = read_config()["model_cfg"]
        return pocket
    config: dict[str, Any] | None = open_clip.get_model_config(name)
    if config is None:
        raise UnknownArchitecture(
            f"there is no model '{name}'; use '{POCKET}' or one of open_clip's, such as RN50"
        )
    return config


def _kind(vision: dict[str, Any]) -> VisionKind:
    if "timm_model_name" in vision:
        return "timm"
    return "resnet" if isinstance(vision.get("layers"), list) else "transformer"


class _Numbers(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TextRates(_Numbers):
    """Multiply-adds a second of a text tower, for each core."""

    packed_per_core: PositiveFloat  # while every core has a pack of its own
    shared_per_core: PositiveFloat  # while all cores share one pack


class ModelCost(_Numbers):
    """One model on the machine; seconds are of one core while all cores work."""

    precision: Precision
    texts: TextRates
    image_core_seconds: PositiveFloat  # of the vision tower, for an image
    decode_core_seconds: NonNegativeFloat  # to make a tensor of an image, whatever its size
    decode_pixel_core_seconds: NonNegativeFloat  # and for each of its pixels
    score_row_seconds: NonNegativeFloat  # for an image under a prompt, whatever the classes
    score_seconds: NonNegativeFloat  # and for each class
    loaded_bytes: PositiveFloat  # memory of the process once the model is loaded
    peak_bytes: PositiveFloat  # the most it had until both towers had worked


class ServiceCost(_Numbers):
    """What surrounds the model: HTTP, the ledger, the database."""

    request_seconds: NonNegativeFloat  # of a charged call, both sides, with its acknowledgement
    answer_byte_seconds: NonNegativeFloat  # for each byte of log-probabilities, both sides
    picture_seconds: NonNegativeFloat  # for an image beside decoding and the model
    base_bytes: NonNegativeFloat  # memory beside the model's process
    answer_copies: NonNegativeFloat  # memory of an answer, in times its bytes
    upload_bytes: NonNegativeFloat  # memory of an uploaded image beside its tensor and file
    picture_row_bytes: NonNegativeFloat  # of the database for an image beside its features
    call_row_bytes: NonNegativeFloat  # of the database for an acknowledged, charged call


class ClientCost(_Numbers):
    """The client's own work: N images, D = prompts x texts inputs of a closed form, C classes.

    S is the smaller of N and D, M the number of images with held-out predictions.
    """

    start_seconds: NonNegativeFloat  # of the command until its first request, and from its last
    picture_seconds: NonNegativeFloat  # to check an image before it is sent
    paper_generation_seconds: NonNegativeFloat  # CMA-ES and journal, whatever the answer's size
    score_seconds: NonNegativeFloat  # prompts' losses, for each log-probability
    ridge_product_seconds: NonNegativeFloat  # of a fit, for each of N x D x S
    ridge_cube_seconds: NonNegativeFloat  # for each of S x S x S
    ridge_calibration_seconds: NonNegativeFloat  # for each of M x C
    paper_multiply_add_seconds: NonNegativeFloat  # of the paper's head
    base_bytes: NonNegativeFloat  # memory of the command
    # Memory of a fit, in times its N x D inputs in single precision, N x S and N x C numbers in
    # double precision; of an answer, in times its bytes, beside the numbers that are made of it.
    fit_copies: NonNegativeFloat
    gram_copies: NonNegativeFloat
    target_copies: NonNegativeFloat
    answer_copies: NonNegativeFloat


class Machine(_Numbers):
    """Where constants were measured."""

    name: str
    cores: int  # that the server had
    product_rates: dict[Precision, PositiveFloat]  # multiply-adds a second of a large product


class Constants(_Numbers):
    """All constants of one machine, as its file has them."""

    schema_version: Literal[2] = 2
    machine: Machine
    models: dict[str, ModelCost]
    service: ServiceCost
    client: ClientCost

    @classmethod
    def load(cls, file: Path = SHIPPED) -> Self:
        """Reads a file of constants.

        Raises:
            ConstantsError: it is missing, or another kind of file.
        """
        try:
            return cls.model_validate_json(read_text(file))
        except (OSError, NotTextError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConstantsError(f"'{file}' cannot be read: {reason}") from error
        except ValidationError as error:
            raise ConstantsError(f"'{file}' holds no constants: {first_error(error)}") from error

    def save(self, file: Path) -> None:
        """Writes the file."""
        file.write_text(self.model_dump_json(indent=1) + "\n")

    def moved_to(self, machine: Machine, model: str, cost: ModelCost) -> Self:
        """These constants with a model measured on another machine.

        Service and client, which are not measured there, are scaled by the rate of a product.
        """
        faster = machine.product_rates["float32"] / self.machine.product_rates["float32"]
        return self.model_copy(
            update={
                "machine": machine,
                "models": {model: cost},
                "service": _sped_up(self.service, faster),
                "client": _sped_up(self.client, faster),
            }
        )

    def cost_of(
        self, architecture: Architecture, precision: Precision
    ) -> tuple[ModelCost, tuple[str, ...]]:
        """A model's cost in a precision, and notes on what was scaled from what.

        Raises:
            ConstantsError: nothing is known of that precision.
        """
        cost = self.models.get(architecture.name)
        notes: tuple[str, ...] = ()
        if cost is None:
            cost, note = self._scaled(architecture)
            notes = (note,)
        if cost.precision != precision:
            cost, note = self._in_precision(cost, architecture, precision)
            notes += (note,)
        return cost, notes

    def _scaled(self, wanted: Architecture) -> tuple[ModelCost, str]:
        known = {name: Architecture.of(name) for name in self.models}
        text = _nearest(known, wanted, lambda one: one.text_width)
        of_kind = {
            name: one for name, one in known.items() if one.vision_kind == wanted.vision_kind
        }
        vision = _nearest(of_kind or known, wanted, lambda one: one.vision_multiply_adds)
        text_cost, vision_cost = self.models[text], self.models[vision]
        more = wanted.parameters - known[vision].parameters
        more_bytes = more * BYTES_OF[vision_cost.precision]
        work = wanted.vision_multiply_adds / known[vision].vision_multiply_adds
        cost = vision_cost.model_copy(
            update={
                "texts": text_cost.texts,
                "image_core_seconds": vision_cost.image_core_seconds * work,
                "score_row_seconds": text_cost.score_row_seconds,
                "score_seconds": text_cost.score_seconds,
                "loaded_bytes": max(1.0, vision_cost.loaded_bytes + more_bytes),
                "peak_bytes": max(1.0, vision_cost.peak_bytes + 2 * more_bytes),
            }
        )
        note = (
            f"{wanted.name} was not measured: its texts are scaled by multiply-adds from {text}, "
            f"its images and memory from {vision}"
        )
        if not of_kind:
            note += ", whose vision tower is of another kind, so that they may be far off"
        return cost, note

    def _in_precision(
        self, cost: ModelCost, architecture: Architecture, precision: Precision
    ) -> tuple[ModelCost, str]:
        rates = self.machine.product_rates
        if precision not in rates:
            raise ConstantsError(
                f"no product was measured in {precision}; measure the model: --measure"
            )
        faster = rates[precision] / rates[cost.precision]
        bytes_less = architecture.parameters * (BYTES_OF[cost.precision] - BYTES_OF[precision])
        scaled = cost.model_copy(
            update={
                "precision": precision,
                "texts": TextRates(
                    packed_per_core=cost.texts.packed_per_core * faster,
                    shared_per_core=cost.texts.shared_per_core * faster,
                ),
                "image_core_seconds": cost.image_core_seconds / faster,
                "loaded_bytes": max(1.0, cost.loaded_bytes - bytes_less),
            }
        )
        note = (
            f"{precision} was not measured: both towers are taken to be {faster:.2g} times as fast "
            f"as in {cost.precision}, as a large matrix product is"
        )
        return scaled, note


def _nearest(
    known: Mapping[str, Architecture],
    wanted: Architecture,
    size: Callable[[Architecture], float],
) -> str:
    return min(known, key=lambda name: abs(math.log(size(known[name]) / size(wanted))))


def _sped_up(cost: T, faster: float) -> T:
    seconds = {name: value for name, value in cost if name.endswith("seconds")}
    return cost.model_copy(update={name: value / faster for name, value in seconds.items()})
