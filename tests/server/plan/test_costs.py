from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from craft_server.plan.costs import Architecture, Constants, ConstantsError, UnknownArchitecture

SHIPPED = Constants.load()


@pytest.mark.parametrize(
    ("name", "kind", "giga_multiply_adds", "millions"),
    # The published figures of CLIP's towers, and EfficientNet-Lite0's 0.41.
    [
        ("RN50", "resnet", 6.1, 102),
        ("ViT-B-32", "transformer", 4.4, 151),
        ("pocket", "timm", 0.4, 20),
    ],
)
def test_work_and_size_are_the_published_ones(
    name: str, kind: str, giga_multiply_adds: float, millions: float
) -> None:
    found = Architecture.of(name)
    assert found.vision_kind == kind
    assert found.vision_multiply_adds / 1e9 == pytest.approx(giga_multiply_adds, rel=0.1)
    assert found.parameters / 1e6 == pytest.approx(millions, rel=0.02)


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(UnknownArchitecture, match="no model 'nonsense'"):
        Architecture.of("nonsense")


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "coca_ViT-B-32", "MobileCLIP-S2"])
def test_a_model_whose_texts_are_not_causal_is_refused(name: str) -> None:
    with pytest.raises(UnknownArchitecture, match="causal"):
        Architecture.of(name)


def test_the_shipped_models_are_measured() -> None:
    for name in ("pocket", "RN50", "ViT-B-32", "ViT-B-16"):
        assert SHIPPED.cost_of(Architecture.of(name), "float32")[1] == ()
    assert SHIPPED.machine.cores == 2


def test_a_model_that_was_not_measured_is_scaled_by_its_work_and_says_so() -> None:
    wanted, known = Architecture.of("ViT-L-14"), Architecture.of("ViT-B-16")
    scaled, notes = SHIPPED.cost_of(wanted, "float32")
    measured = SHIPPED.models["ViT-B-16"]
    assert scaled.image_core_seconds / measured.image_core_seconds == pytest.approx(
        wanted.vision_multiply_adds / known.vision_multiply_adds
    )
    assert scaled.loaded_bytes - measured.loaded_bytes == pytest.approx(
        4 * (wanted.parameters - known.parameters)
    )
    (note,) = notes
    assert "ViT-L-14 was not measured" in note
    assert "ViT-B-16" in note


def test_another_precision_is_as_much_faster_as_a_product_and_says_so() -> None:
    scaled, notes = SHIPPED.cost_of(Architecture.of("RN50"), "bfloat16")
    rates = SHIPPED.machine.product_rates
    faster = rates["bfloat16"] / rates["float32"]
    measured = SHIPPED.models["RN50"]
    assert measured.image_core_seconds / scaled.image_core_seconds == pytest.approx(faster)
    assert "bfloat16 was not measured" in notes[0]


def test_what_was_not_measured_on_another_machine_is_as_much_faster_as_a_product() -> None:
    rates = {name: 2 * rate for name, rate in SHIPPED.machine.product_rates.items()}
    machine = SHIPPED.machine.model_copy(update={"product_rates": rates})
    moved = SHIPPED.moved_to(machine, "RN50", SHIPPED.models["RN50"])
    assert list(moved.models) == ["RN50"]
    assert moved.service.request_seconds == pytest.approx(SHIPPED.service.request_seconds / 2)
    assert moved.client.base_bytes == SHIPPED.client.base_bytes


def test_what_was_saved_is_read_again(tmp_path: Path) -> None:
    SHIPPED.save(tmp_path / "constants.json")
    assert Constants.load(tmp_path / "constants.json") == SHIPPED


@pytest.mark.parametrize("text", ["", "{}", '{"schema_version": 1}'])
def test_another_file_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(ConstantsError, match="holds no constants") as refused:
        Constants.load(file)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConstantsError, match=r"none\.json"):
        Constants.load(tmp_path / "none.json")


def test_constants_may_be_a_windows_file(tmp_path: Path) -> None:
    file = tmp_path / "constants.json"
    SHIPPED.save(file)
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes().replace(b"\n", b"\r\n"))
    assert Constants.load(file) == SHIPPED
