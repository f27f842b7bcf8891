"""The adapter format: what tuning produces and a server can serve.

A folder with `adapter_config.json`, `adapter.safetensors` and a model card, laid out as PEFT lays
out its own (this is not that format); on the wire one safetensors body with the config as its
document. It holds prompts as templates and codes, the head and the class names: never the
projection A, the embeddings p0, or any other parameter of the model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from craft_shared import codec
from craft_shared.display import Displayed, View, names
from craft_shared.files import write_whole
from craft_shared.head import Head, HeadKind, check_tensors, head_from_tensors
from craft_shared.model_card import CARD_FILE, model_card
from craft_shared.output import scores_of, shown
from craft_shared.problems import first_error
from craft_shared.text_files import NotTextError, read_text
from craft_shared.wire import EVERYTHING, Context, Message, Output, Provenance
from craft_shared.wire.messages import ModelName, Revision, StoredClassName, Template

MOST_SIDE = 1024  # of a visual prompt, in pixels
MOST_LEVELS = 255.0  # that it adds to a pixel

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter.safetensors"


class AdapterError(ValueError):
    """The adapter is not one that this version of craftbox accepts; the message says why."""


class AdapterConfig(Message):
    """The adapter's document.

    Attributes:
        schema_version: of this format.
        method: how it was tuned.
        model: the model's name.
        revision: the model's revision; predictions under any other are refused.
        access_mode: `strict` uses only the task's class names; `open-text` has further texts.
        classes: the C class names.
        texts: M further texts that every prompt scores beside the class names, for the head alone:
            predictions are of the classes.
        templates: plain prompts, each with one `{}`; the first is the plain prompt 0.
        context: the codes' search space.
        codes: how many codes follow the templates.
        head: the kind of head.
        visual: side S in pixels of the visual prompt, which must be the model's input size; null
            for none.
        output: the level of the answers that the head was fitted on. It reads the scores that are
            made of such answers, wherever it is applied.
        provenance: how it came to be.
    """

    schema_version: Literal[1] = 1
    method: Literal["craft"] = "craft"
    model: ModelName
    revision: Revision
    access_mode: Literal["strict", "open-text"] = "strict"
    classes: list[StoredClassName] = Field(min_length=1, examples=[["one", "two", "zero"]])
    texts: list[StoredClassName] = Field(default_factory=list, examples=[[]])
    templates: list[Template] = Field(min_length=1)
    context: Context | None = Field(default=None, examples=[{"dim": 512}])
    codes: int = Field(default=0, ge=0, examples=[31])
    head: HeadKind
    visual: int | None = Field(default=None, ge=1, le=MOST_SIDE)
    output: Output = EVERYTHING
    provenance: Provenance = Provenance()

    @model_validator(mode="after")
    def _consistent(self) -> AdapterConfig:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: two classes have the same name")
        if len(set(self.scored)) != len(self.scored):
            raise ValueError("texts: two texts are the same, or one is a class name")
        if bool(self.texts) != (self.access_mode == "open-text"):
            raise ValueError("texts: they are what access_mode 'open-text' means, and it alone")
        if self.codes and self.context is None:
            raise ValueError("context: required when there are codes")
        return self

    @property
    def prompts(self) -> int:
        """P, the number of prompts."""
        return len(self.templates) + self.codes

    @property
    def scored(self) -> list[str]:
        """What every prompt scores, C + M: the class names and, after them, the further texts."""
        return [*self.classes, *self.texts]


@dataclass(frozen=True, repr=False)
class Adapter(Displayed):
    """A checked adapter."""

    config: AdapterConfig  # the document
    codes: NDArray[np.float32]  # float32 [codes, dim]
    head: Head  # maps log-probabilities [P, N, C + M] to [N, C]
    visual: NDArray[np.float32] | None = None  # grey levels float32 [S, S, 3]; see `prompted`

    def to_bytes(self) -> bytes:
        """The adapter as one safetensors body; equal adapters give equal bytes."""
        # Earlier versions knew neither of these: what is of theirs keeps its digest.
        exclude = {"output"} if self.config.output == EVERYTHING else set()
        exclude |= {"visual"} if self.config.visual is None else set()
        document = self.config.model_dump(mode="json", exclude=exclude)
        return codec.encode(document, self._tensors())

    @classmethod
    def from_bytes(cls, data: bytes) -> Adapter:
        """Reads and checks what `to_bytes` wrote.

        Raises:
            AdapterError: it is not a valid adapter.
        """
        try:
            document, tensors = codec.decode(data)
            config = AdapterConfig.model_validate(document)
            codes = np.zeros((0, config.context.dim if config.context else 0), np.float32)
            tensors = {name: np.array(tensor) for name, tensor in tensors.items()}
            if config.codes and config.context:
                shape = (config.codes, config.context.dim)
                check_tensors({k: v for k, v in tensors.items() if k == "codes"}, {"codes": shape})
                codes = tensors.pop("codes")
            visual = None if config.visual is None else _visual(tensors, config.visual)
            head = head_from_tensors(
                config.head,
                tensors,
                prompts=config.prompts,
                classes=len(config.classes),
                texts=len(config.texts),
            )
        except ValidationError as error:
            raise AdapterError(first_error(error)) from error
        except ValueError as error:
            raise AdapterError(str(error)) from error
        return cls(config, codes, head, visual)

    def refined(
        self, scores: NDArray[np.float32], seen: Output = EVERYTHING
    ) -> NDArray[np.float32]:
        """What the head makes of the prompts' scores [P, N, C + M]: log-probabilities [N, C].

        It reads them as coarse as those that it was fitted on, noise apart, wherever it is applied.

        Args:
            scores: that `craft_shared.output.scores_of` made of answers.
            seen: the answers' level.

        Raises:
            AdapterError: they are of another level than those that it was fitted on, and not whole.
        """
        wanted = self.config.output
        if wanted.same_level(seen):
            return self.head(scores)
        if not seen.whole:
            raise AdapterError(
                f"the head reads answers of level '{wanted.level}', and these are of another, "
                f"'{seen.level}'"
            )
        return self.head(scores_of(shown(scores, wanted), wanted, len(self.config.scored)))

    @property
    def digest(self) -> str:
        """SHA-256 of the adapter's bytes, in hexadecimal."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def _view(self) -> View:
        config, provenance = self.config, self.config.provenance
        return View(
            self.digest[:12],
            {
                "model": config.model,
                "access": config.access_mode,
                "classes": names(config.classes),
                "texts": names(config.texts),
                "queries a prediction": config.prompts,
                "head": config.head,
                "visual prompt": config.visual and f"{config.visual} x {config.visual} pixels",
                "recipe": provenance.recipe,
                "data": provenance.data,
                "shots": provenance.shots,
                "accuracy before, %": provenance.accuracy_before,
                "accuracy after, %": provenance.accuracy_after,
            },
        )

    def save(self, folder: Path) -> None:
        """Writes the folder, each file whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        config = self.config.model_dump_json(indent=2).encode() + b"\n"
        write_whole(folder / TENSOR_FILE, self.to_bytes())
        write_whole(folder / CONFIG_FILE, config)
        write_whole(folder / CARD_FILE, model_card(self.config).encode())

    @classmethod
    def load(cls, folder: Path) -> Adapter:
        """Reads and checks a folder that `save` wrote.

        Raises:
            AdapterError: a file is missing, not valid, or the two disagree.
        """
        try:
            data = (folder / TENSOR_FILE).read_bytes()
            config = AdapterConfig.model_validate_json(read_text(folder / CONFIG_FILE))
        except OSError as error:
            raise AdapterError(f"no adapter at '{folder}': {error.strerror}") from error
        except ValidationError as error:
            raise AdapterError(f"'{folder / CONFIG_FILE}': {first_error(error)}") from error
        except NotTextError as error:
            raise AdapterError(f"'{folder / CONFIG_FILE}': {error}") from error
        adapter = cls.from_bytes(data)
        if config != adapter.config:
            raise AdapterError(f"{CONFIG_FILE} and {TENSOR_FILE} in '{folder}' disagree")
        return adapter

    def _tensors(self) -> codec.Tensors:
        codes = {"codes": self.codes} if len(self.codes) else {}
        visual = {} if self.visual is None else {"visual": self.visual}
        return {**codes, **visual, **self.head.tensors()}


def prompted(
    pixels: NDArray[np.uint8], visual: NDArray[np.floating[Any]] | None
) -> NDArray[np.uint8]:
    """Pixels [..., S, S, 3] that a model is about to read, with a visual prompt [S, S, 3] added.

    Sums are rounded, and cut off at 0 and 255. Source: BlackVIP (Oh et al., CVPR 2023).
    """
    if visual is None:
        return pixels
    return np.clip(np.rint(pixels + visual), 0, 255).astype(np.uint8)


def _visual(tensors: codec.Tensors, side: int) -> NDArray[np.float32]:
    """Takes the visual prompt from an adapter's tensors; ValueError where it is no such one."""
    found = {name: tensors.pop(name) for name in ("visual",) if name in tensors}
    check_tensors(found, {"visual": (side, side, 3)})
    visual: NDArray[np.float32] = found["visual"]
    if (np.abs(visual) > MOST_LEVELS).any():
        raise ValueError(f"tensor 'visual' holds a number beyond {MOST_LEVELS:g}")
    return visual
