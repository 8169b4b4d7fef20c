"""The command `agentrl merge`: an adapter and its base as one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Adapter = Annotated[str, typer.Argument(metavar="ADAPTER", help="A folder with an adapter, as peft saves it.", show_default=False)]
Output = Annotated[Path, typer.Option("--output", metavar="DIR", help="Where the merged model goes.", show_default=False)]
Model = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="The base.  [default: the one that the adapter names]")]
Dtype = Annotated[Literal["float32", "bfloat16", "float16"] | None, typer.Option("--dtype", help="Of the weights.  [default: the base's]")]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("merge", short_help="Merge an adapter into its base.")(merge)


def merge(adapter: Adapter, output: Output, model: Model = None, dtype: Dtype = None) -> None:
    """Merge a LoRA, rsLoRA or DoRA adapter into the model that it was trained on."""
    from agentrl.cli import exit_status

    with exit_status():
        from transformers import logging

        from agentrl.learner.merge import merge as merged
        from agentrl.session import resolve_model

        logging.disable_progress_bar()
        base = merged(adapter, output, model=resolve_model(model) if model else None, dtype=dtype)
        typer.echo(f"{output}: {base} with the adapter {adapter} merged")
