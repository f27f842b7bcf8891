import json
from pathlib import Path

import numpy as np
import pytest

from craft_shared import codec
from craft_shared.adapter import CONFIG_FILE, TENSOR_FILE, Adapter, AdapterConfig, AdapterError
from craft_shared.head import LinearHead
from craft_shared.model_card import CARD_FILE
from craft_shared.wire import Context

C, CODES, DIM = 2, 3, 4
P = 1 + CODES


@pytest.fixture
def adapter() -> Adapter:
    config = AdapterConfig(
        model="pocket",
        revision="abc",
        classes=["cat", "dog"],
        templates=["a photo of a {}."],
        context=Context(dim=DIM),
        codes=CODES,
        head="ridge",
    )
    head = LinearHead(np.ones((P * C, C), np.float32), np.zeros(C, np.float32), 1.0, 0.5)
    return Adapter(config, np.arange(CODES * DIM, dtype=np.float32).reshape(CODES, DIM), head)


def test_adapter_survives_bytes_and_folders(adapter: Adapter, tmp_path: Path) -> None:
    assert Adapter.from_bytes(adapter.to_bytes()).digest == adapter.digest
    adapter.save(tmp_path / "adapter")
    assert Adapter.load(tmp_path / "adapter").digest == adapter.digest
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert files == {CONFIG_FILE, TENSOR_FILE, CARD_FILE}


def test_digest_changes_with_any_tensor(adapter: Adapter) -> None:
    assert Adapter(adapter.config, adapter.codes + 1, adapter.head).digest != adapter.digest
    config = adapter.config.model_copy(update={"visual": 4})
    visual = np.ones((4, 4, 3), np.float32)
    with_prompt = Adapter(config, adapter.codes, adapter.head, visual)
    assert with_prompt.digest != Adapter(config, adapter.codes, adapter.head, 2 * visual).digest
    again = Adapter.from_bytes(with_prompt.to_bytes())
    assert again.digest == with_prompt.digest
    np.testing.assert_array_equal(again.visual, visual)


def test_an_adapter_without_a_visual_prompt_is_the_bytes_that_it_was(adapter: Adapter) -> None:
    document, _ = codec.decode(adapter.to_bytes())
    assert "visual" not in document


@pytest.mark.parametrize(
    ("document", "tensors", "message"),
    [
        ({"schema_version": 2}, {}, "schema_version"),
        ({"classes": ["cat", "cat"]}, {}, "two classes have the same name"),
        ({"context": None}, {}, "context"),
        ({"surprise": 1}, {}, "surprise"),
        ({"texts": ["cow"]}, {}, "texts: they are what access_mode 'open-text' means"),
        ({"access_mode": "open-text"}, {}, "texts: they are what access_mode 'open-text' means"),
        ({"access_mode": "open-text", "texts": ["dog"]}, {}, "or one is a class name"),
        ({"access_mode": "open-text", "texts": ["cow", "cow"]}, {}, "two texts are the same"),
        ({"access_mode": "open-text", "texts": ["cow"]}, {}, "'head.weight' has shape"),
        ({}, {"codes": None}, "'codes' is missing"),
        ({}, {"codes": np.zeros((CODES, DIM + 1), np.float32)}, "'codes' has shape"),
        ({}, {"codes": np.full((CODES, DIM), np.inf, np.float32)}, "'codes' holds NaN"),
        ({}, {"head.weight": np.zeros((1, C), np.float32)}, "'head.weight' has shape"),
        ({}, {"token_embedding": np.zeros(1, np.float32)}, "'token_embedding' is not one"),
        ({}, {"visual": np.zeros((4, 4, 3), np.float32)}, "'visual' is not one"),
        ({"visual": 4}, {}, "'visual' is missing"),
        ({"visual": 0}, {}, "visual"),
        ({"visual": 1025}, {}, "visual"),
        ({"visual": 4}, {"visual": np.zeros((4, 5, 3), np.float32)}, "'visual' has shape"),
        ({"visual": 4}, {"visual": np.zeros((4, 4, 3), np.float16)}, "'visual' has dtype"),
        ({"visual": 4}, {"visual": np.full((4, 4, 3), np.nan, np.float32)}, "'visual' holds NaN"),
        ({"visual": 4}, {"visual": np.full((4, 4, 3), 256, np.float32)}, "a number beyond 255"),
    ],
)
def test_wrong_adapters_are_refused(
    adapter: Adapter, document: dict, tensors: dict, message: str
) -> None:
    good_document, good_tensors = codec.decode(adapter.to_bytes())
    changed = {k: v for k, v in {**good_tensors, **tensors}.items() if v is not None}
    with pytest.raises(AdapterError, match=message):
        Adapter.from_bytes(codec.encode({**good_document, **document}, changed))


def test_folder_whose_files_disagree_is_refused(adapter: Adapter, tmp_path: Path) -> None:
    adapter.save(tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**config, "revision": "other"}))
    with pytest.raises(AdapterError, match="disagree"):
        Adapter.load(tmp_path)


def test_a_folder_of_before_there_were_further_texts_is_read(
    adapter: Adapter, tmp_path: Path
) -> None:
    adapter.save(tmp_path)
    document, tensors = codec.decode((tmp_path / TENSOR_FILE).read_bytes())
    del document["texts"]
    (tmp_path / TENSOR_FILE).write_bytes(codec.encode(document, tensors))
    (tmp_path / CONFIG_FILE).write_text(json.dumps(document))
    assert Adapter.load(tmp_path).digest == adapter.digest


def test_folder_whose_config_is_no_config_is_refused(adapter: Adapter, tmp_path: Path) -> None:
    adapter.save(tmp_path)
    (tmp_path / CONFIG_FILE).write_text("{")
    with pytest.raises(AdapterError, match="Invalid JSON"):
        Adapter.load(tmp_path)


def test_folder_without_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no adapter at"):
        Adapter.load(tmp_path)
