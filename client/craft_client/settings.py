"""What a tuning run is asked to do, and whether that can be done at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from craft_client.blackbox import budget_name, shortfall
from craft_client.exceptions import BudgetTooSmall, CraftError
from craft_client.recipes import OWN, RECIPES, Recipe, counted_as
from craft_shared import plugins
from craft_shared.names import REMEDY, fault, same_text, twins
from craft_shared.plugins import PluginError
from craft_shared.printing import printable
from craft_shared.problems import FieldError
from craft_shared.units import Unit, Units
from craft_shared.wire import AbsoluteScale, Budget, Output, Scale
from craft_shared.wire.messages import LONGEST_CLASS_NAME, LONGEST_TEMPLATE

LEAST_POPULATION = 4
MOST_DIM = 4096
MOST_SCALE = 1000.0
MOST_HIDDEN = 65_536
# With the plain prompt, 128 queries at most.
RANDOM_CODES = 127
# Of ranks more: each says less, and what they say adds up (docs/output-levels.md).
RANDOM_CODES_OF_RANKS = 255  # labels, and the most probable classes alone
FEW_DECIMALS = 3  # of probabilities: those of a thousand nouns are then mostly zeros
FIRST_PROMPTS = 4

Strategy = Literal["cma-es", "random", "spsa"]


# Units of a number of prompts, and of texts that each of them scores beside the class names.
PricedQuestion = Callable[[int, int], Units]


class SettingsError(CraftError):
    """The settings contradict each other, the labels or the budget. Nothing was charged."""


class KeyBudgetError(SettingsError, BudgetTooSmall):
    """A budget of the key or its team does not cover the run's first steps."""


class Question(NamedTuple):
    """How much one request asks."""

    prompts: int  # how many
    texts: int = 0  # that each of them scores beside the class names


def one_each(prompts: int, texts: int = 0) -> Units:
    """A query for each prompt, as a rule."""
    return Units(queries=prompts)


def shows_texts(output: Output) -> bool:
    """Whether answers about class names and a vocabulary show more than about class names alone."""
    if output.level == "probs":
        return output.decimals is None or output.decimals > FEW_DECIMALS
    return output.level == "log_probs"


def random_codes_for(output: Output, prompt_limit: int | None) -> int:
    """How many random codes may be asked for in strict access, unless somebody says otherwise.

    `prompt_limit` is how many prompts may be asked, the plain one too; None is not bounded.
    """
    codes = RANDOM_CODES_OF_RANKS if output.level in ("label", "top_k") else RANDOM_CODES
    return codes if prompt_limit is None else min(codes, prompt_limit - 1)


@dataclass(frozen=True)
class TuneSettings:
    """The options of a tuning run. Defaults are craftbox's own recipe's; see `paper_presets`.

    Attributes:
        recipe: `craftbox`: the plain prompt with `texts` beside the class names, or with random
            codes, and a closed-form head. `paper`: CraFT as published. `bbt`, `random`, `spsa`: one
            prompt and no head, searched by CMA-ES, among random codes, by SPSA. Else a plug-in's,
            which is counted as one that asks the plain prompt and `random_codes` first, and
            `population` codes a generation.
        budget: queries that the run may spend, all stages together.
        seed: of the random codes, the search, the context's projection and the paper's head.
        population: codes a generation of the search; SPSA's recipe asks two a step.
        dim: length of a code, the paper's intrinsic dimension.
        random_codes: of strict access, drawn from a standard normal: so many at most.
        scale: of the context, for random codes and search alike: a standard normal code moves each
            coordinate of the prompt by this many standard deviations of the model's token
            embeddings. "paper" is the released code's absolute scale.
        sigma: the search's initial standard deviation.
        bound: that no coordinate of the search passes; 0 for none.
        hidden: units of the paper's head.
        batch_size: images of a step of its training.
        strategy: of the paper's search: `cma-es`, or for comparison `random` or `spsa`.
        search: whether to search; off is the paper's ablation.
        refinement: whether to fit a head; off is the paper's ablation.
        consistency: whether losses have the prediction-consistency term; off is the paper's
            ablation. Without refinement there is no such term either.
        consistency_weight: of that term.
        consistency_share: of the generations that the budget covers, in which the loss of the
            paper's head has the term.
        template: the plain prompt, with one `{}` for the class name.
        texts: a vocabulary that craftbox's plain prompt scores beside the class names, and of which
            the head reads some. None of them is a class name. Empty in strict access.
        keep_texts: how many of them the head reads at most; None for as many as are needed.
        shots: images a class, for the adapter's card only.

    Raises:
        SettingsError: an option's value is impossible, alone or with the others.
    """

    recipe: str = "craftbox"
    budget: int = 8000
    seed: int = 1
    population: int = 40
    dim: int = 512
    random_codes: int = RANDOM_CODES
    scale: Scale = 3.0
    sigma: float = 1.0
    bound: float = 5.0
    hidden: int = 256
    batch_size: int = 256
    strategy: Strategy = "cma-es"
    search: bool = True
    refinement: bool = True
    consistency: bool = True
    consistency_weight: float = 0.1
    consistency_share: float = 0.25
    template: str = "a photo of a {}."
    texts: tuple[str, ...] = ()
    keep_texts: int | None = None
    shots: int | None = None

    def __post_init__(self) -> None:
        scale = self.scale
        errors = [
            _number("budget", self.budget, 1),
            _number("seed", self.seed, 0, 2**63 - 1),
            _number("population", self.population, LEAST_POPULATION),
            _number("dim", self.dim, 2, MOST_DIM),
            _number("random_codes", self.random_codes, 0),
            _choice("scale", scale, get_args(AbsoluteScale))
            if isinstance(scale, str)
            else _number("scale", scale, 0, MOST_SCALE, open_below=True),
            _number("sigma", self.sigma, 0, open_below=True),
            _number("consistency_weight", self.consistency_weight, 0),
            _number("shots", self.shots, 1),
            _number("bound", self.bound, 0),
            _number("hidden", self.hidden, 1, MOST_HIDDEN),
            _number("batch_size", self.batch_size, 1),
            _number("consistency_share", self.consistency_share, 0, 1),
            _number("keep_texts", self.keep_texts, 1),
            _recipe(self.recipe),
            *self._part_errors(),
            _choice("strategy", self.strategy, get_args(Strategy)),
            _template(self.template),
            *self._text_errors(),
        ]
        wrong = [error for error in errors if error]
        _raise_if(
            "The settings cannot be used.",
            wrong or self._budget_errors("budget", "queries", self.budget, one_each),
        )

    def stream(self, purpose: Literal["random codes", "search", "mlp"]) -> list[int]:
        """Seed of the random numbers for one purpose, whatever other parts are switched off."""
        return [self.seed, ("random codes", "search", "mlp").index(purpose)]

    @property
    def opening_question(self) -> Question:
        """What is asked first: the plain prompt, alone, with a vocabulary or with random codes."""
        if self.recipe == "craftbox":
            prompts = 1 if self.texts else min(FIRST_PROMPTS, 1 + self.random_codes)
            return Question(min(prompts, self.budget), len(self.texts))
        return Question(1 if self._row.like_paper else 1 + self.random_codes)

    def generation_questions(self, number: int = 1) -> tuple[Question, ...]:
        """What is asked in a generation, from 1; craftbox's double the prompts while it can."""
        if self.recipe != "craftbox":
            prompts = self._row.generation(self.population) if self.search else ()
            return tuple(Question(count) for count in prompts)
        asked = self.opening_question.prompts * 2 ** (number - 1)
        further = 0 if self.texts else min(asked, 1 + self.random_codes - asked)
        return (Question(further),) if further > 0 else ()

    def questions(self, units: PricedQuestion = one_each) -> list[Question]:
        """All that the run asks at most; `units` says what a question is charged."""
        generations = range(1, self.generations(units) + 1)
        return [
            self.opening_question,
            *(question for number in generations for question in self.generation_questions(number)),
        ]

    def generation_units(self, number: int = 1, units: PricedQuestion = one_each) -> Units:
        """What a generation is charged; nothing without a search."""
        return sum((units(*question) for question in self.generation_questions(number)), Units())

    def generations(
        self, units: PricedQuestion = one_each, *, done: int = 0, spent: int | None = None
    ) -> int:
        """How many whole generations after `done` the run's own budget covers.

        `units` is what a question is charged, `spent` the queries until then (None: nothing yet).
        """
        left = self.budget - (units(*self.opening_question).queries if spent is None else spent)
        if self.recipe != "craftbox":
            need = self.generation_units(units=units).queries
            return left // need if need else 0
        count = 0
        while need := self.generation_units(done + count + 1, units).queries:
            left -= need
            if left < 0:
                break
            count += 1
        return count

    def check_task(
        self,
        labels: NDArray[np.int64],
        classes: Sequence[str],
        budgets: Sequence[Budget],
        units: PricedQuestion,
    ) -> None:
        """Checks the settings against the task, before anything is asked.

        Args:
            labels: the images' classes, int64 [N].
            classes: the C class names.
            budgets: all that bound the key.
            units: what a question is charged.

        Raises:
            SettingsError: there are fewer than two classes, a label names none, a class has no
                image, a text is a class name, or a budget does not cover the first steps.
        """
        _raise_if("The pictures cannot be learnt from.", _label_errors(labels, classes))
        _raise_if("The class names cannot be used.", _name_errors("classes", classes))
        _raise_if("The texts cannot be used.", _shared_errors(self.texts, classes))
        errors = self._budget_errors("budget", "queries", self.budget, units)
        first_steps = self._first_steps(units)
        short = shortfall(budgets, first_steps)
        # What the steps cost is known only once the server has answered.
        if not errors and short and short.budget.unit != "cost_micros":
            left = short.budget.remaining
            short_errors = self._budget_errors(
                budget_name(short.budget), short.budget.unit, left, units
            )
            if short_errors:
                raise KeyBudgetError("The budget does not cover this run.", errors=short_errors)
        _raise_if("The budget does not cover this run.", errors)

    @property
    def _row(self) -> Recipe:
        return counted_as(self.recipe)

    def _part_errors(self) -> list[FieldError]:
        """Parts that are chosen or switched off, of a recipe that has no such part."""
        parts: dict[str, bool] = {
            "strategy": self.strategy != "cma-es",
            "search": not self.search,
            "refinement": not self.refinement,
            "consistency": not self.consistency,
        }
        errors = []
        for part, changed in parts.items():
            if changed and part not in self._row.settings:
                having = " and ".join(
                    f"'{one.name}'" for one in OWN.values() if part in one.settings
                )
                message = f"is a setting of {having}; '{self.recipe}' has no such part."
                errors.append(_error(part, message, "Leave it as it is by default."))
        return errors

    def _text_errors(self) -> list[FieldError]:
        if not self.texts:
            return []
        if self.recipe != "craftbox":
            message = f"are a setting of 'craftbox'; '{self.recipe}' reads none."
            return [_error("texts", message, "Leave them out.")]
        return _name_errors("texts", self.texts)[:1]

    def _budget_errors(
        self, field: str, unit: Unit, budget: int, units: PricedQuestion
    ) -> list[FieldError]:
        needed = self._first_steps(units)[unit]
        if budget >= needed:
            return []
        opening = units(*self.opening_question)[unit]
        codes = self.opening_question.prompts - 1
        needs = f"the plain prompt and {codes} random codes take {opening}"
        if self.recipe == "craftbox" and not self.texts:
            # Of a larger budget the first question is larger too.
            needed = units(min(FIRST_PROMPTS, 1 + self.random_codes), 0)[unit]
        remedy = f"Raise it to at least {needed}"
        if self.recipe == "craftbox" and self.texts:
            needs = f"the plain prompt with {len(self.texts):,} texts takes {opening}"
            remedy += ", give fewer texts, or tune in strict access"
        elif self.generation_questions() and self.recipe != "craftbox":
            needs += f" and one generation takes {needed - opening}"
        return [_error(field, f"is {budget}, but {needs}.", f"{remedy}.")]

    def _first_steps(self, units: PricedQuestion) -> Units:
        """What must be covered for a run to begin: of craftbox's, the first question."""
        opening = units(*self.opening_question)
        return (
            opening if self.recipe == "craftbox" else opening + self.generation_units(units=units)
        )


def _error(field: str, message: str, remedy: str) -> FieldError:
    return FieldError(field=field, message=message, remedy=remedy)


def _raise_if(message: str, errors: Sequence[FieldError]) -> None:
    if errors:
        raise SettingsError(message, errors=errors)


def _number(
    field: str,
    value: float | None,
    least: float,
    most: float = math.inf,
    *,
    open_below: bool = False,
) -> FieldError | None:
    if value is None:
        return None
    # NaN fails every comparison, so it is refused too.
    if (least < value if open_below else least <= value) and value <= most and value < math.inf:
        return None
    lower = f"greater than {least}" if open_below else f"at least {least}"
    upper = f" and at most {most:g}" if most < math.inf else ""
    return _error(field, f"is {value}.", f"Give a number {lower}{upper}.")


def _choice(field: str, value: str, choices: Sequence[str]) -> FieldError | None:
    if value in choices:
        return None
    return _error(field, f"is '{value}'.", f"Give one of: {', '.join(choices)}.")


def _recipe(name: str) -> FieldError | None:
    if name not in OWN:
        try:
            plugins.find(RECIPES, name)
        except PluginError as error:
            return _error("recipe", f"{error}.", "See 'craft plugins'.")
    return None


def _template(template: str) -> FieldError | None:
    if len(template) > LONGEST_TEMPLATE:
        message = f"has {len(template)} characters; {LONGEST_TEMPLATE} are allowed."
        return _error("template", message, "Shorten it.")
    try:
        template.encode()
    except UnicodeEncodeError:
        return _error("template", "is not UTF-8.", "Write it anew.")
    if template.count("{}") == 1 and template.count("{") == template.count("}") == 1:
        return None
    remedy = "Write {} exactly once, where the class name goes, as in 'a photo of a {}.'"
    return _error("template", f"is '{template}'.", remedy)


def _name_errors(field: str, names: Sequence[str]) -> list[FieldError]:
    """Names that a server takes for none, and names that it takes for one."""
    errors = [
        _error(f"{field}[{place}]", f"'{printable(name)}' {found}", REMEDY)
        for place, name in enumerate(names)
        if (found := fault(name))
    ]
    for place, name in enumerate(names):
        if not 1 <= len(name) <= LONGEST_CLASS_NAME:
            remedy = f"Use 1 to {LONGEST_CLASS_NAME}."
            errors.append(_error(f"{field}[{place}]", f"has {len(name)} characters.", remedy))
    for place, first in () if errors else twins(names):
        name, before = printable(names[place]), printable(names[first])
        message = f"a model reads '{name}' as it reads '{before}', {field}[{first}]."
        if names[place] == names[first]:
            message = f"'{name}' is there twice."
        errors.append(_error(f"{field}[{place}]", message, "Give each a name of its own."))
    return errors


def _shared_errors(texts: Sequence[str], classes: Sequence[str]) -> list[FieldError]:
    names = {same_text(name) for name in classes}
    remedy = "Leave it out: class names are scored anyway."
    shared = (text for text in texts if same_text(text) in names)
    return [_error("texts", f"'{text}' is a class name.", remedy) for text in shared][:1]


def _label_errors(labels: NDArray[np.int64], classes: Sequence[str]) -> list[FieldError]:
    if len(classes) < 2:
        return [_error("classes", f"there are {len(classes)}.", "Give at least two.")]
    wrong = labels[(labels < 0) | (labels >= len(classes))]
    if wrong.size:
        remedy = f"Labels are row numbers of the {len(classes)} classes, from 0."
        return [_error("labels", f"{wrong[0]} names no class.", remedy)]
    missing = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    return [
        _error(
            f"classes[{index}]",
            f"'{classes[index]}' has no picture.",
            "Add one, or leave the class out.",
        )
        for index in missing.tolist()
    ]
