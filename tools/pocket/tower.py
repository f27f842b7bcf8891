"""The text tower while it is trained: open_clip's causal transformer, computed without waste.

Three exact savings over the plain forward pass, because the tower is causal: sequences stop at
their end token; the tokens before the phrase ("a photo of a") are computed once a step; the last
layer only computes what the end token needs. Parameters are open_clip's own modules, so that what
is trained here is what open_clip runs. This module does not know targets or data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from open_clip.transformer import Transformer
from torch import Tensor, nn
from torch.nn.functional import (
    embedding,
    linear,
    normalize,
    scaled_dot_product_attention,
)

CONTEXT_LENGTH = 77
VOCAB_SIZE = 49408


@dataclass(frozen=True)
class Shape:
    """Size of the tower; the token table is the product of [vocab, rank] and [rank, width]."""

    width: int = 256
    layers: int = 4
    heads: int = 4
    rank: int = 88
    embed_dim: int = 512


class Tower(nn.Module):
    """Token ids in, unit-norm embeddings out."""

    def __init__(self, shape: Shape, token_basis: Tensor | None = None) -> None:
        """``token_basis`` [vocab, rank]: what to start the factorised token table from."""
        super().__init__()
        self.shape = shape
        if token_basis is None:
            token_basis = torch.randn(VOCAB_SIZE, shape.rank)
        self.token_factor = nn.Parameter(0.15 * token_basis / token_basis.std())
        self.token_mix = nn.Parameter(0.1 * torch.randn(shape.rank, shape.width))
        self.positional_embedding = nn.Parameter(0.02 * torch.randn(CONTEXT_LENGTH, shape.width))
        self.transformer = Transformer(
            width=shape.width, layers=shape.layers, heads=shape.heads, batch_first=True
        )
        self.ln_final = nn.LayerNorm(shape.width)
        self.text_projection = nn.Parameter(
            torch.randn(shape.width, shape.embed_dim) * shape.width**-0.5
        )
        for block in self.transformer.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=shape.width**-0.5)
            nn.init.normal_(
                block.attn.out_proj.weight, std=(2 * shape.width * shape.layers) ** -0.5
            )
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * shape.width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=(2 * shape.width * shape.layers) ** -0.5)

    def embed(self, ids: Tensor, start: int) -> Tensor:
        """Token plus position embeddings of ids [..., n] at positions start ... start + n - 1."""
        positions = self.positional_embedding[start : start + ids.shape[-1]]
        return embedding(ids, self.token_factor) @ self.token_mix + positions

    def forward(self, prefix: Tensor, groups: list[Tensor]) -> Tensor:
        """Embed texts that share their beginning.

        Args:
            prefix: ids [p] of the shared beginning, start token included.
            groups: ids [b_g, n_g] of what follows, one tensor a length, each row ending in the end
                token.

        Returns:
            [sum of b_g, embed_dim], unit norm, in the groups' order.
        """
        begin = self.embed(prefix, 0)
        packed = torch.cat([self.embed(ids, len(prefix)).flatten(0, 1) for ids in groups])
        sizes = [ids.shape for ids in groups]
        blocks = list(self.transformer.resblocks)
        for i, block in enumerate(blocks):
            last = i == len(blocks) - 1
            begin, packed = self._block(block, begin, packed, sizes, last=last)
        return normalize((self.ln_final(packed) @ self.text_projection).float(), dim=-1)

    def _block(
        self,
        block: nn.Module,
        begin: Tensor,
        packed: Tensor,
        sizes: list[torch.Size],
        *,
        last: bool,
    ) -> tuple[Tensor, Tensor]:
        """One residual attention block over the prefix [p, w] and packed suffixes [t, w]."""
        heads, width = self.shape.heads, self.shape.width
        p, attn = len(begin), block.attn
        qkv = linear(block.ln_1(torch.cat([begin, packed])), attn.in_proj_weight, attn.in_proj_bias)
        q, k, v = qkv.view(-1, 3, heads, width // heads).unbind(
            1
        )  # each [p + t, heads, head width]
        k_begin, v_begin = k[:p].transpose(0, 1), v[:p].transpose(0, 1)
        mixed, kept, at = [], [], p
        for b, n in sizes:
            rows = slice(at, at + b * n)
            at += b * n
            q_g, k_g, v_g = (x[rows].view(b, n, heads, -1).transpose(1, 2) for x in (q, k, v))
            if last:
                q_g = q_g[:, :, -1:]
                kept.append(packed[rows.start - p : rows.stop - p].view(b, n, width)[:, -1])
            out = self._attend(q_g, k_g, v_g, k_begin, v_begin)
            mixed.append(out.transpose(1, 2).reshape(-1, width))
        if last:
            x = torch.cat(kept)
        else:
            q_b = q[:p].transpose(0, 1)
            own = scaled_dot_product_attention(
                q_b[None], k_begin[None], v_begin[None], is_causal=True
            )
            mixed.insert(0, own[0].transpose(0, 1).reshape(p, width))
            x = torch.cat([begin, packed])
        x = x + linear(torch.cat(mixed), attn.out_proj.weight, attn.out_proj.bias)
        x = x + block.mlp(block.ln_2(x))
        return (begin, x) if last else (x[:p], x[p:])

    @staticmethod
    def _attend(q: Tensor, k: Tensor, v: Tensor, k_begin: Tensor, v_begin: Tensor) -> Tensor:
        """Causal attention of q [b, h, m, d], the last m of n positions, over prefix and own keys.

        Args:
            q: queries.
            k: own keys [b, h, n, d]; v alike.
            v: own values.
            k_begin: the prefix's keys [h, p, d], seen by every query.
            v_begin: the prefix's values.

        Returns:
            [b, h, m, d].
        """
        b, h, m, d = q.shape
        n, p = k.shape[2], k_begin.shape[1]
        q = q * d**-0.5
        to_begin = (q.transpose(0, 1).reshape(h, b * m, d) @ k_begin.transpose(1, 2)).view(
            h, b, m, p
        )
        to_own = q @ k.transpose(2, 3)
        if m > 1:
            future = torch.ones(m, n, dtype=torch.bool).triu(n - m + 1)
            to_own = to_own.masked_fill(future, float("-inf"))
        weights = torch.cat([to_begin.transpose(0, 1), to_own], dim=-1).softmax(-1).to(v.dtype)
        begin_weights = weights[..., :p].transpose(0, 1).reshape(h, b * m, p)
        from_begin = (begin_weights @ v_begin).view(h, b, m, d).transpose(0, 1)
        return from_begin + weights[..., p:] @ v
