"""docker-compose.yml, without a Docker engine: what it runs and sets exists, and may do little."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployed import COMPOSE, LONG_RUNNING, ROOT, check_command, check_variables

SERVICES: dict[str, Any] = COMPOSE["services"]
FILE = ROOT / "docker-compose.yml"
SCHEMA = "vendor.compose-spec"
EVERY = pytest.mark.parametrize("name", SERVICES)


def test_it_is_a_compose_file_by_the_specifications_schema() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", SCHEMA, FILE],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@EVERY
def test_every_variable_is_one_that_is_read(name: str) -> None:
    check_variables(SERVICES[name].get("environment", {}))


@pytest.mark.parametrize("name", [name for name in SERVICES if "command" in SERVICES[name]])
def test_every_command_is_a_real_one(name: str) -> None:
    check_command(SERVICES[name]["command"])


def test_the_images_command_is_a_real_one() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    commands = [yaml.safe_load(line[3:]) for line in lines if line.startswith("CMD")]
    assert commands[-1] == SERVICES["server-cpu"]["command"]
    for command in commands:
        check_command(command)


@EVERY
def test_a_service_may_do_nothing_that_it_need_not(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert str(service["user"]).partition(":")[0] not in ("", "0", "root")


@EVERY
def test_what_stays_up_tells_whether_it_is_well(name: str) -> None:
    assert ("healthcheck" in SERVICES[name]) == (name in LONG_RUNNING)


@EVERY
def test_no_password_is_in_the_environment(name: str) -> None:
    for variable, value in SERVICES[name].get("environment", {}).items():
        if "PASSWORD" in variable or "KEY" in variable:
            assert variable.endswith("FILE")
            assert str(value).startswith(("/run/secrets/", "/keys/"))
        assert ":${" not in str(value)


@EVERY
def test_secrets_volumes_and_dependencies_are_declared(name: str) -> None:
    service = SERVICES[name]
    assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
    assert set(service.get("depends_on", {})) <= set(SERVICES)
    for volume in service.get("volumes", []):
        source = volume.removeprefix("${CRAFTBOX_PICTURES:-").partition(":")[0].rstrip("}")
        if source.startswith("./"):
            assert (ROOT / source).exists()
        else:
            assert source in COMPOSE["volumes"]


@pytest.mark.parametrize("profile", ["cpu", "nvidia"])
def test_a_profile_has_one_server_and_all_that_others_need(profile: str) -> None:
    chosen = {name for name, service in SERVICES.items() if profile in service["profiles"]}
    assert [name for name in chosen if name.startswith("server-")] == [f"server-{profile}"]
    for name in chosen:
        for other, how in SERVICES[name].get("depends_on", {}).items():
            assert other in chosen or how.get("required") is False


def test_nothing_is_published_beyond_this_machine() -> None:
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_volumes_are_mounted_on_folders_of_the_images_user() -> None:
    text = (ROOT / "Dockerfile").read_text()
    made = next(line for line in text.splitlines() if "install -d -o craft" in line)
    for name in ("server-cpu", "client-key", "metrics-key", "client"):
        for volume in SERVICES[name]["volumes"]:
            target, _, mode = volume.rpartition("}")[2].partition(":")[2].partition(":")
            assert mode == "ro" or target in made.split(), volume


def test_secrets_are_kept_out_of_images_and_of_the_repository() -> None:
    for file in (".dockerignore", ".gitignore"):
        lines = (ROOT / file).read_text().splitlines()
        assert "secrets" in {line.strip("/") for line in lines}


def test_the_client_image_has_the_files_that_its_command_names() -> None:
    copied = Path("examples") / Path(SERVICES["client"]["command"][1]).name
    assert str(copied) in (ROOT / "Dockerfile").read_text()
    assert (ROOT / copied).exists()
