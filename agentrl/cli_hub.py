"""The command `agentrl push`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from agentrl.config_data import HubConfig


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("push", short_help="Push a run's model to the Hugging Face Hub.")(push_command)


def _option(declared: str, metavar: str, text: str) -> Any:
    return typer.Option(declared, metavar=metavar, help=text, show_default=False)


def push_command(
    run: Annotated[Path, typer.Argument(metavar="RUNDIR", help="A run folder, or a folder with a model.", show_default=False)],
    repo: Annotated[str | None, _option("--repo", "OWNER/NAME", "Where to.  [default: the run file's hub.repo]")] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a new repository.  [default: private]", show_default=False)
    ] = None,
    token_env: Annotated[str | None, _option("--token-env", "VARIABLE", "Holds the token.  [default: HF_TOKEN]")] = None,
    message: Annotated[str | None, _option("--message", "TEXT", "Of the commit.")] = None,
    timeout_s: Annotated[float | None, _option("--timeout", "SECONDS", "Longest wait for the Hub.  [default: 3600]")] = None,
) -> None:
    """Push the model of a finished run, with its card, to the Hugging Face Hub.

    \b
    agentrl push runs/RUN --repo me/my-model
    """  # noqa: D301  # \b keeps the lines apart
    from agentrl import hub
    from agentrl.cli import exit_status
    from agentrl.model_card import ensure_card

    with exit_status():
        folder, given = model_folder(run), _hub_of(run)
        target = repo or (given.repo if given else None)
        if target is None:
            raise ConfigError(f"no repository: give --repo OWNER/NAME, or name one in the run file (hub.repo) of {run}")
        hub.check_repo(target, "--repo" if repo else "hub.repo")
        if folder != run:
            ensure_card(run)
        done = hub.push(
            folder,
            target,
            private=(given.private if given else True) if private is None else private,
            message=message or "Model trained with agentrl",
            log=run / "logs" / "push.log" if folder != run else run.parent / f"{run.name}-push.log",
            token_env=token_env or (given.token_env if given else "HF_TOKEN"),
            timeout_s=timeout_s or (given.timeout_s if given else 3600.0),
        )
        typer.echo(f"{done.url} (commit {done.commit[:12]})")


def model_folder(run: Path) -> Path:
    """The folder of a run that holds its model, or the folder itself where it is a model. Raises `ConfigError` where there is none."""
    if (run / "config.yaml").is_file():
        if not (run / "model" / "config.json").is_file():
            raise ConfigError(f"{run} has no final model yet: go on with it to its end (agentrl train --resume {run}), then push")
        return run / "model"
    if not (run / "config.json").is_file():
        raise ConfigError(f"{run} is neither a run folder (it has no config.yaml) nor a model (it has no config.json)")
    return run


def _hub_of(run: Path) -> HubConfig | None:
    """What the run file says of the Hub."""
    if not (run / "config.yaml").is_file():
        return None
    from agentrl import runfile

    return runfile.load(run / "config.yaml").hub
