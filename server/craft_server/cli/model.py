"""The model of a serving process: loaded as the settings say, and introduced to the operator."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from craft_server.cli.output import fail
from craft_server.engine import Engine, HostedModel, ModelLoadError, ModelSpec

if TYPE_CHECKING:
    from craft_server.settings import Settings


def engine_of(settings: Settings) -> Engine:
    """The model, loaded, or one line on stderr and exit code 1."""
    spec = ModelSpec(
        name=settings.model,
        pretrained=settings.pretrained,
        device=settings.device,
        precision=settings.precision,
    )
    try:
        return Engine.load(spec, text_features_bytes=settings.texts_cache_bytes)
    except ModelLoadError as error:
        fail(str(error))


def introduce(model: HostedModel) -> None:
    """Says which model it is, and whether its answers mean anything."""
    if model.random_weights:
        typer.echo(
            f"WARNING: RANDOM WEIGHTS. Model {model.name} has learned nothing and its predictions "
            "mean nothing: this is for tests. Name real weights with --pretrained.",
            err=True,
        )
    typer.echo(f"Model {model.name}, revision {model.revision}")
    sys.stdout.flush()
