from __future__ import annotations

from craft_shared.adapter import AdapterConfig
from craft_shared.model_card import model_card
from craft_shared.units import Units
from craft_shared.wire import Provenance


def config(classes: list[str], **provenance: object) -> AdapterConfig:
    return AdapterConfig(
        model="tiny",
        revision="r1",
        classes=classes,
        templates=["a {}."],
        head="none",
        provenance=Provenance.model_validate(provenance),
    )


def test_it_says_what_tuning_found_and_was_charged() -> None:
    made = {"data": "pets", "accuracy_before": 40.25, "accuracy_after": 91.5}
    card = model_card(config(["cat"], **made, units=Units(queries=8201)))
    assert "| tuned on | pets |" in card
    assert "| before: the plain prompt | 40.2 % |" in card
    assert "| after: this adapter, each picture held out | 91.5 % |" in card
    assert "| queries | 8,201 |" in card


def test_what_is_not_known_is_said_to_be_so() -> None:
    card = model_card(config(["cat"]))
    assert "| tuned on | not said |" in card
    assert card.count("not measured") == 2


def test_names_cannot_be_markdown_or_html() -> None:
    hostile = "<script>alert(1)</script> [x](http://y) | **b**\n# title"
    card = model_card(config([hostile], data=hostile))
    assert "<script>" not in card
    assert "[x](" not in card
    assert "\n# title" not in card
    (row,) = [line for line in card.splitlines() if line.startswith("| tuned on")]
    assert row.count("|") - row.count("\\|") == 3


def test_long_lists_are_cut_and_counted() -> None:
    card = model_card(config([f"class {number}" for number in range(1060)]))
    assert '"class 49", and 1,010 more' in card
