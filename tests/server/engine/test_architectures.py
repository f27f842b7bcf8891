"""Every kind of text tower and tokenizer that open_clip's architectures have, at a small size."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import open_clip
import pytest
import sentencepiece
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

import hub_stand_ins
from craft_server.engine import Engine, ModelLoadError, ModelSpec, Prompts
from craft_server.engine.hosted import tokenizer_of
from craft_server.engine.models import load_model
from craft_server.engine.padded_text import PaddedPack, PaddedTextTower
from craft_server.engine.text import Moved, TextTower
from craft_server.engine.tokens import Tokenizer
from craft_shared.wire import Context
from fake_gpu import GPU, engine_on, fake_gpu

NAMES = ["cat", "golden retriever", "hot air balloon", "x", "dog"]
NO_CODES = np.zeros((0, 0), np.float32)
SMALL = {"width": 32, "heads": 2, "layers": 2}
SIGLIP = {
    **SMALL,
    "context_length": 20,
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
    "tokenizer_kwargs": {"clean": "canonicalize"},
}
WORLDWIDE = {**SMALL, "context_length": 77, "vocab_size": 300, "pool_type": "eos"}
HUGGING_FACE_SMALL = {
    "roberta-base": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 300,
    },
    "xlm-roberta-base": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 300,
    },
    "google/mt5-base": {
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 2,
        "vocab_size": 300,
    },
    "facebook/nllb-200-distilled-600M": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "vocab_size": 300,
    },
}


def hugging_face(repository: str, **more: object) -> dict[str, object]:
    return {"hf_model_name": repository, "hf_tokenizer_name": repository, **more}


COCA = {
    "multimodal_cfg": {**SMALL, "context_length": 76, "vocab_size": 300, "attn_pooler_heads": 2},
    "custom_text": True,
}
# Of each kind: its text tower, and what else the configuration has.
KINDS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "siglip": (
        {**SIGLIP, "vocab_size": 300, "hf_tokenizer_name": "timm/ViT-B-16-SigLIP"},
        {"custom_text": True, "init_logit_bias": -10},
    ),
    "siglip2": (
        {
            **SIGLIP,
            "context_length": 40,
            "vocab_size": 300,
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP2",
        },
        {"custom_text": True, "init_logit_bias": -10},
    ),
    "clipa": (
        {
            **SMALL,
            "context_length": 32,
            "vocab_size": 300,
            "hf_tokenizer_name": "bert-base-uncased",
            "tokenizer_kwargs": {"strip_sep_token": True},
            "pool_type": "last",
            "no_causal_mask": True,
        },
        {},
    ),
    "mobileclip": ({**SMALL, "no_causal_mask": True}, {"custom_text": True}),
    "coca": ({**SMALL, "context_length": 76, "embed_cls": True, "output_tokens": True}, COCA),
    "worldwide": ({**WORLDWIDE, "hf_tokenizer_name": "facebook/xlm-v-base", "eos_id": 2}, {}),
    "worldwide-no-start": (
        {
            **WORLDWIDE,
            "hf_tokenizer_name": "google/mt5-base",
            "eos_id": 1,
            "tokenizer_kwargs": {"clean": "canonicalize"},
        },
        {},
    ),
    "roberta": (hugging_face("roberta-base", hf_pooler_type="mean_pooler"), {"quick_gelu": True}),
    "xlm-roberta": (hugging_face("xlm-roberta-base", hf_pooler_type="mean_pooler"), {}),
    "mt5": (hugging_face("google/mt5-base", hf_pooler_type="mean_pooler"), {}),
    "nllb": (
        hugging_face(
            "facebook/nllb-200-distilled-600M", hf_proj_type="linear", hf_pooler_type="cls_pooler"
        ),
        {"init_logit_bias": -10},
    ),
    "coca-roberta": (hugging_face("roberta-base", hf_proj_type="linear", output_tokens=True), COCA),
}
# Vision towers of other kinds.
VISIONS: dict[str, dict[str, object]] = {
    "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16},
    "eva": {
        "timm_model_name": "eva02_tiny_patch14_224",
        "timm_pool": "token",
        "timm_proj": "linear",
        "image_size": 224,
    },
    "fastvit": {
        "timm_model_name": "fastvit_t8",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 64,
    },
}
CAUSAL = {"coca", "worldwide", "worldwide-no-start"}
TOKENIZERS = sorted(
    {str(text["hf_tokenizer_name"]) for text, _ in KINDS.values() if "hf_tokenizer_name" in text}
)


@pytest.fixture(scope="module", autouse=True)
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of Hugging Face with stand-ins, where nothing else can be had."""
    cache = tmp_path_factory.mktemp("hub")
    for name in TOKENIZERS:
        hub_stand_ins.tokenizer(cache, name)
    for name, shape in HUGGING_FACE_SMALL.items():
        hub_stand_ins.tower(cache, name, **shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
        yield cache


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model of each kind; open_clip knows it as `tiny-KIND`."""
    folder = tmp_path_factory.mktemp("model_configs")
    for kind, (text, more) in KINDS.items():
        vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
        if "multimodal_cfg" in more:
            vision |= {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
        config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, **more}
        (folder / f"tiny-{kind}.json").write_text(json.dumps(config))
    for kind, vision in VISIONS.items():
        config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": SMALL}
        (folder / f"tiny-{kind}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return folder


@pytest.fixture(scope="module")
def engine_of(configs: Path) -> Iterator[Callable[[str], Engine]]:
    engines: dict[str, Engine] = {}

    def engine(kind: str) -> Engine:
        if kind not in engines:
            engines[kind] = Engine.load(
                ModelSpec(f"tiny-{kind}", device="cpu", precision="float32")
            )
        return engines[kind]

    yield engine
    for one in engines.values():
        one.close()


def relative_error(value: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


@cache
def own(name: str) -> Any:
    """The model's own code."""
    return load_model(ModelSpec(name, device="cpu")).module


def texts(engine: Engine, prompts: Prompts, names: list[str] = NAMES) -> NDArray[np.float32]:
    assert asyncio.run(engine.check_prompts(prompts, names)) == []
    return asyncio.run(engine.encode_prompts(prompts, names))


@torch.inference_mode()
def open_clips(engine: Engine, template: str, names: list[str] = NAMES) -> NDArray[np.float32]:
    """What open_clip's own tokenizer and `encode_text` make of the texts."""
    ids = tokenizer_of(engine.name)([template.replace("{}", name) for name in names])
    module = own(engine.name)
    features: NDArray[np.float32] = module.encode_text(ids, normalize=True).numpy()
    return features


@pytest.mark.parametrize("kind", KINDS)
def test_text_features_are_open_clips(kind: str, engine_of: Callable[[str], Engine]) -> None:
    engine = engine_of(kind)
    assert isinstance(engine._tower, TextTower if kind in CAUSAL else PaddedTextTower)
    for template in ("a photo of a {}.", "{}"):
        features = texts(engine, Prompts((template,), None, NO_CODES))
        assert relative_error(features[0], open_clips(engine, template)) < 1e-5


@pytest.mark.parametrize("name", ["x", "x !?!:!-", " ".join(["cat"] * 73), " ".join(["cat"] * 74)])
@pytest.mark.parametrize("others", [[], ["dog", "golden cat " * 8, "dog !?!:!- dog"]])
def test_class_token_sees_what_open_clip_lets_it_see(
    name: str, others: list[str], engine_of: Callable[[str], Engine]
) -> None:
    """Padding, a text that fills the context, and signs that are written as padding is."""
    engine = engine_of("coca")
    names = [name, *others]
    if "!" in name:
        assert engine._tower._tower.pad_id in engine._tokenizer.of().words(name)
    features = texts(engine, Prompts(("{}",), None, NO_CODES), names)
    assert relative_error(features[0], open_clips(engine, "{}", names)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_image_features_are_open_clips(kind: str, engine_of: Callable[[str], Engine]) -> None:
    engine = engine_of(kind)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    features = asyncio.run(engine.encode_images(list(pixels)))
    module = own(engine.name)
    with torch.inference_mode():
        expected = module.encode_image(pixels, normalize=True).numpy()
    assert relative_error(features, expected) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_codes_move_the_first_words_and_zero_moves_none(
    kind: str, engine_of: Callable[[str], Engine]
) -> None:
    engine = engine_of(kind)
    codes = np.random.default_rng(1).standard_normal((4, 8), dtype=np.float32)
    codes[0] = 0
    context = Context(init="a photo of a", dim=8, scale=3.0)
    features = texts(engine, Prompts((), context, codes))
    assert relative_error(features[0], open_clips(engine, "a photo of a {}.")) < 1e-5
    for code, found in zip(codes[1:], features[1:], strict=True):
        assert relative_error(found, features[0]) > 1e-3
        assert relative_error(found, with_words(engine, context, code)) < 1e-5


@torch.inference_mode()
def with_words(engine: Engine, context: Context, code: NDArray[np.float32]) -> NDArray[np.float32]:
    """`encode_text` of the plain texts while a hook puts the moved words in their places."""
    (words,) = engine._contexts.embeddings(context, code[None])
    first = len(engine._tokenizer.start)
    module = own(engine.name)
    tower = getattr(module, "text", module)
    table = getattr(tower, "token_embedding", None) or tower.transformer.get_input_embeddings()

    def put(_module: object, _ids: object, embeddings: Tensor) -> Tensor:
        embeddings[:, first : first + len(words)] = words
        return embeddings

    hook = table.register_forward_hook(put)
    try:
        return open_clips(engine, f"{context.init} {{}}.")
    finally:
        hook.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_close(kind: str, engine_of: Callable[[str], Engine]) -> None:
    engine = engine_of(kind)
    half = Engine.load(ModelSpec(engine.name, device="cpu", precision="bfloat16"))
    try:
        codes = np.ones((2, 8), np.float32)
        prompts = Prompts(("a photo of a {}.",), Context(dim=8), codes)
        assert relative_error(texts(half, prompts), texts(engine, prompts)) < 0.05
    finally:
        half.close()


@pytest.mark.parametrize("kind", KINDS)
def test_how_work_is_cut_does_not_change_it(
    kind: str, engine_of: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(kind)
    codes = np.random.default_rng(2).standard_normal((3, 8), dtype=np.float32)
    prompts = Prompts(("a {}.",), Context(dim=8), codes)
    whole = texts(engine, prompts)
    monkeypatch.setattr(engine, "_tokens_per_task", 90)
    again = asyncio.run(engine.encode_prompts(prompts, NAMES, tenant="another"))
    assert relative_error(again, whole) < 1e-5


@pytest.mark.parametrize("kind", ["siglip", "roberta"])
def test_all_tokens_that_a_padded_tower_reads_are_counted(
    kind: str, engine_of: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(kind)
    read: list[int] = []
    module: Any = engine._tower._model  # type: ignore[union-attr] # it is padded
    encode_text = module.encode_text

    def counting(ids: Tensor) -> Tensor:
        read.append(ids.numel())
        features: Tensor = encode_text(ids)
        return features

    sequences = [engine._tokenizer.of().template("a {}.")(name) for name in NAMES]
    cut = list(engine._tower.packs(sequences, prompts=7, max_tokens=100))
    assert len(cut) > 1
    monkeypatch.setattr(module, "encode_text", counting)
    with torch.inference_mode():
        for pack in cut:
            engine._tower.encode(Moved(pack, None))
    assert read == [pack.tokens for pack in cut]


def test_texts_of_a_tower_that_masks_padding_are_filled_up_to_the_longest_beside_them(
    engine_of: Callable[[str], Engine],
) -> None:
    tower = engine_of("roberta")._tower
    sequences = [tuple(range(5, 5 + length)) for length in (30, 4, 5, 29, 4)]
    packs = tower.packs(sequences, prompts=2, max_tokens=30)
    found = [pack for pack in packs if isinstance(pack, PaddedPack)]
    assert [(pack.classes, pack.length, len(pack.prompts)) for pack in found] == [
        ((1, 4, 2), 5, 2),
        ((3,), 29, 1),
        ((3,), 29, 1),
        ((0,), 30, 1),
        ((0,), 30, 1),
    ]


def test_scores_of_a_sigmoid_model_are_a_softmax_in_which_its_bias_cancels(
    engine_of: Callable[[str], Engine],
) -> None:
    engine = engine_of("siglip")
    module = own(engine.name)
    assert float(module.logit_bias) == -10
    features = texts(engine, Prompts(("a {}.",), None, NO_CODES))
    images = asyncio.run(engine.encode_images([torch.rand(3, 32, 32)]))
    scores = asyncio.run(engine.score(images, features))
    logits = float(module.logit_scale.exp()) * torch.tensor(images @ features[0].T)
    expected = (logits + module.logit_bias).log_softmax(-1)
    assert np.allclose(scores[0], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(("kind", "word"), [("roberta", "</s>"), ("clipa", "[SEP]")])
def test_special_tokens_of_a_tokenizer_are_refused_in_names(
    kind: str, word: str, engine_of: Callable[[str], Engine]
) -> None:
    prompts = Prompts(("a {}.",), None, NO_CODES)
    [error] = asyncio.run(engine_of(kind).check_prompts(prompts, ["cat", f"cat {word}"]))
    assert error.field == "classes[1]"
    assert word in error.message


def test_length_is_bounded_by_the_context_and_not_cut(engine_of: Callable[[str], Engine]) -> None:
    prompts = Prompts(("{}",), None, NO_CODES)
    fits = " ".join(["cat"] * 19)  # and the end token
    assert asyncio.run(engine_of("siglip").check_prompts(prompts, [fits])) == []
    [error] = asyncio.run(engine_of("siglip").check_prompts(prompts, [f"{fits} cat"]))
    assert "21 tokens" in error.message


def message(name: str) -> str:
    with pytest.raises(ModelLoadError) as error:
        load_model(ModelSpec(name, device="cpu"))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_tokenizer_says_which_files_and_how_to_bring_them() -> None:
    text = message("ViT-B-16-SigLIP-i18n-256")
    assert "'timm/ViT-B-16-SigLIP-i18n-256' on Hugging Face" in text
    assert "hf download timm/ViT-B-16-SigLIP-i18n-256 --include 'config.json'" in text
    assert "--include '*.model'" in text
    assert "HF_HOME" in text


def test_missing_text_tower_says_which_file_and_how_to_bring_it(hub: Path) -> None:
    hub_stand_ins.tokenizer(hub, "xlm-roberta-large")
    text = message("xlm-roberta-large-ViT-H-14")
    assert "configuration of 'xlm-roberta-large'" in text
    assert "hf download xlm-roberta-large --include 'config.json'" in text


def test_missing_transformers_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("craft_server.engine.models.find_spec", lambda _: None)
    assert "pip install 'craftbox[huggingface]'" in message("ViT-B-16-SigLIP")


def test_tokenizer_that_is_published_as_a_sentencepiece_model_alone_is_read(hub: Path) -> None:
    files = hub_stand_ins.repository(hub, "google/mt5-xl")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a photo of a cat", "golden retriever", "hot air balloon"] * 50),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
    (files / "spiece.model").write_bytes(model.getvalue())
    (files / "config.json").write_text(json.dumps({"model_type": "mt5"}))
    told = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "additional_special_tokens": None}
    (files / "tokenizer_config.json").write_text(json.dumps(told))
    tokens = Tokenizer(tokenizer_of("mt5-xl-ViT-H-14"), 77).of()
    *words, end = tokens.context("a photo of a", "cat")
    assert end == 1
    assert tuple(words) == tokens.words("a photo of a cat.")
    assert 2 not in tokens.words("a photo of a cat")  # which it would not know otherwise


def test_damaged_tokenizer_is_one_line(hub: Path) -> None:
    files = hub_stand_ins.repository(hub, "timm/ViT-L-16-SigLIP2-256")
    (files / "tokenizer.json").write_text("{")
    with pytest.raises(ModelLoadError, match="cannot be read") as error:
        tokenizer_of("ViT-L-16-SigLIP2-256")
    assert "\n" not in str(error.value)


def test_every_tokenizer_and_text_tower_that_open_clip_names_has_a_stand_in(tmp_path: Path) -> None:
    for name in open_clip.list_models():
        text = open_clip.get_model_config(name)["text_cfg"]
        if "hf_model_name" in text:
            assert text["hf_model_name"] in hub_stand_ins.TOWERS
        if "hf_tokenizer_name" in text:
            hub_stand_ins.tokenizer(tmp_path, text["hf_tokenizer_name"])


# --- on a GPU that is not there -------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if not torch.backends.cuda.is_built():
        pytest.skip("PyTorch is not built for CUDA: no tensors on a GPU, not even fake ones")
    with fake_gpu(monkeypatch) as mode:
        yield mode


# NLLB's code picks tokens by a mask: how many, nobody knows without data.
@pytest.mark.parametrize("kind", [*(kind for kind in KINDS if kind != "nllb"), *VISIONS])
def test_every_path_is_on_the_gpu_from_end_to_end(
    kind: str, configs: Path, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_on(gpu, f"tiny-{kind}", "float16")
    side = engine.image_size
    decoded = torch.zeros(side, side, 3, dtype=torch.uint8)
    codes = np.zeros((3, 8), np.float32)
    both = Prompts(("a photo of a {}.", "{}"), Context(dim=8), codes)
    try:
        images = asyncio.run(engine.encode_images([decoded] * 5))
        alone, merged = engine._image_features([[decoded], [decoded] * 2])
        for _ in range(2):  # the second time from what is remembered
            texts = asyncio.run(engine.encode_prompts(both, NAMES))
            assert (texts.device, texts.dtype) == (GPU, torch.float32)
            scores = asyncio.run(engine.score(images, texts, "float16"))
            engine.text_features.discard(lambda _: True)
        assert (images.shape, len(alone), len(merged)) == ((5, 16), 1, 2)
        assert (texts.shape, scores.shape) == ((5, len(NAMES), 16), (5, 5, len(NAMES)))
        adapter = np.zeros(texts.shape, np.float32)
        assert asyncio.run(engine.score(images, adapter)).shape == scores.shape
        # What overflows is read in single precision.
        finite = cycle([False, True])
        monkeypatch.setattr(FakeTensor, "__bool__", lambda _: next(finite))
        asyncio.run(engine.encode_images([decoded] * 5))
        asyncio.run(engine.encode_prompts(both, NAMES))
    finally:
        engine.close()


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "on the CPU": lambda x: x.cpu(),
    "in double precision": lambda x: x.double(),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("where", ["texts", "images", "texts that are read whole"])
def test_what_a_gpu_would_refuse_is_refused(
    where: str, fault: str, configs: Path, gpu: Any
) -> None:
    engine = engine_on(gpu, "tiny-siglip" if "whole" in where else "tiny-worldwide", "float16")
    tower: Any = engine._vision if where == "images" else engine._tower
    transformer = {
        "texts": lambda: tower._tower.transformer,
        "images": lambda: tower._module.visual.transformer,
        "texts that are read whole": lambda: tower._model.text.transformer,
    }[where]()
    layer = transformer.resblocks[0].mlp.c_fc
    plain = Prompts(("a {}.",), None, NO_CODES)
    image = torch.zeros(32, 32, 3, dtype=torch.uint8)
    layer.register_forward_hook(lambda _layer, _given, found: FAULTS[fault](found))
    asked = (
        engine.encode_images([image]) if where == "images" else engine.encode_prompts(plain, NAMES)
    )
    try:
        with pytest.raises(RuntimeError, match=r"device|dtype|type"):
            asyncio.run(asked)
    finally:
        engine.close()
