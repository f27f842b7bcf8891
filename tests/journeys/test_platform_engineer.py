"""The last mile: a platform engineer offers a model with systemd's units, nginx, TLS and a path."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from journeys.conftest import READY_SECONDS, Terminal
from journeys.words import line
from proxies import Proxy, proxying
from quickstart import free_port
from units import Machine, Unit

DEPLOYMENT = "docs/deployment.md"
AS_SERVICE = "runuser -u craftbox -- "
SERVER, BACKUP = Unit.read("craftbox.service"), Unit.read("craftbox-backup.service")
TEAMS, KEYS = 5, 20
ISSUER = "https://models.example.org/craft"


@pytest.fixture
def machine(server_bin: Path, tmp_path: Path) -> Machine:
    """A machine on which the units are installed, and nothing has been started yet."""
    made = Machine(tmp_path / "machine", server_bin)
    credentials = made.settings / "credentials"
    credentials.mkdir(parents=True)
    (credentials / "receipt_issuer").write_text(f"{ISSUER}\n")
    for unit in (SERVER, BACKUP):
        made.prepare(unit)
    return made


@pytest.fixture
def provider(machine: Machine) -> Path:
    """The operator's file of teams and keys."""
    file = machine.state(SERVER) / "provider.toml"
    teams = (
        f'[[teams]]\nname = "team-{n}"\n'
        'budgets = [{ unit = "queries", limit = 100_000, window = "month" }]\n'
        for n in range(TEAMS)
    )
    keys = (
        f'[[keys]]\nowner = "owner-{n:02}"\nname = "laptop"\nteam = "team-{n % TEAMS}"\n'
        f'requests_per_minute = 600\nkey_file = "owner-{n:02}.key"\n'
        'budgets = [{ unit = "queries", limit = 8_000 }]\n'
        for n in range(KEYS)
    )
    file.write_text("\n".join((*teams, *keys)))
    return file


@pytest.fixture
def operator(machine: Machine, provider: Path) -> Terminal:
    """A terminal of the service's user, whose commands are those of the documentation."""
    export = line(DEPLOYMENT, "export PATH=/opt/craftbox/bin")
    assert export.endswith("CRAFT_DATA_DIR=/var/lib/craftbox")
    env = {"CRAFT_DATA_DIR": str(machine.state(SERVER))}
    return Terminal(machine.bin, provider.parent, env)


@contextmanager
def serving(machine: Machine, port: int) -> Iterator[None]:
    """The service, as systemd would run it; it is stopped as systemd would."""
    log = machine.root / "server.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            machine.command(SERVER),
            cwd=machine.settings,
            env=machine.environment(SERVER),
            stdout=file,
            stderr=file,
        )
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not is_ready(f"http://127.0.0.1:{port}"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        assert process.wait(int(SERVER.one("Service.TimeoutStopSec"))) in (0, -15), log.read_text()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def back_up(machine: Machine) -> Path:
    """Runs the backup's service; the one copy that there is."""
    for key in ("ExecStart", "ExecStartPost"):
        done = subprocess.run(
            machine.command(BACKUP, key),
            cwd=machine.settings,
            env=machine.environment(BACKUP),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    (copy,) = machine.state(BACKUP).iterdir()
    return copy


def client_of(proxy: Proxy, client_bin: Path, folder: Path, key: Path) -> Terminal:
    """The terminal of somebody who was given a key's file, the address and the authority."""
    folder.mkdir()
    env = {
        "CRAFT_URL": proxy.url,
        "CRAFT_CA_FILE": str(proxy.authority),
        "CRAFT_API_KEY_FILE": str(key),
    }
    return Terminal(client_bin, folder, env)


def test_teams_and_keys_come_from_a_file(operator: Terminal, provider: Path) -> None:
    apply = line(DEPLOYMENT, f"{AS_SERVICE}craft-server apply").removeprefix(AS_SERVICE)
    made = operator.type(apply)
    assert len(re.findall("^make team", made, re.MULTILINE)) == TEAMS
    assert len(re.findall("^make .*its secret in", made, re.MULTILINE)) == KEYS
    assert all(file.stat().st_mode & 0o007 == 0 for file in provider.parent.glob("owner-*.key"))
    assert operator.type(apply).strip() == "Everything is as the file says."

    def changed(number: int, old: str, new: str) -> str:
        first, *blocks = provider.read_text().split("[[keys]]")
        assert old in blocks[number]
        blocks[number] = blocks[number].replace(old, new)
        return "[[keys]]".join((first, *blocks))

    provider.write_text(changed(6, "8_000", "9_000"))
    (step,) = operator.type(apply).splitlines()
    assert "owner-06" in step
    assert re.search(r"8,?000.*9,?000", step)

    right, listed = provider.read_text(), operator.type("craft-server keys list --json")
    provider.write_text(changed(11, 'unit = "queries"', 'unit = "quarries"').replace("9_000", "7"))
    refused = operator.type(apply, fails=True)
    assert re.search(r"keys\[11\]\.budgets\[0\]\.unit: .*\(of 'owner-11', 'laptop'\)", refused)
    assert "Traceback" not in refused
    assert operator.type("craft-server keys list --json") == listed
    provider.write_text(right)
    assert operator.type(apply).strip() == "Everything is as the file says."


@pytest.mark.timeout(900)
def test_a_client_works_behind_the_proxy_and_the_ledger_comes_back_from_a_backup(
    machine: Machine,
    provider: Path,
    operator: Terminal,
    client_bin: Path,
    pictures: Path,
    tmp_path: Path,
) -> None:
    port = free_port()
    (machine.settings / "craft-server.toml").write_text(f'model = "pocket"\nport = {port}\n')
    operator.type(line(DEPLOYMENT, f"{AS_SERVICE}craft-server apply").removeprefix(AS_SERVICE))
    (tmp_path / "nginx").mkdir()
    with proxying("nginx", f"http://127.0.0.1:{port}", tmp_path / "nginx") as proxy:
        assert proxy.url.startswith("https://127.0.0.1:")
        assert proxy.url.endswith("/craft")
        key = provider.with_name("owner-03.key")
        me = client_of(proxy, client_bin, tmp_path / "me", key)
        with serving(machine, port):
            assert "pocket" in me.type(line(DEPLOYMENT, "craft models"))
            me.type(f"craft tune --data {pictures} --shots 1 --seed 1 --run run --report")
            me.type("craft publish run --name digits")
            zero = sorted((pictures / "test/zero").glob("*.png"))[0]
            before = me.type(f"craft predict {zero} --adapter digits --json")
            me.type("craft receipt --out before.jws")
            assert ISSUER in me.type("craft verify-receipt before.jws --json")
            signs_in(proxy, key.read_text())
            copy = back_up(machine)
            used = me.type("craft usage --json")
        # The machine is lost, and its disk with it.
        lost = machine.state(SERVER)
        lost.rename(lost.with_name("lost"))
        lost.mkdir()
        restore = line(DEPLOYMENT, f"{AS_SERVICE}craft-server ledger restore", FILE=copy)
        assert "with the receipt key" in operator.type(restore.removeprefix(AS_SERVICE))
        me.env["CRAFT_API_KEY_FILE"] = str(lost.with_name("lost") / key.name)
        with serving(machine, port):
            assert ISSUER in me.type("craft verify-receipt before.jws --json")
            assert me.type("craft usage --json") == used
            assert me.type(f"craft predict {zero} --adapter digits --json") == before


def signs_in(proxy: Proxy, key: str) -> None:
    """Somebody opens the console, is sent to sign in, and sees their own overview."""
    with proxy.client() as http:
        http.headers["Origin"] = proxy.url.removesuffix("/craft")
        sent = http.get("/")
        assert sent.headers["location"] == "/craft/console/sign-in"
        entered = http.post("/console/sign-in", data={"key": key, "next": "/console/runs"})
        assert (entered.status_code, entered.headers["location"]) == (303, "/craft/console/runs")
        assert "owner-03" in http.get("/console/runs").text
