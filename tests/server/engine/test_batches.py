from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from craft_server.engine.batches import batches
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
def test_batches_cover_everything_once_within_the_bound(
    texts: list[Ids], prompts: int, bound: int
) -> None:
    seen = []
    for batch in batches(texts, prompts=prompts, max_tokens=bound):
        own = sum(len(suffix) for group in batch.groups for suffix in group.suffixes)
        members = [i for group in batch.groups for i in group.classes]
        assert own <= bound or len(members) == 1
        assert len(batch.prompts) * (len(batch.prefix) + own) <= bound or len(batch.prompts) == 1
        for group in batch.groups:
            assert len({len(suffix) for suffix in group.suffixes}) == 1
            for i, suffix in zip(group.classes, group.suffixes, strict=True):
                assert batch.prefix + suffix == texts[i]
                seen += [(prompt, i) for prompt in batch.prompts]
    assert sorted(seen) == [(p, i) for p in range(prompts) for i in range(len(texts))]
