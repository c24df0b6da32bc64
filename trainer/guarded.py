"""What keeps a connection to a model server from the addresses at which clouds tell a machine's secrets.

The list of models refuses them as they are written (`trainer.settings.is_of_the_cloud`); a name is looked up here, each
time that a connection is made. As a name can answer otherwise a second time, the connection itself is asked as well
where it leads, before anything is said on it.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from trainer.settings import is_of_the_cloud


class AddressRefused(Exception):
    """A name leads to where clouds tell secrets."""


def refuse_secrets(event: str, facts: Mapping[str, Any]) -> None:
    """A request's extension `trace`, which hears of each step of a connection.

    Raises:
        AddressRefused: this one would lead, or leads, to link-local addresses.
    """
    if event.endswith("connect_tcp.started"):
        refuse_any(facts["host"], addresses_of(facts["host"], facts["port"]))
    elif event.endswith("connect_tcp.complete"):
        stream = facts["return_value"]
        try:
            refuse_any("The connection", [stream.get_extra_info("server_addr")[0]])
        except AddressRefused:
            stream.close()
            raise


def addresses_of(host: str, port: int) -> list[str]:
    """What a name stands for at this moment; nothing where it is unknown, which connecting tells better."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return []


def refuse_any(what: str, addresses: list[str]) -> None:
    """AddressRefused if one of them is a cloud's."""
    for address in filter(is_of_the_cloud, addresses):
        raise AddressRefused(f"{what} leads to {address}, a link-local address: there clouds tell a machine's secrets.")
