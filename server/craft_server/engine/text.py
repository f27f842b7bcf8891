"""The text tower: token ids and moved words in, unit text features out; one path for every prompt.

The tower is causal, which saves twice, exactly: nothing after the end token matters, so that
sequences are cut there; and texts with the same beginning share its keys and values, which are
computed once. Nothing is padded: the tokens of all texts of all prompts are the rows of one matrix,
and only attention looks at texts one by one. It saves once more at either end: in the first layer a
text's own tokens are the same under every prompt, and of the last layer only the end token is
needed. It knows open_clip's text transformer (`open_clip.model.CLIP`, or the `text` part of
`CustomTextCLIP`). It does not know tokenizers, contexts or how work is cut.

Shapes: P prompts, C texts a prompt, L shared tokens, S own tokens of a text, T own tokens of all C
texts, W the tower's width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, groupby
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional

from craft_server.byte_cache import ByteCache
from craft_server.engine.packs import Pack
from craft_server.engine.tokens import Ids

FIRST_LAYER_CACHE_BYTES = 64 * 2**20


class UnsupportedTowerError(ValueError):
    """The model's text tower is not a causal CLIP text transformer."""


@dataclass(frozen=True)
class Moved:
    """A pack with the embeddings of the words after the start token, where a code moves them.

    Attributes:
        pack: the texts.
        words: [P, moved words, W], or None where the texts are read as they stand (P is 1).
    """

    pack: Pack
    words: Tensor | None


@dataclass(frozen=True)
class _Own:
    """What the texts' own tokens are before any prompt has been seen.

    Attributes:
        placed: embeddings with positions, [T, W].
        joint: the first layer's queries, keys and values, [T, 3 W].
    """

    placed: Tensor
    joint: Tensor

    @property
    def nbytes(self) -> int:
        """Memory that both take."""
        return self.placed.nbytes + self.joint.nbytes


class TextTower:
    """The causal text tower of an open_clip model.

    Attributes:
        width: of the token embeddings.
        context_length: the most tokens a text may have.
    """

    def __init__(self, model: nn.Module) -> None:
        # Modules of several classes, which share attributes but no type.
        tower: Any = getattr(model, "text", model)
        _check(tower)
        self._tower = tower
        self._blocks: list[Any] = list(tower.transformer.resblocks)
        self._own: ByteCache[tuple[int, tuple[Ids, ...]], _Own] = ByteCache(FIRST_LAYER_CACHE_BYTES)
        self.width: int = tower.transformer.width
        self.context_length: int = tower.positional_embedding.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self._tower.positional_embedding.device
        return device

    def embed(self, ids: Tensor) -> Tensor:
        """The token embeddings of ids [...], without positions: [..., W] in the tower's dtype."""
        embeddings: Tensor = self._tower.token_embedding(ids.to(self.device))
        return embeddings

    def encode(self, batch: Sequence[Moved]) -> list[Tensor]:
        """Reads packs together.

        Returns:
            For each pack its unit features, float32 [P, C, features].
        """
        packs = [_Rows.of(moved.pack) for moved in batch]
        prefixes = [self._prefixes(moved) for moved in batch]
        owns = [self._first_layer(moved.pack) for moved in batch]
        x = torch.cat(
            [
                torch.cat([prefix, own.placed.expand(rows.prompts, -1, -1)], dim=1).flatten(0, 1)
                for rows, prefix, own in zip(packs, prefixes, owns, strict=True)
            ]
        )
        joint = [
            (_joint(self._blocks[0], prefix), own.joint[None])
            for prefix, own in zip(prefixes, owns, strict=True)
        ]
        for block in self._blocks:
            if block is not self._blocks[0]:
                joint = list(_apart(_joint(block, x), packs))
            ends_alone = block is self._blocks[-1]
            mixed = torch.cat(
                [
                    _mix(*one, rows, heads=block.attn.num_heads, ends_alone=ends_alone)
                    for one, rows in zip(joint, packs, strict=True)
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
        prefix = self.embed(torch.tensor([moved.pack.prefix]))
        if moved.words is not None:
            prefix = prefix.repeat(len(moved.words), 1, 1)
            prefix[:, 1 : 1 + moved.words.shape[1]] = moved.words
        placed: Tensor = prefix + self._tower.positional_embedding[: prefix.shape[1]]
        return placed

    def _first_layer(self, pack: Pack) -> _Own:
        key = (len(pack.prefix), pack.suffixes)
        own = self._own.get(key)
        if own is None:
            first = len(pack.prefix)
            ids = torch.tensor(list(chain.from_iterable(pack.suffixes)))
            places = torch.cat(
                [torch.arange(first, first + len(suffix)) for suffix in pack.suffixes]
            )
            positions = self._tower.positional_embedding
            placed = self.embed(ids) + positions[places.to(self.device)]
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
class _Rows:
    """Where a pack's tokens stand: for each prompt its L shared tokens, then the texts' own.

    Attributes:
        prompts: P.
        shared: L.
        groups: how many texts there are of each length S, and S; they stand in this order.
    """

    prompts: int
    shared: int
    groups: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, pack: Pack) -> _Rows:
        lengths = [(length, list(same)) for length, same in groupby(pack.suffixes, key=len)]
        groups = tuple((len(same), length) for length, same in lengths)
        return cls(len(pack.prompts), len(pack.prefix), groups)

    @property
    def texts(self) -> int:
        """C."""
        return sum(texts for texts, _ in self.groups)

    @property
    def own(self) -> int:
        """T."""
        return sum(texts * length for texts, length in self.groups)

    @property
    def count(self) -> int:
        """P (L + T)."""
        return self.prompts * (self.shared + self.own)

    def slices(self) -> Iterator[tuple[slice, int, int]]:
        """For each group: where its tokens are among the own ones, its texts and their length."""
        ends = accumulate(texts * length for texts, length in self.groups)
        for end, (texts, length) in zip(ends, self.groups, strict=True):
            yield slice(end - texts * length, end), texts, length

    def ends(self) -> Tensor:
        """Rows of the end tokens, [P C]."""
        of_one = torch.cat(
            [
                torch.arange(own.start + length - 1, own.stop, length)
                for own, _, length in self.slices()
            ]
        )
        prompts = torch.arange(self.prompts)[:, None] * (self.shared + self.own)
        return (prompts + self.shared + of_one).flatten()


def _ends(packs: Sequence[_Rows]) -> Tensor:
    """Rows of all packs' end tokens."""
    firsts = accumulate((rows.count for rows in packs[:-1]), initial=0)
    return torch.cat([first + rows.ends() for first, rows in zip(firsts, packs, strict=True)])


def _apart(joint: Tensor, packs: Sequence[_Rows]) -> Iterator[tuple[Tensor, Tensor]]:
    """All packs' rows as each pack's shared [P, L, 3 W] and own tokens [P, T, 3 W]."""
    for part, rows in zip(torch.split(joint, [rows.count for rows in packs]), packs, strict=True):
        tokens = part.view(rows.prompts, rows.shared + rows.own, -1)
        yield tokens[:, : rows.shared], tokens[:, rows.shared :]


def _joint(block: Any, x: Tensor) -> Tensor:
    """A layer's queries, keys and values of x [..., W], side by side: [..., 3 W]."""
    attention = block.attn
    return functional.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)


def _block_output(block: Any, x: Tensor, mixed: Tensor) -> Tensor:
    x = x + block.ls_1(block.attn.out_proj(mixed))
    output: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return output


def _mix(shared: Tensor, own: Tensor, rows: _Rows, *, heads: int, ends_alone: bool) -> Tensor:
    """Attention within a pack.

    Args:
        shared: queries, keys and values of the prefixes, [P, L, 3 W].
        own: of the texts' own tokens, [P, T, 3 W]; P may be 1 for all.
        rows: where these tokens belong.
        heads: of the attention.
        ends_alone: whether only the end tokens ask.

    Returns:
        What each token has gathered, [P (L + T), W]; of the end tokens alone, [P C, W].
    """
    P, L, W = rows.prompts, rows.shared, shared.shape[-1] // 3
    q, keys, values = shared.view(P, L, 3, heads, -1).permute(2, 0, 3, 1, 4)
    gathered = []
    if not ends_alone:
        prefix = functional.scaled_dot_product_attention(q, keys, values, is_causal=True)
        gathered.append(prefix.transpose(1, 2).reshape(P, L, W))
    for where, texts, length in rows.slices():
        group = own[:, where].view(-1, texts, length, 3, heads, W // heads)
        own_q, own_k, own_v = group.permute(3, 0, 4, 1, 2, 5)
        mixed = _attend(own_q, own_k, own_v, keys, values, ends_alone=ends_alone)
        gathered.append(mixed.permute(0, 2, 3, 1, 4).reshape(P, -1, W))
    return torch.cat(gathered, dim=1).flatten(0, 1)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, *, ends_alone: bool
) -> Tensor:
    """What the tokens of C texts of S tokens gather from their prefix and their text up to there.

    Args:
        q: their queries, [P, heads, C, S, W / heads]; P may be 1 for all.
        k: their keys, alike.
        v: their values, alike.
        keys: of the prefixes, [P, heads, L, W / heads].
        values: alike.
        ends_alone: whether only the last of the S tokens asks.

    Returns:
        [P, heads, C, S or 1, W / heads].
    """
    prompts, length = keys.shape[0], keys.shape[2]
    texts, own = k.shape[2:4]
    if ends_alone:
        q = q[..., -1:, :]
    asking = q.shape[3]
    q = q * q.shape[-1] ** -0.5
    # All texts of a prompt at once, so that its prefix is not copied for each.
    of_prefix = (q.flatten(2, 3) @ keys.mT).view(prompts, -1, texts, asking, length)
    later = torch.ones(asking, own, dtype=torch.bool, device=q.device).triu(1 + own - asking)
    of_own = (q @ k.mT).masked_fill(later, -torch.inf).expand(prompts, -1, -1, -1, -1)
    weights = torch.cat([of_prefix, of_own], dim=-1).softmax(dim=-1)
    gathered = weights[..., :length].flatten(2, 3) @ values
    mixed: Tensor = weights[..., length:] @ v + gathered.view(
        prompts, -1, texts, asking, v.shape[-1]
    )
    return mixed


def _check(tower: Any) -> None:
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", ())
    pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    causal = getattr(tower, "attn_mask", None) is not None
    plain = bool(blocks) and all(type(block) is ResidualAttentionBlock for block in blocks)
    whole = getattr(tower, "cls_emb", None) is None
    if not (causal and plain and whole and pool in ("argmax", "eos")):
        raise UnsupportedTowerError("the text tower is not a causal CLIP text transformer")
