"""Mail: one plain text to one person, by the server in the settings."""

from __future__ import annotations

import asyncio
import logging
import smtplib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage

from app.config import Settings

SECONDS_TO_ANSWER = 20
log = logging.getLogger(__name__)


async def send(settings: Settings, *, to: str, subject: str, text: str) -> None:
    """Send a mail. What goes wrong is in the log: who asked for it must not learn whether the address is known."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = settings.mail_from, to, subject
    message.set_content(text)
    try:
        await asyncio.to_thread(_deliver, settings, message)
    except (OSError, smtplib.SMTPException) as error:
        log.error("a mail could not be sent by %s: %s", settings.smtp_host, type(error).__name__)  # noqa: TRY400


def _deliver(settings: Settings, message: EmailMessage) -> None:
    with connect(settings, seconds=SECONDS_TO_ANSWER) as server:
        server.send_message(message)


@contextmanager
def connect(settings: Settings, *, seconds: float) -> Iterator[smtplib.SMTP]:
    """The mail server, encrypted and signed in to as the settings say.

    Raises:
        OSError, SMTPException: it does not answer, or does not let us in.
    """
    tls = ssl.create_default_context()
    place = (settings.smtp_host, settings.smtp_port)
    if settings.smtp_security == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(*place, timeout=seconds, context=tls)
    else:
        server = smtplib.SMTP(*place, timeout=seconds)
    with server:
        if settings.smtp_security == "starttls":
            server.starttls(context=tls)
        if settings.smtp_user:
            server.login(settings.smtp_user, settings.smtp_password)
        yield server
