from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from craft_server.engine import Engine
from craft_server.engine.cuda_graphs import Function, Recordings
from craft_server.engine.padded_text import PaddedTextTower
from craft_server.engine.text import (
    CHUNK_TOKENS,
    Moved,
    Pack,
    TextTower,
    UnsupportedTowerError,
    chunks,
    packs,
)
from craft_server.engine.tokens import Ids, shared_length

sequences = st.lists(
    st.lists(st.integers(0, 2), max_size=5).map(lambda words: (8, *words, 9)),
    min_size=1,
    max_size=12,
)


@given(sequences)
def test_shared_beginning_leaves_each_a_token_and_is_longest(texts: list[Ids]) -> None:
    cut = shared_length(texts)
    assert len({text[:cut] for text in texts}) == 1
    assert all(len(text) > cut for text in texts)
    if all(len(text) > cut + 1 for text in texts):
        assert len({text[: cut + 1] for text in texts}) > 1


@given(sequences, st.integers(1, 9), st.integers(1, 60))
def test_packs_cover_everything_once_within_the_bound(
    texts: list[Ids], prompts: int, bound: int
) -> None:
    seen = []
    for pack in packs(texts, prompts=prompts, max_tokens=bound):
        lengths = [len(suffix) for suffix in pack.suffixes]
        assert lengths == sorted(lengths)
        assert sum(lengths) <= bound or len(lengths) == 1
        assert pack.tokens == len(pack.prompts) * (len(pack.prefix) + sum(lengths))
        assert pack.tokens <= bound or len(pack.prompts) == 1
        for i, suffix in zip(pack.classes, pack.suffixes, strict=True):
            assert pack.prefix + suffix == texts[i]
            seen += [(prompt, i) for prompt in pack.prompts]
    assert sorted(seen) == [(p, i) for p in range(prompts) for i in range(len(texts))]


@given(st.lists(st.integers(1, 90), min_size=1, max_size=80))
def test_chunks_hold_each_text_once_and_few_are_half_empty(lengths: list[int]) -> None:
    found = chunks(lengths)
    counts = [sum(lengths[i] for i in chunk) for chunk in found]
    assert sorted(i for chunk in found for i in chunk) == list(range(len(lengths)))
    assert max(counts) <= max(CHUNK_TOKENS, *lengths)
    assert len(found) == 1 or sum(lengths) > len(found) // 2 * CHUNK_TOKENS / 2


@pytest.mark.parametrize("texts", [47, 100, 1000])
def test_chunks_of_short_texts_are_full(texts: int) -> None:
    lengths = [3 + i % 4 for i in range(texts)]
    counts = [sum(lengths[i] for i in chunk) for chunk in chunks(lengths)]
    assert len(counts) * max(counts) < 1.05 * sum(lengths)


NAMES = ["cat", "golden retriever", "hot-air balloon"]


def relative_error(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


def ids_of(sentence: str) -> Ids:
    ids: list[int] = open_clip.tokenize([sentence])[0].tolist()
    return tuple(ids[: ids.index(max(ids)) + 1])


def features(tower: TextTower, sentence: str, cut: int) -> Tensor:
    """One text whose first `cut` tokens are read as the prefix."""
    ids = ids_of(sentence)
    return tower.encode(Moved(Pack(range(1), ids[:cut], (0,), (ids[cut:],)), None))[0, 0]


def custom_text(**text: object) -> nn.Module:
    config = {"width": 32, "heads": 2, "layers": 2, **text}
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    model = open_clip.CustomTextCLIP(embed_dim=16, vision_cfg=vision, text_cfg=config)
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def test_where_the_prefix_ends_does_not_matter(
    tiny_engine: Engine, module_of: Callable[[str], Any]
) -> None:
    sentence = "a photo of a golden retriever."
    reference = module_of(tiny_engine.name).encode_text(open_clip.tokenize([sentence]), True)[0]
    for cut in range(1, 8):
        assert relative_error(features(tiny_engine._tower, sentence, cut), reference) < 1e-5


def moved(tower: TextTower, prompts: int, names: list[str], seed: int) -> Moved:
    """`names` after a start token and four words, moved at random for each prompt."""
    words = torch.randn(prompts, 4, tower.width, generator=torch.Generator().manual_seed(seed))
    prefix = ids_of("a photo of a cat")[:5]
    suffixes = sorted((ids_of(name)[1:] for name in names), key=len)
    return Moved(Pack(range(prompts), prefix, tuple(range(len(names))), tuple(suffixes)), words)


@torch.inference_mode()
def test_each_prompt_and_text_meet_where_they_should(tiny_engine: Engine) -> None:
    tower = tiny_engine._tower
    for one in moved(tower, 3, NAMES, 1), moved(tower, 2, ["dog", "polka-dotted", "ox"] * 30, 2):
        pack, words, together = one.pack, one.words, tower.encode(one)
        assert words is not None
        assert together.shape[:2] == (len(pack.prompts), len(pack.suffixes))
        for p in pack.prompts:
            for c, suffix in enumerate(pack.suffixes):
                alone = Moved(Pack(range(1), pack.prefix, (0,), (suffix,)), words[p : p + 1])
                assert relative_error(together[p, c], tower.encode(alone)[0, 0]) < 1e-5


@torch.inference_mode()
def test_what_is_remembered_of_the_first_layer_is_of_these_texts(
    tiny_engine: Engine, module_of: Callable[[str], Any]
) -> None:
    tower = TextTower(module_of(tiny_engine.name))
    for names in (["cat"], ["dog"], ["cat"]):
        one = moved(tower, 1, names, 1)
        new = TextTower(module_of(tiny_engine.name)).encode(one)
        assert torch.equal(tower.encode(one), new)


@torch.inference_mode()
def test_a_recording_of_a_pack_serves_its_texts_alone(
    tiny_engine: Engine, module_of: Callable[[str], Any]
) -> None:
    tower, replayed = TextTower(module_of(tiny_engine.name)), []

    def record(function: Function, _x: Tensor) -> Function:
        def replay(x: Tensor) -> Tensor:
            replayed.append(x)
            return function(x)

        return replay

    tower._recordings = Recordings(record)
    asked = [moved(tower, 2, NAMES, 1), moved(tower, 3, NAMES, 2), moved(tower, 2, ["dog"], 3)]
    for _ in range(3):
        for one in asked:
            assert torch.equal(tower.encode(one), tiny_engine._tower.encode(one))
    assert len(replayed) == 2 * len(asked)  # each checked once, and used once


@torch.inference_mode()
def test_padded_tower_moves_the_same_words(
    tiny_engine: Engine, module_of: Callable[[str], Any]
) -> None:
    one = moved(tiny_engine._tower, 3, NAMES, 1)
    cut = tiny_engine._tower.encode(one)
    padded = PaddedTextTower(module_of(tiny_engine.name), context_length=77, padding=0)
    whole = [one.pack.prefix + suffix for suffix in one.pack.suffixes]
    (pack,) = padded.packs(whole, prompts=3, max_tokens=10_000)
    uncut = padded.encode(Moved(pack, one.words))
    assert relative_error(uncut, cut) < 1e-5


@pytest.mark.parametrize(
    "text",
    [{}, {"pool_type": "eos", "eos_id": 49407}, {"proj_bias": True}, {"ls_init_value": 0.5}],
    ids=["argmax", "eos", "projection with bias", "layer scale"],
)
@torch.inference_mode()
def test_custom_text_towers_agree_with_open_clip(text: dict[str, object]) -> None:
    model = custom_text(**text)
    for name in NAMES:
        sentence = f"a photo of a {name}."
        reference = model.encode_text(open_clip.tokenize([sentence]), normalize=True)[0]
        assert relative_error(features(TextTower(model), sentence, 4), reference) < 1e-5


@pytest.mark.parametrize(
    "text",
    [
        {"no_causal_mask": True},
        {"pool_type": "last"},
        {"qk_norm": True, "norm_kwargs": {}},
    ],
    ids=["not causal", "last token", "other blocks"],
)
@torch.inference_mode()
def test_other_towers_are_read_whole(text: dict[str, object]) -> None:
    model = custom_text(**text)
    with pytest.raises(UnsupportedTowerError):
        TextTower(model)
    sentence = "a photo of a golden retriever."
    reference = model.encode_text(open_clip.tokenize([sentence]), normalize=True)[0]
    tower = PaddedTextTower(model, context_length=77, padding=0)
    (pack,) = tower.packs([ids_of(sentence)], prompts=1, max_tokens=100)
    found = tower.encode(Moved(pack, None))
    assert relative_error(found[0, 0], reference) < 1e-5


def test_tower_without_token_embeddings_is_refused() -> None:
    with pytest.raises(UnsupportedTowerError, match="no table of token embeddings"):
        PaddedTextTower(nn.Linear(2, 2), context_length=77, padding=0)


def test_each_thread_moves_its_own_words() -> None:
    tower = PaddedTextTower(custom_text(no_causal_mask=True), context_length=77, padding=0)
    texts = [ids_of(f"a photo of a {name}") for name in NAMES]
    (pack,) = tower.packs(texts, prompts=2, max_tokens=10_000)
    generator = torch.Generator().manual_seed(1)
    batch = [Moved(pack, torch.randn(2, 4, 32, generator=generator)) for _ in range(24)]

    @torch.inference_mode()
    def encode(one: Moved) -> Tensor:
        return tower.encode(one)

    alone = [encode(one) for one in batch]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(encode, batch))
    for found, expected in zip(together, alone, strict=True):
        assert relative_error(found, expected) < 1e-5
    assert relative_error(alone[0], alone[1]) > 1e-3
