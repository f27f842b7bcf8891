"""The model of a serving process: loaded as the settings say, and introduced to the operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from craft_server.engine import Engine, HostedModel, ModelSpec
from craft_shared.printing import print_lines

if TYPE_CHECKING:
    from craft_server.settings import Settings


def engine_of(settings: Settings) -> Engine:
    """The model, loaded.

    Raises:
        ModelLoadError: it cannot be loaded.
    """
    spec = ModelSpec(
        name=settings.model,
        pretrained=settings.pretrained,
        device=settings.device,
        precision=settings.precision,
    )
    return Engine.load(spec, text_features_bytes=settings.texts_cache_bytes)


def introduce(model: HostedModel) -> None:
    """Says which model it is, and whether its answers mean anything."""
    if model.random_weights:
        print_lines(
            [
                f"WARNING: RANDOM WEIGHTS. Model {model.name} has learned nothing and its "
                "predictions mean nothing: this is for tests. Name real weights with --pretrained."
            ],
            err=True,
        )
    print_lines([f"Model {model.name}, revision {model.revision}"])
