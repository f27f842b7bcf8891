"""`craft-server deploy ray` writes what Ray Serve itself accepts, and nothing secret."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from craft_server.cli import app

pytest.importorskip("ray")

URL = "postgresql+psycopg://craft@db.internal/craft"


def _written(tmp_path: Path, *arguments: str) -> dict[str, object]:
    out = tmp_path / "serve.yaml"
    done = CliRunner().invoke(app, ["deploy", "ray", "--out", str(out), *arguments])
    assert done.exit_code == 0, done.output
    config: dict[str, object] = yaml.safe_load(out.read_text())
    return config


def test_ray_serve_accepts_the_configuration_and_finds_each_deployment(tmp_path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    config = _written(
        tmp_path,
        *("--database-url", URL, "--models", "2-6", "--model-gpus", "0.5", "--ingress", "3"),
    )
    (application,) = ServeDeploySchema.model_validate(config).applications
    ingress, model = application.deployments
    assert model.autoscaling_config["min_replicas"] == 2
    assert model.autoscaling_config["max_replicas"] == 6
    assert model.ray_actor_options.num_gpus == 0.5
    assert ingress.autoscaling_config["min_replicas"] == 3
    assert application.runtime_env["env_vars"]["CRAFT_DATABASE_URL"] == URL
    module, name = application.import_path.split(":")
    bound = getattr(importlib.import_module(module), name)
    inner = bound._bound_deployment.init_args[0]
    assert {bound._bound_deployment.name, inner._bound_deployment.name} == {
        ingress.name,
        model.name,
    }


def test_the_password_stays_out_of_the_configuration(tmp_path: Path) -> None:
    config = _written(tmp_path, "--database-url", "postgresql://craft:hunter2@db.internal/craft")
    assert "hunter2" not in str(config)
    assert "postgresql://craft@db.internal/craft" in str(config)


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        ([], "replicas share one ledger", 1),
        (["--database-url", "sqlite:////tmp/a.db"], "replicas share one ledger", 1),
        (["--database-url", URL, "--models", "4-2"], "--models: write a number from 1", 2),
        (["--database-url", URL, "--ingress", "some"], "--ingress: write a number from 1", 2),
    ],
)
def test_what_cannot_be_deployed_is_told_in_one_line(
    arguments: list[str], message: str, code: int
) -> None:
    done = CliRunner().invoke(app, ["deploy", "ray", *arguments])
    assert done.exit_code == code
    assert message in done.output
