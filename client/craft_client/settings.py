"""What a tuning run is asked to do, and whether that can be done at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from craft_client.blackbox import Question, amount_of, budget_name, shortfall
from craft_client.exceptions import BudgetTooSmall, CraftError, UnusablePlugin
from craft_client.recipes import FIRST_PROMPTS, OWN, Option, Recipe, plugin_of, recipe_of
from craft_shared.names import REMEDY, fault, same_text, twins
from craft_shared.printing import printable
from craft_shared.problems import FieldError
from craft_shared.units import MEASURES, Measure, Unit, Units
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

Strategy = Literal["cma-es", "random", "spsa"]


# What a question is charged.
PricedQuestion = Callable[[Question], Units]


class SettingsError(CraftError):
    """The settings contradict each other, the labels or the budget. Nothing was charged."""


class KeyBudgetError(SettingsError, BudgetTooSmall):
    """A budget of the key or its team does not cover the run's first steps."""


def one_each(question: Question) -> Units:
    """A query for each prompt, as a rule."""
    return Units(queries=question.prompts)


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
            prompt and no head, searched by CMA-ES, among random codes, by SPSA. The other methods'
            modules are beside theirs. Else a plug-in's, or one's own in a file, `FILE.py:NAME`.
        budget: how much the run may spend, all stages together, but for uploads.
        budget_unit: of what; `cost_micros` are millionths of the provider's currency.
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
        options: settings of the recipe's own, by name: keyword arguments of what tunes.

    Raises:
        SettingsError: an option's value is impossible, alone or with the others.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # where one is read from a document

    recipe: str = "craftbox"
    budget: int = 8000
    budget_unit: Measure = "queries"
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
    options: Mapping[str, Option] = field(default_factory=dict)

    def __post_init__(self) -> None:
        scale = self.scale
        errors = [
            _number("budget", self.budget, 1),
            _choice("budget_unit", self.budget_unit, MEASURES),
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
        wrong = [error for error in errors if error] or self._option_errors()
        if not wrong and self.budget_unit == "queries":
            wrong = self._budget_errors("budget", "queries", self.budget, one_each)
        _raise_if("The settings cannot be used.", wrong)

    def stream(self, purpose: Literal["random codes", "search", "mlp"]) -> list[int]:
        """Seed of the random numbers for one purpose, whatever other parts are switched off."""
        return [self.seed, ("random codes", "search", "mlp").index(purpose)]

    @property
    def opening_question(self) -> Question:
        """What is asked first: the plain prompt, alone, with a vocabulary or with random codes."""
        return Question(self._row.opening(self), len(self.texts))

    @property
    def is_planned(self) -> bool:
        """Whether all questions are known beforehand, but for the answers that end a run early."""
        return self._row.generation is not None

    def generation_questions(self, number: int = 1) -> tuple[Question, ...]:
        """What is asked in a generation, from 1; craftbox's double the prompts while it can."""
        if self._row.generation is None or not self.search:
            return ()
        return tuple(Question(prompts) for prompts in self._row.generation(self, number))

    def questions(self, units: PricedQuestion = one_each) -> list[Question]:
        """All that the run asks at most; `units` says what a question is charged."""
        generations = range(1, self.generations(units) + 1)
        return [
            self.opening_question,
            *(question for number in generations for question in self.generation_questions(number)),
        ]

    def generation_units(self, number: int = 1, units: PricedQuestion = one_each) -> Units:
        """What a generation is charged; nothing without a search."""
        return sum((units(question) for question in self.generation_questions(number)), Units())

    def generations(
        self,
        units: PricedQuestion = one_each,
        *,
        done: int = 0,
        spent: int | None = None,
        price: Callable[[Units], int | None] = lambda need: None,
    ) -> int:
        """How many whole generations after `done` the run's own budget covers.

        Args:
            units: what a question is charged.
            done: generations.
            spent: of the budget's unit until then; None: what is asked first.
            price: what a question's units cost, for a budget of money; None is not known.
        """

        def amount(*questions: Question) -> int:
            asked = [units(question) for question in questions]
            return sum(amount_of(self.budget_unit, need, price(need)) for need in asked)

        left = self.budget - (amount(self.opening_question) if spent is None else spent)
        count = 0
        while need := amount(*self.generation_questions(done + count + 1)):
            if self.recipe != "craftbox":  # whose generations are not alike
                return max(0, left) // need
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
        errors = []
        if self.budget_unit != "cost_micros":  # what the steps cost is known once one is answered
            errors = self._budget_errors("budget", self.budget_unit, self.budget, units)
            if self.is_planned and not self._first_steps(units)[self.budget_unit]:
                message = f"is '{self.budget_unit}', of which '{self.recipe}' asks for none."
                errors = [_error("budget_unit", message, "Give a budget of another unit.")]
        first_steps = self._first_steps(units)
        short = shortfall(budgets, first_steps)
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
        return recipe_of(self.recipe)

    def _part_errors(self) -> list[FieldError]:
        """Parts that are chosen or switched off, of a recipe that has no such part."""
        parts: dict[str, bool] = {
            "strategy": self.strategy != "cma-es",
            "search": not self.search,
            "refinement": not self.refinement,
            "consistency": not self.consistency,
        }
        errors = []
        if not self.search and self.budget_unit != "queries":
            message = f"is '{self.budget_unit}': without a search a budget counts training."
            errors.append(_error("budget_unit", message, "Give a budget of queries."))
        for part, changed in parts.items():
            if changed and part not in self._row.settings:
                having = " and ".join(
                    f"'{one.name}'" for one in OWN.values() if part in one.settings
                )
                message = f"is a setting of {having}; '{self.recipe}' has no such part."
                errors.append(_error(part, message, "Leave it as it is by default."))
        return errors

    def _option_errors(self) -> list[FieldError]:
        if not self.options:
            return []
        try:
            object.__setattr__(self, "options", self._row.options(self.options))
        except ValueError as error:
            return [_error("options", f"{error}.", "Name one that the recipe has.")]
        except UnusablePlugin as error:
            return [_error("recipe", error.message, "Mend it.")]
        return []

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
        opening = units(self.opening_question)[unit]
        codes = self.opening_question.prompts - 1
        needs = f"the plain prompt and {codes} random codes take {opening}"
        if self.recipe == "craftbox" and not self.texts:
            # Of a larger budget the first question is larger too.
            needed = units(Question(min(FIRST_PROMPTS, 1 + self.random_codes)))[unit]
        remedy = f"Raise it to at least {needed}"
        if self.recipe == "craftbox" and self.texts:
            needs = f"the plain prompt with {len(self.texts):,} texts takes {opening}"
            remedy += ", give fewer texts, or tune in strict access"
        elif self.generation_questions() and self.recipe != "craftbox":
            needs += f" and one generation takes {needed - opening}"
        of = f" {unit}" if field == "budget" and unit != "queries" else ""
        return [_error(field, f"is {budget}{of}, but {needs}.", f"{remedy}.")]

    def _first_steps(self, units: PricedQuestion) -> Units:
        """What must be covered for a run to begin: of craftbox's, the first question."""
        opening = units(self.opening_question)
        return opening + self.generation_units(units=units) if self._row.searches else opening


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
    try:
        plugin_of(name)
    except UnusablePlugin as error:
        message = f"{error.message[0].lower()}{error.message[1:]}"
        return _error("recipe", message, "See 'craft plugins'.")
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
