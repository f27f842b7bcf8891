"""What things take on a machine: the file of measured constants, and what is scaled from it.

It knows numbers, where they were measured and how they carry over to models and precisions that
were not; it does not know runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, ValidationError

from craft_server.plan.architecture import Architecture
from craft_shared.problems import first_error
from craft_shared.text_files import NotTextError, read_text

SHIPPED = Path(__file__).parent / "constants.json"

# What a CPU computes in.
Precision = Literal["float32", "bfloat16"]
BYTES_OF: dict[Precision, int] = {"float32": 4, "bfloat16": 2}


class ConstantsError(ValueError):
    """The file of constants cannot be used; the message is one line that says why."""


T = TypeVar("T", bound=BaseModel)


class _Numbers(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TextRates(_Numbers):
    """Multiply-adds a second of a text tower, for each core.

    Attributes:
        packed_per_core: while every core has a pack of its own.
        shared_per_core: while all cores share one pack.
    """

    packed_per_core: PositiveFloat
    shared_per_core: PositiveFloat


class ModelCost(_Numbers):
    """One model on the machine.

    Attributes:
        precision: of its arithmetic.
        texts: the text tower's rates.
        image_core_seconds: of the vision tower for a picture, of one core while all work.
        decode_core_seconds: of a core, to make a tensor of a picture, whatever its size.
        decode_pixel_core_seconds: and of each of its pixels.
        score_row_seconds: for a picture under a prompt, whatever the number of classes.
        score_seconds: and for each class.
        loaded_bytes: memory of the process once the model is loaded.
        peak_bytes: the most it had until both towers had worked.
    """

    precision: Precision
    texts: TextRates
    image_core_seconds: PositiveFloat
    decode_core_seconds: NonNegativeFloat
    decode_pixel_core_seconds: NonNegativeFloat
    score_row_seconds: NonNegativeFloat
    score_seconds: NonNegativeFloat
    loaded_bytes: PositiveFloat
    peak_bytes: PositiveFloat


class ServiceCost(_Numbers):
    """What surrounds the model: HTTP, the ledger, the database.

    Attributes:
        request_seconds: of a charged call, both sides, its acknowledgement included.
        answer_byte_seconds: for each byte of log-probabilities, both sides.
        picture_seconds: for a picture beside decoding and the model.
        base_bytes: memory beside the model's process.
        answer_copies: memory of an answer, in times its bytes.
        upload_bytes: memory of an upload's picture beside its tensor and its file.
        picture_row_bytes: of the database for a picture beside its features.
        call_row_bytes: of the database for a charged call that was acknowledged.
    """

    request_seconds: NonNegativeFloat
    answer_byte_seconds: NonNegativeFloat
    picture_seconds: NonNegativeFloat
    base_bytes: NonNegativeFloat
    answer_copies: NonNegativeFloat
    upload_bytes: NonNegativeFloat
    picture_row_bytes: NonNegativeFloat
    call_row_bytes: NonNegativeFloat


class ClientCost(_Numbers):
    """The client's own work; N pictures, D = prompts x texts inputs of a closed-form head.

    S is the smaller of N and D, C the number of classes, M of images whose held-out predictions are
    looked at.

    Attributes:
        start_seconds: of the command until its first request, and from its last.
        picture_seconds: to check a picture before it is sent.
        paper_generation_seconds: CMA-ES, journal and the rest, whatever the answer's size.
        score_seconds: prompts' losses, for each log-probability.
        ridge_product_seconds: of a fit, for each of N x D x S.
        ridge_cube_seconds: for each of S x S x S.
        ridge_calibration_seconds: for each of M x C.
        paper_multiply_add_seconds: of the paper's head.
        base_bytes: memory of the command.
        fit_copies: memory of a fit, in times its N x D inputs in single precision,
        gram_copies: and in times N x S,
        target_copies: and N x C numbers in double precision.
        answer_copies: memory of an answer to a call, in times its bytes, beside the numbers that
            are made of it.
    """

    start_seconds: NonNegativeFloat
    picture_seconds: NonNegativeFloat
    paper_generation_seconds: NonNegativeFloat
    score_seconds: NonNegativeFloat
    ridge_product_seconds: NonNegativeFloat
    ridge_cube_seconds: NonNegativeFloat
    ridge_calibration_seconds: NonNegativeFloat
    paper_multiply_add_seconds: NonNegativeFloat
    base_bytes: NonNegativeFloat
    fit_copies: NonNegativeFloat
    gram_copies: NonNegativeFloat
    target_copies: NonNegativeFloat
    answer_copies: NonNegativeFloat


class Machine(_Numbers):
    """Where constants were measured.

    Attributes:
        name: in words.
        cores: that the server had.
        product_rates: multiply-adds a second of a large product on all cores, by precision.
    """

    name: str
    cores: int
    product_rates: dict[Precision, PositiveFloat]


@dataclass(frozen=True)
class Scaled:
    """A model's cost, and how it was come by.

    Attributes:
        cost: measured or scaled.
        notes: what was scaled from what; none where all was measured.
    """

    cost: ModelCost
    notes: tuple[str, ...]


class Constants(_Numbers):
    """All constants of one machine.

    Attributes:
        schema_version: of the file.
        machine: where they were measured.
        models: by name.
        service: beside the model.
        client: on a machine of the same kind.
    """

    schema_version: Literal[2] = 2
    machine: Machine
    models: dict[str, ModelCost]
    service: ServiceCost
    client: ClientCost

    @classmethod
    def load(cls, file: Path = SHIPPED) -> Self:
        """Reads a file of constants.

        Raises:
            ConstantsError: it is not there, or not such a file.
        """
        try:
            return cls.model_validate_json(read_text(file))
        except (OSError, NotTextError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConstantsError(f"'{file}' cannot be read: {reason}") from error
        except ValidationError as error:
            raise ConstantsError(f"'{file}' holds no constants: {first_error(error)}") from error

    def save(self, file: Path) -> None:
        """Writes them."""
        file.write_text(self.model_dump_json(indent=1) + "\n")

    def moved_to(self, machine: Machine, model: str, cost: ModelCost) -> Self:
        """These constants with a model measured on another machine.

        What is not measured there, the service and the client, is taken to be as much faster as a
        matrix product is.
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

    def cost_of(self, architecture: Architecture, precision: Precision) -> Scaled:
        """A model's cost in a precision."""
        measured = self.models.get(architecture.name)
        notes: tuple[str, ...] = ()
        if measured is None:
            measured, note = self._scaled(architecture)
            notes = (note,)
        if measured.precision != precision:
            measured, note = self._in_precision(measured, architecture, precision)
            notes += (note,)
        return Scaled(measured, notes)

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
            f"its pictures and memory from {vision}"
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
