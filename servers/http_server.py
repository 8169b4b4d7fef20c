"""HTTP servers of our own, from the address to the end: hypercorn under trio, until Ctrl-C or a signal."""

from __future__ import annotations

import hmac
import ipaddress
import signal
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import trio

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.applications import Starlette
    from starlette.requests import Request

KEEP_ALIVE_S = 120.0
"""An idle connection is kept for so long."""
LISTENERS = 16
"""On the one socket: each takes one connection a pass of the event loop, and some hundred clients that come at once would wait for long."""


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


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one. Raises `ConfigError`."""
    if not 0 <= port <= 65535:  # create_server would forget its socket
        raise ConfigError(f"cannot listen on port {port}: ports are 0 (a free one) to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}, port {port}: {error}; choose another --port or --host") from None


def url_of(host: str, sock: socket.socket) -> str:
    """Where clients find a server."""
    name = socket.gethostname() if host in ("0.0.0.0", "::", "") else host.strip("[]")
    return f"http://{f'[{name}]' if ':' in name else name}:{sock.getsockname()[1]}"


async def listen(app: Starlette, sock: socket.socket, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED) -> None:
    """Answer on a socket, which stays open, until it is cancelled."""
    import hypercorn.trio
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"fd://{sock.dup().detach()}" for _ in range(LISTENERS)]
    config.backlog = 1024
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.keep_alive_max_requests = 1 << 62
    config.graceful_timeout = 0
    config.loglevel = "WARNING"
    mode: Literal["asgi"] = "asgi"
    framework: Any = app
    await hypercorn.trio.serve(framework, config, mode=mode, shutdown_trigger=trio.sleep_forever, task_status=task_status)


def run_until_signalled(serve: Callable[[], Awaitable[None]]) -> None:
    """Run a server under trio until SIGINT, SIGTERM or SIGHUP ends it, then raise `KeyboardInterrupt`."""
    trio.run(partial(_until_signalled, serve))
    raise KeyboardInterrupt


async def _until_signalled(serve: Callable[[], Awaitable[None]]) -> None:
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(_cancel_on_signal, nursery.cancel_scope)
            await serve()
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from None  # such as the `ConfigError` of a server that cannot start


async def _cancel_on_signal(scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup has it ignored
        numbers.append(signal.SIGHUP)
    with trio.open_signal_receiver(*numbers) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()
