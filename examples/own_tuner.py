"""A method of one's own: the cross-entropy method over codes, with craftbox's closed-form head.

craft tune --data PICTURES --shots 8 --recipe own_tuner.py:tune --budget 65
"""

import numpy as np

from craft_client.arena import Outcome, Question, Reading, Run, Unrefined, cross_entropy
from craft_client.recipes.craftbox import fit


class CrossEntropyMethod:
    """Draws codes from a diagonal Gaussian, which it fits to the best quarter of each generation.

    Source: Rubinstein, "The cross-entropy method for combinatorial and continuous optimization",
    Methodology and Computing in Applied Probability 1 (1999).
    """

    def __init__(self, dim, population, seed):
        self.generator = np.random.default_rng(seed)
        self.mean, self.spread = np.zeros(dim, np.float32), np.ones(dim, np.float32)
        self.shape = population, dim

    def ask(self):
        """The next generation's codes."""
        noise = self.generator.standard_normal(self.shape, dtype=np.float32)
        return self.mean + self.spread * noise

    def tell(self, codes, losses):
        """Learns from their losses."""
        best = codes[losses.argsort()[: max(2, len(codes) // 4)]]
        self.mean, self.spread = best.mean(axis=0), best.std(axis=0) + np.float32(0.1)


def tune(run: Run, *, population: int = 8) -> Outcome:
    """Keeps the best code of each generation, and fits a head on the plain prompt and them."""
    kept, codes = [run.plain()], run.no_codes
    search = CrossEntropyMethod(run.context.dim, population, run.settings.seed)

    def read(log_probs):
        """What is used of an answer, and is in the journal: losses, and the best code's scores."""
        losses = cross_entropy(log_probs, run.labels)
        return Reading(losses, {"best": log_probs[losses.argmin()]})

    while some := run.most(Question(population)):
        run.generation += 1
        asked = search.ask()[:some]
        answer = run.ask(read, asked)
        search.tell(asked, answer.losses)
        codes = np.concatenate([codes, asked[answer.losses.argmin()][None]])
        kept.append(answer.kept["best"])
        best_loss = min(run.history[-1]["best_loss"], float(answer.losses.min()))
        run.report("search", float(answer.losses.mean()), best_loss, None)
    scores = np.stack(kept)
    head = fit(scores, run.labels, run.copies_in(scores)).head
    # Where the plain prompt is better there is no head, and no code is to be kept.
    plain = isinstance(head, Unrefined)
    return Outcome(
        "the best code of each generation", codes=codes[:0] if plain else codes, head=head
    )
