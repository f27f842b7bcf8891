"""The model card of an adapter: what a reader of its folder wants to know, as Markdown.

Its front matter is that of model cards on the Hugging Face Hub. It says what the adapter's config
says; it does not know whether that is true.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from craft_shared.units import UNITS
from craft_shared.wire import Output

if TYPE_CHECKING:
    from craft_shared.adapter import AdapterConfig

CARD_FILE = "README.md"
RECEIPT_FILE = "receipt.jws"
_MOST_CLASSES = 50
_BEFORE, _AFTER = "before: the plain prompt", "after: this adapter"

_ACCESS = {
    "strict": "strict: the model scored the class names alone",
    "open-text": "open-text: the model scored further texts beside the class names",
}
_HEADS = {
    "none": "none: the prompt's own prediction",
    "ridge": "a linear map of all prompts' scores, fitted in closed form",
    "mlp": "CraFT's residual MLP on the searched prompt's scores",
}


def model_card(config: AdapterConfig, tested: tuple[str, str, str] | None = None) -> str:
    """The card, a Markdown document that ends with a line feed.

    Args:
        config: the adapter's.
        tested: on which images it was evaluated, and the accuracy on them before and after.
    """
    provenance = config.provenance
    rows = [
        ("model", f"`{config.model}`, revision `{config.revision}`"),
        ("recipe", _or_unknown(provenance.recipe)),
        ("tuned on", _or_unknown(provenance.data)),
        ("training pictures a class", _or_unknown(provenance.shots)),
        ("seed", _or_unknown(provenance.seed)),
        ("access", _ACCESS[config.access_mode]),
        ("prompts", f"{config.prompts}, of them {config.codes} codes"),
        ("head", _HEADS[config.head]),
        *([("visual prompt", f"{config.visual} x {config.visual} pixels")] * bool(config.visual)),
        ("output level of the answers it was fitted on", _plain(level_words(config.output))),
    ]
    accuracies = [
        (_BEFORE, _percent(provenance.accuracy_before)),
        (f"{_AFTER}, each picture held out", _percent(provenance.accuracy_after)),
    ]
    evaluation = ""
    if tested:
        subject, before, after = map(_plain, tested)
        table = _table(("prediction", "accuracy"), [(_BEFORE, before), (_AFTER, after)])
        evaluation = f"## Accuracy on the {subject}\n\n{table}\n\n"
    shown = [json.dumps(name, ensure_ascii=False) for name in config.classes[:_MOST_CLASSES]]
    more = len(config.classes) - len(shown)
    rest = f", and {more:,} more" if more else ""
    return f"""---
library_name: craftbox
pipeline_tag: image-classification
tags: [craft, black-box-tuning, few-shot]
---

# An adapter of {len(config.classes):,} classes for `{config.model}`

Found by craftbox with CraFT (Wang et al., ICML 2024) through a prediction API alone. It holds
points of a search space, a head and class names, and no parameter of the model: only a server of
the model and revision below can use it.

{_table(("", "this adapter"), rows)}

{evaluation}## Accuracy on the training pictures

{_table(("prediction", "accuracy"), accuracies)}

## What tuning was charged

{_table(("unit", "charged"), [(unit, f"{provenance.units[unit]:,}") for unit in UNITS])}

Where the provider's signed receipt was kept, it is `{RECEIPT_FILE}` beside this card:
`craft verify-receipt {RECEIPT_FILE}`.

## Classes

{", ".join(_plain(name) for name in shown)}{rest}

## Files

- `adapter_config.json`: what it is, schema version {config.schema_version}
- `adapter.safetensors`: the same, with codes and head; `craft publish` sends this file
"""


def level_words(output: Output) -> str:
    """An output level in a few words."""
    words = {
        "label": "label: the most probable class, no number",
        "top_k": f"top_k: the {output.k} most probable classes",
        "probs": "probs: probabilities"
        + (f" of the {output.k} most probable classes" if output.k else ""),
        "log_probs": "log_probs: log-probabilities of all classes",
    }[output.level]
    if output.decimals is not None:
        words += f", {output.decimals} decimal{'s' if output.decimals > 1 else ''}"
    return f"{words}, with noise of {output.noise:g} nats" if output.noise else words


def _table(header: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [header, ("---", "---"), *rows]
    return "\n".join(f"| {name} | {value} |" for name, value in lines)


def _or_unknown(value: object) -> str:
    return "not said" if value is None else _plain(str(value))


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1f} %"


def _plain(text: str) -> str:
    """Text in which nothing is Markdown or HTML, on one line."""
    text = "".join(character if character.isprintable() else " " for character in text)
    return "".join(f"\\{mark}" if mark in _MARKS else mark for mark in text)


_MARKS = frozenset("\\`*_{}[]<>()#+!|~&")
