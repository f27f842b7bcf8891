from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from craft_server.engine.text import packs
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
