"""Where webhooks may go: nowhere inside the operator's own network, unless a setting says so."""

import asyncio
import ipaddress
import socket

import httpx2

from core.errors import InvalidRequestError

#: Addresses that stand for an IPv4 address behind a translator (RFC 6052), which may well be a private one.
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class TargetRefusedError(Exception):
    """The host's name leads to an address that is not public."""


def is_public(address: IPAddress) -> bool:
    """Whether an address belongs to the public Internet, and does not hide one that doesn't."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _TRANSLATED or address.teredo is not None or address.is_site_local:
            return False
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


def check_url(url: str, *, private_allowed: bool) -> str:
    """The URL, if a webhook may be sent there as far as the text shows. Raises InvalidRequestError."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise _refused(f"'{url:.80}' is no URL: {error}.") from None
    if parsed.scheme not in ({"https", "http"} if private_allowed else {"https"}):
        raise _refused("A webhook's URL begins with https://.")
    if not parsed.host or parsed.userinfo or parsed.fragment:
        raise _refused("A webhook's URL has a host, and neither a user, a password nor a fragment.")
    if "%" in parsed.host or not 1 <= (parsed.port or 443) <= 65_535:  # "%": a character that no host's name has
        raise _refused(f"'{url:.80}' names no host and port that could be connected to.")
    if not private_allowed and _names_private_host(parsed.host):
        raise _refused(f"'{parsed.host:.80}' is not a public address. Webhooks go to public addresses only.")
    return url


def _refused(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, param="url", code="invalid_url")


def _names_private_host(host: str) -> bool:
    try:
        return not is_public(ipaddress.ip_address(host))
    except ValueError:
        return host.rstrip(".") == "localhost" or host.rstrip(".").endswith(".localhost")


async def resolve(host: str, port: int, *, private_allowed: bool) -> list[str]:
    """The addresses to connect to. Raises TargetRefusedError if one is not public, OSError if there are none.

    The caller connects to these very addresses: a name that is looked up a second time may lead elsewhere.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # "%eth0" names the interface of a link-local address.
    addresses = [ipaddress.ip_address(str(socket_address[0]).split("%")[0]) for *_, socket_address in found]
    if not private_allowed and not all(is_public(address) for address in addresses):
        raise TargetRefusedError(f"{host} leads to an address that is not public")
    return list(dict.fromkeys(str(address) for address in addresses))
