"""The text tower: token ids and moved words in, unit text features out; one path for every prompt.

The tower is causal, which saves twice, exactly: nothing after the end token matters, so that
sequences are cut there; and texts with the same beginning share its keys and values, which are
computed once. The own tokens of all texts stand in chunks, whole texts side by side, a few dozen
tokens each: attention, masked, is one call a layer whatever the texts, and all else is a product of
one matrix, whose rows are the tokens of all prompts. It saves once more at either end: in the first
layer a text's own tokens are the same under every prompt, and of the last layer only the end token
is needed.

CoCa's text ends with a class token, which stands at the place after the longest text. Its mask is
one place off: hidden is not padding but what follows it. So a text goes on, after its end token,
with one token of padding, which is seen, and the class token, which then does not see itself.

Shapes: P prompts, C texts a prompt, L shared tokens, n chunks of S tokens, W the tower's width,
H its heads. Rows of tokens are those of the chunks first, [P n S], then the shared ones, [P L].
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional

from craft_server.byte_cache import ByteCache
from craft_server.engine.cuda_graphs import Recordings, cuda_graphs
from craft_server.engine.precision import with_modules
from craft_server.engine.tokens import Ids, shared_length

FIRST_LAYER_CACHE_BYTES = 64 * 2**20
# Of a chunk, unless a text is longer: fewer steps for a little more arithmetic.
CHUNK_TOKENS = 64
# CUDA's attention copies a mask, in each layer, whose rows do not begin at a multiple of so many.
MASK_ROW = 16
# A GPU takes longer for more than it takes to launch its kernels.
MOST_ROWS_RECORDED = 8192
CLASS_TOKEN = -1  # stands for it among ids

Mask = NDArray[np.bool_]


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
    """The own tokens of a pack's texts, in chunks, before any prompt has been seen."""

    placed: Tensor  # embeddings with positions, [n S, W]
    joint: Tensor  # the first layer's queries, keys and values, [n S, 3 W]
    # What is added to the scores, 0 or -inf: of the tokens of a chunk, [n, S, L + S or more], and
    # of the shared ones, [L, L].
    seen: Tensor
    shared_seen: Tensor
    ends: Tensor  # where among the n S tokens each text's end token is, int64 [C]

    @property
    def nbytes(self) -> int:
        """Memory that all take."""
        return sum(tensor.nbytes for tensor in vars(self).values())

    def of_ends(self, rows: Tensor) -> Tensor:
        """The end tokens' rows, [P C, W], of rows [P n S, W]."""
        return rows.view(-1, len(self.placed), rows.shape[-1])[:, self.ends].flatten(0, 1)


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
        self._recordings = Recordings(cuda_graphs()) if self.device.type == "cuda" else None

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

    def encode(self, moved: Moved) -> Tensor:
        """Unit features of a pack's texts, float32 [P, C, features]."""
        prefixes, own = self._prefixes(moved), self._laid_out(moved.pack, moved.tenant)
        read = partial(self._read, own)
        rows = len(prefixes) * (prefixes.shape[1] + len(own.placed))
        if self._recordings is None or rows > MOST_ROWS_RECORDED:
            return read(prefixes)
        return self._recordings.run((id(own), len(prefixes)), read, prefixes)

    def _read(self, own: _Own, prefixes: Tensor) -> Tensor:
        """Features of texts that begin with placed tokens [P, L, W]."""
        prompts, shared = prefixes.shape[:2]
        seen = own.seen.repeat(prompts, 1, 1)[:, None, :, : shared + own.seen.shape[1]]
        x = _rows(own.placed, prefixes)
        joint = _rows(own.joint, _joint(self._blocks[0], prefixes))
        for block in self._blocks:
            if block is not self._blocks[0]:
                joint = _joint(block, x)
            ends_alone = block is self._blocks[-1]
            mixed = _mix(joint, own, seen, heads=block.attn.num_heads, ends_alone=ends_alone)
            if ends_alone:
                x = own.of_ends(x[: prompts * len(own.placed)])
            x = _block_output(block, x, mixed)
        features = functional.normalize(self._project(self._tower.ln_final(x)).float(), dim=-1)
        return features.view(prompts, len(own.ends), -1)

    def _prefixes(self, moved: Moved) -> Tensor:
        """The shared tokens of all prompts, placed: [P, L, W]."""
        prefix = self.embed(torch.tensor([moved.pack.prefix], dtype=torch.long))
        if moved.words is not None:
            prefix = prefix.repeat(len(moved.words), 1, 1)
            prefix[:, moved.first : moved.first + moved.words.shape[1]] = moved.words
        placed: Tensor = prefix + self._tower.positional_embedding[: prefix.shape[1]]
        return placed

    def _laid_out(self, pack: Pack, tenant: str) -> _Own:
        """The own tokens of a pack, remembered for each tenant apart."""
        hiding = self._tower.pad_id if self._has_class_token else None
        after_hiding = pack.prefix[-1:] == (hiding,)
        hidden = _follow(hiding, pack.prefix, after=False)
        key = (tenant, hidden, after_hiding, pack.suffixes)
        own = self._own.get(key)
        if own is None:
            rest = [_follow(hiding, suffix, after=after_hiding) for suffix in pack.suffixes]
            own = self._in_chunks(pack, np.array(hidden, bool), [np.array(one) for one in rest])
            self._own.put(key, own)
        return own

    def _in_chunks(self, pack: Pack, hidden: Mask, own_hidden: Sequence[Mask]) -> _Own:
        """Hidden tokens, of the shared ones [L] and of each text's own, are seen by none."""
        together = chunks([len(suffix) for suffix in pack.suffixes])
        texts = list(chain.from_iterable(together))  # in the order in which they stand
        lengths = np.array([len(pack.suffixes[i]) for i in texts])
        counts = np.array([sum(len(pack.suffixes[i]) for i in some) for some in together])[:, None]
        # A chunk is filled up with copies of its last token, which are seen by none either.
        slot = np.arange(counts.max())
        real = slot < counts
        token = counts.cumsum(0) - counts + np.minimum(slot, counts - 1)
        text = np.arange(len(texts)).repeat(lengths)[token]
        seen = (
            (text[:, :, None] == text[:, None])
            & (token[:, :, None] >= token[:, None])
            & (real & ~np.concatenate([own_hidden[i] for i in texts])[token])[:, None]
        )
        shared = len(pack.prefix)
        seen = np.concatenate([np.broadcast_to(~hidden, (*token.shape, shared)), seen], axis=-1)
        ids = np.concatenate([pack.suffixes[i] for i in texts])
        places = shared + np.concatenate([np.arange(length) for length in lengths])
        placed = self._placed(*(torch.from_numpy(of[token].flatten()) for of in (ids, places)))
        ends = np.empty(len(texts), np.int64)
        ends[texts] = np.flatnonzero(real)[lengths.cumsum() - 1]
        return _Own(
            placed,
            _joint(self._blocks[0], placed),
            self._added(seen),
            self._added(np.tri(shared, dtype=bool) & ~hidden)[:, :shared],
            torch.from_numpy(ends).to(self.device),
        )

    def _placed(self, ids: Tensor, places: Tensor) -> Tensor:
        """Embeddings with positions, [tokens, W], of ids and their places in a text [tokens]."""
        ids, positions = ids.to(self.device), self._tower.positional_embedding
        placed: Tensor = self.embed(ids.clamp(min=0)) + positions[places.to(self.device)]
        if self._has_class_token:
            class_token = self._tower.cls_emb + positions[-1]
            placed = torch.where((ids == CLASS_TOKEN)[:, None], class_token, placed)
        return placed

    def _added(self, seen: Mask) -> Tensor:
        """What is added to scores, [..., keys or more], so that they are of `seen` keys alone."""
        keys = seen.shape[-1]
        rows = np.full((*seen.shape[:-1], -(-keys // MASK_ROW) * MASK_ROW), -np.inf, np.float32)
        rows[..., :keys][seen] = 0
        dtype = self._blocks[0].attn.in_proj_weight.dtype
        return torch.from_numpy(rows).to(self.device, dtype)

    def _project(self, x: Tensor) -> Tensor:
        projection = self._tower.text_projection
        if projection is None:
            return x
        projected: Tensor = projection(x) if isinstance(projection, nn.Module) else x @ projection
        return projected


def chunks(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of the texts of each chunk, so that to fill all chunks up to the longest adds little.

    They are of about CHUNK_TOKENS at most, or of one text that is longer.
    """
    total, most = sum(lengths), max(CHUNK_TOKENS, *lengths)
    if total <= most:
        return [list(range(len(lengths)))]
    least, best = total * len(lengths), []
    even = -(-total // -(-total // most))
    for size in range(max(min(even, most * 3 // 4), *lengths), most + 1):
        found = _best_fit(lengths, size)
        slots = len(found) * max(sum(lengths[i] for i in some) for some in found)
        if slots < least:
            least, best = slots, found
        if least < 1.02 * total:
            break
    return best


def _best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Longest first, each text goes where it leaves least room (best-fit decreasing)."""
    with_room: list[list[list[int]]] = [[] for _ in range(size + 1)]
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[i]
        room = next((room for room in range(length, size) if with_room[room]), size)
        chunk = with_room[room].pop() if with_room[room] else []
        chunk.append(i)
        with_room[room - length].append(chunk)
    return [chunk for some in with_room for chunk in some]


def _follow(hiding: int | None, ids: Ids, *, after: bool) -> tuple[bool, ...]:
    """Of each of `ids` whether it follows the id `hiding`; of the first one `after` says so."""
    return (after, *(i == hiding for i in ids[:-1]))[: len(ids)]


def _rows(own: Tensor, prefixes: Tensor) -> Tensor:
    """Own tokens [n S, ...] once a prompt, and prefixes [P, L, ...]: [P n S + P L, ...]."""
    return torch.cat([*[own] * len(prefixes), prefixes.flatten(0, 1)])


def _joint(block: Any, x: Tensor) -> Tensor:
    """A layer's queries, keys and values of x [..., W], side by side: [..., 3 W]."""
    weight = block.attn.in_proj_weight
    return functional.linear(block.ln_1(x).to(weight.dtype), weight, block.attn.in_proj_bias)


def _block_output(block: Any, x: Tensor, mixed: Tensor) -> Tensor:
    x = x + block.ls_1(block.attn.out_proj(mixed))
    output: Tensor = x + block.ls_2(block.mlp(block.ln_2(x).to(mixed.dtype)))
    return output


def _mix(joint: Tensor, own: _Own, seen: Tensor, *, heads: int, ends_alone: bool) -> Tensor:
    """Attention within a pack.

    Args:
        joint: queries, keys and values, side by side, of its tokens, [P n S + P L, 3 W].
        own: what is known of its own tokens.
        seen: what is added to their scores, [P n, 1, S, L + S].
        heads: of the attention.
        ends_alone: whether only the end tokens' rows are wanted.

    Returns:
        What each token has gathered, [P n S + P L, W]; of the end tokens alone, [P C, W].
    """
    chunks, size = own.seen.shape[:2]
    prompts, shared = len(seen) // chunks, len(own.shared_seen)
    by_head = joint.view(len(joint), 3, heads, -1)
    in_chunks, before = torch.split(by_head, [len(seen) * size, prompts * shared])
    # [3, P, n, H, S, d] and [3, P, H, L, d]
    tokens = in_chunks.view(prompts, chunks, size, *by_head.shape[1:]).permute(3, 0, 1, 4, 2, 5)
    prefixes = before.view(prompts, shared, *by_head.shape[1:]).permute(2, 0, 3, 1, 4)
    of_each = prefixes[1:, :, None].expand(-1, -1, chunks, -1, -1, -1)
    keys, values = torch.cat([of_each, tokens[1:]], dim=4).flatten(1, 2)
    gathered = _attend(tokens[0].flatten(0, 1), keys, values, seen)
    if ends_alone:
        return own.of_ends(gathered)
    return torch.cat([gathered, _attend(prefixes[0], prefixes[1], prefixes[2], own.shared_seen)])


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Attention of queries [B, H, S, d] to keys and values [B, H, K, d]: rows [B S, W]."""
    gathered = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    return gathered.transpose(1, 2).flatten(2).flatten(0, 1)


def _check(tower: Any) -> None:
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", ())
    pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    causal = getattr(tower, "attn_mask", None) is not None
    plain = bool(blocks) and all(type(block) is ResidualAttentionBlock for block in blocks)
    class_token = getattr(tower, "cls_emb", None) is not None
    at_end = not tower.correct_cls_mask if class_token else pool in ("argmax", "eos")
    if not (causal and plain and at_end):
        raise UnsupportedTowerError("the text tower is not a causal CLIP text transformer")
