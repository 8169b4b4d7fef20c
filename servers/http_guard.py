"""What HTTP servers of ours let in: who has the key, calls the server by a name of its own, and sends no more than it reads.

No event loop is chosen here, so that servers under trio and under asyncio share it.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from contextlib import aclosing
from typing import TYPE_CHECKING

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

BODY_S = 60.0
"""Longest time for a request's body to arrive."""


class BodyTooLong(Exception):
    """A request holds more than the server reads."""


class BodyTooSlow(Exception):
    """A request's body did not arrive in time."""

    def __init__(self, most_s: float) -> None:
        super().__init__(f"the request did not arrive within {most_s:g} s")


def checked_key(host: str, variable: str, danger: str, environ: Mapping[str, str]) -> str:
    """The API key of a server; empty for none. Raises `ConfigError` where there must be one.

    Args:
        host: where it will listen.
        variable: of the environment, that holds the key.
        danger: what those who reach the server could do, for the message.
        environ: the environment.
    """
    key = environ.get(variable, "")
    if not key and not is_loopback(host):
        raise ConfigError(
            f"host {host} can be reached from other machines, and whoever reaches the server can {danger}: set {variable} to a secret here "
            "and where clients run, or leave the host at 127.0.0.1"
        )
    if not key.isascii() or not key.isprintable() or key != key.strip():
        raise ConfigError(f"{variable} may hold printable ASCII characters only, without white space around them")
    return key


def has_key(request: Request, key: str) -> bool:
    """Whether a request brings the key; compared in constant time."""
    given = request.headers.get("authorization", "")
    return not key or hmac.compare_digest(given.encode("utf-8", "replace"), f"Bearer {key}".encode())


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def denial(request: Request, key: str, variable: str) -> str:
    """Why a request is not let in, in a sentence; empty for one that is.

    A server without a key listens on this machine alone, where a page in a browser reaches it too, under a name that its own server has had
    resolved to this machine. Such a request bears that name as its Host.

    Args:
        request: of which only the headers are read.
        key: that it must bring; empty for none.
        variable: of the environment, that holds the key.
    """
    if not has_key(request, key):
        got = "a wrong key" if "authorization" in request.headers else "no key"
        return f"this server asks for an API key and got {got}; set {variable} to the server's where the run starts"
    if not key and not is_loopback(name := _host_name(request)):
        return f"without a key this server must be called localhost or 127.0.0.1, and not {name!r:.80}; or set {variable} on both sides"
    return ""


def _host_name(request: Request) -> str:
    """The name in the Host that came; no browser leaves it out. Not `request.url`, which for odd names has the server's own address."""
    host = request.headers.get("host", "localhost").lower()
    named = re.fullmatch(r"(\[[0-9a-f:]+\]|[^:]+)(:[0-9]*)?", host)
    return named[1] if named else host


async def whole_body(request: Request, most_bytes: int) -> bytearray:
    """A request's body. Raises `BodyTooLong`, and starlette's `ClientDisconnect`. The deadline is the caller's."""
    body = bytearray()
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > most_bytes:
                raise BodyTooLong(f"a request may hold {most_bytes} bytes, and this one is longer")
    return body
