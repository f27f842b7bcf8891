"""The units of deploy/systemd: what systemd says of them, and that what they name is there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from craft_server.app import REFUND_SECONDS
from craft_server.serving.listening import GRACE_SECONDS
from craft_server.settings import SECRETS_VARIABLE, Settings
from deployed import check_command, check_variables
from units import BIN, FOLDER, Unit

SERVICES = ("craftbox.service", "craftbox-backup.service")
ANALYZE = shutil.which("systemd-analyze")
analyzed = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")


def analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(ANALYZE), *words], capture_output=True, text=True)


@analyzed
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    for file in FOLDER.iterdir():
        here = file.read_text().replace(BIN, str(Path(sys.executable).parent))
        (tmp_path / file.name).write_text(here)
    done = analyze("verify", *sorted(tmp_path.iterdir()))
    assert (done.returncode, done.stderr) == (0, "")


@analyzed
@pytest.mark.parametrize(
    ("name", "most"), [("craftbox.service", 15), ("craftbox-backup.service", 10)]
)
def test_systemd_calls_the_services_exposure_low(name: str, most: int) -> None:
    # In tenths; unhardened services have 96.
    done = analyze("security", "--offline=true", f"--threshold={most}", FOLDER / name)
    assert done.returncode == 0, done.stdout.splitlines()[-1]


@pytest.mark.parametrize("name", SERVICES)
def test_commands_and_variables_exist_and_no_secret_is_among_them(name: str) -> None:
    unit = Unit.read(name)
    variables = dict(line.split("=", 1) for line in unit.values["Service.Environment"])
    check_variables(variables)
    assert variables[SECRETS_VARIABLE] == "%d"
    assert not [each for each in variables if re.search("PASSWORD|KEY|URL", each)]
    # A credential's name is the prefix of its folder's files.
    assert unit.one("Service.LoadCredential").startswith("craft:/")
    (words,) = re.findall(rf"{BIN}/(craft-server [a-z -]+)", unit.one("Service.ExecStart"))
    check_command(shlex.split(words))


def test_calls_that_were_accepted_are_answered_before_systemd_kills() -> None:
    unit = Unit.read("craftbox.service")
    needed = Settings().drain_seconds + GRACE_SECONDS + REFUND_SECONDS
    assert int(unit.one("Service.TimeoutStopSec")) > needed


def test_the_backup_reads_what_the_server_writes_and_keeps_it_elsewhere() -> None:
    server, backup = (Unit.read(name) for name in SERVICES)
    for key in ("User", "LoadCredential", "WorkingDirectory"):
        assert server.one(f"Service.{key}") == backup.one(f"Service.{key}")
    folder = f"%S/{server.one('Service.StateDirectory')}"
    assert f"CRAFT_DATA_DIR={folder}" in server.values["Service.Environment"]
    assert f"CRAFT_DATA_DIR={folder}" in backup.values["Service.Environment"]
    assert backup.one("Service.ReadWritePaths") == folder
    assert backup.one("Service.StateDirectory") != server.one("Service.StateDirectory")
