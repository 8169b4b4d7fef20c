"""How a sandbox is opened: by the name of its kind, or by the address of a server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from agentrl.errors import ConfigError
from agentrl.servers.sandbox.limits import Limits, SandboxUnavailable

if TYPE_CHECKING:
    from agentrl.servers.sandbox.limits import Sandbox
    from agentrl.servers.sandbox.view import Packages

KINDS = ("bubblewrap", "unsafe-subprocess")


def open_sandbox(kind: str = "bubblewrap", *, limits: Limits | None = None, packages: Packages = ()) -> Sandbox:
    """Open a sandbox; nothing ever stands in for the kind that was asked for.

    Raises `SandboxUnavailable` where this kind cannot be had, and `ConfigError` for a kind that does not exist.

    Args:
        kind: `bubblewrap`; `http://host:port` of a machine that runs `agentrl serve-sandbox`; or `unsafe-subprocess`, which isolates
            nothing: a program there may do whatever you may do.
        limits: of a program that is given none.
        packages: Python distributions that programs can import beside the standard library, each with those that it needs, or `"all"`.
    """
    limits = limits or Limits()
    if kind.startswith(("http://", "https://")):
        from agentrl.servers.sandbox.client import RemoteSandbox

        return RemoteSandbox(kind, limits=limits, packages=packages)
    if kind not in KINDS:
        raise ConfigError(f"there is no sandbox of the kind {kind!r}; there are {', '.join(KINDS)} and http://HOST:PORT")
    if sys.platform != "linux":
        raise SandboxUnavailable(f"a sandbox on this machine needs Linux, and this is {sys.platform}; open one over HTTP: http://HOST:PORT")
    from agentrl.servers.sandbox import local

    return local.open_bubblewrap(limits, packages) if kind == "bubblewrap" else local.open_unconfined(limits)
