"""The engine: pictures and prompts in, unit features and log-probabilities out.

A `tenant` is any name: the worker is fair among tenants, and they share no remembered texts.

Shapes: P prompts, N images, C classes; width is that of the features, which never leaves the
server.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from typing import Self

import numpy as np
import structlog
import torch
from torch import Tensor

from craft_server.byte_cache import ByteCache
from craft_server.engine.context import ContextSpace
from craft_server.engine.device import (
    card_of,
    in_halves,
    is_lost,
    is_out_of_memory,
    memory_of,
    set_up,
)
from craft_server.engine.hosted import (
    SCORES_PER_TASK,
    EngineState,
    HostedModel,
    ModelFacts,
    TextFeatures,
)
from craft_server.engine.models import (
    LoadedModel,
    ModelLoadError,
    ModelSpec,
    device_of,
    load_model,
)
from craft_server.engine.precision import PROBE_NOUNS, PROBE_TEMPLATE, Precision
from craft_server.engine.prompts import Array, Prompts
from craft_server.engine.text import Moved, Pack, UnsupportedTowerError
from craft_server.engine.tokens import Ids, in_steps
from craft_server.engine.towers import towers_of
from craft_server.engine.vision import Normalisation
from craft_server.engine.worker import NotFinite, Overloaded, Steps, Task, Worker, WorkerDied
from craft_shared.wire import Context

# A task should not keep others from their turn for long. More tokens at a time are not faster.
TOKENS_PER_TASK = {"cpu": 2048, "cuda": 65536}
# As many tasks run at a time as there are cores, each on one, but for memory's sake no more than
# these. A single pack of a text tower that is at least so wide is shared between the cores.
MOST_THREADS = 8
LEAST_WIDTH_TO_SHARE = 512
TEXT_FEATURES_CACHE_BYTES = 256 * 2**20

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Codes:
    """Codes that move the first words of a text; without them a text is read as it stands."""

    context: Context
    codes: Array


class _Whole:
    """Features of P prompts x C classes, put together on the device; thread-safe."""

    def __init__(self, prompts: int, classes: int) -> None:
        self._shape = (prompts, classes)
        self._features: Tensor | None = None
        self._lock = threading.Lock()

    def put(self, pack: Pack, part: Tensor) -> None:
        """Adds a pack's, [P, C, width]."""
        with self._lock:
            if self._features is None:
                self._features = part.new_empty(*self._shape, part.shape[-1])
        rows = self._features[pack.prompts.start : pack.prompts.stop]
        rows.index_copy_(1, torch.tensor(pack.classes, device=part.device), part)

    @property
    def features(self) -> Tensor:
        """Of all, float32 [P, C, width], once every pack's are there."""
        if self._features is None:
            raise LookupError("no features were put here")
        return self._features


@dataclass(frozen=True)
class _Texts:
    """A pack, the codes that move it, whose it is, whether all cores share it, what it is for."""

    pack: Pack
    moved: _Codes | None
    tenant: str
    wide: bool
    into: _Whole

    def halves(self) -> tuple[_Texts, _Texts, int] | None:
        """Half of the prompts each, or of a single one half of the classes."""
        pack = self.pack
        if len(pack.prompts) > 1:
            half = len(pack.prompts) // 2
            first = replace(pack, prompts=pack.prompts[:half])
            second = replace(pack, prompts=pack.prompts[half:])
            axis = 0
        elif len(pack.classes) > 1:
            half = len(pack.classes) // 2
            first = replace(pack, classes=pack.classes[:half], suffixes=pack.suffixes[:half])
            second = replace(pack, classes=pack.classes[half:], suffixes=pack.suffixes[half:])
            axis = 1
        else:
            return None
        return replace(self, pack=first), replace(self, pack=second), axis


@dataclass(frozen=True)
class _Pairs:
    """Images [N, width] and texts [P, C, width] to be scored against each other."""

    images: Array
    texts: TextFeatures

    def halves(self) -> tuple[_Pairs, _Pairs, int] | None:
        """Half of the prompts each, or of a single one half of the images."""
        if len(self.texts) > 1:
            half = len(self.texts) // 2
            first, second = self.texts[:half], self.texts[half:]
            return replace(self, texts=first), replace(self, texts=second), 0
        if len(self.images) > 1:
            half = len(self.images) // 2
            first, second = self.images[:half], self.images[half:]
            return replace(self, images=first), replace(self, images=second), 1
        return None


class Engine(HostedModel):
    """One model and its worker, in this process.

    `text_features` remembers prompts that were asked before, each tenant's under digests of its
    own, so that nobody can tell by the clock what others have asked.
    """

    def __init__(
        self,
        model: LoadedModel,
        precision: Precision,
        worker: Worker,
        cores: int,
        *,
        text_features_bytes: int,
    ) -> None:
        super().__init__(
            ModelFacts(
                name=model.name,
                revision=model.revision,
                image_size=model.image_size,
                random_weights=model.random_weights,
                context_length=model.context_length,
                preprocess_cfg=model.preprocess_cfg,
            )
        )
        self._device, self._logit_scale = model.device, model.logit_scale
        towers = towers_of(model, precision, cores, self._tokenizer)
        self._vision, self._tower = towers.vision, towers.texts
        self._exact_vision, self._exact_tower = towers.exact_vision, towers.exact_texts
        computed_in = {"images_in": towers.images_in, "texts_in": towers.texts_in}
        self.facts = self.facts.model_copy(update=computed_in)
        self.text_features: ByteCache[bytes, Tensor] = ByteCache(text_features_bytes)
        self._normalise = Normalisation(model.preprocess_cfg, model.device)
        self._tokens_per_task = TOKENS_PER_TASK[model.device.type]
        self._worker = worker
        self._cores = cores
        self._contexts = ContextSpace(self._tower, self._tokenizer)
        # One thread alone would do what is shared first, and all else would wait for it.
        self._shares_packs = cores > 1 and self._tower.width >= LEAST_WIDTH_TO_SHARE
        self._features = self._warm_up()

    @classmethod
    def load(cls, spec: ModelSpec, *, text_features_bytes: int = TEXT_FEATURES_CACHE_BYTES) -> Self:
        """Starts a worker that loads the model and runs both towers once.

        It is loaded on the worker's first thread: another one that computes on several cores would
        leave helpers of its own, which then take turns on the cores with the first one's.

        Raises:
            ModelLoadError: the model cannot be loaded.
        """
        try:
            device = device_of(spec.device)
            if spec.device == "auto" and device.type == "cpu":
                log.info("no GPU can be used: the model runs on the CPU", model=spec.name)
            set_up(device)
            engine = cls._load(spec, device, text_features_bytes)
        except Exception as error:
            fault = _load_fault(spec, error)
            if fault is None:
                raise
            raise ModelLoadError(fault) from error
        log.info(
            "model loaded",
            model=spec.name,
            device=str(device),
            card=card_of(device),
            images_in=engine.facts.images_in,
            texts_in=engine.facts.texts_in,
        )
        return engine

    @classmethod
    def _load(cls, spec: ModelSpec, device: torch.device, text_features_bytes: int) -> Self:
        cores = min(torch.get_num_threads(), MOST_THREADS) if device.type == "cpu" else 1
        worker = Worker(f"engine-{spec.name}", threads=cores)

        def make(_: Sequence[None]) -> list[Self]:
            model = load_model(spec)
            return [
                cls(model, spec.precision, worker, cores, text_features_bytes=text_features_bytes)
            ]

        with ExitStack() as on_failure:
            on_failure.callback(worker.close)
            making: Future[Self] = worker.submit(make, [Task(None, 0.0, wide=True)])[0]
            engine = making.result()
            on_failure.pop_all()
        return engine

    @property
    def alive(self) -> bool:
        """See `HostedModel`."""
        return super().alive and self._worker.alive

    def when_dead(self, function: Callable[[], object]) -> None:
        """See `HostedModel`."""
        super().when_dead(function)
        self._worker.when_dead(function)

    async def state(self) -> EngineState:
        """See `HostedModel`."""
        if not self.alive:
            raise WorkerDied("the engine's worker has ended")
        return EngineState(
            waiting=self._worker.waiting,
            busy_seconds={
                "texts": self._worker.busy_seconds(self._encode_texts),
                "images": self._worker.busy_seconds(self._image_features),
                "scores": self._worker.busy_seconds(self._log_probs),
            },
            text_features=self.text_features.use,
            device_memory=memory_of(self._device),
        )

    def close(self) -> None:
        """See `HostedModel`."""
        super().close()
        self._worker.close()

    async def encode_images(self, images: Sequence[Tensor], *, tenant: str = "") -> Array:
        """See `HostedModel`."""
        step, merges = self._vision.images_per_task, self._vision.merges
        parts = [images[i : i + step] for i in range(0, len(images), step)]
        tasks = [Task(part, len(part) / step, merges=merges) for part in parts]
        features = await self._worker.run(self._image_features, tasks, tenant=tenant)
        return np.concatenate(features) if features else np.zeros((0, self._features), np.float32)

    async def encode_prompts(
        self, prompts: Prompts, classes: Sequence[str], *, tenant: str = ""
    ) -> TextFeatures:
        """See `HostedModel`."""
        tokens = self._tokenizer.of(tenant)
        parts = [
            await self._text_features(
                ("template", template), tokens.template(template), classes, tenant
            )
            for template in prompts.templates
        ]
        if prompts.context is not None and len(prompts.codes):
            moved = _Codes(prompts.context, prompts.codes)
            sequence = partial(tokens.context, prompts.context.init)
            key = ("codes", prompts.context.model_dump_json(), prompts.codes.tobytes())
            parts.append(await self._text_features(key, sequence, classes, tenant, moved))
        if self._device.type == "cpu":
            found: Array = torch.cat(parts).numpy()
            return found
        # Only the worker's thread has to do with a GPU.
        if len(parts) > 1:
            parts = await self._worker.run(self._join, [Task(parts, 0.0)], tenant=tenant)
        return parts[0]

    async def log_probs(
        self, image_features: Array, text_features: TextFeatures, *, tenant: str = ""
    ) -> Array:
        """See `HostedModel`."""
        pairs = _Pairs(image_features, text_features)
        numbers = len(pairs.images) * pairs.texts.shape[0] * pairs.texts.shape[1]
        task = Task(pairs, numbers / SCORES_PER_TASK)
        (part,) = await self._worker.run(self._log_probs, [task], tenant=tenant)
        return part

    async def _text_features(
        self,
        key: tuple[str | bytes, ...],
        sequence: Callable[[str], Ids],
        classes: Sequence[str],
        tenant: str,
        moved: _Codes | None = None,
    ) -> Tensor:
        """Features of the texts of one template, [1, C, width], or of K codes, [K, C, width].

        They are remembered as a whole, never code by code: how work is cut changes the last bits.
        """
        name = _digest(tenant, *key, *classes)
        features = self.text_features.get(name)
        if features is None:
            sequences = await self._read(self._prepare(sequence, classes, tenant, moved), tenant)
            prompts = 1 if moved is None else len(moved.codes)
            bound = self._tokens_per_task
            cut = list(self._tower.packs(sequences, prompts=prompts, max_tokens=bound))
            # It depends on nothing but the call, since it may change the last bits of an answer.
            wide, whole = self._shares_packs and len(cut) == 1, _Whole(prompts, len(classes))
            tasks = [
                Task(_Texts(pack, moved, tenant, wide, whole), pack.tokens / bound, wide=wide)
                for pack in cut
            ]
            await self._worker.run(self._encode_texts, tasks, tenant=tenant)
            features = whole.features
            self.text_features.put(name, features)
        return features

    def _prepare(
        self,
        sequence: Callable[[str], Ids],
        classes: Sequence[str],
        tenant: str,
        moved: _Codes | None,
    ) -> Steps[list[Ids]]:
        """Tokens of the texts; draws the projection of the codes."""
        if moved is not None:
            yield from self._contexts.draw(moved.context, tenant=tenant)
        return (yield from in_steps(sequence, classes))

    # What follows runs in the worker's threads.

    def _encode_texts(self, batch: Sequence[_Texts]) -> Sequence[None]:
        """Puts each pack's features where they belong."""
        torch.set_num_threads(self._cores if batch[0].wide else 1)
        for texts in batch:
            part = in_halves(self._read_texts, texts, _Texts.halves)
            texts.into.put(texts.pack, part)
        return [None] * len(batch)

    @torch.inference_mode()
    def _read_texts(self, texts: _Texts) -> Tensor:
        first = len(self._tokenizer.start)
        moved = Moved(texts.pack, self._words(texts), texts.tenant, first)
        exact = self._exact_tower
        return _finite(
            self._tower.encode(moved), None if exact is None else lambda: exact.encode(moved)
        )

    def _words(self, texts: _Texts) -> Tensor | None:
        if texts.moved is None:
            return None
        prompts = texts.pack.prompts
        codes = texts.moved.codes[prompts.start : prompts.stop]
        return self._contexts.embeddings(texts.moved.context, codes, tenant=texts.tenant)

    def _image_features(self, batch: Sequence[Sequence[Tensor]]) -> list[Array]:
        """For each its features, [N, width]."""
        torch.set_num_threads(1)
        together: Sequence[Tensor] = [image for images in batch for image in images]
        features = in_halves(self._read_images, together, _halves_of_images)
        parts = torch.split(features, [len(images) for images in batch])
        return [part.numpy() for part in parts]

    def _read_images(self, images: Sequence[Tensor]) -> Tensor:
        """On the CPU, [N, width]."""
        pixels, exact = self._normalise(images), self._exact_vision
        return _finite(
            torch.from_numpy(self._vision.encode(pixels)),
            None if exact is None else lambda: torch.from_numpy(exact.encode(pixels)),
        )

    def _join(self, batch: Sequence[list[Tensor]]) -> list[Tensor]:
        return [torch.cat(parts) for parts in batch]

    def _log_probs(self, batch: Sequence[_Pairs]) -> list[Array]:
        """For each its log-probabilities, [P, N, C]."""
        torch.set_num_threads(1)
        return [in_halves(self._scores, pairs, _Pairs.halves).numpy() for pairs in batch]

    @torch.inference_mode()
    def _scores(self, pairs: _Pairs) -> Tensor:
        """On the CPU, [P, N, C]."""
        x, t = (torch.as_tensor(of).to(self._device) for of in (pairs.images, pairs.texts))
        logits = self._logit_scale * (x @ t.mT)
        return _finite(logits.log_softmax(dim=-1)).cpu()

    def _warm_up(self) -> int:
        """Runs both towers once and tells the width of their features.

        On a GPU with as much as is read at once, for which its memory should suffice.
        """
        whole = self._device.type == "cuda"
        blank = torch.zeros(self.image_size, self.image_size, 3, dtype=torch.uint8)
        images = self._vision.images_per_task if whole else 1
        (of_images,) = self._image_features([[blank] * images])
        sequences = list(map(self._tokenizer.of().template(PROBE_TEMPLATE), PROBE_NOUNS))
        texts = self._tokens_per_task if whole else 1
        pack = next(
            self._tower.packs(
                list(islice(cycle(sequences), texts)), prompts=1, max_tokens=self._tokens_per_task
            )
        )
        into = _Whole(1, len(pack.classes))
        self._encode_texts([_Texts(pack, None, "", wide=True, into=into)])
        width: int = of_images.shape[1]
        return width


def _load_fault(spec: ModelSpec, error: Exception) -> str | None:
    """Why a model cannot be loaded, if it is not told yet and no fault of the program."""
    if isinstance(error, UnsupportedTowerError):
        return f"model '{spec.name}' cannot be used: {error}; choose another, such as RN50"
    if is_out_of_memory(error) or isinstance(error, Overloaded):
        return (
            f"model '{spec.name}' does not fit the memory of device '{spec.device}': "
            "free some, or choose a smaller model"
        )
    if is_lost(error) or isinstance(error, WorkerDied):
        return f"device '{spec.device}' has failed: {error}".partition("\n")[0]
    if isinstance(error, NotFinite):
        return f"model '{spec.name}' cannot be used: {error}"
    return None


def _halves_of_images(
    images: Sequence[Tensor],
) -> tuple[Sequence[Tensor], Sequence[Tensor], int] | None:
    half = len(images) // 2
    return (images[:half], images[half:], 0) if half else None


def _finite(numbers: Tensor, exact: Callable[[], Tensor] | None = None) -> Tensor:
    """Rows [..., width]; those that are not finite are taken from `exact`, in single precision.

    Raises:
        NotFinite: some are not finite there either.
    """
    finite = numbers.isfinite()
    if exact is not None and not finite.all():
        numbers = torch.where(finite.all(dim=-1, keepdim=True), numbers, exact())
        finite = numbers.isfinite()
    if not finite.all():
        raise NotFinite("what the model makes of this is not finite")
    return numbers


def _digest(*parts: str | bytes) -> bytes:
    """SHA-256 of parts, each with its length."""
    every = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        every.update(len(data).to_bytes(8, "little"))
        every.update(data)
    return every.digest()
