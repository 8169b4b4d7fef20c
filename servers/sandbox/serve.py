"""The body of `agentrl serve-sandbox`: a sandbox server at a terminal, from its start to its end."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from agentrl.errors import ConfigError
from agentrl.servers.http_guard import checked_key
from agentrl.servers.http_server import listen, listening, run_until_signalled
from agentrl.servers.sandbox.opening import KINDS, open_sandbox
from agentrl.servers.sandbox.protocol import KEY_VARIABLE
from agentrl.servers.sandbox.service import Service

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from agentrl.servers.sandbox.limits import Limits, Sandbox
    from agentrl.servers.sandbox.view import Packages


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a sandbox server gives, and where."""

    host: str = "127.0.0.1"
    port: int = 8200
    """0 takes a free one."""
    kind: str = "bubblewrap"
    most_sandboxes: int = 64
    """At once."""
    idle_s: float = 600.0
    """A sandbox that nobody asks for so long is closed."""


def serve(options: Options, *, say: Callable[[str], None]) -> None:
    """Serve until a signal ends it, which raises `KeyboardInterrupt`. Raises `ConfigError` and `SandboxUnavailable`.

    Args:
        options: what to serve.
        say: is given one line as soon as the server answers.
    """
    if options.kind not in KINDS:
        raise ConfigError(f"there is no sandbox of the kind {options.kind!r} to serve; there are {', '.join(KINDS)}")
    key = checked_key(options.host, KEY_VARIABLE, "run programs in its sandboxes", os.environ)
    if options.kind == "unsafe-subprocess" and not key:
        raise ConfigError(f"unsafe-subprocess lets whoever reaches the server do what you may do: set {KEY_VARIABLE}, on this machine too")
    with open_sandbox(options.kind) as trial:
        trial.run(["true"])  # a machine that has no sandboxes says so now
    with listening(options.host, options.port) as (sock, url):
        with_key = f", with {KEY_VARIABLE} set to the key" if key else ""
        line = f'{options.kind} sandboxes are served at {url}: open_sandbox("{url}"){with_key}'
        run_until_signalled(functools.partial(run, options, key, sock, lambda: say(line)))


async def run(options: Options, key: str, sock: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serve on a listening socket until it is cancelled; then every sandbox is closed.

    Args:
        options: what to serve.
        key: that clients must bring; empty for none.
        sock: stays open.
        on_ready: called as soon as the server answers.
    """

    def opener(limits: Limits, packages: Packages) -> Sandbox:
        return open_sandbox(options.kind, limits=limits, packages=packages)

    async with trio.open_nursery() as nursery:
        service = Service(nursery, opener, most_sandboxes=options.most_sandboxes, idle_s=options.idle_s, key=key)
        try:
            await nursery.start(listen, service.app(), sock)
            on_ready()
            await trio.sleep_forever()
        finally:
            await service.close()
