"""The command `agentrl data`: look at a dataset as a run would, before one is started."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from agentrl.config import RunConfig
    from agentrl.data.check import DataReport

FAULTY = 2
"""Exit status where rows are wrong, as of any other wrong configuration."""
ROWS = 3


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    data = typer.Typer(help="Look at datasets.", no_args_is_help=True, rich_markup_mode=None)
    data.callback()(_commands)
    data.command("check")(check)
    app.add_typer(data, name="data")


def _commands() -> None:
    """Look at datasets."""


def _option(declared: str, metavar: str, text: str) -> Any:
    return typer.Option(declared, metavar=metavar, help=text, show_default=False)


def check(
    dataset: Annotated[
        str, typer.Argument(metavar="FILE", help="A file, a folder or a Hub name: PATH?split=train[:1000].", show_default=False)
    ],
    model: Annotated[str | None, _option("--model", "MODEL", "Whose tokenizer and chat template to use; none checks rows alone.")] = None,
    objective: Annotated[str | None, _option("--objective", "NAME", "What is to learn from it.  [default: by the schema]")] = None,
    overrides: Annotated[
        list[str] | None, _option("--set", "KEY=VALUE", "A key of the run file, such as data.max_length=512; can be repeated.")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, metavar="N", help="Rows to show.")] = ROWS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a run would make of a dataset: schema, rows as they are trained, lengths, what is left out, faults.

    Exits with 2 where rows are wrong.

    \b
    agentrl data check train.jsonl
    agentrl data check train.jsonl --model quickstart --set data.assistant_only=true
    """  # noqa: D301  # \b keeps the lines apart
    from agentrl.cli import exit_status

    with exit_status():
        report = _report(dataset, model, objective, overrides or [], rows)
        _print(report, as_json=as_json)
        if report.faulty:
            raise typer.Exit(FAULTY)


def _report(dataset: str, model: str | None, objective: str | None, overrides: list[str], rows: int) -> DataReport:
    from agentrl import objectives, runfile
    from agentrl.data.check import check_dataset
    from agentrl.data.sources import open_rows
    from agentrl.errors import ConfigError

    flags = {"dataset": dataset, "model": model or "quickstart", "objective": objective or "sft"}
    config = runfile.load(None, overrides, flags)
    kind = objectives.get(config.objective["name"]).data
    if kind is None:
        raise ConfigError(f"--objective {config.objective['name']}: it learns from rollouts, and not from the rows of a dataset")
    return check_dataset(
        open_rows(dataset),
        config.data,
        name=dataset,
        kind=kind if objective else None,
        shown=rows,
        **_of_model(model, config),
    )


def _of_model(model: str | None, config: RunConfig) -> dict[str, Any]:
    if model is None:
        return {}
    from agentrl.data.limits import limits_of
    from agentrl.rollout.tokenizer import load_tokenizer
    from agentrl.session import resolve_model

    folder = resolve_model(config.model)
    return {"tokenizer": load_tokenizer(folder), **limits_of(folder)}


def _print(report: DataReport, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report), indent=2))
        return
    from rich.console import Console

    from agentrl.data.check_view import laid_out

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    for part in laid_out(report, colours=console.color_system is not None):
        console.print(part)
