"""Images that a client names by address: fetched only from hosts that are listed, and only at public addresses.

A name is resolved once per request, every address it has is checked, and the connection goes to the address that was checked.
So a name that resolves to another address a moment later (DNS rebinding) gains nothing. Redirects are checked like the first
address.
"""

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from urllib.parse import urljoin, urlsplit

from generalist.serve.errors import wrong

REDIRECTS = 3
SECONDS = 10.0
"""For the whole of an image, redirects included."""


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None) or found
    return mapped.is_global and not mapped.is_multicast


def fetch(
    url: str, where: str, hosts: tuple[str, ...], largest: int, allowed: Callable[[str], bool] = is_public
) -> bytes:
    """The bytes at an address.

    Args:
        where: the field of the request, for messages.
        hosts: names that may be asked, as `example.org` or `example.org:8080`.
        largest: bytes that it may have.
        allowed: which numeric addresses may be connected to.

    Raises:
        ApiError: the host is not listed, its address is not public, or there is no such image.
    """
    end = time.monotonic() + SECONDS
    for _ in range(REDIRECTS + 1):
        try:
            found = _once(url, where, hosts, largest, allowed, end)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise wrong(where, "the image cannot be fetched", "invalid_image_url") from error
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise wrong(where, f"the image is behind more than {REDIRECTS} redirects", "invalid_image_url")


def _once(
    url: str, where: str, hosts: tuple[str, ...], largest: int, allowed: Callable[[str], bool], end: float
) -> bytes | str:
    """The bytes, or the address that it redirects to."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = (parts.hostname or "").lower()
    known = host in hosts or f"{host}:{port}" in hosts
    if parts.scheme not in ("http", "https") or parts.username is not None or parts.password is not None or not known:
        raise wrong(
            where, "images are not fetched from there: send it as data:image/png;base64,...", "invalid_image_url"
        )
    addresses = [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not addresses or not all(allowed(address) for address in addresses):
        raise wrong(where, "the host's address is not a public one", "invalid_image_url")
    connection = socket.create_connection((addresses[0], port), timeout=max(0.1, end - time.monotonic()))
    if parts.scheme == "https":
        connection = ssl.create_default_context().wrap_socket(connection, server_hostname=host)
    client = http.client.HTTPConnection(host, port)
    client.sock = connection  # already connected, to the address that was checked
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        client.request("GET", path, headers={"Accept": "image/*", "User-Agent": "generalist", "Connection": "close"})
        answer = client.getresponse()
        if answer.status in (301, 302, 303, 307, 308):
            return answer.headers.get("Location", "")
        if answer.status != 200:
            raise wrong(where, f"the host answers with the status {answer.status}", "invalid_image_url")
        content = bytearray()
        while block := answer.read1(1 << 16):
            content += block
            if len(content) > largest:
                raise wrong(where, f"has more than the {largest:,} bytes that an image may have", "too_large")
            if time.monotonic() > end:
                raise wrong(where, "takes too long to fetch", "invalid_image_url")
        return bytes(content)
    finally:
        client.close()
