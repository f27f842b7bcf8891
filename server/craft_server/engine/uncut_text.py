"""The text tower of models whose texts cannot be cut: every text whole, padded, by itself.

Where the tower is not causal every token sees all others, padding included, so that neither the end
nor the beginning of a text can be shared. The model's own `encode_text` does all the work; the
words that a code moves take their places where the token embeddings come out. Many times slower
than `craft_server.engine.text`, which is for causal towers.

Shapes: P prompts, C texts a prompt, W the tower's width.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from craft_server.engine.text import Moved, UnsupportedTowerError

# A text is as long as the tower allows, so that few fill the caches.
TEXTS_AT_ONCE = {"cpu": 32, "cuda": 1024}
PADDING = 0


class UncutTextTower:
    """The text tower of an open_clip model, of whatever kind, with open_clip's own tokenizer."""

    def __init__(self, model: nn.Module) -> None:
        tower: Any = getattr(model, "text", model)
        embedding = getattr(tower, "token_embedding", None)
        if not isinstance(embedding, nn.Embedding):
            raise UnsupportedTowerError("the text tower has no table of token embeddings")
        self._model: Any = model
        self._embedding = embedding
        # What moves words would move those of other threads' texts.
        self._lock = threading.Lock()
        self.width = embedding.embedding_dim
        self.context_length: int = model.context_length  # type: ignore[assignment] # of nn.Module

    def in_precision(self, dtype: torch.dtype) -> UncutTextTower:
        """The same tower in another precision, as a whole; itself for float32."""
        if dtype == torch.float32:
            return self
        model = copy.copy(self._model)
        model._modules = dict(model._modules) | {"visual": None}
        return UncutTextTower(copy.deepcopy(model).to(dtype))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._embedding.weight.device

    def embed(self, ids: Tensor) -> Tensor:
        """The token embeddings of ids [...], without positions: [..., W] in the tower's dtype."""
        embeddings: Tensor = self._embedding(ids.to(self.device))
        return embeddings

    def encode(self, batch: Sequence[Moved]) -> list[Tensor]:
        """Reads packs one after the other.

        Returns:
            For each pack its unit features, float32 [P, C, features].
        """
        return [self._encode(moved) for moved in batch]

    def _encode(self, moved: Moved) -> Tensor:
        pack = moved.pack
        ids = torch.full((len(pack.suffixes), self.context_length), PADDING)
        for row, suffix in zip(ids, pack.suffixes, strict=True):
            text = pack.prefix + suffix
            row[: len(text)] = torch.tensor(text)
        ids = ids.to(self.device)
        every = [
            moved.words[i] if moved.words is not None else None for i in range(len(pack.prompts))
        ]
        return torch.stack([self._read(ids, words) for words in every])

    def _read(self, ids: Tensor, words: Tensor | None) -> Tensor:
        """Unit features [C, features] of ids [C, tokens] with these words [moved words, W]."""
        with self._lock, self._moved(words):
            features = torch.cat(
                [
                    self._model.encode_text(some)
                    for some in torch.split(ids, TEXTS_AT_ONCE[self.device.type])
                ]
            )
        return functional.normalize(features.float(), dim=-1)

    @contextmanager
    def _moved(self, words: Tensor | None) -> Iterator[None]:
        """Within the block the words after the start token have these embeddings."""
        if words is None:
            yield
            return

        def replace(_module: nn.Module, _ids: Any, embeddings: Tensor) -> Tensor:
            embeddings[:, 1 : 1 + len(words)] = words
            return embeddings

        hook = self._embedding.register_forward_hook(replace)
        try:
            yield
        finally:
            hook.remove()
