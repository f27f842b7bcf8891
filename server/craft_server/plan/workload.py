"""What a tuning run asks: which calls, how many of each unit, and how many bytes.

It knows the recipes as a server sees them, as calls of so many prompts on so many pictures, and the
limits by which a client cuts them; it does not know what anything takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice
from typing import Literal

from craft_server.engine.tokens import Ids, shared_length
from craft_shared.units import Units
from craft_shared.wire import Limits

Recipe = Literal["craftbox", "paper"]

# The plain prompt, "a photo of a {}.", and its start token.
PLAIN_SHARED_TOKENS = 5
HALF_PRECISION_BYTES = 2
SINGLE_PRECISION_BYTES = 4
# Header lines, the document and the cost of a call, one way each; class names come on top.
CALL_UP_BYTES = 700
CALL_DOWN_BYTES = 1200
# A class name with its quotes and comma.
NAME_BYTES = 12
# Own tokens of a vocabulary's texts, in turn: common nouns have 3.35 on the average.
VOCABULARY_TOKENS = (3, 3, 4)
# What strict access asks first; then it doubles the prompts.
FIRST_PROMPTS = 4
# Models, budgets, the image set and its first check; then an acknowledgement each question.
FREE_CALLS = 7


@dataclass(frozen=True)
class Texts:
    """The texts of one prompt: one a class, then a vocabulary's.

    Attributes:
        sequences: their token ids; where they are not known, stand-ins of the same length.
        name_bytes: of class names and vocabulary in a request's document.
        vocabulary: how many are not of classes.
    """

    sequences: tuple[Ids, ...]
    name_bytes: int
    vocabulary: int = 0

    @classmethod
    def of_length(cls, classes: int, own_tokens: int) -> Texts:
        """Texts of the plain prompt with so many own tokens, full stop and end included."""
        prefix = (0,) * PLAIN_SHARED_TOKENS
        texts = tuple(prefix + (index + 1,) * own_tokens for index in range(classes))
        return cls(texts, classes * NAME_BYTES)

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


@dataclass(frozen=True)
class Question:
    """Prompts that one request asks, before the limits cut it into calls.

    Attributes:
        templates: plain prompts.
        codes: that follow them.
        times: how often the run asks so.
    """

    templates: int
    codes: int
    times: int

    @property
    def prompts(self) -> int:
        """Both together."""
        return self.templates + self.codes


@dataclass(frozen=True)
class Workload:
    """One tuning run.

    Attributes:
        texts: that are scored. craftbox's recipe is in strict access where they have no vocabulary.
        images: pictures.
        image_bytes: of one picture's file.
        image_pixels: of one picture.
        budget: queries that the run may spend.
        recipe: whose questions.
        population: codes a generation of the paper's search.
        random_codes: of strict access, at most; a run may do with fewer.
        dim: length of a code.
        limits: of the server.
    """

    texts: Texts
    images: int
    image_bytes: int
    image_pixels: int
    budget: int
    recipe: Recipe
    population: int
    random_codes: int
    dim: int
    limits: Limits

    @property
    def generations(self) -> int:
        """Whole ones of the paper's search that the budget covers."""
        if self.recipe == "craftbox":
            return 0
        of_one = (self.population + 1) * self._row_calls  # the codes, and then their mean
        return max(0, self.budget - self._row_calls) // of_one

    @cached_property
    def questions(self) -> Sequence[Question]:
        """All that the run asks at most."""
        if self.recipe == "paper":
            population = Question(0, self.population, self.generations)
            return Question(1, 0, 1), population, Question(0, 1, self.generations)
        if self.texts.vocabulary:
            return (Question(1, 0, 1),)
        prompts = min(FIRST_PROMPTS, 1 + self.random_codes, self.budget)
        questions = [Question(1, prompts - 1, 1)]
        while (further := min(prompts, 1 + self.random_codes - prompts)) > 0:
            prompts += further
            if prompts * self._row_calls > self.budget:
                break
            questions.append(Question(0, further, 1))
        return questions

    @property
    def prompts(self) -> int:
        """Different ones, all questions together."""
        return sum(question.prompts * question.times for question in self.questions)

    def calls_of(self, question: Question) -> int:
        """Calls that one such question is cut into."""
        return self._row_calls * -(-question.prompts // self.prompts_per_call)

    @property
    def prompts_per_call(self) -> int:
        """At most."""
        of_prompt = self.answer_bytes_of_prompt
        return min(self.limits.prompts_per_call, max(1, self.limits.answer_bytes // of_prompt))

    @property
    def answer_bytes_of_prompt(self) -> int:
        """Of one prompt's log-probabilities, in half precision."""
        return HALF_PRECISION_BYTES * self.images * self.texts.scored

    @property
    def images_per_call(self) -> int:
        """Of an upload."""
        by_size = self.limits.body_bytes // max(1, self.image_bytes)
        return max(1, min(self.limits.images_per_call, by_size, self.images))

    @property
    def upload_calls(self) -> int:
        """Calls that bring all pictures."""
        return -(-self.images // self.images_per_call)

    @property
    def score_calls(self) -> int:
        """Calls that are answered with log-probabilities."""
        return sum(self.calls_of(question) * question.times for question in self.questions)

    @property
    def units(self) -> Units:
        """What the run is charged, where the server has seen none of its pictures."""
        queries = self.prompts * self._row_calls
        return Units(
            queries=queries,
            predictions=self.prompts * self.images,
            images=self.images,
            texts=queries * self.texts.scored,
            requests=self.score_calls + self.upload_calls,
        )

    @property
    def bytes_up(self) -> int:
        """From the client: pictures, codes, texts and what every call has."""
        codes = sum(question.codes * question.times for question in self.questions) * self.dim
        names = (self.score_calls + 1) * self.texts.name_bytes
        calls = (2 * self.score_calls + self.upload_calls + FREE_CALLS) * CALL_UP_BYTES
        pictures = self.images * (self.image_bytes + 8)
        return pictures + codes * SINGLE_PRECISION_BYTES * self._row_calls + names + calls

    @property
    def bytes_down(self) -> int:
        """To the client: log-probabilities, uncompressed, and what every call has."""
        calls = (2 * self.score_calls + self.upload_calls + FREE_CALLS) * CALL_DOWN_BYTES
        return self.prompts * self.answer_bytes_of_prompt + calls

    @property
    def _row_calls(self) -> int:
        """Calls that one prompt's answer is spread over, each of them a query."""
        rows = max(1, self.limits.answer_bytes // (HALF_PRECISION_BYTES * self.texts.scored))
        return -(-self.images // rows)
