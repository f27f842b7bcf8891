"""The proxies of deploy/, started from their files; addresses and paths are of a test's own."""

from __future__ import annotations

import os
import pwd
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from journeys.words import block
from quickstart import free_port

ROOT = Path(__file__).parent.parent
NGINX_FILE, CADDY_FILE = ROOT / "deploy/nginx/craftbox.conf", ROOT / "deploy/caddy/Caddyfile"
KINDS = ("nginx", "caddy")
READY_SECONDS = 30
# Where distributions put it is not on everybody's PATH.
_PATH = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"))

_MAIN = """
daemon off;
user {user};
worker_processes 1;
pid {folder}/nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/craftbox.conf;
}}
"""


@dataclass(frozen=True)
class Proxy:
    """A running proxy: the address below which it offers its upstream, and who signed for it."""

    url: str
    authority: Path

    def client(self, headers: Mapping[str, str] | None = None) -> httpx.Client:
        """A client that trusts the authority, at the proxy's address."""
        context = ssl.create_default_context(cafile=self.authority)
        return httpx.Client(base_url=self.url, verify=context, timeout=60, headers=headers)


def replaced(text: str, **places: str) -> str:
    """A file's text with each of these, which must be there, replaced."""
    for name, there in places.items():
        old, new = there.split(" -> ")
        assert old in text, (name, old)
        text = text.replace(old, new)
    return text


def certificates(folder: Path) -> None:
    """A private authority and a certificate for 127.0.0.1, made as docs/deployment.md says."""
    words = replaced(
        block("docs/deployment.md", "openssl req -x509 -newkey"),
        name="DNS:craftbox.example.org -> IP:127.0.0.1",
    )
    subprocess.run(["bash", "-ec", words], cwd=folder, check=True, capture_output=True)


@contextmanager
def proxying(kind: str, upstream: str, folder: Path) -> Iterator[Proxy]:
    """A proxy of this kind before `upstream`, an address such as http://127.0.0.1:8000."""
    program = shutil.which(kind, path=_PATH)
    if program is None:
        pytest.skip(f"{kind} is not installed")
    if not (folder / "server.pem").exists():
        certificates(folder)
    port = free_port()
    command = {"nginx": _nginx, "caddy": _caddy}[kind](
        folder, port, upstream.removeprefix("http://")
    )
    env = {**os.environ, "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    log = folder / f"{kind}.log"
    with log.open("wb") as file:
        process = subprocess.Popen([program, *command], env=env, stdout=file, stderr=file)
    try:
        proxy = Proxy(f"https://127.0.0.1:{port}/craft", folder / "ca.pem")
        _wait(proxy, lambda: process.poll() is None, log)
        yield proxy
    finally:
        process.terminate()
        process.wait(30)


def _nginx(folder: Path, port: int, upstream: str) -> list[str]:
    text = replaced(
        NGINX_FILE.read_text(),
        address=f"listen 443 ssl -> listen 127.0.0.1:{port} ssl",
        upstream=f"server 127.0.0.1:8000 -> server {upstream}",
        tls=f"/etc/craftbox/tls -> {folder}",
    )
    (folder / "craftbox.conf").write_text(text)
    user = pwd.getpwuid(os.geteuid()).pw_name
    (folder / "nginx.conf").write_text(_MAIN.format(folder=folder, user=user))
    return ["-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]


def _caddy(folder: Path, port: int, upstream: str) -> list[str]:
    text = replaced(
        CADDY_FILE.read_text(),
        # The machine's own port for the administration may be another test's.
        options="auto_https disable_redirects -> auto_https disable_redirects\n\tadmin off",
        address=f"\ncraftbox.example.org {{ -> \nhttps://127.0.0.1:{port} {{",
        upstream=f"reverse_proxy 127.0.0.1:8000 -> reverse_proxy {upstream}",
        tls=f"/etc/craftbox/tls -> {folder}",
    )
    (folder / "Caddyfile").write_text(text)
    return ["run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


def _wait(proxy: Proxy, alive: Callable[[], bool], log: Path) -> None:
    """Until it takes calls, whatever its upstream says to them."""
    deadline = time.monotonic() + READY_SECONDS
    with proxy.client() as http:
        while True:
            assert alive(), log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                http.get("/readyz")
            except httpx.TransportError:
                time.sleep(0.05)
            else:
                return
