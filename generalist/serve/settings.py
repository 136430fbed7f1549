"""Settings of a server: where it listens, how much it does at once, and what it refuses."""

import dataclasses
import errno
import ipaddress
import socket

MIB = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What is refused, before anything is decoded. Every limit can be checked on bytes or headers alone."""

    body: int = 8 * MIB
    """Bytes of a request's body, and of a websocket message."""
    bodies: int = 32 * MIB
    """Bytes of all bodies that are being received."""
    image: int = 4 * MIB
    """Bytes of an encoded image."""
    pixels: int = 4_000_000
    """Pixels of an image, by its header."""
    images: int = 8
    """Images of a request."""
    messages: int = 128
    """Messages of a chat."""
    letters: int = 1 << 17
    """Characters of all texts of a request."""
    choices: int = 8
    """Texts that one request may ask for (`n`)."""
    stops: int = 4
    """Stop texts of a request, as in OpenAI's API."""
    stop_letters: int = 128
    """Characters of a stop text."""
    nesting: int = 12
    """Depth of lists and maps in a body."""
    values: int = 1 << 15
    """Values in a body."""
    header: int = 1 << 14
    """Bytes of the request line and all headers."""
    connections: int = 256
    """Connections at a time."""
    seconds: float = 20.0
    """Seconds in which a body must have come."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a server."""

    host: str = "127.0.0.1"
    """Address that it listens at."""
    port: int = 8000
    token: str | None = None
    """What every request must bring, on every route; needed wherever the address is not loopback."""
    origins: tuple[str, ...] = ()
    """Origins of web pages that may connect besides the server's own, such as `https://example.org`."""
    hosts: tuple[str, ...] = ()
    """Hosts from which images may be fetched; none: images come within the request."""
    name: str | None = None
    """Name of the model for clients; None: the name of the run."""
    lanes: int = 8
    """Texts that are written at a time."""
    sessions: int = 4
    """Agents that play at a time, for each shape of steps."""
    layouts: tuple[str, ...] = ("*",)
    """Patterns of the layouts that agents may play."""
    queue: int = 64
    """Texts that may wait for a lane."""
    deadline: float = 120.0
    """Seconds after which a text is given up."""
    patience_ms: float = 3.0
    """Milliseconds that an agent's step waits for those of others, to be computed together."""
    prefix: int = 64
    """Positions of an agent's instruction and the demonstrations that it is shown."""
    pieces: tuple[int, ...] = (16, 64)
    """Positions of the pieces in which prompts are read, rising."""
    grace: float = 30.0
    """Seconds in which answers that have begun may end after SIGTERM."""
    inspect: bool = False
    """Whether clients may ask what the model looks at (`/v1/inspect`)."""
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        for name, least in (("lanes", 1), ("sessions", 0), ("queue", 1), ("prefix", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("deadline", "grace"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0 seconds, got {getattr(self, name)}")
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"port must be from 0 to 65535, got {self.port}")
        if not self.pieces or any(one < 1 for one in self.pieces) or list(self.pieces) != sorted(set(self.pieces)):
            raise ValueError(f"pieces must be rising numbers from 1 up, got {self.pieces}")
        if not is_loopback(self.host) and self.token is None:
            raise ValueError(
                f"the address {self.host} can be reached from elsewhere: give a token (GENERALIST_TOKEN or --token-file), or "
                "listen at 127.0.0.1"
            )
        if self.token is not None and (
            len(self.token) < 16 or not self.token.isascii() or not self.token.isprintable()
        ):
            raise ValueError("a token must have at least 16 characters, all of them printable ASCII")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # another name may be any address


def check_free(host: str, port: int) -> None:
    """Checks that a server can listen at a port, before anything is loaded for it.

    Raises:
        OSError: another one does, or there is no such host.
    """
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        with socket.socket(family, kind, protocol) as tried:
            # As asyncio binds: what a server that has ended left behind (TIME_WAIT) is in nobody's way.
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                tried.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise OSError(f"port {port} at {host} is taken: name another with --port") from error
                # What else is wrong may be so of one of several addresses alone: asyncio decides.
