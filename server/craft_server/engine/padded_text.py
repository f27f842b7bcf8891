"""The text tower of models whose texts cannot be cut: whole texts, padded, many at a time.

Where a tower is not causal every token sees all others, so that no beginning can be shared. The
model's own code does all the work, for rows of several texts under several prompts; the words that
a code moves take their places where the token embeddings come out.

Some towers see the padding, too: those of SigLIP, CLIPA and MobileCLIP attend to it, CoCa's places
its class token after it. There a text is as long as the tower was trained with. Hugging Face's
mask it, so that texts of about one length go together and are filled up to the longest of them.

Shapes: P prompts, C texts a prompt, L tokens of the padded texts, W the tower's width.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn
from torch.nn import functional

from craft_server.engine.precision import with_modules
from craft_server.engine.text import Moved, Pack, UnsupportedTowerError
from craft_server.engine.tokens import Ids


@dataclass(frozen=True)
class PaddedPack(Pack):
    """A pack of whole texts, which share nothing: its prefix is empty."""

    length: int  # L

    @property
    def tokens(self) -> int:
        """How many tokens are read, padding included: P C L."""
        return len(self.prompts) * len(self.suffixes) * self.length


class PaddedTextTower:
    """The text tower of an open_clip model, of whatever kind.

    Args:
        model: with `encode_text`.
        context_length: tokens of a text that is filled up.
        padding: the id that it is filled up with.
    """

    def __init__(self, model: nn.Module, context_length: int, padding: int) -> None:
        # Modules of several classes, which share attributes but no type.
        self._model: Any = model
        tower: Any = getattr(model, "text", model)
        self._embedding = _embedding(tower)
        self._hook = self._embedding.register_forward_hook(self._move)
        self._padding = padding
        # What one thread's texts move moves nobody else's.
        self._moving = threading.local()
        self.sees_no_padding = isinstance(tower, HFTextEncoder)
        self.width: int = self._embedding.embedding_dim
        self.context_length = context_length

    def in_precision(self, dtype: torch.dtype) -> PaddedTextTower:
        """The same tower in another precision, as a whole; itself for float32."""
        if dtype == torch.float32:
            return self
        self._hook.remove()  # or else it would be copied, and this tower with it
        cast = copy.deepcopy(with_modules(self._model, visual=None)).to(dtype)
        self._hook = self._embedding.register_forward_hook(self._move)
        return PaddedTextTower(cast, self.context_length, self._padding)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._embedding.weight.device

    def embed(self, ids: Tensor) -> Tensor:
        """The token embeddings of ids [...], without positions: [..., W] in the tower's dtype."""
        embeddings: Tensor = self._embedding(ids.to(self.device))
        return embeddings

    def spread(self, vocabulary: int) -> float:
        """The standard deviation of the first so many tokens' embeddings."""
        # Some towers' embeddings are the table's entries times a number.
        scale = float(getattr(self._embedding, "embed_scale", 1.0))
        return scale * float(self._embedding.weight[:vocabulary].float().std())

    def packs(
        self, sequences: Sequence[Ids], *, prompts: int, max_tokens: int
    ) -> Iterator[PaddedPack]:
        """Cuts prompts x classes into packs of about `max_tokens` tokens, padding included.

        See the function of that name in `craft_server.engine.text`.
        """
        lengths = [
            len(sequence) if self.sees_no_padding else self.context_length for sequence in sequences
        ]
        for classes in _slices(lengths, max_tokens):
            length = lengths[classes[-1]]
            suffixes = tuple(sequences[i] for i in classes)
            step = max(1, max_tokens // (len(classes) * length))
            for first in range(0, prompts, step):
                some = range(first, min(first + step, prompts))
                yield PaddedPack(some, (), tuple(classes), suffixes, length)

    def encode(self, moved: Moved) -> Tensor:
        """Unit features of a pack's texts, float32 [P, C, features]."""
        pack = moved.pack
        length = pack.length if isinstance(pack, PaddedPack) else self.context_length
        ids = torch.full((len(pack.suffixes), length), self._padding)
        for row, suffix in zip(ids, pack.suffixes, strict=True):
            row[: len(suffix)] = torch.tensor(suffix)
        prompts = len(pack.prompts)
        self._moving.now = moved
        try:
            features = self._model.encode_text(ids.repeat(prompts, 1).to(self.device))
        finally:
            self._moving.now = None
        return functional.normalize(features.float(), dim=-1).view(prompts, len(ids), -1)

    def _move(self, _module: nn.Module, _ids: Any, embeddings: Tensor) -> Tensor:
        """Puts the moved words into embeddings [P C, L, W]."""
        moved: Moved | None = getattr(self._moving, "now", None)
        if moved is not None and moved.words is not None:
            prompts, words = moved.words.shape[:2]
            by_prompt = embeddings.view(prompts, -1, *embeddings.shape[1:])
            by_prompt[:, :, moved.first : moved.first + words] = moved.words[:, None]
        return embeddings


def _embedding(tower: Any) -> nn.Embedding:
    """The table of token embeddings."""
    if isinstance(tower, HFTextEncoder):
        table = tower.transformer.get_input_embeddings()
    else:
        table = getattr(tower, "token_embedding", None)
    if not isinstance(table, nn.Embedding):
        raise UnsupportedTowerError("the text tower has no table of token embeddings")
    return table


def _slices(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices by length, cut so that each slice, filled up, has at most `max_tokens`."""
    members: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if members and (len(members) + 1) * lengths[i] > max_tokens:
            yield members
            members = []
        members.append(i)
    yield members
