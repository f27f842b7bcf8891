from __future__ import annotations

import pytest

from craft_server.settings import DEFAULT_LIMITS
from craft_shared.counting import calls, prediction_units, units_of_calls
from craft_shared.units import Units

SMALL = DEFAULT_LIMITS.model_copy(update={"prompts_per_call": 3, "answer_bytes": 100})


def test_a_call_is_charged_its_prompts_and_what_each_of_them_scores() -> None:
    assert prediction_units(2, 5, texts=10, sent=1) == Units(
        queries=2, predictions=10, images=1, texts=20, requests=1
    )


def test_calls_that_share_the_images_ask_the_prompts_anew() -> None:
    assert prediction_units(2, 5, calls=3) == Units(queries=6, predictions=10, requests=3)


@pytest.mark.parametrize(
    ("prompts", "images", "row_bytes", "expected"),
    [
        (7, 1, 10, [(3, 1), (3, 1), (1, 1)]),  # by the number of prompts
        (4, 5, 10, [(2, 5), (2, 5)]),  # by the bytes of an answer
        (2, 15, 10, [(1, 10), (1, 5), (1, 10), (1, 5)]),  # one prompt's answer is too large
        (2, 0, 10, []),
    ],
)
def test_calls_are_cut_by_the_limits(
    prompts: int, images: int, row_bytes: int, expected: list[tuple[int, int]]
) -> None:
    cut = [(len(some), len(rows)) for some, rows in calls(prompts, images, row_bytes, SMALL)]
    assert cut == expected


def test_units_of_calls_are_their_sum() -> None:
    assert units_of_calls(2, 15, 5, 10, SMALL) == Units(
        queries=4, predictions=30, texts=20, requests=4
    )
