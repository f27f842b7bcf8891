from __future__ import annotations

import asyncio

import numpy as np
import pytest

from craft_server.engine import Engine, Prompts
from craft_shared.wire import Context

NO_CODES = np.zeros((0, 0), np.float32)
CLASSES = ["cat", "golden retriever"]


def asked(*templates: str, context: Context | None = None, codes: object = NO_CODES) -> Prompts:
    return Prompts(templates, context, np.asarray(codes, dtype=np.float32))


def fields(engine: Engine, prompts: Prompts, classes: list[str] = CLASSES) -> list[str]:
    errors = asyncio.run(engine.check_prompts(prompts, classes))
    assert all(error.message and error.remedy for error in errors)
    return [error.field for error in errors]


def test_valid_prompts_have_no_errors(tiny_engine: Engine) -> None:
    codes = np.ones((3, 4))
    prompts = asked("a photo of a {}.", "{}", context=Context(dim=4), codes=codes)
    assert fields(tiny_engine, prompts) == []


def test_context_without_codes_is_fine(tiny_engine: Engine) -> None:
    assert fields(tiny_engine, asked("{}", context=Context())) == []


def test_no_prompt_at_all(tiny_engine: Engine) -> None:
    assert fields(tiny_engine, asked(context=Context())) == ["templates"]


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{name}"])
def test_template_without_exactly_one_slot(tiny_engine: Engine, template: str) -> None:
    assert fields(tiny_engine, asked("a {}.", template)) == ["templates[1]"]


def test_duplicate_class_names_its_first_holder(tiny_engine: Engine) -> None:
    [error] = asyncio.run(tiny_engine.check_prompts(asked("{}"), ["cat", "dog", "cat"]))
    assert error.field == "classes[2]"
    assert "classes[0]" in error.message


@pytest.mark.parametrize("name", ["", "  ", "\t\n"])
def test_blank_class(tiny_engine: Engine, name: str) -> None:
    assert fields(tiny_engine, asked("a {}."), ["cat", name]) == ["classes[1]"]


def test_class_too_long_for_one_prompt_says_which_and_counts(tiny_engine: Engine) -> None:
    fits = " ".join(["cat"] * 74)  # with start, end and the template's full stop: 77
    assert fields(tiny_engine, asked("{}."), [fits]) == []
    [error] = asyncio.run(tiny_engine.check_prompts(asked("{}.", "a {}."), ["cat", fits]))
    assert error.field == "classes[1]"
    assert "'a {}.'" in error.message
    assert "78 tokens" in error.message
    assert "77 are allowed" in error.message


def test_class_too_long_for_the_context(tiny_engine: Engine) -> None:
    prompts = asked(context=Context(dim=2), codes=[[0, 0]])
    assert fields(tiny_engine, prompts, [" ".join(["cat"] * 70)]) == []
    assert fields(tiny_engine, prompts, [" ".join(["cat"] * 71)]) == ["classes[0]"]


@pytest.mark.parametrize("codes", [[[1, 2, 3]], [1, 2], [[[1, 2]]]])
def test_codes_of_another_dimension(tiny_engine: Engine, codes: object) -> None:
    assert fields(tiny_engine, asked(context=Context(dim=2), codes=codes)) == ["codes"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_codes_that_are_not_finite_or_absurd(tiny_engine: Engine, value: float) -> None:
    codes = [[0, 1], [value, 0], [1, 1]]
    assert fields(tiny_engine, asked(context=Context(dim=2), codes=codes)) == ["codes[1]"]


def test_codes_without_context(tiny_engine: Engine) -> None:
    assert fields(tiny_engine, asked("{}", codes=[[1, 2]])) == ["context"]


def test_context_without_a_word(tiny_engine: Engine) -> None:
    prompts = asked(context=Context(init="  ", dim=2), codes=[[1, 2]])
    assert fields(tiny_engine, prompts) == ["context.init"]


def test_projection_larger_than_memory_should_hold(rn50: Engine) -> None:
    codes = np.zeros((1, 4096), np.float32)
    words = Context(init="a " * 17, dim=4096)
    assert fields(rn50, asked(context=words, codes=codes)) == ["context.init"]
    assert fields(rn50, asked(context=Context(init="a " * 16, dim=4096), codes=codes)) == []


@pytest.mark.parametrize("word", ["<start_of_text>", "<end_of_text>", "<END_of_TEXT>"])
def test_reserved_words(tiny_engine: Engine, word: str) -> None:
    assert fields(tiny_engine, asked("a {}."), [f"cat{word}"]) == ["classes[0]"]
    assert fields(tiny_engine, asked(f"a {word} {{}}.")) == ["templates[0]"]
    prompts = asked(context=Context(init=word, dim=1), codes=[[0]])
    assert fields(tiny_engine, prompts) == ["context.init"]
