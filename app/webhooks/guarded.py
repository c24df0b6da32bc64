"""The one client that calls addresses which users gave, and what it refuses: everything that is not public.

The address is checked where the connection is made, on what the name stands for at that moment. A check of the URL
beforehand is not enough: a name can answer otherwise a second time, and a redirect can lead elsewhere (here none is
followed).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable, Mapping
from typing import Any

import httpcore2
from httpcore2 import AnyIOBackend, AsyncConnectionPool, AsyncNetworkBackend, AsyncNetworkStream

SECONDS = 10.0
TIMEOUT = {"connect": SECONDS, "read": SECONDS, "write": SECONDS, "pool": SECONDS}
MAX_ADDRESSES = 8
# All that is given out to hosts so far (RFC 4291). What lies outside can lead anywhere; is_global knows little of it.
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class AddressRefused(httpcore2.ConnectError):
    """This address is not public, and no setting allows it."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's: not loopback, private, link-local, multicast or reserved, and not
    one of those that stand for such an IPv4 address (mapped, 6to4, Teredo, NAT64).
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast
    inner = stands_for(ip)
    is_given_out = ip in GLOBAL_UNICAST and ip.is_global
    return (is_given_out or bool(inner)) and all(is_public(str(each)) for each in inner)


def stands_for(ip: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses that are reached by this one; most have none."""
    if ip in NAT64:
        return [ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)]
    return [each for each in (ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())) if each is not None]


class GuardedBackend(AsyncNetworkBackend):
    """Connects to public addresses, and to hosts that the operator named."""

    def __init__(self, allowed_hosts: Iterable[str] = ()) -> None:
        self._allowed = {host.lower() for host in allowed_hosts}
        self._backend = AnyIOBackend()

    async def connect_tcp(self, host: str, port: int, *args: Any, **options: Any) -> AsyncNetworkStream:
        """Connect to the first address of a host that answers, once all of them are known to be public.

        Raises:
            AddressRefused: one is not.
            ConnectError: the name is unknown, or nothing answers.
        """
        addresses = await self._resolve(host, port)
        if host.lower() not in self._allowed:
            refused = [address for address in addresses if not is_public(address)]
            if refused:
                raise AddressRefused(f"{host} leads to {refused[0]}, which is no public address")
        failure: Exception = httpcore2.ConnectError(f"{host} has no address")
        for address in addresses[:MAX_ADDRESSES]:
            try:
                return await self._backend.connect_tcp(address, port, *args, **options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def _resolve(self, host: str, port: int) -> list[str]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"{host} is not known: {error}") from error
        return list(dict.fromkeys(str(address[0]) for *_, address in found))

    async def connect_unix_socket(self, path: str, *args: Any, **options: Any) -> AsyncNetworkStream:
        """Never: sockets are of this machine.

        Raises:
            AddressRefused: always.
        """
        raise AddressRefused("a socket of this machine is no public address")

    async def sleep(self, seconds: float) -> None:
        """Wait between tries."""
        await asyncio.sleep(seconds)


async def post(
    url: str, body: bytes, headers: Mapping[bytes | str, bytes | str], *, allowed_hosts: Iterable[str] = ()
) -> int:
    """POST once, without following a redirect, and without reading what is answered; returns the status.

    Raises:
        httpcore2.ConnectError, httpcore2.TimeoutException and others of httpcore2: it could not be sent.
    """
    async with (
        AsyncConnectionPool(network_backend=GuardedBackend(allowed_hosts)) as pool,
        pool.stream("POST", url, headers=headers, content=body, extensions={"timeout": TIMEOUT}) as response,
    ):
        return response.status
