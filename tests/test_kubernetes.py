"""deploy/kubernetes, without a cluster: by Kubernetes' own schemas, and by what pods may do."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from deployed import COMPOSE, ROOT, check_command, check_variables

FOLDER = ROOT / "deploy" / "kubernetes"
BASE = FOLDER / "base"
# Kinds of which Kubernetes itself knows nothing.
FOREIGN = {"Kustomization", "ServiceMonitor"}


def documents(folder: Path) -> list[Any]:
    return [
        pytest.param(document, id=f"{file.stem}-{document['kind']}-{index}")
        for file in sorted(folder.rglob("*.yaml"))
        for index, document in enumerate(yaml.safe_load_all(file.read_text()))
    ]


EVERY = documents(BASE)
PODS = [param for param in EVERY if param.values[0]["kind"] in ("Deployment", "StatefulSet", "Job")]


def of_kind(kind: str, name: str) -> Any:
    every = (param.values[0] for param in EVERY)
    return next(one for one in every if one["kind"] == kind and one["metadata"]["name"] == name)


@pytest.mark.parametrize(
    "document", [param for param in EVERY if param.values[0]["kind"] not in FOREIGN]
)
def test_each_manifest_is_valid_by_kubernetes_own_schema(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, "1.33", strict=True)


@pytest.mark.parametrize("document", PODS)
def test_pods_keep_to_the_restricted_standard(document: dict[str, Any]) -> None:
    pod = document["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("document", PODS)
def test_every_variable_is_one_that_is_read_and_holds_no_password(
    document: dict[str, Any],
) -> None:
    for container in document["spec"]["template"]["spec"]["containers"]:
        variables = {entry["name"]: entry["value"] for entry in container.get("env", [])}
        check_variables(variables)
        for name in variables:
            assert "PASSWORD" not in name or name.endswith("_FILE")
    check_variables(of_kind("ConfigMap", "craftbox")["data"])


def test_server_and_client_run_what_compose_runs() -> None:
    services = COMPOSE["services"]
    for kind, manifest, service in (
        ("Deployment", "server", "server-cpu"),
        ("Job", "client", "client"),
    ):
        (container,) = of_kind(kind, manifest)["spec"]["template"]["spec"]["containers"]
        check_command(container["args"])
        differing = set(container["args"]) ^ set(services[service]["command"])
        assert all(word.startswith("--name=") for word in differing)
        assert container["image"] == services[service]["image"]


def test_probes_ask_what_the_server_answers() -> None:
    (container,) = of_kind("Deployment", "server")["spec"]["template"]["spec"]["containers"]
    paths = {
        name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("liveness", "readiness")
    }
    assert paths == {"liveness": "/livez", "readiness": "/readyz"}
    source = (ROOT / "server/craft_server/api/health.py").read_text()
    assert all(f'"{path}"' in source for path in paths.values())


def test_what_is_mounted_is_there() -> None:
    for param in PODS:
        spec = param.values[0]["spec"]
        pod = spec["template"]["spec"]
        claims = {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
        volumes = {volume["name"] for volume in pod["volumes"]} | claims
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_secrets_that_pods_read_are_in_the_example() -> None:
    secrets = {
        param.values[0]["metadata"]["name"]
        for param in EVERY
        if param.values[0]["kind"] == "Secret"
    }
    read = {
        volume["secret"]["secretName"]
        for param in PODS
        for volume in param.values[0]["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume
    }
    assert read <= secrets


def test_services_and_budgets_select_the_pods() -> None:
    for kind, name in (("Deployment", "server"), ("StatefulSet", "database")):
        labels = of_kind(kind, name)["spec"]["template"]["metadata"]["labels"]
        assert of_kind("Service", name)["spec"]["selector"] == labels
    budget = of_kind("PodDisruptionBudget", "server")["spec"]["selector"]["matchLabels"]
    assert budget == of_kind("Deployment", "server")["spec"]["selector"]["matchLabels"]


def test_the_overlay_patches_what_is_there() -> None:
    overlay = FOLDER / "overlays" / "nvidia"
    patch = yaml.safe_load((overlay / "server.yaml").read_text())
    target = of_kind(patch["kind"], patch["metadata"]["name"])
    (patched,) = patch["spec"]["template"]["spec"]["containers"]
    (container,) = target["spec"]["template"]["spec"]["containers"]
    assert patched["name"] == container["name"]
    check_variables(entry["name"] for entry in patched["env"])
    for kustomization in FOLDER.rglob("kustomization.yaml"):
        document = yaml.safe_load(kustomization.read_text())
        patches = [entry["path"] for entry in document.get("patches", [])]
        for path in [*document["resources"], *patches]:
            assert (kustomization.parent / path).exists()


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("folder", ["base", "overlays/nvidia"])
def test_kustomize_builds_valid_manifests(folder: str) -> None:
    built = subprocess.run(
        ["kubectl", "kustomize", FOLDER / folder], capture_output=True, text=True, check=True
    ).stdout
    for document in yaml.safe_load_all(built):
        kubernetes_validate.validate(document, "1.33", strict=True)
