"""The text tower: token ids and moved words in, unit text features out; one path for every prompt.

The tower is causal, which saves twice, exactly: nothing after the end token matters, so that
sequences are cut there; and texts with the same beginning share its keys and values, which are
computed once. Nothing is padded: the tokens of all texts of all prompts are the rows of one matrix,
and in attention, masked, a few dozen of them stand side by side. It saves once more at either end:
in the first layer a text's own tokens are the same under every prompt, and of the last layer only
the end token is needed.

CoCa's text ends with a class token, which stands at the place after the longest text. Its mask is
one place off: hidden is not padding but what follows it. So a text goes on, after its end token,
with one token of padding, which is seen, and the class token, which then does not see itself.

Shapes: P prompts, C texts a prompt, L shared tokens, S own tokens of a text, T own tokens of all C
texts, W the tower's width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional

from craft_server.byte_cache import ByteCache
from craft_server.engine.precision import with_modules
from craft_server.engine.tokens import Ids, shared_length

FIRST_LAYER_CACHE_BYTES = 64 * 2**20
# Texts attend together, masked, in chunks: fewer steps for a little more arithmetic.
CHUNK_TOKENS = 64
CLASS_TOKEN = -1  # stands for it among ids


@dataclass(frozen=True)
class Pack:
    """Some prompts with some classes."""

    prompts: range  # the prompts, as a range of indices
    prefix: Ids  # the tokens that all texts share
    classes: tuple[int, ...]  # the classes' indices; shorter texts come first
    suffixes: tuple[Ids, ...]  # each class's own tokens, which come after the prefix; at least one

    @cached_property
    def tokens(self) -> int:
        """How many tokens are read: prompts x (shared tokens + all own tokens)."""
        return len(self.prompts) * (len(self.prefix) + sum(map(len, self.suffixes)))


def packs(sequences: Sequence[Ids], *, prompts: int, max_tokens: int) -> Iterator[Pack]:
    """Cuts prompts x classes into packs of about `max_tokens` tokens, never none.

    Args:
        sequences: for each class, the tokens of its text under each of the prompts (which only
            differ in what the tokens' embeddings are).
        prompts: how many prompts.
        max_tokens: bound on `Pack.tokens`, as far as one prompt with one class allows.
    """
    cut = shared_length(sequences)
    prefix = sequences[0][:cut]
    for classes in _class_slices([len(sequence) - cut for sequence in sequences], max_tokens):
        suffixes = tuple(sequences[i][cut:] for i in classes)
        step = max(1, max_tokens // (cut + sum(map(len, suffixes))))
        for first in range(0, prompts, step):
            yield Pack(range(first, min(first + step, prompts)), prefix, tuple(classes), suffixes)


def _class_slices(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices by length, cut so that each slice's lengths add up to at most `max_tokens`."""
    members: list[int] = []
    total = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if members and total + lengths[i] > max_tokens:
            yield members
            members, total = [], 0
        members.append(i)
        total += lengths[i]
    yield members


class UnsupportedTowerError(ValueError):
    """The model's text tower is not a causal CLIP text transformer."""


@dataclass(frozen=True)
class Moved:
    """A pack with the embeddings of a text's first words, where a code moves them."""

    pack: Pack  # the texts
    # [P, moved words, W], or None where the texts are read as they stand (P is 1).
    words: Tensor | None
    tenant: str = ""  # whose texts they are; what is remembered of them serves nobody else's
    first: int = 1  # where the words begin: how many start tokens there are


@dataclass(frozen=True)
class _Own:
    """What the texts' own tokens are before any prompt has been seen."""

    placed: Tensor  # embeddings with positions, [T, W]
    joint: Tensor  # the first layer's queries, keys and values, [T, 3 W]

    @property
    def nbytes(self) -> int:
        """Memory that both take."""
        return self.placed.nbytes + self.joint.nbytes


class TextTower:
    """The causal text tower of an open_clip model."""

    def __init__(self, model: nn.Module) -> None:
        # Modules of several classes, which share attributes but no type.
        tower: Any = getattr(model, "text", model)
        _check(tower)
        self._tower = tower
        self._blocks: list[Any] = list(tower.transformer.resblocks)
        self._has_class_token = getattr(tower, "cls_emb", None) is not None
        self._own: ByteCache[tuple[object, ...], _Own] = ByteCache(FIRST_LAYER_CACHE_BYTES)
        self.width: int = tower.transformer.width
        self.context_length: int = tower.positional_embedding.shape[0]

    def in_precision(self, dtype: torch.dtype) -> TextTower:
        """The same tower with its layers' products in `dtype`; itself for float32.

        What they are added to, and what is normalised, stays in single precision.
        """
        if dtype == torch.float32:
            return self
        transformer = copy.deepcopy(self._tower.transformer)
        for layer in transformer.modules():
            if isinstance(layer, nn.Linear | nn.MultiheadAttention):
                layer.to(dtype)
        return TextTower(with_modules(self._tower, visual=None, transformer=transformer))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self._tower.positional_embedding.device
        return device

    def embed(self, ids: Tensor) -> Tensor:
        """The token embeddings of ids [...], without positions: float32 [..., W]."""
        embeddings: Tensor = self._tower.token_embedding(ids.to(self.device))
        return embeddings

    def spread(self, vocabulary: int) -> float:
        """The standard deviation of the first so many tokens' embeddings."""
        return float(self._tower.token_embedding.weight[:vocabulary].float().std())

    def packs(self, sequences: Sequence[Ids], *, prompts: int, max_tokens: int) -> Iterator[Pack]:
        """See the function `packs`."""
        if self._has_class_token:
            sequences = [self._with_class_token(sequence) for sequence in sequences]
        return packs(sequences, prompts=prompts, max_tokens=max_tokens)

    def _with_class_token(self, sequence: Ids) -> Ids:
        padding = (self._tower.pad_id,) * (len(sequence) < self._tower.context_length)
        return (*sequence, *padding, CLASS_TOKEN)

    def encode(self, batch: Sequence[Moved]) -> list[Tensor]:
        """Reads packs together.

        Returns:
            For each pack its unit features, float32 [P, C, features].
        """
        hiding = self._tower.pad_id if self._has_class_token else None
        packs = [_Rows.of(moved.pack, hiding, self.device) for moved in batch]
        prefixes = [self._prefixes(moved) for moved in batch]
        owns = [self._first_layer(moved.pack, moved.tenant) for moved in batch]
        x = torch.cat(
            [_with_own(prefix, own.placed) for prefix, own in zip(prefixes, owns, strict=True)]
        )
        joint = torch.cat(
            [
                _with_own(_joint(self._blocks[0], prefix), own.joint)
                for prefix, own in zip(prefixes, owns, strict=True)
            ]
        )
        for block in self._blocks:
            if block is not self._blocks[0]:
                joint = _joint(block, x)
            ends_alone = block is self._blocks[-1]
            mixed = torch.cat(
                [
                    _mix(part, rows, heads=block.attn.num_heads, ends_alone=ends_alone)
                    for part, rows in zip(
                        torch.split(joint, [rows.count for rows in packs]), packs, strict=True
                    )
                ]
            )
            if ends_alone:
                x = x[_ends(packs)]
            x = _block_output(block, x, mixed)
        features = functional.normalize(self._project(self._tower.ln_final(x)).float(), dim=-1)
        shares = torch.split(features, [rows.prompts * rows.texts for rows in packs])
        return [
            share.view(rows.prompts, rows.texts, -1)
            for share, rows in zip(shares, packs, strict=True)
        ]

    def _prefixes(self, moved: Moved) -> Tensor:
        """The shared tokens of all prompts, placed: [P, L, W]."""
        prefix = self.embed(torch.tensor([moved.pack.prefix], dtype=torch.long))
        if moved.words is not None:
            prefix = prefix.repeat(len(moved.words), 1, 1)
            prefix[:, moved.first : moved.first + moved.words.shape[1]] = moved.words
        placed: Tensor = prefix + self._tower.positional_embedding[: prefix.shape[1]]
        return placed

    def _first_layer(self, pack: Pack, tenant: str) -> _Own:
        """What the first layer makes of own tokens, remembered for each tenant apart."""
        key = (tenant, len(pack.prefix), pack.suffixes)
        own = self._own.get(key)
        if own is None:
            first = len(pack.prefix)
            ids = torch.tensor(list(chain.from_iterable(pack.suffixes)))
            places = torch.cat(
                [torch.arange(first, first + len(suffix)) for suffix in pack.suffixes]
            )
            positions = self._tower.positional_embedding
            placed = self.embed(ids.clamp(min=0)) + positions[places.to(self.device)]
            if self._has_class_token:
                placed[(ids == CLASS_TOKEN).to(self.device)] = self._tower.cls_emb + positions[-1]
            own = _Own(placed, _joint(self._blocks[0], placed))
            self._own.put(key, own)
        return own

    def _project(self, x: Tensor) -> Tensor:
        projection = self._tower.text_projection
        if projection is None:
            return x
        projected: Tensor = projection(x) if isinstance(projection, nn.Module) else x @ projection
        return projected


@dataclass(frozen=True)
class _Chunk:
    """Tokens of a pack that attend together: of whole texts, and at first the shared ones."""

    where: slice  # they stand, among the L + T tokens of a prompt
    ends: Tensor  # of these tokens the end tokens, int64 [texts]
    # Which tokens each of them sees, of the shared ones and its own text, up to itself; bool
    # [tokens, L + tokens], in the first chunk [tokens, tokens].
    seen: Tensor


@dataclass(frozen=True)
class _Rows:
    """Where a pack's tokens stand: for each prompt its L shared tokens, then the texts' own."""

    prompts: int  # P
    shared: int  # L
    chunks: tuple[_Chunk, ...]  # the tokens of a prompt, in their order

    @classmethod
    def of(cls, pack: Pack, hiding: int | None, device: torch.device) -> _Rows:
        """`hiding` is the id after which a token is seen by none."""
        shared = len(pack.prefix)
        chunks: list[_Chunk] = []
        for lengths in _slices([len(suffix) for suffix in pack.suffixes]):
            first = chunks[-1].where.stop if chunks else 0
            chunks.append(_chunk(first, lengths, shared, device))
        if hiding is not None:
            _hide(chunks, pack, hiding)
        return cls(len(pack.prompts), shared, tuple(chunks))

    @property
    def texts(self) -> int:
        """C."""
        return sum(len(chunk.ends) for chunk in self.chunks)

    @property
    def tokens(self) -> int:
        """L + T."""
        return int(self.chunks[-1].where.stop)

    @property
    def count(self) -> int:
        """P (L + T)."""
        return self.prompts * self.tokens

    def ends(self) -> Tensor:
        """Rows of the end tokens, [P C]."""
        of_one = torch.cat([chunk.where.start + chunk.ends for chunk in self.chunks])
        prompts = torch.arange(self.prompts, device=of_one.device)[:, None]
        return (prompts * self.tokens + of_one).flatten()


def _slices(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The texts' lengths, cut where a chunk would have more than CHUNK_TOKENS of them."""
    members: list[int] = []
    for length in lengths:
        if members and sum(members) + length > CHUNK_TOKENS:
            yield members
            members = []
        members.append(length)
    yield members


def _chunk(first: int, lengths: Sequence[int], shared: int, device: torch.device) -> _Chunk:
    counts = torch.tensor(lengths)
    # The shared tokens are text 0, which all others see.
    text = torch.repeat_interleave(torch.arange(1, len(lengths) + 1), counts)
    keys = torch.cat([torch.zeros(shared, dtype=text.dtype), text])
    seen = ((keys[:, None] == keys) | (keys == 0)).tril()
    ends = shared + counts.cumsum(0) - 1
    if first:
        seen, ends = seen[shared:], ends - shared
    return _Chunk(slice(first, first + len(seen)), ends.to(device), seen.to(device))


def _hide(chunks: Sequence[_Chunk], pack: Pack, hiding: int) -> None:
    """Lets no token see those that follow the id `hiding`."""
    hidden = _follow(hiding, (), pack.prefix)
    for suffix in pack.suffixes:
        hidden += _follow(hiding, pack.prefix, suffix)
    shared = len(pack.prefix)
    for chunk in chunks:
        keys = hidden[:shared] + hidden[max(shared, chunk.where.start) : chunk.where.stop]
        chunk.seen[:, torch.tensor(keys, device=chunk.seen.device)] = False


def _follow(hiding: int, before: Ids, ids: Ids) -> list[bool]:
    """Of each of `ids` whether it follows the id `hiding`."""
    return [before[-1:] == (hiding,), *(i == hiding for i in ids[:-1])][: len(ids)]


def _ends(packs: Sequence[_Rows]) -> Tensor:
    """Rows of all packs' end tokens."""
    firsts = accumulate((rows.count for rows in packs[:-1]), initial=0)
    return torch.cat([first + rows.ends() for first, rows in zip(firsts, packs, strict=True)])


def _with_own(prefix: Tensor, own: Tensor) -> Tensor:
    """Rows [P (L + T), ...] of each prompt's prefix [P, L, ...] and the own tokens [T, ...]."""
    return torch.cat([prefix, own.expand(len(prefix), -1, -1)], dim=1).flatten(0, 1)


def _joint(block: Any, x: Tensor) -> Tensor:
    """A layer's queries, keys and values of x [..., W], side by side: [..., 3 W]."""
    weight = block.attn.in_proj_weight
    return functional.linear(block.ln_1(x).to(weight.dtype), weight, block.attn.in_proj_bias)


def _block_output(block: Any, x: Tensor, mixed: Tensor) -> Tensor:
    x = x + block.ls_1(block.attn.out_proj(mixed))
    output: Tensor = x + block.ls_2(block.mlp(block.ln_2(x).to(mixed.dtype)))
    return output


def _mix(joint: Tensor, rows: _Rows, *, heads: int, ends_alone: bool) -> Tensor:
    """Attention within a pack.

    Args:
        joint: queries, keys and values, side by side, of its tokens, [P (L + T), 3 W].
        rows: where these tokens belong.
        heads: of the attention.
        ends_alone: whether only the end tokens ask.

    Returns:
        What each token has gathered, [P (L + T), W]; of the end tokens alone, [P C, W].
    """
    by_head = joint.view(rows.prompts, rows.tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    shared_keys, shared_values = by_head[1:, :, :, : rows.shared]
    gathered = []
    for chunk in rows.chunks:
        q, k, v = by_head[:, :, :, chunk.where]
        if chunk.where.start:
            k, v = torch.cat([shared_keys, k], dim=2), torch.cat([shared_values, v], dim=2)
        seen = chunk.seen
        if ends_alone:
            q, seen = q[:, :, chunk.ends], seen[chunk.ends]
        gathered.append(functional.scaled_dot_product_attention(q, k, v, attn_mask=seen))
    return torch.cat(gathered, dim=2).transpose(1, 2).flatten(2).flatten(0, 1)


def _check(tower: Any) -> None:
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", ())
    pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    causal = getattr(tower, "attn_mask", None) is not None
    plain = bool(blocks) and all(type(block) is ResidualAttentionBlock for block in blocks)
    class_token = getattr(tower, "cls_emb", None) is not None
    at_end = not tower.correct_cls_mask if class_token else pool in ("argmax", "eos")
    if not (causal and plain and at_end):
        raise UnsupportedTowerError("the text tower is not a causal CLIP text transformer")
