"""Stand-ins for what open_clip's models take from Hugging Face: tokenizers and text towers' shapes.

Of the same classes, written as their repositories lie in the hub's cache. Tokenizers read letters
and a few words; a tower's configuration has the published shape unless it is made smaller.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

WORDS = ("a", "photo", "of", "the", "cat", "dog", "golden", "retriever", "hot", "air", "balloon")
_SPACE = "\u2581"  # what sentencepiece writes for a space
_COMMIT = "0" * 40

_ROBERTA = {
    "vocab_size": 50265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
_XLM = {**_ROBERTA, "vocab_size": 250002}
_MT5 = {"vocab_size": 250112, "d_kv": 64, "feed_forward_proj": "gated-gelu"}
_NLLB = {
    "vocab_size": 256206,
    "d_model": 1024,
    "max_position_embeddings": 1024,
    "encoder_attention_heads": 16,
    "decoder_attention_heads": 16,
    "scale_embedding": True,
    "activation_function": "relu",
}
# Of each repository that open_clip takes a text tower from: the configuration's class, and the
# published shape.
TOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta-base": ("RobertaConfig", _ROBERTA),
    "xlm-roberta-base": ("XLMRobertaConfig", _XLM),
    "xlm-roberta-large": (
        "XLMRobertaConfig",
        {
            **_XLM,
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
    ),
    "google/mt5-base": (
        "MT5Config",
        {**_MT5, "d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    ),
    "google/mt5-xl": (
        "MT5Config",
        {**_MT5, "d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    ),
    "facebook/nllb-200-distilled-600M": (
        "M2M100Config",
        {
            **_NLLB,
            "encoder_layers": 12,
            "decoder_layers": 12,
            "encoder_ffn_dim": 4096,
            "decoder_ffn_dim": 4096,
        },
    ),
    "facebook/nllb-200-distilled-1.3B": (
        "M2M100Config",
        {
            **_NLLB,
            "encoder_layers": 24,
            "decoder_layers": 24,
            "encoder_ffn_dim": 8192,
            "decoder_ffn_dim": 8192,
        },
    ),
}


def repository(cache: Path, name: str) -> Path:
    """An empty repository of that name in the hub's cache, where its files go."""
    root = cache / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs/main").write_text(_COMMIT)
    files = root / "snapshots" / _COMMIT
    files.mkdir(parents=True, exist_ok=True)
    return files


def tower(cache: Path, name: str, **smaller: int) -> None:
    """The configuration of a repository's text tower; `smaller` overrides its shape."""
    kind, shape = TOWERS[name]
    getattr(transformers, kind)(**{**shape, **smaller}).save_pretrained(repository(cache, name))


def tokenizer(cache: Path, name: str) -> None:
    """A tokenizer of the class of a repository's."""
    _maker(name)().save_pretrained(repository(cache, name))


def _maker(name: str) -> Callable[[], Any]:
    if name.startswith("timm/"):
        return _gemma if "SigLIP2" in name else _siglip
    for part, maker in {
        "bert-base": _bert,
        "xlm-": _xlm,
        "mt5": _mt5,
        "nllb": _nllb,
        "roberta": _roberta,
    }.items():
        if part in name and not (maker is _bert and "roberta" in name):
            return maker
    raise LookupError(name)


def _pieces(*special: str) -> list[tuple[str, float]]:
    """Of a unigram model, with scores: the special ones, words, a space, letters and signs."""
    signs = [_SPACE, *string.ascii_lowercase, *string.digits, *".,'-"]
    words = [(_SPACE + word, -1.0) for word in WORDS]
    return [(one, 0.0) for one in special] + words + [(one, -4.0) for one in signs]


def _siglip() -> Any:
    pieces = _pieces("<pad>", "</s>", "<unk>")
    return transformers.T5Tokenizer(vocab=pieces, pad_token="</s>", extra_ids=0)


def _mt5() -> Any:
    return transformers.T5Tokenizer(vocab=_pieces("<pad>", "</s>", "<unk>"), extra_ids=0)


def _xlm() -> Any:
    return transformers.XLMRobertaTokenizer(
        vocab=_pieces("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    )


def _letters(*special: str, space: str) -> dict[str, int]:
    """Of a byte-pair model that merges nothing."""
    signs = [space, *string.ascii_letters, *string.digits, *".,'-"]
    return {one: i for i, one in enumerate([*special, *signs])}


def _gemma() -> Any:
    return transformers.GemmaTokenizer(
        vocab=_letters("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", space=_SPACE),
        merges=[],
        add_bos_token=False,
        add_eos_token=True,
        padding_side="right",
    )


def _roberta() -> Any:
    vocab = _letters("<s>", "<pad>", "</s>", "<unk>", "<mask>", space="\u0120")
    return transformers.RobertaTokenizer(vocab=vocab, merges=[])


def _nllb() -> Any:
    vocab = _letters("<s>", "<pad>", "</s>", "<unk>", space=_SPACE)
    return transformers.NllbTokenizer(vocab=vocab, merges=[])


def _bert() -> Any:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*string.ascii_lowercase, *string.digits]
    parts = [*WORDS, *letters, *(f"##{letter}" for letter in letters), *".,'-"]
    every = dict.fromkeys([*special, *parts])
    return transformers.BertTokenizer(vocab={one: i for i, one in enumerate(every)})
