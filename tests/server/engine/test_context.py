from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from craft_server.engine import Engine, Prompts
from craft_server.engine import context as module
from craft_server.engine.context import ABSOLUTE_STD, ContextSpace
from craft_server.engine.worker import at_once
from craft_shared.wire import AbsoluteScale, Context


def standard_normal(seed: int, count: int) -> NDArray[np.float32]:
    return at_once(module.standard_normal(seed, count))


@pytest.fixture
def space(tiny_engine: Engine) -> ContextSpace:
    return tiny_engine._contexts


def test_generator_gives_the_numbers_it_always_gave() -> None:
    golden = [0.8974447, -1.25654, 1.890501, 0.3742715, 0.434082, 0.1473003]
    assert np.allclose(standard_normal(1, 6), golden, rtol=1e-6)


def test_generator_is_a_prefix_of_itself_across_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = standard_normal(5, 1001)
    monkeypatch.setattr("craft_server.engine.context._PAIRS_AT_ONCE", 7)
    assert np.array_equal(standard_normal(5, 1001), whole)
    assert np.array_equal(standard_normal(5, 10), whole[:10])


def test_generator_is_standard_normal_and_depends_on_the_seed() -> None:
    numbers = standard_normal(3, 200_000)
    assert abs(numbers.mean()) < 0.01
    assert abs(numbers.std() - 1) < 0.01
    assert abs((np.abs(numbers) < 1).mean() - 0.6827) < 0.005
    assert abs(np.corrcoef(numbers[::2], numbers[1::2])[0, 1]) < 0.01
    assert abs(np.corrcoef(numbers, standard_normal(4, 200_000))[0, 1]) < 0.01


def test_sigma_is_the_spread_of_the_token_embeddings(
    tiny_engine: Engine, space: ContextSpace, module_of: Callable[[str], Any]
) -> None:
    table = module_of(tiny_engine.name).token_embedding.weight
    assert space.sigma == pytest.approx(float(table.std()), rel=1e-5)


def displacement(space: ContextSpace, context: Context, codes: np.ndarray) -> torch.Tensor:
    origin = space.embeddings(context, np.zeros_like(codes[:1]))
    return space.embeddings(context, codes) - origin


@pytest.mark.parametrize("dim", [16, 256])
@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_standard_normal_code_moves_by_scale_times_sigma(
    space: ContextSpace, dim: int, scale: float
) -> None:
    codes = standard_normal(9, 200 * dim).reshape(200, dim)
    moved = displacement(space, Context(dim=dim, scale=scale), codes)
    assert moved.shape == (200, 4, 64)
    assert float(moved.std()) == pytest.approx(scale * space.sigma, rel=0.05)


@pytest.mark.parametrize("scale", ["paper", "paper-wide", "paper-imagenet"])
def test_paper_scale_is_absolute(space: ContextSpace, scale: AbsoluteScale) -> None:
    context = Context(dim=64, scale=scale)
    columns = displacement(space, context, np.eye(64, dtype=np.float32))
    assert float(columns.std()) == pytest.approx(ABSOLUTE_STD[scale], rel=0.05)


def test_displacement_is_linear_in_the_code(space: ContextSpace) -> None:
    a, b = standard_normal(1, 16).reshape(2, 8)
    moved = displacement(space, Context(dim=8), np.stack([a, b, 2 * a - b]))
    assert torch.allclose(moved[2], 2 * moved[0] - moved[1], atol=1e-6)


def test_same_seed_same_space_and_other_seed_other_space(space: ContextSpace) -> None:
    codes = np.ones((1, 8), np.float32)
    first = space.embeddings(Context(dim=8, seed=1), codes)
    for seed in range(2, 10):
        assert not torch.allclose(space.embeddings(Context(dim=8, seed=seed), codes), first)
    assert torch.equal(space.embeddings(Context(dim=8, seed=1), codes), first)


def test_zero_code_is_the_init_words(tiny_engine: Engine, space: ContextSpace) -> None:
    zero = np.zeros((1, 8), np.float32)
    embeddings = space.embeddings(Context(init="a photo of a", dim=8), zero)
    ids = torch.tensor(tiny_engine._tokenizer.of().words("a photo of a"))
    assert torch.equal(embeddings[0], tiny_engine._tower.embed(ids))
    assert math.prod(embeddings.shape) == 4 * 64


def test_a_projection_is_remembered_for_the_tenant_who_asked_alone(
    space: ContextSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    draw = space._draw_projection

    def counting(*of: Any) -> Any:
        drawn.append(of)
        return draw(*of)

    monkeypatch.setattr(space, "_draw_projection", counting)
    context, codes = Context(dim=8, seed=1234), np.ones((1, 8), np.float32)
    ann, again, bob = (
        space.embeddings(context, codes, tenant=name) for name in ("ann", "ann", "bob")
    )
    assert len(drawn) == 2
    assert torch.equal(ann, again)
    assert torch.equal(ann, bob)


def test_a_projection_is_drawn_before_its_task_waits_for_the_model(
    tiny_engine: Engine, space: ContextSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_by = []
    draw = module.standard_normal

    def watched(*of: Any) -> Any:
        drawn_by.append(threading.current_thread().name.partition("-")[0])
        return draw(*of)

    monkeypatch.setattr(module, "standard_normal", watched)
    codes = np.ones((2, 8), np.float32)
    prompts = Prompts((), Context(dim=8, seed=77), codes)
    asyncio.run(tiny_engine.encode_prompts(prompts, ["cat", "dog"]))
    asyncio.run(tiny_engine.encode_prompts(prompts, ["bird"]))
    assert drawn_by == ["reader"]


def test_a_large_projection_gives_way_while_it_is_drawn(
    space: ContextSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("craft_server.engine.context._PAIRS_AT_ONCE", 64)
    assert len(list(space.draw(Context(dim=8, seed=78)))) == 4 * 64 * 8 // 128


@pytest.mark.parametrize("width", [64, 512, 1280, 4096])
def test_every_projection_that_is_allowed_is_remembered(tiny_engine: Engine, width: int) -> None:
    class Wide:
        def __init__(self) -> None:
            self.width = width

        def spread(self, _count: int) -> float:
            return 1.0

    space = ContextSpace(Wide(), tiny_engine._tokenizer)  # type: ignore[arg-type]
    assert space._projections.max_bytes >= module.MAX_WORDS_TIMES_DIM * width * 4
