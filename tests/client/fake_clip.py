"""A tiny CLIP in numpy: a real function of pictures, class names and codes, not a mock.

Pictures of a class scatter around the class's own pattern. The image tower is a fixed random
projection. The text tower is a random two-layer network of the class and of the context p0 + A z,
around an imperfect idea of what each class looks like. So zero-shot is mediocre, prompts change
predictions smoothly and non-linearly, and the image features tell the classes apart.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from craft_client.blackbox import Question, Scores
from craft_shared.head import log_softmax
from craft_shared.image_view import View
from craft_shared.output import scores_of, shown
from craft_shared.units import Measure, Units
from craft_shared.wire import EVERYTHING, Budget, Context, Limits, ModelCard, Output

SIDE = 8
WIDTH = 32
CONTEXT = 24
HIDDEN = 64
LOGIT_SCALE = 30.0


class FakeClip:
    """The model.

    Args:
        classes: number of classes.
        seed: of its weights and of the classes' patterns.
        noise: standard deviation of a picture's pixels around its class's pattern, in grey levels.
        ignorance: how wrong the text tower is about the classes' looks, 0 for not at all.
    """

    def __init__(
        self, classes: int = 6, *, seed: int = 0, noise: float = 60.0, ignorance: float = 1.0
    ) -> None:
        rng = np.random.default_rng([seed, 1])
        self.names = [f"class {index}" for index in range(classes)]
        self.noise = noise
        self.patterns = rng.uniform(60, 196, (classes, SIDE, SIDE, 3))
        self._projection = rng.normal(size=(SIDE * SIDE * 3, WIDTH))
        looks = self.features(self.patterns.astype(np.uint8))
        wrong = rng.normal(size=looks.shape) / np.sqrt(WIDTH)
        self._looks = _unit(looks + ignorance * wrong)
        self._context = rng.normal(size=CONTEXT)
        self._first = rng.normal(size=(CONTEXT + WIDTH, HIDDEN)) / np.sqrt(CONTEXT)
        self._second = rng.normal(size=(HIDDEN, WIDTH)) / np.sqrt(HIDDEN)

    def pictures(self, shots: int, *, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Pictures uint8 [C * shots, 8, 8, 3], and their labels."""
        rng = np.random.default_rng([seed, 2])
        labels = np.repeat(np.arange(len(self.patterns), dtype=np.int64), shots)
        noise = rng.normal(size=(len(labels), SIDE, SIDE, 3)) * self.noise
        return np.clip(self.patterns[labels] + noise, 0, 255).astype(np.uint8), labels

    def features(self, pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Hidden image features [N, WIDTH] of unit length."""
        return _unit((pictures.reshape(len(pictures), -1) / 255.0 - 0.5) @ self._projection)

    def decode(self, files: Sequence[bytes]) -> NDArray[np.uint8]:
        """Pictures from files of any size."""
        pictures = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
        return np.stack([np.asarray(picture.resize((SIDE, SIDE))) for picture in pictures])

    def log_probs(
        self,
        features: NDArray[np.float64],
        names: Sequence[str],
        templates: Sequence[str] = (),
        context: Context | None = None,
        codes: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Log-probabilities [P, N, C] of templates and, after them, codes.

        A name that is no class is a text that looks like something else.
        """
        contexts = [np.zeros(CONTEXT) for _ in templates]
        if codes is not None:
            assert context is not None
            rng = np.random.default_rng([context.seed, 3])
            A = rng.normal(size=(context.dim, CONTEXT)) / np.sqrt(context.dim)
            assert isinstance(context.scale, float)
            contexts += list(context.scale * (codes @ A))
        looks = np.stack([self._look(name) for name in names])
        logits = [LOGIT_SCALE * features @ self._texts(looks, delta).T for delta in contexts]
        return log_softmax(np.stack(logits).astype(np.float32))

    def _look(self, name: str) -> NDArray[np.float64]:
        if name in self.names:
            return self._looks[self.names.index(name)]
        return _unit(np.random.default_rng(zlib.crc32(name.encode())).normal(size=WIDTH))

    def _texts(self, looks: NDArray[np.float64], delta: NDArray[np.float64]) -> NDArray[np.float64]:
        moved = self._tower(looks, self._context + delta) - self._tower(looks, self._context)
        return _unit(looks + 0.6 * moved)

    def _tower(
        self, looks: NDArray[np.float64], context: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        inputs = np.hstack([np.tile(context, (len(looks), 1)), 4 * looks])
        hidden: NDArray[np.float64] = np.tanh(inputs @ self._first) @ self._second
        return hidden


class FakeBlackBox:
    """`craft_client.blackbox.BlackBox` over a `FakeClip`, with a purse and a count of calls.

    Args:
        clip: the model.
        pictures: uint8 [N, 8, 8, 3].
        queries: how many may be charged; None for any number.
        price_micros: of a query.
        output: what answers show.
    """

    model = "fake"
    revision = "0"

    def __init__(
        self,
        clip: FakeClip,
        pictures: NDArray[np.uint8],
        *,
        queries: int | None = None,
        price_micros: int = 0,
        output: Output = EVERYTHING,
    ) -> None:
        self.classes = list(clip.names)
        self._purse = queries
        self._price_micros = price_micros
        self.charged = Units()
        self.acknowledged: list[str] = []
        self.names: list[str | None] = []
        self.output = output
        self.prompt_limit: int | None = None
        self.image_size = SIDE
        self.view = View(SIDE, SIDE)
        self._clip = clip
        self._features = clip.features(pictures)

    def score(
        self,
        *,
        templates: Sequence[str] = (),
        context: Context | None = None,
        codes: NDArray[np.float32] | None = None,
        texts: Sequence[str] = (),
        alone: bool = False,
        rows: Sequence[int] | None = None,
        images: Sequence[bytes] | None = None,
        name: str | None = None,
    ) -> Scores:
        self.names.append(name)
        scored = [*(() if alone else self.classes), *texts]
        features = self._features if rows is None else self._features[list(rows)]
        if images is not None:
            features = self._clip.features(self._clip.decode(images))
        log_probs = self._clip.log_probs(features, scored, templates, context, codes)
        log_probs = scores_of(shown(log_probs, self.output), self.output, len(scored))
        count = None if rows is None and images is None else len(features)
        charged = self.units(Question(len(log_probs), len(texts), count, images is not None, alone))
        assert self._purse is None or self.charged.queries + charged.queries <= self._purse
        self.charged += charged
        return Scores(
            log_probs,
            charged,
            cost_micros=charged.queries * self._price_micros,
            budgets=self._left(),
            answers=[f"answer {self.charged.requests}"],
        )

    def acknowledge(self, scores: Scores) -> None:
        self.acknowledged += scores.answers

    def units(self, question: Question) -> Units:
        count = len(self._features) if question.images is None else question.images
        return Units(
            queries=question.prompts,
            predictions=question.prompts * count,
            images=count if question.sent else 0,
            texts=question.prompts * question.scored(len(self.classes)),
            requests=1,
        )

    def budgets(self) -> list[Budget]:
        return self._left()

    def _left(self) -> list[Budget]:
        if self._purse is None:
            return []
        return [budget("queries", self._purse, spent=self.charged.queries)]


def budget(unit: Measure, limit: int, *, spent: int = 0, **more: Any) -> Budget:
    """A budget of which nothing is reserved."""
    return Budget(unit=unit, limit=limit, spent=spent, reserved=0, remaining=limit - spent, **more)


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / lengths


def model_card(
    output: Output = EVERYTHING, prompt_limit: int | None = None, classes: int = 10_000
) -> ModelCard:
    """A model's card, of which settings read what a key may see and ask."""
    limits = Limits.model_construct(classes=classes)
    return ModelCard.model_construct(
        output=output, prompts_per_image_set=prompt_limit, limits=limits
    )
