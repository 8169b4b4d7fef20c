"""The command `agentrl serve-env`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer


def add_to(app: typer.Typer, start: Callable[..., None] | None = None) -> None:
    """Add the command; `start` is called with its flags."""
    app.command("serve-env", short_help="Serve an environment to runs on other machines.")(_command(start or _start))


def _command(start: Callable[..., None]) -> Callable[..., None]:
    def serve_env(
        spec: Annotated[
            str, typer.Argument(metavar="SPEC", help="NAME?arg=value, file.py:Name or package.module:Name.", show_default=False)
        ],
        port: Annotated[int, typer.Option(min=0, max=65535, help="Where it listens; 0 takes a free port.")] = 8100,
        host: Annotated[str, typer.Option(help="Beyond this machine it takes a key, in AGENTRL_ENV_API_KEY.")] = "127.0.0.1",
        workers: Annotated[
            int | None, typer.Option(min=1, metavar="N", help="Processes for episodes.  [default: one a core]", show_default=False)
        ] = None,
        max_sessions: Annotated[int, typer.Option(min=1, metavar="N", help="Episodes at once.")] = 1024,
        idle_timeout: Annotated[float, typer.Option(min=0.1, metavar="S", help="Close an episode that nobody asks for so long.")] = 600.0,
        tool_timeout: Annotated[float, typer.Option(min=0.1, metavar="S", help="Of one start, tool call or reply.")] = 25.0,
        score_timeout: Annotated[float, typer.Option(min=0.1, metavar="S", help="Of one score or comparison.")] = 25.0,
        max_body_mib: Annotated[int, typer.Option(min=1, metavar="MIB", help="Of one request.")] = 32,
        imports: Annotated[
            list[str] | None,
            typer.Option("--import", metavar="FILE", help="A file or module to import first; can be repeated.", show_default=False),
        ] = None,
        logs: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep what environments print.", show_default=False)] = None,
    ) -> None:
        """Serve an environment over HTTP; Ctrl-C ends it.

        \b
        agentrl serve-env lookup --port 8100
        agentrl train --env http://127.0.0.1:8100 --model quickstart --objective grpo
        """  # noqa: D301  # \b keeps the lines apart
        flags = dict(locals())  # the closure's variable too
        from agentrl.cli import exit_status

        with exit_status():
            start(**{name: value for name, value in flags.items() if name != "start"})

    return serve_env


def _start(**flags: Any) -> None:
    server: Any = importlib.import_module("agentrl.servers.env_server.serve")  # by name, as everything in servers/
    server.serve(server.options_from_flags(**flags), say=typer.echo)
