"""The command `agentrl serve-sandbox`."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve-sandbox", short_help="Serve sandboxes to environments on other machines.")(serve_sandbox)


def serve_sandbox(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where it listens; 0 takes a free port.")] = 8200,
    host: Annotated[str, typer.Option(help="Beyond this machine it takes a key, in AGENTRL_SANDBOX_API_KEY.")] = "127.0.0.1",
    kind: Annotated[str, typer.Option(help="bubblewrap, or unsafe-subprocess, which isolates nothing.")] = "bubblewrap",
    max_sandboxes: Annotated[int, typer.Option(min=1, metavar="N", help="At once.")] = 64,
    idle_timeout: Annotated[float, typer.Option(min=0.1, metavar="S", help="Close a sandbox that nobody asks for so long.")] = 600.0,
) -> None:
    """Serve sandboxes over HTTP; Ctrl-C ends it.

    \b
    agentrl serve-sandbox --port 8200
    agentrl.servers.sandbox.open_sandbox("http://127.0.0.1:8200")
    """  # noqa: D301  # \b keeps the lines apart
    from agentrl.cli import exit_status

    with exit_status():
        server: Any = importlib.import_module("agentrl.servers.sandbox.serve")  # by name, as everything in servers/
        options = server.Options(host=host, port=port, kind=kind, most_sandboxes=max_sandboxes, idle_s=idle_timeout)
        server.serve(options, say=typer.echo)
