"""Words: templates that people can read, by evolution; who proposes them is a plain callable.

Each generation the proposer sees the best and the worst templates so far with their losses, and
gives others. All are asked for in one request; the template of least training loss is deployed.
All labels choose it, so that nothing was held out.

The proposer that ships needs no language model: it inserts, replaces and takes out words of a good
template, from a list of adjectives and common nouns. One that asks a language model is a function
of yours (`proposer=FILE.py:NAME`, or `functools.partial`), called as `Proposer` says; the journal
keeps what it proposed, so that a run is resumed without asking it again.

What differs from the paper: it ranks templates by accuracy and begins anew several times, from
captions of LAION-COCO; here losses are compared, which tell more of a few images. The released code
shows ChatGPT the three best and the three worst without figures, and reads one template an answer.

Published: 1 shot, mean of eleven data sets: 1.5 points above CoOp, a white box.

Source: Liu et al., "Language models as black-box optimizers for vision-language models" (CVPR 2024,
arXiv 2309.05950).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np

from craft_client.blackbox import Question
from craft_client.exceptions import BudgetExhausted
from craft_client.presets import common_nouns
from craft_client.recipes import loaded_file
from craft_client.tuning_run import Outcome, TuningRun

SHOWN = 15  # best and worst templates each, as in the paper
MOST_WORDS = 12
# Of how photographs look, and where they come from.
LOOKS = (
    "bad", "bright", "blurry", "clean", "close-up", "colorful", "cropped", "dark", "detailed",
    "dirty", "good", "large", "old", "plain", "real", "rendered", "sharp", "single", "small",
    "strange", "typical", "unusual", "weathered", "young",
)  # fmt: skip
KINDS = (
    "color", "drawing", "image", "painting", "photo", "photograph", "picture", "scan", "sketch",
    "view",
)  # fmt: skip


class Proposer(Protocol):
    """What thinks of templates."""

    def __call__(
        self,
        best: Sequence[tuple[str, float]],
        worst: Sequence[tuple[str, float]],
        count: int,
        generator: np.random.Generator,
    ) -> Sequence[str]:
        """At most `count` templates, with one `{}` each; templates and losses come best first."""
        ...


def run_words(run: TuningRun, *, proposer: Proposer | str = "", population: int = 20) -> Outcome:
    """Runs the recipe, `population` templates a generation."""
    propose = _proposer(proposer)
    run.plain()
    losses = {run.settings.template: float(run.history[0]["best_loss"])}

    def proposed(count: int) -> list[str]:
        # Of a generation's own, since those of a resumed run are not proposed again.
        stream = [*run.settings.stream("search"), run.generation]
        ranked = sorted(losses.items(), key=lambda item: item[1])
        generator = np.random.default_rng(stream)
        found = propose(ranked[:SHOWN], ranked[-SHOWN:], count, generator)
        return [text for text in dict.fromkeys(found) if text not in losses][:count]

    while some := run.most(Question(population)):
        templates = run.templates(partial(proposed, some))
        if not templates:
            break
        run.generation += 1
        try:
            found = run.ask(templates=templates).losses
        except BudgetExhausted as error:
            run.refused(error)
            break
        losses |= dict(zip(templates, found.tolist(), strict=True))
        run.report("search", float(found.mean()), min(losses.values()), None)
    best = min(losses, key=lambda template: losses[template])
    if best == run.settings.template:
        return Outcome("the plain prompt")
    return Outcome("the template of least training loss", templates=[best])


def _proposer(proposer: Proposer | str) -> Proposer:
    if callable(proposer):
        return proposer
    found: Proposer = loaded_file(proposer) if proposer else mutated
    return found


def mutated(
    best: Sequence[tuple[str, float]],
    worst: Sequence[tuple[str, float]],
    count: int,
    generator: np.random.Generator,
) -> list[str]:
    """Templates that differ by a word or two from good ones, the better the likelier."""
    nouns = common_nouns()
    found: dict[str, None] = {}
    for _ in range(50 * count):
        # The first third: a template's place is drawn with falling probability.
        place = min(int(generator.exponential(len(best) / 3)), len(best) - 1)
        words = best[place][0].split()
        for _ in range(int(generator.integers(1, 3))):
            words = _changed(words, nouns, generator)
        text = " ".join(words)
        if text.count("{}") == 1 and len(words) <= MOST_WORDS and text != best[place][0]:
            found[text] = None
        if len(found) == count:
            break
    return list(found)


def _changed(words: list[str], nouns: Sequence[str], generator: np.random.Generator) -> list[str]:
    """The words with one inserted, replaced, or taken out, or with a kind of thing added."""
    name = next(place for place, word in enumerate(words) if "{}" in word)
    look, kind = (str(generator.choice(some)) for some in (LOOKS, KINDS))
    free = [place for place in range(len(words)) if place != name]
    turn = int(generator.integers(4)) if free else 0
    if turn == 0:
        return [*words[:name], look, *words[name:]]
    if turn == 1:
        place = int(generator.choice(free))
        return [*words[:place], kind, *words[place + 1 :]]
    if turn == 2:
        place = int(generator.choice(free))
        return [*words[:place], *words[place + 1 :]]
    noun = str(generator.choice(nouns))
    return [*words[:name], "{},", "a", "type", "of", f"{noun}."]
