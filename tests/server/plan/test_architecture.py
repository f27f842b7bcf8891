import pytest

from craft_server.plan.architecture import Architecture, UnknownArchitecture


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
