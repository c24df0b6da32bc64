"""A real nginx or Caddy with our own example of deploy/: names, ports and the certificate are filled in, no more."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.proxies import find_proxy

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SECONDS = 30
AROUND_NGINX = """
daemon off;
pid {folder}/pid;
{user}
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/bodies;
    proxy_temp_path {folder}/answers;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""
AROUND_CADDY = """{{
	admin off
	skip_install_trust
	grace_period 1s
	http_port {http}
}}
"""


@dataclass(frozen=True)
class Place:
    """Where a proxy works: a folder of its own, its ports for https and http, and the port of the web process."""

    folder: Path
    https: int
    http: int
    web: int


def free_ports(num: int) -> list[int]:
    """Ports that nobody listens on at this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(num)]
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports


def fill_in(example: str, changes: Mapping[str, str]) -> str:
    """The example with these words replaced; each of them must be there."""
    for old, new in changes.items():
        assert old in example, f"no {old!r} in the example"
        example = example.replace(old, new)
    return example


def prepare_nginx(place: Place, below: Mapping[str, str]) -> tuple[list[str], Path]:
    """Write nginx' files; its arguments, and the certificate to believe."""
    changes = {
        "rank.example.org": "localhost",
        "/etc/letsencrypt/live/localhost": str(place.folder),
        "listen 80;": f"listen 127.0.0.1:{place.http};",
        "listen 443 ": f"listen 127.0.0.1:{place.https} ",
        "127.0.0.1:8000": f"127.0.0.1:{place.web}",
    }
    example = fill_in((DEPLOY / "nginx.conf").read_text(), {**changes, **below})
    (place.folder / "site.conf").write_text(example)
    user = "user root;" if os.geteuid() == 0 else ""
    (place.folder / "nginx.conf").write_text(AROUND_NGINX.format(folder=place.folder, user=user))
    certificate = write_certificate(place.folder)
    return ["-p", f"{place.folder}", "-c", f"{place.folder}/nginx.conf", "-e", "stderr"], certificate


def prepare_caddy(place: Place, below: Mapping[str, str]) -> tuple[list[str], Path]:
    """Write Caddy's file; its arguments, and the root of the certificate that it makes by itself for localhost."""
    changes = {"rank.example.org {": f"localhost:{place.https} {{", "127.0.0.1:8000": f"127.0.0.1:{place.web}"}
    example = fill_in((DEPLOY / "Caddyfile").read_text(), {**changes, **below})
    (place.folder / "Caddyfile").write_text(AROUND_CADDY.format(http=place.http) + example)
    certificate = place.folder / "caddy/pki/authorities/local/root.crt"
    return ["run", "--config", f"{place.folder}/Caddyfile", "--adapter", "caddyfile"], certificate


PREPARE: dict[str, Callable[[Place, Mapping[str, str]], tuple[list[str], Path]]] = {
    "nginx": prepare_nginx,
    "caddy": prepare_caddy,
}


def write_certificate(folder: Path) -> Path:
    """A certificate for localhost that signs itself, and its key, under the names that Let's Encrypt gives them."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    signed = builder.add_extension(names, critical=False).sign(key, SHA256())
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "privkey.pem").write_bytes(secret)
    certificate = folder / "fullchain.pem"
    certificate.write_bytes(signed.public_bytes(Encoding.PEM))
    return certificate


@contextmanager
def proxy(name: str, place: Place, below: Mapping[str, str]) -> Iterator[ssl.SSLContext]:
    """Run it, with these further changes to its file; the answer is what believes its certificate."""
    program = find_proxy(name)
    assert program is not None
    arguments, certificate = PREPARE[name](place, below)
    home = {"HOME": str(place.folder), "XDG_DATA_HOME": str(place.folder), "XDG_CONFIG_HOME": str(place.folder)}
    log = place.folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([program, *arguments], stderr=file, env=os.environ | home)
    try:
        yield await_handshake(process, place, certificate, log)
    finally:
        process.terminate()
        process.wait(SECONDS)


def await_handshake(process: subprocess.Popen[bytes], place: Place, certificate: Path, log: Path) -> ssl.SSLContext:
    """Until it speaks TLS with a certificate that can be believed."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            context = ssl.create_default_context(cafile=certificate)
            with socket.create_connection(("127.0.0.1", place.https)) as plain:
                context.wrap_socket(plain, server_hostname="localhost").close()
        except OSError:
            time.sleep(0.05)
        else:
            return context
    raise AssertionError(f"no proxy: {log.read_text()}")
