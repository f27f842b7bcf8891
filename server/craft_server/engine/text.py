"""The text tower: token embeddings in, unit text features out; one path for every prompt.

The tower is causal, which saves twice, exactly: nothing after the end token matters, so that
sequences are cut there; and texts with the same beginning share its keys and values, which are
computed once. It saves once more at either end: in the first layer a text's own tokens are the same
under every prompt, and of the last layer only the end token is needed. It knows open_clip's text
transformer (`open_clip.model.CLIP`, or the `text` part of `CustomTextCLIP`). It does not know
tokenizers, prompts or batching.

Shapes: P prompts, C texts a prompt, L shared tokens, S own tokens, W the tower's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional


class UnsupportedTowerError(ValueError):
    """The model's text tower is not a causal CLIP text transformer."""


@dataclass(frozen=True)
class Prefix:
    """What later tokens need to know of the first ones.

    Attributes:
        keys: for each layer, [P, heads, L, W / heads].
        values: alike.
        length: L.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    length: int


class TextTower:
    """The text tower of an open_clip model.

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

    def read_prefix(self, embeddings: Tensor) -> Prefix:
        """Reads the first tokens of P prompts, given as token embeddings [P, L, W]."""
        length = embeddings.shape[1]
        x = self._placed(embeddings, first=0)
        keys, values = [], []
        for block in self._blocks:
            q, k, v = self._attention_inputs(block, x[:, None])
            keys.append(k.squeeze(2))
            values.append(v.squeeze(2))
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = self._block_output(block, x[:, None], mixed).squeeze(1)
        return Prefix(tuple(keys), tuple(values), length)

    def encode(self, prefix: Prefix, embeddings: Tensor) -> Tensor:
        """Completes each of P prefixes with each of C texts of the same length.

        Args:
            prefix: of P prompts.
            embeddings: token embeddings [C, S, W]; the last is the end token's.

        Returns:
            Unit features, float32 [P, C, features].
        """
        # Of one prompt as of all, until the first layer has seen them.
        x = self._placed(embeddings, first=prefix.length)[None]
        for block, keys, values in zip(self._blocks, prefix.keys, prefix.values, strict=True):
            q, k, v = self._attention_inputs(block, x)
            if block is self._blocks[-1]:
                q, x = q[..., -1:, :], x[..., -1:, :]
            x = self._block_output(block, x, _attend(q, k, v, keys, values))
        features = self._project(self._tower.ln_final(x[:, :, -1]))
        return functional.normalize(features.float(), dim=-1)

    def _placed(self, embeddings: Tensor, *, first: int) -> Tensor:
        positions = self._tower.positional_embedding[first : first + embeddings.shape[-2]]
        placed: Tensor = embeddings.to(positions) + positions
        return placed

    @staticmethod
    def _attention_inputs(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [P, heads, C, tokens, W / heads] of x [P, C, tokens, W]."""
        attention = block.attn
        joint = functional.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
        parts = joint.view(*x.shape[:3], 3, attention.num_heads, -1)
        q, k, v = parts.permute(3, 0, 4, 1, 2, 5)
        return q, k, v

    @staticmethod
    def _block_output(block: Any, x: Tensor, mixed: Tensor) -> Tensor:
        joint = mixed.permute(0, 2, 3, 1, 4).flatten(3)
        x = x + block.ls_1(block.attn.out_proj(joint))
        output: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
        return output

    def _project(self, x: Tensor) -> Tensor:
        projection = self._tower.text_projection
        if projection is None:
            return x
        projected: Tensor = projection(x) if isinstance(projection, nn.Module) else x @ projection
        return projected


def _attend(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """What texts' tokens gather from their prompt's prefix and from their own text up to there.

    Args:
        q: queries of a text's last Q tokens, [P, heads, C, Q, W / heads]; P may be 1 for all.
        k: its own keys, [P, heads, C, S, W / heads].
        v: its own values, alike.
        keys: of the prefixes, [P, heads, L, W / heads].
        values: alike.

    Returns:
        [P, heads, C, Q, W / heads].
    """
    prompts, length = keys.shape[0], keys.shape[2]
    texts, asking, own = q.shape[2], q.shape[3], k.shape[3]
    q = q * q.shape[-1] ** -0.5
    # All texts of a prompt at once, so that its prefix is not copied for each.
    flat = q.flatten(2, 3)
    of_prefix = (flat @ keys.mT).view(prompts, -1, texts, asking, length)
    of_own = q @ k.mT
    later = torch.ones(asking, own, dtype=torch.bool, device=q.device).triu(1 + own - asking)
    of_own = of_own.masked_fill(later, -torch.inf).expand(prompts, -1, -1, -1, -1)
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
