"""The app's settings, all from the environment. `docs/operate.md` lists them, and a test holds it to that."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Where the app keeps things and how it talks to the world."""

    model_config = SettingsConfigDict(env_prefix="RANKLOOP_", extra="ignore")

    data_dir: Path = Path(".data")
    """Folder for artifacts, logs and, without a database address, the embedded PostgreSQL."""
    database_url: str | None = None
    """PostgreSQL address. `DATABASE_URL` is read as well; without either, `rankloop up` starts an embedded PostgreSQL.
    """
    public_url: str = "http://127.0.0.1:8000"
    """How people reach the app, perhaps below a path of another site; sign-in links begin with it, and cookies are
    `Secure` when it is https.
    """
    run_lease_seconds: int = 45
    """A worker that is silent for so long is given up, and its run goes back into the queue."""
    max_queued_runs: int = 20
    """Most runs that wait in one project's queue; one more is refused."""
    api_requests_per_minute: int = 6000
    """Requests a minute that one token may send to the API, counted in each web process; ten times as many from one
    network address. 0: no limit.
    """
    webhook_hosts: str = ""
    """Hosts, with commas between them, that webhooks may reach although their addresses are not public."""
    log_format: Literal["text", "json"] = "text"
    """`json`: each line of the log is an object, for programs that gather logs."""
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    """`info`: one line a request. `debug`: exceptions with their words, which may hold what people wrote."""
    metrics_token: str = ""
    """Secret for `/metrics`; without it only this machine may ask, and only while the site is on it alone."""
    max_body_bytes: int = 64 * 1024 * 1024
    """Largest body of a request, uploads included."""

    smtp_host: str = ""
    """Mail server for one-time links to people who forgot their password; without one, owners of the site make them."""
    smtp_port: int = 587
    """Port of the mail server."""
    smtp_security: Literal["starttls", "tls", "none"] = "starttls"
    """How the connection to the mail server is encrypted."""
    smtp_user: str = ""
    """Name at the mail server, where it asks for one."""
    smtp_password: str = ""
    """Password at the mail server."""
    mail_from: str = "rankloop@localhost"
    """Sender of mails."""
    oidc_issuer: str = ""
    """OpenID Connect provider, by the address below which `/.well-known/openid-configuration` lies."""
    oidc_client_id: str = ""
    """Name under which the provider knows this site; it sends people back to `/sign-in/provider/back`."""
    oidc_client_secret: str = ""
    """Secret that the provider gave to this site."""
    oidc_name: str = "OpenID"
    """What the button to the provider says."""

    def require_database_url(self) -> str:
        """The database's address.

        Raises:
            ValueError: none is set.
        """
        url = self.database_url or os.environ.get("DATABASE_URL")
        if not url:
            raise ValueError(
                "No database is named. Set DATABASE_URL, or use `rankloop up`, which starts a PostgreSQL of its own."
            )
        return url

    @property
    def artifacts_dir(self) -> Path:
        """Where the files of runs and versions are kept."""
        return self.data_dir / "artifacts"

    def at_known_address(self) -> Settings:
        """The same, with the address at which the app last listened in this data folder, unless one is set."""
        file = address_file(self.data_dir)
        if "public_url" in self.model_fields_set or not file.is_file():
            return self
        return self.model_copy(update={"public_url": file.read_text(encoding="utf-8").strip()})

    @property
    def base_path(self) -> str:
        """The path below which the site lies, without a slash at its end; empty where it has a host of its own."""
        return urlsplit(self.public_url).path.rstrip("/")

    @property
    def has_secure_cookies(self) -> bool:
        """Whether cookies are sent over https only."""
        return self.public_url.startswith("https://")


def address_file(data_dir: Path) -> Path:
    """Where `rankloop up` writes how people reach the app, for commands that print links."""
    return data_dir / "address"
