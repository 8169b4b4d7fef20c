"""The command `agentrl env test`."""

from __future__ import annotations

from typing import Annotated

import typer

FAILED = 1

Names = Annotated[
    list[str] | None,
    typer.Option("--policy", metavar="NAME", help="Another policy that the environment asks; can be repeated.", show_default=False),
]
Imports = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="FILE", help="A file or module to import first; can be repeated.", show_default=False),
]


def add_to(app: typer.Typer) -> None:
    """Add the command to those about environments."""
    app.command("test", short_help="Try to break an environment.")(env_test)


def env_test(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="NAME?arg=value, file.py:Name or package.module:Name.", show_default=False)],
    num_tasks: Annotated[int, typer.Option(min=1, metavar="N", help="Tasks to play.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, metavar="S", help="Deadline of each start, tool call, reply and score.")] = 30.0,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of play by chance.")] = 0,
    policies: Names = None,
    imports: Imports = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Try to break an environment before a model is trained in it: no model is needed.

    Exit status: 0 nothing failed, 1 a check failed, 2 the spec is wrong.

    \b
    agentrl env test lookup
    agentrl env test my_env.py:MyEnv --num-tasks 16 --json
    """  # noqa: D301  # \b keeps the lines apart
    from rich.console import Console

    from agentrl.cli import exit_status
    from agentrl.env_kit import report
    from agentrl.env_test import Options, try_environment

    with exit_status():
        options = Options(num_tasks=num_tasks, timeout_s=timeout, seed=seed, policies=tuple(policies or ()), imports=tuple(imports or ()))
        errors = Console(stderr=True)
        with errors.status("tasks") as status:
            found = try_environment(spec, options, on_check=status.update)
        if as_json:
            typer.echo(report.in_json(found))
        else:
            console = Console(highlight=False, markup=False, emoji=False)
            for part in report.laid_out(found, console.width):
                console.print(part)
        if not found.ok:
            raise typer.Exit(FAILED)
