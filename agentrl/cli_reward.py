"""The command `agentrl serve-reward`."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve-reward", short_help="Serve a reward model to runs.")(serve_reward)


def _option(declared: str, metavar: str, text: str) -> Any:
    return typer.Option(declared, metavar=metavar, help=text, show_default=False)


def serve_reward(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder or a Hub name.", show_default=False)],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where it listens; 0 takes a free port.")] = 8300,
    host: Annotated[str, typer.Option(help="Beyond this machine it takes a key, in AGENTRL_REWARD_API_KEY.")] = "127.0.0.1",
    kind: Annotated[str | None, _option("--kind", "KIND", "outcome or process.  [default: by the model's architecture]")] = None,
    device: Annotated[str | None, _option("--device", "D", "cpu, cuda or cuda:N.  [default: CUDA where there is one]")] = None,
    dtype: Annotated[str | None, _option("--dtype", "T", "float32 or bfloat16.  [default: by the device]")] = None,
    max_length: Annotated[int | None, _option("--max-length", "N", "Tokens of a row; a longer one is refused.")] = None,
    tokens_per_batch: Annotated[int | None, _option("--tokens-per-batch", "N", "Of one forward.  [default: 16384]")] = None,
    label: Annotated[int | None, _option("--label", "N", "Whose logit counts, where the model has several labels.")] = None,
    split: Annotated[str | None, _option("--split", "TEXT", "Between two steps of a completion.  [default: an empty line]")] = None,
    separator: Annotated[str | None, _option("--separator", "TEXT", "What the model sees behind a step.  [default: a new line]")] = None,
    aggregate: Annotated[str | None, _option("--aggregate", "HOW", "min, mean, last or product of the steps.  [default: min]")] = None,
) -> None:
    """Serve a reward model over HTTP, a classifier of whole answers or of their steps; Ctrl-C ends it.

    \b
    agentrl serve-reward MODEL --port 8300
    curl localhost:8300/score -d '{"prompts": ["2+2="], "completions": ["4"]}'
    """  # noqa: D301  # \b keeps the lines apart
    given = {name: value for name, value in locals().items() if value is not None and name not in ("port", "host")}
    from agentrl.cli import exit_status

    with exit_status():
        server: Any = importlib.import_module("agentrl.servers.reward_server")  # by name, as everything in servers/
        server.serve(server.ServeOptions(reward=server.RewardOptions(**given), host=host, port=port), say=typer.echo)
