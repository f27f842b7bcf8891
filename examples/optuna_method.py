"""A method of a stranger's: Optuna's samplers over codes, by their own ask and tell.

    craft tune --data PICTURES --shots 8 --recipe optuna_method.py:tune --dim 16 --budget 200

The Tree-structured Parzen Estimator sees a code's cross-entropy and nothing else. What it asks is
in the journal before it is used, so that a killed run is resumed: it draws the same numbers again.
"""

import numpy as np
import optuna

from craft_client.arena import Outcome, Question, Run


def tune(run: Run, *, population: int = 8, width: float = 2.0) -> Outcome:
    """Asks for so many codes a generation, whose coordinates are within `width` of zero."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=run.settings.seed)
    study = optuna.create_study(sampler=sampler)
    run.plain()  # every run begins with the plain prompt, and is measured by it
    while some := run.most(Question(population)):  # a last generation may be smaller
        run.generation += 1
        trials = [study.ask() for _ in range(some)]
        codes = np.array(
            [
                [
                    trial.suggest_float(f"z{place}", -width, width)
                    for place in range(run.context.dim)
                ]
                for trial in trials
            ],
            np.float32,
        )
        losses = run.ask(codes=codes).losses  # charged, in the journal, and only then here
        for trial, loss in zip(trials, losses.tolist(), strict=True):
            study.tell(trial, loss)
        best_loss = min(study.best_value, run.history[0]["best_loss"])
        run.report("search", float(losses.mean()), best_loss, None)
    if len(run.history) == 1 or study.best_value >= run.history[0]["best_loss"]:
        return Outcome("the plain prompt")
    best = [study.best_params[f"z{place}"] for place in range(run.context.dim)]
    return Outcome("the best code", codes=np.array([best], np.float32))
