from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import open_clip
import pytest
import structlog
import torch
from numpy.typing import NDArray
from PIL import Image

from craft_server.engine import Engine, ModelSpec, Prompts, WorkerDied, hosted
from craft_server.engine import engine as module
from craft_shared.wire import Context

CLASSES = ["cat", "golden retriever", "A.B. c", "hot-air balloon", "cat's tail", "dog"]
NO_CODES = np.zeros((0, 0), np.float32)


def texts(engine: Engine, prompts: Prompts, classes: list[str] = CLASSES) -> NDArray[np.float32]:
    assert asyncio.run(engine.check_prompts(prompts, classes)) == []
    return asyncio.run(engine.encode_prompts(prompts, classes))


@torch.inference_mode()
def reference(module: Any, template: str) -> NDArray[np.float32]:
    ids = open_clip.tokenize([template.replace("{}", name) for name in CLASSES])
    features: NDArray[np.float32] = module.encode_text(ids, normalize=True).numpy()
    return features


def relative_error(value: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", ["tiny_engine", "rn50"])
@pytest.mark.parametrize("template", ["a photo of a {}.", "{} on a table", "many {}s"])
def test_text_features_are_open_clips(
    name: str, template: str, request: pytest.FixtureRequest, module_of: Callable[[str], Any]
) -> None:
    engine: Engine = request.getfixturevalue(name)
    features = texts(engine, Prompts((template,), None, NO_CODES))
    assert features.dtype == np.float32
    assert relative_error(features[0], reference(module_of(engine.name), template)) < 1e-5


@pytest.mark.parametrize("name", ["tiny_engine", "rn50"])
@torch.inference_mode()
def test_image_features_are_open_clips(
    name: str,
    request: pytest.FixtureRequest,
    picture: Callable[..., bytes],
    module_of: Callable[[str], Any],
) -> None:
    engine: Engine = request.getfixturevalue(name)
    files = [picture(i, size=(50 + i, 40)) for i in range(3)]
    images = asyncio.run(engine.decode_images(files, max_pixels=10_000))
    features = asyncio.run(engine.encode_images(images))
    _, _, preprocess = open_clip.create_model_and_transforms(engine.name)
    batch = torch.stack([preprocess(Image.open(io.BytesIO(file))) for file in files])
    expected = module_of(engine.name).encode_image(batch, normalize=True).numpy()
    assert relative_error(features, expected) < 1e-5


def test_zero_code_is_the_plain_prompt(tiny_engine: Engine) -> None:
    zero = np.zeros((1, 16), np.float32)
    prompts = Prompts(("a photo of a {}.",), Context(init="a photo of a", dim=16), zero)
    plain, moved = texts(tiny_engine, prompts)
    assert relative_error(moved, plain) < 1e-6


def test_templates_come_first_and_codes_in_order(
    tiny_engine: Engine, module_of: Callable[[str], Any]
) -> None:
    codes = np.random.default_rng(1).standard_normal((5, 16), dtype=np.float32)
    context = Context(dim=16, scale=5.0)
    together = texts(tiny_engine, Prompts(("{}", "a {}."), context, codes))
    assert together.shape == (7, len(CLASSES), 32)
    assert relative_error(together[0], reference(module_of(tiny_engine.name), "{}")) < 1e-5
    assert relative_error(together[1], reference(module_of(tiny_engine.name), "a {}.")) < 1e-5
    for i, code in enumerate(codes):
        alone = texts(tiny_engine, Prompts((), context, code[None]))
        assert relative_error(together[2 + i], alone[0]) < 1e-5
        assert relative_error(together[2 + i], together[0]) > 1e-2


@pytest.mark.parametrize("bound", [1, 13, 60])
def test_how_work_is_cut_does_not_change_it(
    tiny_engine: Engine, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = np.random.default_rng(2).standard_normal((7, 16), dtype=np.float32)
    prompts = Prompts(("a {}.",), Context(dim=16), codes)
    whole = texts(tiny_engine, prompts)
    x = whole[0, :3]
    scores = asyncio.run(tiny_engine.score(x, whole))
    monkeypatch.setattr(tiny_engine, "_tokens_per_task", bound)
    monkeypatch.setattr(hosted, "SCORES_PER_TASK", bound)
    assert relative_error(texts(tiny_engine, prompts), whole) < 1e-5
    assert np.allclose(asyncio.run(tiny_engine.score(x, whole)), scores, atol=1e-5)


def test_images_keep_their_order_across_tasks(
    tiny_engine: Engine, picture: Callable[..., bytes]
) -> None:
    files = [picture(i) for i in range(70)]
    images = asyncio.run(tiny_engine.decode_images(files, max_pixels=10_000))
    features = asyncio.run(tiny_engine.encode_images(images))
    last = asyncio.run(tiny_engine.encode_images(images[-1:]))
    assert features.shape == (70, 32)
    assert relative_error(features[-1:], last) < 1e-5
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


def test_no_images_are_no_features(tiny_engine: Engine) -> None:
    assert asyncio.run(tiny_engine.encode_images([])).shape == (0, 32)


def test_scores_come_in_parts_that_make_up_the_whole(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    x, t = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 8), (3, 4, 8)))
    whole = asyncio.run(tiny_engine.score(x, t))

    async def parts() -> list[tuple[slice, slice, Any]]:
        return [part async for part in tiny_engine.score_parts(x, t)]

    for most, count in ((40, 2), (8, 9), (1, 15)):
        monkeypatch.setattr(hosted, "SCORES_PER_TASK", most)
        found = np.full_like(whole, np.nan)
        every = asyncio.run(parts())
        assert len(every) == count
        for prompts, images, part in every:
            assert part.size <= max(most, 4)
            found[prompts, images] = part
        np.testing.assert_allclose(found, whole, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scores_are_log_probabilities_of_scaled_cosines(
    tiny_engine: Engine, dtype: str, module_of: Callable[[str], Any]
) -> None:
    rng = np.random.default_rng(3)
    x, t = (rng.standard_normal(shape, dtype=np.float32) for shape in ((4, 32), (3, 6, 32)))
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    t /= np.linalg.norm(t, axis=-1, keepdims=True)
    scores = asyncio.run(tiny_engine.score(x, t, dtype))  # type: ignore[arg-type] # one of the parameters above
    logits = np.exp(module_of(tiny_engine.name).logit_scale.item()) * np.einsum("nd,pcd->pnc", x, t)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert scores.shape == (3, 4, 6)
    assert scores.dtype == dtype
    assert np.allclose(scores, expected, atol=1e-4 if dtype == "float32" else 2e-2)


def test_requests_take_turns(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_engine, "_tokens_per_task", 1)
    codes = np.zeros((50, 4), np.float32)

    async def both() -> list[str]:
        finished: list[str] = []

        async def ask(name: str, prompts: Prompts) -> None:
            await tiny_engine.encode_prompts(prompts, CLASSES)
            finished.append(name)

        large = ask("large", Prompts((), Context(dim=4), codes))
        small = ask("small", Prompts(("{}",), None, NO_CODES))
        await asyncio.gather(large, small)
        return finished

    assert asyncio.run(both()) == ["small", "large"]


def test_texts_that_were_asked_before_are_remembered_for_the_same_tenant(
    tiny_engine: Engine,
) -> None:
    cache = tiny_engine.text_features
    codes = np.random.default_rng(4).standard_normal((2, 8), dtype=np.float32)
    prompts = Prompts(("remembered {}",), Context(dim=8), codes)

    def ask(classes: list[str], tenant: str) -> tuple[NDArray[np.float32], int, int]:
        hits, misses = cache.hits, cache.misses
        features = asyncio.run(tiny_engine.encode_prompts(prompts, classes, tenant=tenant))
        return features, cache.hits - hits, cache.misses - misses

    first, *counts = ask(CLASSES, "a")
    assert counts == [0, 2]  # of the template and of the codes
    again, *counts = ask(CLASSES, "a")
    assert counts == [2, 0]
    assert np.array_equal(first, again)
    again[:] = 0
    assert np.array_equal(ask(CLASSES, "a")[0], first)
    other, *counts = ask(CLASSES, "b")
    assert counts == [0, 2]
    assert np.array_equal(first, other)
    fewer, *counts = ask(CLASSES[1:], "a")
    assert counts == [0, 2]
    assert relative_error(fewer, first[:, 1:]) < 1e-5
    elsewhere = Prompts((), Context(dim=8, seed=2), codes)
    moved = asyncio.run(tiny_engine.encode_prompts(elsewhere, CLASSES, tenant="a"))
    assert relative_error(moved, first[1:]) > 1e-3


def test_class_lists_are_remembered_for_the_same_tenant(tiny_engine: Engine) -> None:
    cache = tiny_engine._tower._own
    classes = [f"{name} of class lists" for name in CLASSES]

    def misses(seed: int, tenant: str) -> int:
        before = cache.misses
        codes = np.random.default_rng(seed).standard_normal((2, 8), dtype=np.float32)
        prompts = Prompts((), Context(dim=8), codes)
        asyncio.run(tiny_engine.encode_prompts(prompts, classes, tenant=tenant))
        return cache.misses - before

    assert [misses(1, "a"), misses(2, "a"), misses(3, "b"), misses(4, "b")] == [1, 0, 1, 0]


def test_tower_that_is_not_causal_is_said_to_be_slow(module_of: Callable[[str], Any]) -> None:
    with structlog.testing.capture_logs() as lines:
        engine = Engine.load(ModelSpec("MobileCLIP2-S0", device="cpu", precision="float32"))
    try:
        (line,) = [line for line in lines if "SLOW TEXTS" in line["event"]]
        assert line["model"] == "MobileCLIP2-S0"
        template = "a photo of a {}."
        features = texts(engine, Prompts((template,), None, NO_CODES))
        assert relative_error(features[0], reference(module_of(engine.name), template)) < 1e-5
    finally:
        engine.close()


@pytest.mark.parametrize(("cores", "shares"), [(1, False), (2, True)])
def test_one_core_shares_no_packs_so_that_no_call_goes_first(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch, cores: int, shares: bool
) -> None:
    monkeypatch.setattr(module, "LEAST_WIDTH_TO_SHARE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    engine = Engine.load(ModelSpec(tiny_engine.name, device="cpu"))
    engine.close()
    assert engine._shares_packs is shares


def test_half_precision_is_close(tiny_engine: Engine) -> None:
    half = Engine.load(ModelSpec(tiny_engine.name, device="cpu", precision="bfloat16"))
    try:
        codes = np.ones((1, 4), np.float32)
        prompts = Prompts(("a {}.",), Context(dim=4), codes)
        features = texts(half, prompts)
        assert features.dtype == np.float32
        assert relative_error(features, texts(tiny_engine, prompts)) < 0.05
        pixels = torch.zeros(3, 32, 32)
        images = asyncio.run(half.encode_images([pixels]))
        expected = asyncio.run(tiny_engine.encode_images([pixels]))
        assert relative_error(images, expected) < 0.05
    finally:
        half.close()


def test_most_extreme_codes_keep_half_precision_finite(tiny_engine: Engine) -> None:
    half = Engine.load(ModelSpec(tiny_engine.name, device="cpu", precision="float16"))
    try:
        codes = np.full((1, 4), 1000, np.float32)
        features = texts(half, Prompts((), Context(dim=4, scale=1000.0), codes))
        assert np.allclose(np.linalg.norm(features, axis=-1), 1, atol=1e-2)
    finally:
        half.close()


def test_closed_engine_is_not_alive_and_refuses(tiny_engine: Engine) -> None:
    engine = Engine.load(ModelSpec(tiny_engine.name, device="cpu"))
    engine.close()
    engine.close()
    assert not engine.alive
    with pytest.raises(WorkerDied):
        asyncio.run(engine.encode_prompts(Prompts(("{}",), None, NO_CODES), ["cat"]))
    assert tiny_engine.alive
