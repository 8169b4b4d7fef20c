"""HTTP servers of our own, from the address to the end: hypercorn under trio, until Ctrl-C or a signal."""

from __future__ import annotations

import importlib.metadata
import resource
import signal
import socket
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import trio
from starlette.responses import PlainTextResponse

from agentrl.errors import ConfigError
from agentrl.servers.http_guard import BODY_S, BodyTooSlow, whole_body

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

KEEP_ALIVE_S = 120.0
"""An idle connection is kept for so long."""
LISTENERS = 16
"""On the one socket: each takes one connection a pass of the event loop, and some hundred clients that come at once would wait for long."""
MOST_FILES = 16_384
"""Open at once: two for each connection, and some."""


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


@contextmanager
def listening(host: str, port: int) -> Iterator[tuple[socket.socket, str]]:
    """A socket that listens while the block lasts, and the URL that clients find it at; many may connect. Raises `ConfigError`."""
    with listening_socket(host, port) as sock:
        allow_connections()
        yield sock, url_of(host, sock)


def allow_connections() -> None:
    """Raise this process's limit of open files, which counts connections too, where it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # macOS refuses more than a limit of the kernel's own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def health(request: Request) -> Response:
    """The answer of /health: 200 while the server lives, for everybody."""
    return PlainTextResponse("ok")


def version() -> str:
    """Of this agentrl, for clients to see."""
    try:
        return importlib.metadata.version("agentrl")
    except importlib.metadata.PackageNotFoundError:
        return "from a checkout"


async def read_body(request: Request, most_bytes: int, most_s: float = BODY_S) -> bytearray:
    """A request's body. Raises `BodyTooLong`, `BodyTooSlow`, and starlette's `ClientDisconnect`."""
    with trio.move_on_after(most_s):
        return await whole_body(request, most_bytes)
    raise BodyTooSlow(most_s)


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
